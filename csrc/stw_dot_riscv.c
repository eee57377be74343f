/* stw_dot_riscv.c - stw_dot4 for RISC-V: eight columns a turn, all in registers that a function need not save, which
 * compilers do not manage. */
#include "stw_dot.h"

#if defined(__riscv_mul)

/* t0-t3 are the sums, a1, a4, a5, a6 walk over the rows, a2 over x; a7 holds a code, t4 a weight, t5 the end of x. */
__attribute__((naked)) void stw_dot4_riscv(int32_t        sum[4] __attribute__((unused)),
                                           const int8_t  *w __attribute__((unused)),
                                           const int16_t *x __attribute__((unused)), size_t n __attribute__((unused)))
{
    __asm__ volatile(".macro stw_column j \n"
                     "lh   a7, 2*\\j(a2)  \n"
                     "lb   t4, \\j(a1)    \n"
                     "mul  t4, t4, a7     \n"
                     "add  t0, t0, t4     \n"
                     "lb   t4, \\j(a4)    \n"
                     "mul  t4, t4, a7     \n"
                     "add  t1, t1, t4     \n"
                     "lb   t4, \\j(a5)    \n"
                     "mul  t4, t4, a7     \n"
                     "add  t2, t2, t4     \n"
                     "lb   t4, \\j(a6)    \n"
                     "mul  t4, t4, a7     \n"
                     "add  t3, t3, t4     \n"
                     ".endm               \n"
                     "add  a4, a1, a3     \n"
                     "add  a5, a4, a3     \n"
                     "add  a6, a5, a3     \n"
                     "li   t0, 0          \n"
                     "li   t1, 0          \n"
                     "li   t2, 0          \n"
                     "li   t3, 0          \n"
                     "andi t5, a3, -8     \n"
                     "andi a3, a3, 7      \n"
                     "slli t5, t5, 1      \n"
                     "add  t5, a2, t5     \n"
                     "beq  a2, t5, 2f     \n"
                     "1:                  \n"
                     "stw_column 0        \n"
                     "stw_column 1        \n"
                     "stw_column 2        \n"
                     "stw_column 3        \n"
                     "stw_column 4        \n"
                     "stw_column 5        \n"
                     "stw_column 6        \n"
                     "stw_column 7        \n"
                     "addi a2, a2, 16     \n"
                     "addi a1, a1, 8      \n"
                     "addi a4, a4, 8      \n"
                     "addi a5, a5, 8      \n"
                     "addi a6, a6, 8      \n"
                     "bne  a2, t5, 1b     \n"
                     "2:                  \n"
                     "beqz a3, 4f         \n"
                     "3:                  \n"
                     "stw_column 0        \n"
                     "addi a2, a2, 2      \n"
                     "addi a1, a1, 1      \n"
                     "addi a4, a4, 1      \n"
                     "addi a5, a5, 1      \n"
                     "addi a6, a6, 1      \n"
                     "addi a3, a3, -1     \n"
                     "bnez a3, 3b         \n"
                     "4:                  \n"
                     "sw   t0, 0(a0)      \n"
                     "sw   t1, 4(a0)      \n"
                     "sw   t2, 8(a0)      \n"
                     "sw   t3, 12(a0)     \n"
                     "ret                 \n"
                     ".purgem stw_column  \n");
}

#else
typedef int stw_dot_riscv_is_empty; /* ISO C wants a declaration */
#endif
