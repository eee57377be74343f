/* start.c - reset of any Cortex-M: vectors, .data, .bss, painted stack, FPU where there is one. */
#include "cpu.h"

#define AIRCR (*(volatile uint32_t *)0xE000ED0Cu)
#define VTOR  (*(volatile uint32_t *)0xE000ED08u)
#define CPACR (*(volatile uint32_t *)0xE000ED88u)

int  main(void);
void Reset_Handler(void);

/* A fault restarts the board: the host then learns that its session is gone, instead of waiting for a dead board. */
static void fault(void)
{
    AIRCR = 0x05FA0004u; /* SYSRESETREQ */
    for (;;) {
    }
}

typedef union vector {
    uint32_t *stack;
    void (*handler)(void);
} vector;

__attribute__((section(".vectors"), used)) static const vector vectors[16] = {
    {.stack = cpu_stack_top}, {.handler = Reset_Handler}, {.handler = fault}, {.handler = fault},
    {.handler = fault},       {.handler = fault},         {.handler = fault}, {.handler = fault},
    {.handler = fault},       {.handler = fault},         {.handler = fault}, {.handler = fault},
    {.handler = fault},       {.handler = fault},         {.handler = fault}, {.handler = fault},
};

void Reset_Handler(void)
{
#if defined(__ARM_FP)
    CPACR |= 0xFu << 20; /* before anything else: compilers may use the FPU's registers for copies */
    __asm__ volatile("dsb\n isb");
#endif
    VTOR = (uint32_t)(uintptr_t)vectors; /* a bootloader may have started us; a Cortex-M0 ignores it */
    cpu_fill_data();
    cpu_paint_stack(cpu_stack_pointer());
    (void)main();
    fault();
}
