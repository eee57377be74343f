/* stm32f4.c - STM32F405, F407 and F446: 168 MHz from the internal oscillator, so that no crystal need be known, one
 * USART whose pins board.mk names, DWT cycle counter.  Sections are of RM0090 (F405); RM0390 (F446) has the same
 * registers. */
#include "cycles.h"
#include "stm32.h"

#define HSI_HZ       16000000u
#define TIM2_DIVIDER 16u
#define ON_APB2      (BOARD_UART_BASE >= 0x40010000u)
#define UART_HZ      (BOARD_CPU_HZ / (ON_APB2 ? 2u : 4u))

#define RCC_CR     BOARD_REG(0x40023800u) /* 7.3 */
#define RCC_PLLCFG BOARD_REG(0x40023804u)
#define RCC_CFGR   BOARD_REG(0x40023808u)
#define RCC_AHB1EN BOARD_REG(0x40023830u)
#define RCC_APB1EN BOARD_REG(0x40023840u)
#define RCC_APB2EN BOARD_REG(0x40023844u)
#define FLASH_ACR  BOARD_REG(0x40023C00u) /* 3.9.1 */
#define TIM2_CR1   BOARD_REG(BOARD_TIMER_BASE + 0x00u)
#define TIM2_EGR   BOARD_REG(BOARD_TIMER_BASE + 0x14u)
#define TIM2_CNT   BOARD_REG(BOARD_TIMER_BASE + 0x24u)
#define TIM2_PSC   BOARD_REG(BOARD_TIMER_BASE + 0x28u)
#define TIM2_ARR   BOARD_REG(BOARD_TIMER_BASE + 0x2Cu)

static uint32_t cpu_hz = HSI_HZ;
static uint8_t  has_cycles; /* DWT counts; some emulators leave it at 0: then TIM2 does */

/* HSI 16 MHz / 16 * 336 / 2 = 168 MHz, which the reset value of VOS allows; APB1 42 MHz, APB2 84 MHz; the upper bits
 * are the reset value (PLLQ 7, and PLLR 2 on an F446).  5 wait states with prefetch and caches (3.5.1). */
static void init_clock(void)
{
    RCC_PLLCFG = 2u << 28 | 7u << 24 | 336u << 6 | 16u;
    RCC_CR |= 1u << 24;
    if (!stm32_wait(&RCC_CR, 1u << 25, 1u << 25)) {
        return;
    }
    FLASH_ACR = 5u | 1u << 8 | 1u << 9 | 1u << 10;
    RCC_CFGR  = 5u << 10 | 4u << 13 | 2u;
    if (stm32_wait(&RCC_CFGR, 3u << 2, 2u << 2)) {
        cpu_hz = BOARD_CPU_HZ;
    }
}

/* 8.4: MODER at 0, PUPDR at 0x0C, AFRL and AFRH at 0x20. */
static void init_pin(uint32_t pin)
{
    volatile uint32_t *mode = &BOARD_REG(BOARD_UART_GPIO), *pull = &BOARD_REG(BOARD_UART_GPIO + 0x0Cu);
    volatile uint32_t *function = &BOARD_REG(BOARD_UART_GPIO + 0x20u + 4u * (pin / 8u));

    *mode     = (*mode & ~(3u << 2u * pin)) | 2u << 2u * pin;
    *pull     = (*pull & ~(3u << 2u * pin)) | 1u << 2u * pin;
    *function = (*function & ~(15u << 4u * (pin % 8u))) | (uint32_t)BOARD_UART_FUNCTION << 4u * (pin % 8u);
}

static void init_uart(void)
{
    RCC_AHB1EN |= stm32_bit(BOARD_UART_GPIO);
    *(ON_APB2 ? &RCC_APB2EN : &RCC_APB1EN) |= stm32_bit(BOARD_UART_BASE);
    init_pin(BOARD_UART_TX_PIN);
    init_pin(BOARD_UART_RX_PIN);
    stm32_usart_start(cpu_hz == HSI_HZ ? STM32_DIVIDER(HSI_HZ) : STM32_DIVIDER(UART_HZ));
}

void board_init(void)
{
    init_clock();
    init_uart();
    has_cycles = cycles_start();
    RCC_APB1EN |= stm32_bit(BOARD_TIMER_BASE);
    TIM2_PSC = TIM2_DIVIDER - 1u;
    TIM2_ARR = 0xFFFFFFFFu;
    TIM2_EGR = 1u;
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
    return has_cycles ? CYCLES_COUNT : TIM2_CNT;
}

uint32_t board_ticks_hz(void)
{
    return has_cycles ? cpu_hz : BOARD_TIMER_HZ / TIM2_DIVIDER;
}

uint32_t board_cpu_hz(void)
{
    return cpu_hz;
}
