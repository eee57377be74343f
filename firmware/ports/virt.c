/* virt.c - QEMU's RISC-V machine: 16550 UART, and the core's counter of retired instructions for ticks. */
#include "board.h"

#define UART_REG(n) (*(volatile uint8_t *)(BOARD_UART_BASE + (n)))
#define UART_DATA   UART_REG(0)
#define UART_STATE  UART_REG(5) /* 1: a byte has come, 0x20: transmitter empty */

void board_init(void)
{
}

int board_getc(void)
{
    return (UART_STATE & 1u) ? UART_DATA : -1;
}

void board_putc(uint8_t byte)
{
    while (!(UART_STATE & 0x20u)) {
    }
    UART_DATA = byte;
}

uint32_t board_ticks(void)
{
    uint32_t count;

    __asm__ volatile("csrr %0, minstret" : "=r"(count));
    return count;
}

uint32_t board_ticks_hz(void)
{
    return BOARD_TIMER_HZ;
}

uint32_t board_cpu_hz(void)
{
    return BOARD_CPU_HZ;
}
