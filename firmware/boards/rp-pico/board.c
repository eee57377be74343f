/* board.c - Raspberry Pi Pico: 125 MHz from the 12 MHz crystal, UART0 on GP0 and GP1, ticks that are CPU cycles, and
 * the boot block at the start of flash.  Sections are of the RP2040 datasheet. */
#include "board.h"
#include "cycles.h"

/* ---- the second stage of the boot (2.8.1.3.1): the ROM copies these 256 bytes to RAM, checks the CRC and runs them
 * ---- */

/* Sets up the flash for plain 03h reads (4.10.13, 4.10.12), which any flash chip knows, and starts the program behind
 * this block. As opcodes, because the CRC at the end (polynomial 0x04C11DB7, from all ones, not reflected) must be of
 * known bytes. */
typedef struct boot_block {
    uint16_t code[22];
    uint32_t data[5];
    uint32_t zero[47];
    uint32_t crc;
} boot_block;

__attribute__((section(".boot"), used)) static const boot_block boot = {
    .code =
        {
            0x480A,         /* ldr  r0, data[0] */
            0x2100, 0x6081, /* movs r1, #0;  str r1, [r0, #8]     SSIENR: off */
            0x2104, 0x6141, /* movs r1, #4;  str r1, [r0, #0x14]  BAUDR: a quarter of the system clock */
            0x4909, 0x6001, /* ldr  r1, data[1];  str r1, [r0]    CTRLR0 */
            0x2100, 0x6041, /* movs r1, #0;  str r1, [r0, #4]     CTRLR1: one frame */
            0x4908,         /* ldr  r1, data[2] */
            0x22F4, 0x5081, /* movs r2, #0xF4;  str r1, [r0, r2]  SPI_CTRLR0 */
            0x2101, 0x6081, /* movs r1, #1;  str r1, [r0, #8]     SSIENR: on */
            0x4806,         /* ldr  r0, data[3] */
            0x4907, 0x6008, /* ldr  r1, data[4];  str r0, [r1]    VTOR */
            0xC806,         /* ldm  r0!, {r1, r2} */
            0xF381, 0x8808, /* msr  msp, r1 */
            0x4710,         /* bx   r2 */
            0x46C0,         /* nop */
        },
    .data =
        {
            0x18000000u,              /* XIP_SSI */
            31u << 16 | 3u << 8,      /* 32-bit frames, EEPROM read: command and address out, then data in */
            3u << 24 | 2u << 8 | 24u, /* command 03h, 8 bits of instruction, 6 * 4 bits of address, all on one line */
            0x10000100u,              /* this image's vectors */
            0xE000ED08u,              /* VTOR */
        },
    .crc = 0x301E1838u,
};

/* ---- clocks, UART, ticks ---- */

#define CLEAR(reg)     (*(&(reg) + 0x3000u / 4u)) /* alias that clears the bits written (2.1.2) */
#define RESETS         BOARD_REG(0x4000C000u)     /* 2.14.3 */
#define RESETS_DONE    BOARD_REG(0x4000C008u)
#define XOSC_CTRL      BOARD_REG(0x40024000u) /* 2.16.7 */
#define XOSC_STATUS    BOARD_REG(0x40024004u)
#define XOSC_STARTUP   BOARD_REG(0x4002400Cu)
#define PLL_CS         BOARD_REG(0x40028000u) /* 2.18.4 */
#define PLL_PWR        BOARD_REG(0x40028004u)
#define PLL_FBDIV      BOARD_REG(0x40028008u)
#define PLL_PRIM       BOARD_REG(0x4002800Cu)
#define CLK_REF_CTRL   BOARD_REG(0x40008030u) /* 2.15.7 */
#define CLK_REF_IS     BOARD_REG(0x40008038u)
#define CLK_SYS_CTRL   BOARD_REG(0x4000803Cu)
#define CLK_SYS_IS     BOARD_REG(0x40008044u)
#define CLK_PERI_CTRL  BOARD_REG(0x40008048u)
#define GPIO_CTRL(pin) BOARD_REG(0x40014004u + 8u * (pin)) /* 2.19.6 */
#define WATCHDOG_TICK  BOARD_REG(0x4005802Cu)              /* 4.7.6 */
#define TIMER_RAWL     BOARD_REG(BOARD_TIMER_BASE + 0x28u) /* 4.6.5: microseconds */
#define UART_DR        BOARD_REG(BOARD_UART_BASE + 0x00u)  /* 4.2.8 */
#define UART_FR        BOARD_REG(BOARD_UART_BASE + 0x18u)
#define UART_IBRD      BOARD_REG(BOARD_UART_BASE + 0x24u)
#define UART_FBRD      BOARD_REG(BOARD_UART_BASE + 0x28u)
#define UART_LCR_H     BOARD_REG(BOARD_UART_BASE + 0x2Cu)
#define UART_CR        BOARD_REG(BOARD_UART_BASE + 0x30u)

