/* cpu.h - what the application must know of the processor: its stack. */
#ifndef CPU_H
#define CPU_H

#include "../ram.h"

/* Inline: the caller's own frame is above the result.  The stack is not aligned to words here, SP stands one below it.
 */
static inline uint32_t *cpu_stack_pointer(void)
{
    uint16_t sp;

    __asm__ volatile("in %A0, 0x3d \n in %B0, 0x3e" : "=r"(sp));
    return (uint32_t *)((sp + 1u) & ~3u);
}

#endif /* CPU_H */
