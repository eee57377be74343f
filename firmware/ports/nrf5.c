/* nrf5.c - nRF51 and nRF52: the UART without DMA, which both have at the same place, on pins that board.mk names; the
 * cycle counter, or TIMER0 where there is none (the nRF51 has no SysTick either); flash for updates.  nRF51 RM v3.0: 6
 * NVMC, 13 CLOCK, 14 GPIO, 18 TIMER, 28 UART; nRF52840 PS v1.1: 4.3, 5.4, 6.9, 6.30, 6.33. */
#include "board.h"

#include "stw_bytes.h"

#if __ARM_ARCH >= 7
#include "cycles.h"
#define HAS_CYCLES 1
#else
#define HAS_CYCLES 0
#endif

#define PIN_TXD BOARD_UART_TX_PIN
#define PIN_RXD BOARD_UART_RX_PIN
#define WAIT    1000000u /* polls of a clock that never starts: go on with the RC oscillator */

#define CLOCK_HFCLKSTART   BOARD_REG(0x40000000u)
#define CLOCK_HFCLKSTARTED BOARD_REG(0x40000100u)
#define GPIO_OUTSET        BOARD_REG(0x50000508u)
#define GPIO_PIN_CNF(pin)  BOARD_REG(0x50000700u + 4u * (pin))
#define UART_STARTRX       BOARD_REG(BOARD_UART_BASE + 0x000u)
#define UART_STARTTX       BOARD_REG(BOARD_UART_BASE + 0x008u)
#define UART_RXDRDY        BOARD_REG(BOARD_UART_BASE + 0x108u)
#define UART_TXDRDY        BOARD_REG(BOARD_UART_BASE + 0x11Cu)
#define UART_ENABLE        BOARD_REG(BOARD_UART_BASE + 0x500u)
#define UART_PSELTXD       BOARD_REG(BOARD_UART_BASE + 0x50Cu)
#define UART_PSELRXD       BOARD_REG(BOARD_UART_BASE + 0x514u)
#define UART_RXD           BOARD_REG(BOARD_UART_BASE + 0x518u)
#define UART_TXD           BOARD_REG(BOARD_UART_BASE + 0x51Cu)
#define UART_BAUDRATE      BOARD_REG(BOARD_UART_BASE + 0x524u)
#define TIMER_START        BOARD_REG(BOARD_TIMER_BASE + 0x000u)
#define TIMER_CAPTURE      BOARD_REG(BOARD_TIMER_BASE + 0x040u)
#define TIMER_BITMODE      BOARD_REG(BOARD_TIMER_BASE + 0x508u)
#define TIMER_PRESCALER    BOARD_REG(BOARD_TIMER_BASE + 0x510u)
#define TIMER_CC           BOARD_REG(BOARD_TIMER_BASE + 0x540u)

/* The register takes baud * 2^32 / 16 MHz, rounded to a multiple of 4096. */
#define BAUDRATE ((uint32_t)((((uint64_t)BOARD_UART_BAUD << 32) / 16000000u + 2048u) & ~(uint64_t)4095u))

static void init_clock(void)
{
    CLOCK_HFCLKSTARTED = 0;
    CLOCK_HFCLKSTART   = 1;
    for (uint32_t i = 0; i < WAIT && CLOCK_HFCLKSTARTED == 0; i++) {
    }
}

static void init_uart(void)
{
    GPIO_OUTSET           = 1u << PIN_TXD; /* idle line is high */
    GPIO_PIN_CNF(PIN_TXD) = 3u;            /* output */
    GPIO_PIN_CNF(PIN_RXD) = 0u;            /* input */
    UART_PSELTXD          = PIN_TXD;
    UART_PSELRXD          = PIN_RXD;
    UART_BAUDRATE         = BAUDRATE;
    UART_ENABLE           = 4u;
    UART_RXDRDY           = 0;
    UART_TXDRDY           = 0;
    UART_STARTTX          = 1;
    UART_STARTRX          = 1;
}

void board_init(void)
{
    init_clock();
    init_uart();
#if HAS_CYCLES
    (void)cycles_start();
#else
    TIMER_BITMODE   = 3u; /* 32 bits */
    TIMER_PRESCALER = 0u; /* 16 MHz */
    TIMER_START     = 1u;
#endif
}

int board_getc(void)
{
    if (UART_RXDRDY == 0) {
        return -1;
    }
    UART_RXDRDY = 0; /* before the read: it makes room in the FIFO, and the next byte raises the event again */
    return (int)(UART_RXD & 0xFFu);
}

void board_putc(uint8_t byte)
{
    UART_TXD = byte;
    while (UART_TXDRDY == 0) {
    }
    UART_TXDRDY = 0;
}

uint32_t board_ticks(void)
{
#if HAS_CYCLES
    return CYCLES_COUNT;
#else
    TIMER_CAPTURE   = 1u;
    return TIMER_CC;
#endif
}

uint32_t board_ticks_hz(void)
{
    return HAS_CYCLES ? BOARD_CPU_HZ : BOARD_TIMER_HZ;
}

uint32_t board_cpu_hz(void)
{
    return BOARD_CPU_HZ;
}

#if BOARD_UPDATE_BYTES

#define NVMC_READY     BOARD_REG(0x4001E400u)
#define NVMC_CONFIG    BOARD_REG(0x4001E504u)
#define NVMC_ERASEPAGE BOARD_REG(0x4001E508u)
#define UPDATE_AT      (BOARD_FLASH_ORIGIN + BOARD_FLASH_BYTES - BOARD_UPDATE_BYTES)

enum { READ_ONLY, WRITE, ERASE }; /* NVMC_CONFIG */

/* The core stands still while flash that it runs from is busy; the polls are for a controller that never answers. */
static int flash_idle(void)
{
    for (uint32_t i = 0; i < WAIT; i++) {
        if (NVMC_READY & 1u) {
            return 1;
        }
    }
    return 0;
}

const uint8_t *board_flash(void)
{
    return (const uint8_t *)UPDATE_AT;
}

int board_flash_erase(uint32_t page)
{
    int done;

    NVMC_CONFIG    = ERASE;
    NVMC_ERASEPAGE = UPDATE_AT + page * BOARD_UPDATE_PAGE_BYTES;
    done           = flash_idle();
    NVMC_CONFIG    = READ_ONLY;
    return done ? 0 : -1;
}

int board_flash_write(uint32_t offset, const uint8_t *data, size_t n)
{
    int done = 1;

    NVMC_CONFIG = WRITE;
    for (size_t i = 0; i < n && done; i += 4) { /* it takes words only */
        BOARD_REG(UPDATE_AT + offset + i) = stw_get32(data + i);
        done                              = flash_idle();
    }
    NVMC_CONFIG = READ_ONLY;
    return done ? 0 : -1;
}

#endif
