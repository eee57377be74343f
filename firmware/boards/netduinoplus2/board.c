/* board.c - Netduino Plus 2: 168 MHz from the internal oscillator (any STM32F405 board has it), USART1 on the header's
 * SCL (PB6, TX) and SDA (PB7, RX) - PA9 and PA10 serve USB and an LED there -, DWT cycle counter. */
#include "board.h"

#define HSI_HZ       16000000u
#define WAIT         100000u /* polls of a clock that never gets ready, as in emulators: go on with the one that runs */
#define TIM2_DIVIDER 16u

#define RCC_CR      BOARD_REG(0x40023800u)
#define RCC_PLLCFGR BOARD_REG(0x40023804u)
#define RCC_CFGR    BOARD_REG(0x40023808u)
#define RCC_AHB1ENR BOARD_REG(0x40023830u)
#define RCC_APB1ENR BOARD_REG(0x40023840u)
#define RCC_APB2ENR BOARD_REG(0x40023844u)
#define FLASH_ACR   BOARD_REG(0x40023C00u)
#define GPIOB_MODER BOARD_REG(0x40020400u)
#define GPIOB_PUPDR BOARD_REG(0x4002040Cu)
#define GPIOB_AFRL  BOARD_REG(0x40020420u)
#define USART_SR    BOARD_REG(BOARD_UART_BASE + 0x00u)
#define USART_DR    BOARD_REG(BOARD_UART_BASE + 0x04u)
#define USART_BRR   BOARD_REG(BOARD_UART_BASE + 0x08u)
#define USART_CR1   BOARD_REG(BOARD_UART_BASE + 0x0Cu)
#define TIM2_CR1    BOARD_REG(BOARD_TIMER_BASE + 0x00u)
#define TIM2_EGR    BOARD_REG(BOARD_TIMER_BASE + 0x14u)
#define TIM2_PSC    BOARD_REG(BOARD_TIMER_BASE + 0x28u)
#define TIM2_CNT    BOARD_REG(BOARD_TIMER_BASE + 0x24u)
#define TIM2_ARR    BOARD_REG(BOARD_TIMER_BASE + 0x2Cu)
#define DEMCR       BOARD_REG(0xE000EDFCu)
#define DWT_CTRL    BOARD_REG(0xE0001000u)
#define DWT_CYCCNT  BOARD_REG(0xE0001004u)

#define SR_RXNE 0x20u
#define SR_TXE  0x80u

static uint32_t cpu_hz = HSI_HZ;
static uint8_t  has_cycles; /* DWT counts; some emulators leave it at 0 */

static int wait_for(volatile uint32_t *reg, uint32_t mask, uint32_t value)
{
    for (uint32_t i = 0; i < WAIT; i++) {
        if ((*reg & mask) == value) {
            return 1;
        }
    }
    return 0;
}

/* HSI 16 MHz / 16 * 336 / 2 = 168 MHz; APB1 42 MHz, APB2 84 MHz; 5 wait states with prefetch and caches. */
static void init_clock(void)
{
    RCC_PLLCFGR = 16u | 336u << 6 | 0u << 16 | 7u << 24;
    RCC_CR |= 1u << 24;
    if (!wait_for(&RCC_CR, 1u << 25, 1u << 25)) {
        return;
    }
    FLASH_ACR = 5u | 1u << 8 | 1u << 9 | 1u << 10;
    RCC_CFGR  = 5u << 10 | 4u << 13 | 2u;
    if (wait_for(&RCC_CFGR, 3u << 2, 2u << 2)) {
        cpu_hz = BOARD_CPU_HZ;
    }
}

static void init_uart(void)
{
    int fast = cpu_hz == BOARD_CPU_HZ;

    RCC_AHB1ENR |= 1u << 1;                                   /* GPIOB */
    RCC_APB2ENR |= 1u << 4;                                   /* USART1 */
    GPIOB_MODER = (GPIOB_MODER & ~(15u << 12)) | 10u << 12;   /* PB6, PB7: alternate function */
    GPIOB_PUPDR = (GPIOB_PUPDR & ~(15u << 12)) | 5u << 12;    /* pulled up */
    GPIOB_AFRL  = (GPIOB_AFRL & ~(255u << 24)) | 0x77u << 24; /* AF7: USART1 */
    USART_BRR   = fast ? BOARD_CPU_HZ / 2u / BOARD_UART_BAUD : HSI_HZ / BOARD_UART_BAUD;
    USART_CR1   = 1u << 13 | 1u << 3 | 1u << 2; /* on, transmit, receive */
}

static void init_ticks(void)
{
    uint32_t before;

    DEMCR |= 1u << 24; /* trace on */
    DWT_CTRL |= 1u;
    before = DWT_CYCCNT;
    for (uint32_t i = 0; i < 16 && !has_cycles; i++) {
        has_cycles = DWT_CYCCNT != before;
    }
    RCC_APB1ENR |= 1u; /* TIM2 */
    TIM2_PSC = TIM2_DIVIDER - 1u;
    TIM2_ARR = 0xFFFFFFFFu;
    TIM2_EGR = 1u;
    TIM2_CR1 = 1u;
}

void board_init(void)
{
    init_clock();
    init_uart();
    init_ticks();
}

int board_getc(void)
{
    return (USART_SR & SR_RXNE) ? (int)(USART_DR & 0xFFu) : -1;
}

void board_putc(uint8_t byte)
{
    while (!(USART_SR & SR_TXE)) {
    }
    USART_DR = byte;
}

uint32_t board_ticks(void)
{
    return has_cycles ? DWT_CYCCNT : TIM2_CNT;
}

uint32_t board_ticks_hz(void)
{
    return has_cycles ? cpu_hz : BOARD_TIMER_HZ / TIM2_DIVIDER;
}

uint32_t board_cpu_hz(void)
{
    return cpu_hz;
}
