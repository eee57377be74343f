/* stm32.h - what STM32 families have in common: waiting for a clock, enable bits, and the USART in its two layouts.
 * Define STM32_USART_2 first where the USART is the newer one with ISR, RDR and TDR (F0, F3, F7, G, H, L, U). */
#ifndef STM32_H
#define STM32_H

#include "board.h"

#define STM32_WAIT 100000u /* polls of a clock that never gets ready, as in emulators: go on with the one that runs */

#if defined(STM32_USART_2)
#define USART_CR1     BOARD_REG(BOARD_UART_BASE + 0x00u)
#define USART_CR3     BOARD_REG(BOARD_UART_BASE + 0x08u)
#define USART_BRR     BOARD_REG(BOARD_UART_BASE + 0x0Cu)
#define USART_STATUS  BOARD_REG(BOARD_UART_BASE + 0x1Cu)
#define USART_RECEIVE BOARD_REG(BOARD_UART_BASE + 0x24u)
#define USART_SEND    BOARD_REG(BOARD_UART_BASE + 0x28u)
#define USART_ENABLE  1u
#else
#define USART_STATUS  BOARD_REG(BOARD_UART_BASE + 0x00u)
#define USART_RECEIVE BOARD_REG(BOARD_UART_BASE + 0x04u)
#define USART_SEND    USART_RECEIVE
#define USART_BRR     BOARD_REG(BOARD_UART_BASE + 0x08u)
#define USART_CR1     BOARD_REG(BOARD_UART_BASE + 0x0Cu)
#define USART_ENABLE  (1u << 13)
#endif

static inline int stm32_wait(const volatile uint32_t *reg, uint32_t mask, uint32_t value)
{
    for (uint32_t i = 0; i < STM32_WAIT; i++) {
        if ((*reg & mask) == value) {
            return 1;
        }
    }
    return 0;
}

/* The bit of a peripheral in its bus's enable register: of timers, GPIO and USARTs it is the number of their 1 kB slot.
 */
static inline uint32_t stm32_bit(uint32_t base)
{
    return 1u << (base >> 10 & 31u);
}

/* The divider for a USART clock of `hz`, a constant: an M0 does not divide. */
#define STM32_DIVIDER(hz) (((hz) + BOARD_UART_BAUD / 2u) / BOARD_UART_BAUD)

/* Transmit and receive, 8N1.  A byte that comes while one waits is lost in both layouts, and no more than that: the
 * newer one is told not to stop at an overrun (RM0444 33.8.4: OVRDIS, before UE). */
static inline void stm32_usart_start(uint32_t divider)
{
#if defined(STM32_USART_2)
    USART_CR3 = 1u << 12;
#endif
    USART_BRR = divider;
    USART_CR1 = USART_ENABLE | 1u << 3 | 1u << 2;
}

/* The older layout receives nothing after an overrun (0x08, ORE) until status and data were read, even with no byte
 * there (RM0090 30.6.1). */
static inline int stm32_getc(void)
{
    uint32_t status = USART_STATUS, byte;

    if (!(status & 0x28u)) {
        return -1;
    }
    byte = USART_RECEIVE & 0xFFu;
    return (status & 0x20u) ? (int)byte : -1;
}

static inline void stm32_putc(uint8_t byte)
{
    while (!(USART_STATUS & 0x80u)) {
    }
    USART_SEND = byte;
}

#endif /* STM32_H */
