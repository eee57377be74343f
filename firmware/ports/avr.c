/* avr.c - ATmega328P, ATmega2560: USART0, and timer 1 counting CPU cycles (data sheets DS40002061 and DS40002211). */
#include "board.h"

#define REG8(address)  (*(volatile uint8_t *)(address))
#define REG16(address) (*(volatile uint16_t *)(address))
#define SREG           REG8(0x5F)
#define UCSR0A         REG8(0xC0) /* 0x80: a byte has come, 0x20: room for a byte, 2: double speed */
#define UCSR0B         REG8(0xC1) /* 0x18: receiver and transmitter on */
#define UCSR0C         REG8(0xC2) /* 6: 8 bits, no parity, one stop bit */
#define UBRR0          REG16(0xC4)
#define UDR0           REG8(0xC6)
#define TIFR1          REG8(0x36) /* 1: the counter has overflowed */
#define TIMSK1         REG8(0x6F)
#define TCCR1B         REG8(0x81) /* 1: every CPU cycle */
#define TCNT1          REG16(0x84)

void board_tick(void);

static volatile uint16_t overflows;

__attribute__((signal, used, externally_visible)) void board_tick(void)
{
    overflows++;
}

void board_init(void)
{
    UBRR0  = (BOARD_CPU_HZ + 4UL * BOARD_UART_BAUD) / (8UL * BOARD_UART_BAUD) - 1;
    UCSR0A = 2;
    UCSR0C = 6;
    UCSR0B = 0x18;
    TIMSK1 = 1;
    TCCR1B = 1;
    __asm__ volatile("sei" ::: "memory");
}

int board_getc(void)
{
    return UCSR0A & 0x80u ? UDR0 : -1;
}

void board_putc(uint8_t byte)
{
    while (!(UCSR0A & 0x20u)) {
    }
    UDR0 = byte;
}

__attribute__((noinline)) uint32_t board_ticks(void)
{
    uint8_t  state = SREG;
    uint16_t low, high;

    __asm__ volatile("cli" ::: "memory");
    low  = TCNT1;
    high = overflows;
    if (TIFR1 & 1u && low < 0x8000u) { /* it went over just before it was read */
        high++;
    }
    SREG = state;
    return (uint32_t)high << 16 | low;
}

uint32_t board_ticks_hz(void)
{
    return BOARD_CPU_HZ;
}

uint32_t board_cpu_hz(void)
{
    return BOARD_CPU_HZ;
}
