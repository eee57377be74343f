/* cmsdk.c - Arm MPS2 and MPS3 images: CMSDK UART 0, and CMSDK timer 0, which counts down, or where board.mk gives a
 * COUNTER_BASE the system counter of the SSE-300 subsystem and the timer that shows it.  These boards have no flash:
 * code and updates live in SSRAM, which is made to behave like NOR flash here and forgets without power. */
#include "board.h"

#include <string.h>

#define UART_DATA    BOARD_REG(BOARD_UART_BASE + 0x00u)
#define UART_STATE   BOARD_REG(BOARD_UART_BASE + 0x04u) /* 1: transmitter full, 2: a byte has come */
#define UART_CTRL    BOARD_REG(BOARD_UART_BASE + 0x08u)
#define UART_BAUDDIV BOARD_REG(BOARD_UART_BASE + 0x10u)

#if defined(BOARD_COUNTER_BASE)

#define COUNTER_CTRL BOARD_REG(BOARD_COUNTER_BASE) /* CNTCR */
#define TIMER_COUNT  BOARD_REG(BOARD_TIMER_BASE)   /* CNTPCT, low word */

static void ticks_start(void)
{
    COUNTER_CTRL = 1u;
}

uint32_t board_ticks(void)
{
    return TIMER_COUNT;
}

#else

#define TIMER_CTRL   BOARD_REG(BOARD_TIMER_BASE + 0x00u)
#define TIMER_VALUE  BOARD_REG(BOARD_TIMER_BASE + 0x04u)
#define TIMER_RELOAD BOARD_REG(BOARD_TIMER_BASE + 0x08u)

static void ticks_start(void)
{
    TIMER_RELOAD = 0xFFFFFFFFu;
    TIMER_VALUE  = 0xFFFFFFFFu;
    TIMER_CTRL   = 1u;
}

uint32_t board_ticks(void)
{
    return ~TIMER_VALUE;
}

#endif

void board_init(void)
{
    UART_BAUDDIV = BOARD_CPU_HZ / BOARD_UART_BAUD;
    UART_CTRL    = 3u; /* transmit, receive */
    ticks_start();
}

int board_getc(void)
{
    return (UART_STATE & 2u) ? (int)(UART_DATA & 0xFFu) : -1;
}

void board_putc(uint8_t byte)
{
    while (UART_STATE & 1u) {
    }
    UART_DATA = byte;
}

uint32_t board_ticks_hz(void)
{
    return BOARD_TIMER_HZ;
}

uint32_t board_cpu_hz(void)
{
    return BOARD_CPU_HZ;
}

#if BOARD_UPDATE_BYTES

static uint8_t *update_area(void)
{
    return (uint8_t *)(BOARD_FLASH_ORIGIN + BOARD_FLASH_BYTES - BOARD_UPDATE_BYTES);
}

const uint8_t *board_flash(void)
{
    return update_area();
}

int board_flash_erase(uint32_t page)
{
    memset(update_area() + page * BOARD_UPDATE_PAGE_BYTES, 0xFF, BOARD_UPDATE_PAGE_BYTES);
    return 0;
}

int board_flash_write(uint32_t offset, const uint8_t *data, size_t n)
{
    uint8_t *to = update_area() + offset;

    for (size_t i = 0; i < n; i++) {
        to[i] &= data[i];
    }
    return 0;
}

#endif
