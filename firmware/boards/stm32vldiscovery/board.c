/* board.c - STM32VLDISCOVERY: 24 MHz from the internal oscillator, USART1 on PA9 and PA10, DWT cycle counter.  Sections
 * are of RM0041. */
#include "cycles.h"
#include "stm32.h"

#define HSI_HZ 8000000u
#define GPIOA  0x40010800u

#define RCC_CR     BOARD_REG(0x40021000u) /* 6.3 */
#define RCC_CFGR   BOARD_REG(0x40021004u)
#define RCC_APB2EN BOARD_REG(0x40021018u)
#define GPIO_CRH   BOARD_REG(GPIOA + 0x04u) /* 7.2.2 */
#define GPIO_ODR   BOARD_REG(GPIOA + 0x0Cu)

static uint32_t cpu_hz = HSI_HZ;
static uint8_t  has_cycles; /* DWT counts; some emulators leave it at 0: then SysTick does */

/* HSI 8 MHz / 2 * 6 = 24 MHz; the flash needs no wait states (RM0041 6.2.3). */
static void init_clock(void)
{
    RCC_CFGR = 4u << 18;
    RCC_CR |= 1u << 24;
    if (stm32_wait(&RCC_CR, 1u << 25, 1u << 25)) {
        RCC_CFGR |= 2u;
        if (stm32_wait(&RCC_CFGR, 3u << 2, 2u << 2)) {
            cpu_hz = BOARD_CPU_HZ;
        }
    }
}

void board_init(void)
{
    init_clock();
    RCC_APB2EN |= stm32_bit(GPIOA) | stm32_bit(BOARD_UART_BASE);
    GPIO_ODR |= 1u << 10;                                          /* PA10 is pulled up */
    GPIO_CRH = (GPIO_CRH & ~(0xFFu << 4)) | 0x8u << 8 | 0xBu << 4; /* PA10 input with pull, PA9 alternate push-pull */
    stm32_usart_start(cpu_hz == HSI_HZ ? STM32_DIVIDER(HSI_HZ) : STM32_DIVIDER(BOARD_CPU_HZ));
    has_cycles = cycles_start();
    systick_start(SYSTICK_AT_OTHER_CLOCK);
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
    return has_cycles ? CYCLES_COUNT : systick_count();
}

uint32_t board_ticks_hz(void)
{
    return has_cycles ? cpu_hz : BOARD_TIMER_HZ;
}

uint32_t board_cpu_hz(void)
{
    return cpu_hz;
}
