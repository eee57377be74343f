/* cpu.h - what the application must know of the processor: its stack. */
#ifndef CPU_H
#define CPU_H

#include "../ram.h"

/* Inline: the caller's own frame is above the result. */
static inline uint32_t *cpu_stack_pointer(void)
{
    uint32_t *sp;
    __asm__ volatile("mv %0, sp" : "=r"(sp));
    return sp;
}

#endif /* CPU_H */
