/* cycles.h - counters that belong to the core: DWT CYCCNT of ARMv7-M and later (Armv7-M ARM C1.8), which some emulators
 * leave at 0, and SysTick (B3.3), which has 24 bits. */
#ifndef CYCLES_H
#define CYCLES_H

#include <stdint.h>

#define CYCLES_DEMCR (*(volatile uint32_t *)0xE000EDFCu)
#define CYCLES_CTRL  (*(volatile uint32_t *)0xE0001000u)
#define CYCLES_COUNT (*(volatile uint32_t *)0xE0001004u)

/* Starts the counter; 0 when it stands still. */
static inline uint8_t cycles_start(void)
{
    uint8_t  counts = 0;
    uint32_t before;

    CYCLES_DEMCR |= 1u << 24; /* TRCENA */
    CYCLES_CTRL |= 1u;        /* CYCCNTENA */
    before = CYCLES_COUNT;
    for (uint32_t i = 0; i < 16 && !counts; i++) {
        counts = CYCLES_COUNT != before;
    }
    return counts;
}

#define SYSTICK_CONTROL (*(volatile uint32_t *)0xE000E010u)
#define SYSTICK_RELOAD  (*(volatile uint32_t *)0xE000E014u)
#define SYSTICK_VALUE   (*(volatile uint32_t *)0xE000E018u)
#define SYSTICK_BITS    0xFFFFFFu

#define SYSTICK_AT_CPU_CLOCK   5u
#define SYSTICK_AT_OTHER_CLOCK 1u /* the chip says which: an eighth of the CPU's on STM32 */

static inline void systick_start(uint32_t clock)
{
    SYSTICK_RELOAD  = SYSTICK_BITS;
    SYSTICK_VALUE   = 0;
    SYSTICK_CONTROL = clock;
}

/* Ticks, counted up over 32 bits.  Each call must come less than 2^24 ticks after the one before it, or some are lost.
 */
static inline uint32_t systick_count(void)
{
    static uint32_t total, last = SYSTICK_BITS;
    uint32_t        now = SYSTICK_VALUE;

    total += (last - now) & SYSTICK_BITS;
    last = now;
    return total;
}

#endif /* CYCLES_H */
