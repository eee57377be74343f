/* board.c - Nucleo-G071RB: 64 MHz from the internal oscillator, USART2 on PA2 and PA3, TIM2 (32 bits) at CPU clock,
 * because an M0+ has no cycle counter.  Sections are of RM0444. */
#define STM32_USART_2
#include "stm32.h"

#define HSI_HZ 16000000u
#define GPIOA  0x50000000u

#define RCC_CR     BOARD_REG(0x40021000u) /* 5.4 */
#define RCC_CFGR   BOARD_REG(0x40021008u)
#define RCC_PLLCFG BOARD_REG(0x4002100Cu)
#define RCC_IOPEN  BOARD_REG(0x40021034u)
#define RCC_APBEN1 BOARD_REG(0x4002103Cu)
#define FLASH_ACR  BOARD_REG(0x40022000u)   /* 3.7.1 */
#define GPIO_MODER BOARD_REG(GPIOA + 0x00u) /* 7.4 */
#define GPIO_PUPDR BOARD_REG(GPIOA + 0x0Cu)
#define GPIO_AFRL  BOARD_REG(GPIOA + 0x20u)
#define TIM2_CR1   BOARD_REG(BOARD_TIMER_BASE + 0x00u) /* 22.4 */
#define TIM2_CNT   BOARD_REG(BOARD_TIMER_BASE + 0x24u)
#define TIM2_ARR   BOARD_REG(BOARD_TIMER_BASE + 0x2Cu)

static uint32_t cpu_hz = HSI_HZ;

/* HSI 16 MHz / 1 * 8 / 2 = 64 MHz from output R; 2 wait states with prefetch and cache (3.3.4). */
static void init_clock(void)
{
    RCC_PLLCFG = 1u << 29 | 1u << 28 | 8u << 8 | 2u;
    RCC_CR |= 1u << 24;
    if (!stm32_wait(&RCC_CR, 1u << 25, 1u << 25)) {
        return;
    }
    FLASH_ACR = (FLASH_ACR & ~7u) | 2u | 1u << 8 | 1u << 9;
    if (!stm32_wait(&FLASH_ACR, 7u, 2u)) {
        return;
    }
    RCC_CFGR = 2u;
    if (stm32_wait(&RCC_CFGR, 7u << 3, 2u << 3)) {
        cpu_hz = BOARD_CPU_HZ;
    }
}

void board_init(void)
{
    init_clock();
    RCC_IOPEN |= stm32_bit(GPIOA);
    RCC_APBEN1 |= stm32_bit(BOARD_UART_BASE) | stm32_bit(BOARD_TIMER_BASE);
    GPIO_AFRL  = (GPIO_AFRL & ~(0xFFu << 8)) | 0x11u << 8; /* PA2, PA3: AF1 is USART2 (DS12232, table 13) */
    GPIO_PUPDR = (GPIO_PUPDR & ~(15u << 4)) | 5u << 4;
    GPIO_MODER = (GPIO_MODER & ~(15u << 4)) | 10u << 4;
    stm32_usart_start(cpu_hz == HSI_HZ ? STM32_DIVIDER(HSI_HZ) : STM32_DIVIDER(BOARD_CPU_HZ));
    TIM2_ARR = 0xFFFFFFFFu;
    TIM2_CR1 = 1u;
}

int board_getc(void)
{
    return stm32_getc();
}

void board_putc(uint8_t byte)
{
    stm32_putc(byte);
}

uint32_t board_ticks(void)
{
    return TIM2_CNT;
}

uint32_t board_ticks_hz(void)
{
    return cpu_hz;
}

uint32_t board_cpu_hz(void)
{
    return cpu_hz;
}
