/* cycles.h - the cycle counter of ARMv7-M and later (DWT CYCCNT, Armv7-M ARM C1.8), which some emulators leave at 0. */
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

#endif /* CYCLES_H */
