/* sse.c - Arm MPS3 images with the SSE-300 subsystem: CMSDK UART 0 and the system counter's timer. */
#include "board.h"

#define UART_DATA     BOARD_REG(BOARD_UART_BASE + 0x00u)
#define UART_STATE    BOARD_REG(BOARD_UART_BASE + 0x04u) /* 1: transmitter full, 2: a byte has come */
#define UART_CTRL     BOARD_REG(BOARD_UART_BASE + 0x08u)
#define UART_BAUDDIV  BOARD_REG(BOARD_UART_BASE + 0x10u)
#define TIMER_COUNT   BOARD_REG(BOARD_TIMER_BASE + 0x00u)     /* CNTPCT, low word */
#define COUNTER_CTRL  BOARD_REG(BOARD_TIMER_BASE + 0x100000u) /* CNTCR of the counter behind all timers */
#define COUNTER_START 1u

void board_init(void)
{
    UART_BAUDDIV = BOARD_CPU_HZ / BOARD_UART_BAUD;
    UART_CTRL    = 3u; /* transmit, receive */
    COUNTER_CTRL = COUNTER_START;
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

uint32_t board_ticks(void)
{
    return TIMER_COUNT;
}

uint32_t board_ticks_hz(void)
{
    return BOARD_TIMER_HZ;
}

uint32_t board_cpu_hz(void)
{
    return BOARD_CPU_HZ;
}
