/* cpu.h - stands in for firmware/cpu/cortex_m/cpu.h on the host: a stack that nobody uses. */
#ifndef CPU_H
#define CPU_H

#include <stdint.h>

extern uint32_t        cpu_stack_low[], cpu_data_low[];
extern uint32_t *const cpu_stack_top, *const cpu_data_top;

static inline uint32_t *cpu_stack_pointer(void)
{
    return cpu_stack_low;
}

static inline void cpu_paint_stack(uint32_t *below)
{
    (void)below;
}

static inline const uint32_t *cpu_deepest_stack(void)
{
    return cpu_stack_low;
}

#endif /* CPU_H */
