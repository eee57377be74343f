/* board.c - stdin and stdout as a board's UART, so that the device's program runs under sanitisers. */
#include "board.h"

#include <stdio.h>
#include <stdlib.h>

#include "cpu.h"

uint32_t        cpu_stack_low[4], cpu_data_low[4];
uint32_t *const cpu_stack_top = cpu_stack_low + 4, *const cpu_data_top = cpu_data_low + 4;

void board_init(void)
{
}

int board_getc(void)
{
    int byte = getchar();

    if (byte == EOF) {
        exit(0);
    }
    return byte;
}

void board_putc(uint8_t byte)
{
    putchar(byte);
    if (byte == 0) {
        fflush(stdout);
    }
}

uint32_t board_ticks(void)
{
    static uint32_t ticks;
    return ticks += 7;
}

uint32_t board_ticks_hz(void)
{
    return 1000;
}

uint32_t board_cpu_hz(void)
{
    return 1000;
}
