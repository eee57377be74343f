/* start.c - reset of an AVR: vectors, .data, .bss, painted stack. */
#include "cpu.h"

int  main(void);
void Reset_Handler(void);
void cpu_start(void);
void cpu_vectors(void);

#define TEXT_OF(name) #name
#define TEXT(name)    TEXT_OF(name)

/* All vectors start anew, but that of the tick counter: the host then learns that its session is gone. */
__attribute__((naked, section(".vectors"), used)) void cpu_vectors(void)
{
    __asm__ volatile(
        ".rept " TEXT(BOARD_TIMER_VECTOR) " \n jmp Reset_Handler \n .endr     \n"
                                          "jmp board_tick                                                       \n"
                                          ".rept " TEXT(BOARD_LATER_VECTORS) " \n jmp Reset_Handler \n .endr    \n");
}

/* Flash is another address space: .data is copied with the instruction that reads it. */
__attribute__((naked, used)) void Reset_Handler(void)
{
    __asm__ volatile("cli                              \n"
                     "clr  r1                          \n"
                     "ldi  r28, lo8(cpu_stack_top - 1) \n"
                     "ldi  r29, hi8(cpu_stack_top - 1) \n"
                     "out  0x3d, r28                   \n"
                     "out  0x3e, r29                   \n"
                     "ldi  r30, lo8(cpu_data_load)     \n"
                     "ldi  r31, hi8(cpu_data_load)     \n"
#ifdef __AVR_HAVE_ELPM__
                     "ldi  r16, hh8(cpu_data_load)     \n"
                     "out  0x3b, r16                   \n" /* RAMPZ */
#endif
                     "ldi  r26, lo8(cpu_data_low)      \n"
                     "ldi  r27, hi8(cpu_data_low)      \n"
                     "ldi  r17, hi8(cpu_data_end)      \n"
                     "rjmp 2f                          \n"
                     "1:                               \n"
#ifdef __AVR_HAVE_ELPM__
                     "elpm r0, Z+                      \n"
#else
                     "lpm  r0, Z+                      \n"
#endif
                     "st   X+, r0                      \n"
                     "2:                               \n"
                     "cpi  r26, lo8(cpu_data_end)      \n"
                     "cpc  r27, r17                    \n"
                     "brne 1b                          \n"
                     "jmp  cpu_start                   \n");
}

void cpu_start(void)
{
    for (uint8_t *to = (uint8_t *)cpu_data_end; to < (uint8_t *)cpu_data_top; to++) {
        *to = 0;
    }
    cpu_paint_stack(cpu_stack_pointer());
    (void)main();
    Reset_Handler();
}
