/* stw_dot_v6m.c - stw_dot4 for Armv6-M (Cortex-M0, M0+), whose compilers spill the sums: less than four instructions a
 * product. */
#include "stw_dot.h"

#if defined(__ARM_ARCH_6M__)

/* The sums live in r8-r11, which an add may use; r1, r4, r5, r6 point behind the four rows and r2 behind x, so that the
 * index r3 counts from -n to 0.  x moves on by two bytes a column: one by the index, one by its pointer.  The loop of
 * four columns is entered in its middle. */
__attribute__((naked)) void stw_dot4_v6m(int32_t        acc[4] __attribute__((unused)),
                                         const int8_t  *w __attribute__((unused)),
                                         const int16_t *x __attribute__((unused)), size_t n __attribute__((unused)))
{
    __asm__ volatile(".syntax unified         \n"
                     "push  {r4-r7, lr}       \n"
                     "mov   r4, r8            \n"
                     "mov   r5, r9            \n"
                     "mov   r6, r10           \n"
                     "mov   r7, r11           \n"
                     "push  {r0, r4-r7}       \n"
                     "movs  r4, #0            \n"
                     "mov   r8, r4            \n"
                     "mov   r9, r4            \n"
                     "mov   r10, r4           \n"
                     "mov   r11, r4           \n"
                     "adds  r2, r2, r3        \n"
                     "adds  r1, r1, r3        \n"
                     "adds  r4, r1, r3        \n"
                     "adds  r5, r4, r3        \n"
                     "adds  r6, r5, r3        \n"
                     "rsbs  r3, r3, #0        \n"
                     "movs  r0, #3            \n"
                     "ands  r0, r3            \n"
                     "movs  r7, #30           \n"
                     "muls  r0, r7, r0        \n"
                     "adr   r7, 1f            \n"
                     "adds  r0, r0, r7        \n"
                     "mov   pc, r0            \n" /* skips as many columns as the last turn of four lacks */
                     ".balign 4               \n"
                     "1:                      \n"
                     ".rept 4                 \n" /* a column: 15 instructions of 2 bytes */
                     "ldrsh r0, [r2, r3]      \n"
                     "ldrsb r7, [r1, r3]      \n"
                     "muls  r7, r0, r7        \n"
                     "add   r8, r7            \n"
                     "ldrsb r7, [r4, r3]      \n"
                     "muls  r7, r0, r7        \n"
                     "add   r9, r7            \n"
                     "ldrsb r7, [r5, r3]      \n"
                     "muls  r7, r0, r7        \n"
                     "add   r10, r7           \n"
                     "ldrsb r7, [r6, r3]      \n"
                     "muls  r7, r0, r7        \n"
                     "add   r11, r7           \n"
                     "adds  r2, #1            \n"
                     "adds  r3, #1            \n"
                     ".endr                   \n"
                     "bne   1b                \n"
                     "mov   r1, r8            \n"
                     "mov   r2, r9            \n"
                     "mov   r3, r10           \n"
                     "mov   r4, r11           \n"
                     "pop   {r0}              \n"
                     "stmia r0!, {r1-r4}      \n"
                     "pop   {r4-r7}           \n"
                     "mov   r8, r4            \n"
                     "mov   r9, r5            \n"
                     "mov   r10, r6           \n"
                     "mov   r11, r7           \n"
                     "pop   {r4-r7, pc}       \n");
}

#else
typedef int stw_dot_v6m_is_empty; /* ISO C wants a declaration */
#endif
