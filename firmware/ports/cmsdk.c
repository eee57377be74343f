/* cmsdk.c - Arm MPS2 and MPS3 images: CMSDK UART 0 and CMSDK timer 0, which counts down. */
#include "board.h"

#define UART_DATA    BOARD_REG(BOARD_UART_BASE + 0x00u)
#define UART_STATE   BOARD_REG(BOARD_UART_BASE + 0x04u) /* 1: transmitter full, 2: a byte has come */
#define UART_CTRL    BOARD_REG(BOARD_UART_BASE + 0x08u)
#define UART_BAUDDIV BOARD_REG(BOARD_UART_BASE + 0x10u)
#define TIMER_CTRL   BOARD_REG(BOARD_TIMER_BASE + 0x00u)
#define TIMER_VALUE  BOARD_REG(BOARD_TIMER_BASE + 0x04u)
#define TIMER_RELOAD BOARD_REG(BOARD_TIMER_BASE + 0x08u)

void board_init(void)
{
    UART_BAUDDIV = BOARD_CPU_HZ / BOARD_UART_BAUD;
    UART_CTRL    = 3u; /* transmit, receive */
    TIMER_RELOAD = 0xFFFFFFFFu;
    TIMER_VALUE  = 0xFFFFFFFFu;
    TIMER_CTRL   = 1u;
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
    return ~TIMER_VALUE;
}

uint32_t board_ticks_hz(void)
{
    return BOARD_TIMER_HZ;
}

uint32_t board_cpu_hz(void)
{
    return BOARD_CPU_HZ;
}
