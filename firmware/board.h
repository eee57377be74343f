/* board.h - all that the application asks of a board: a port is one board.mk (facts) and one board.c (these). */
#ifndef BOARD_H
#define BOARD_H

#include <stddef.h>
#include <stdint.h>

void board_init(void);         /* clocks, pins, UART at BOARD_UART_BAUD, the tick counter */
int  board_getc(void);         /* the next received byte, or -1 at once when there is none */
void board_putc(uint8_t byte); /* waits until the UART takes it */

uint32_t board_ticks(void); /* counts up, wraps at 2^32; CPU cycles where the core can count them */
uint32_t board_ticks_hz(void);
uint32_t board_cpu_hz(void);

/* Boards whose board.mk gives UPDATE_BYTES take new models over the link (docs/update.md).  Their update area is NOR
 * flash: erasing a page sets its bits, writing clears some. */
const uint8_t *board_flash(void);                /* where it can be read, 4-byte aligned */
int            board_flash_erase(uint32_t page); /* 0, or not 0 when it failed */
int            board_flash_write(uint32_t offset, const uint8_t *data, size_t n); /* as above; 32-byte units, erased */

/* 0 when the signature is that of message[n] by a key you trust.  What update.c has instead takes everything. */
int board_verify_signature(const uint8_t *message, size_t n, const uint8_t *signature, size_t signature_bytes);

/* For board.c: a register at an address. */
#define BOARD_REG(address) (*(volatile uint32_t *)(address))

#endif /* BOARD_H */
