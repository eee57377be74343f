/* stack.h - the painted stack, for the cpu.h of processors whose stack grows down in words. */
#ifndef STACK_H
#define STACK_H

#include <stdint.h>

#define CPU_STACK_PAINT 0xA5C35A3Cu

extern uint32_t cpu_stack_low[], cpu_stack_top[]; /* from the linker script; reset paints all of it */
extern uint32_t cpu_data_low[], cpu_data_top[];   /* .data and .bss */

/* Inline: it runs on the caller's frame and may paint right up to it. */
static inline void cpu_paint_stack(uint32_t *below)
{
    for (volatile uint32_t *p = cpu_stack_low; p < (volatile uint32_t *)below; p++) {
        *p = CPU_STACK_PAINT;
    }
}

/* The lowest word that was written since the stack was painted. */
static inline const uint32_t *cpu_deepest_stack(void)
{
    const volatile uint32_t *p = cpu_stack_low;

    while (p < (const volatile uint32_t *)cpu_stack_top && *p == CPU_STACK_PAINT) {
        p++;
    }
    return (const uint32_t *)p;
}

#endif /* STACK_H */
