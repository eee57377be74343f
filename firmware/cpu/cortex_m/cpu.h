/* cpu.h - what the application must know of the processor: its stack. */
#ifndef CPU_H
#define CPU_H

#include <stdint.h>

#define CPU_STACK_PAINT 0xA5C35A3Cu

extern uint32_t cpu_stack_low[], cpu_stack_top[]; /* from the linker script; reset paints all of it */
extern uint32_t cpu_data_low[], cpu_data_top[];   /* .data and .bss */

/* Inline: the caller's own frame is above the result. */
static inline uint32_t *cpu_stack_pointer(void)
{
    uint32_t *sp;
    __asm__ volatile("mov %0, sp" : "=r"(sp));
    return sp;
}

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

#endif /* CPU_H */
