/* ram.h - what start.c fills: .data, .bss, and the painted stack, which grows down in words. */
#ifndef RAM_H
#define RAM_H

#include <stdint.h>

#define CPU_STACK_PAINT 0xA5C35A3Cu

extern uint32_t cpu_stack_low[], cpu_stack_top[]; /* from the linker script; reset paints all of it */
extern uint32_t cpu_data_low[], cpu_data_end[];   /* .data, which is copied from where flash can be read */
extern uint32_t cpu_data_load[], cpu_data_top[];  /* .bss goes on to cpu_data_top */

static inline void cpu_fill_data(void)
{
    const uint32_t *from = cpu_data_load;
    uint32_t       *to   = cpu_data_low;

    while (to < cpu_data_end) {
        *to++ = *from++;
    }
    while (to < cpu_data_top) {
        *to++ = 0;
    }
}

/* Inline: it runs on the caller's frame and may paint right up to it. */
static inline void cpu_paint_stack(const uint32_t *below)
{
    for (volatile uint32_t *p = cpu_stack_low; p < (const volatile uint32_t *)below; p++) {
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

#endif /* RAM_H */