#define RESET_IO    (1u << 5)
#define RESET_PADS  (1u << 8)
#define RESET_PLL   (1u << 12)
#define RESET_TIMER (1u << 21)
#define RESET_UART0 (1u << 22)
#define USED        (RESET_IO | RESET_PADS | RESET_PLL | RESET_TIMER | RESET_UART0)

#define XTAL_MHZ   12u
#define CPU_MHZ    (BOARD_CPU_HZ / 1000000u)
#define BAUD_64THS ((4u * BOARD_CPU_HZ + BOARD_UART_BAUD / 2u) / BOARD_UART_BAUD)

static uint32_t ahead; /* of SysTick before the timer, at the start */

/* 12 MHz * 125 / 6 / 2 = 125 MHz (2.18.3) for system and peripherals. */
static void init_clock(void)
{
    CLK_SYS_CTRL = 0; /* on the reference clock while the PLL changes */
    while (!(CLK_SYS_IS & 1u)) {
    }
    XOSC_STARTUP = 47u; /* 1 ms in units of 256 clocks (2.16.3) */
    XOSC_CTRL    = 0xFABu << 12 | 0xAA0u;
    while (!(XOSC_STATUS >> 31)) {
    }
    CLK_REF_CTRL = 2u;
    while (!(CLK_REF_IS & 4u)) {
    }
    RESETS        = RESETS | RESET_PLL;
    CLEAR(RESETS) = USED & ~RESET_UART0;
    while (~RESETS_DONE & (USED & ~RESET_UART0)) {
    }
    PLL_CS         = 1u;
    PLL_FBDIV      = 125u;
    CLEAR(PLL_PWR) = 1u << 5 | 1u; /* VCO and main power on */
    while (!(PLL_CS >> 31)) {
    }
    PLL_PRIM       = 6u << 16 | 2u << 12;
    CLEAR(PLL_PWR) = 1u << 3; /* post dividers on */
    CLK_SYS_CTRL   = 1u;
    while (!(CLK_SYS_IS & 2u)) {
    }
    CLK_PERI_CTRL = 1u << 11;
}

static void init_uart(void)
{
    CLEAR(RESETS) = RESET_UART0;
    while (~RESETS_DONE & RESET_UART0) {
    }
    GPIO_CTRL(0u) = 2u;
    GPIO_CTRL(1u) = 2u;
    UART_IBRD     = BAUD_64THS >> 6;
    UART_FBRD     = BAUD_64THS & 63u;
    UART_LCR_H    = 3u << 5 | 1u << 4; /* 8N1, FIFOs */
    UART_CR       = 1u << 9 | 1u << 8 | 1u;
}

/* SysTick has 24 bits of cycles; the timer, from the same crystal, tells which 2^24 of them these are. */
static uint32_t cycles_by_timer(void)
{
    return TIMER_RAWL * CPU_MHZ;
}

static uint32_t cycles_by_systick(void)
{
    return SYSTICK_BITS - SYSTICK_VALUE;
}

static void init_ticks(void)
{
    WATCHDOG_TICK = 1u << 9 | XTAL_MHZ; /* the timer's microsecond */
    systick_start(SYSTICK_AT_CPU_CLOCK);
    ahead = cycles_by_systick() - cycles_by_timer();
}

void board_init(void)
{
    init_clock();
    init_uart();
    init_ticks();
}

int board_getc(void)
{
    return (UART_FR & 0x10u) ? -1 : (int)(UART_DR & 0xFFu);
}

void board_putc(uint8_t byte)
{
    while (UART_FR & 0x20u) {
    }
    UART_DR = byte;
}

/* The number of cycles that ends in SysTick's 24 bits and is nearest to the timer's, which is coarse. */
uint32_t board_ticks(void)
{
    uint32_t coarse = cycles_by_timer() + ahead;
    uint32_t apart  = (cycles_by_systick() - coarse + 0x800000u) & SYSTICK_BITS;

    return coarse + apart - 0x800000u;
}

uint32_t board_ticks_hz(void)
{
    return BOARD_TIMER_HZ;
}

uint32_t board_cpu_hz(void)
{
    return BOARD_CPU_HZ;
}
