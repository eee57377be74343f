/* start.c - reset of a RISC-V core in machine mode: stack, traps, .data, .bss, painted stack. */
#include "cpu.h"

int  main(void);
void Reset_Handler(void);
void cpu_start(void);
void cpu_fault(void);

/* A trap restarts the program: the host then learns that its session is gone, instead of waiting for a dead board. */
__attribute__((aligned(4), noreturn)) void cpu_fault(void)
{
    Reset_Handler();
    for (;;) {
    }
}

__attribute__((naked, section(".vectors"), used)) void Reset_Handler(void)
{
    __asm__ volatile("la   sp, cpu_stack_top \n"
                     "la   t0, cpu_fault     \n"
                     "csrw mtvec, t0         \n"
                     "j    cpu_start         \n");
}

void cpu_start(void)
{
    cpu_fill_data();
    cpu_paint_stack(cpu_stack_pointer());
    (void)main();
    cpu_fault();
}
