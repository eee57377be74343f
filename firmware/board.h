/* board.h - all that the application asks of a board: a port is one board.mk (facts) and one board.c (these). */
#ifndef BOARD_H
#define BOARD_H

#include <stdint.h>

void board_init(void);         /* clocks, pins, UART at BOARD_UART_BAUD, the tick counter */
int  board_getc(void);         /* the next received byte, or -1 at once when there is none */
void board_putc(uint8_t byte); /* waits until the UART takes it */

uint32_t board_ticks(void); /* counts up, wraps at 2^32; CPU cycles where the core can count them */
uint32_t board_ticks_hz(void);
uint32_t board_cpu_hz(void);

/* For board.c: a register at an address. */
#define BOARD_REG(address) (*(volatile uint32_t *)(address))

#endif /* BOARD_H */
