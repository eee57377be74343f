/* stw_dot_avr.c - dot products on AVR with a hardware multiplier; nothing elsewhere. */
#include "stw_dot.h"

#if defined(__AVR_HAVE_MUL__)

/* n >= 1 weights of 8 bits from flash times int16 from RAM, by two multiplications of 8 bits: 24 cycles a product. */
static int32_t one_row(const STW_ROM int8_t *w, const int16_t *x, size_t n)
{
    int32_t sum = 0;
    uint8_t weight, half, sign;

    /* both multiplications leave the product's sign in the carry */
    __asm__ volatile("1:                   \n"
                     "lpm   %[w], Z+       \n"
                     "ld    %[x], X+       \n" /* low byte, unsigned */
                     "mulsu %[w], %[x]     \n"
                     "sbc   %[s], %[s]     \n"
                     "add   %A[sum], r0    \n"
                     "adc   %B[sum], r1    \n"
                     "adc   %C[sum], %[s]  \n"
                     "adc   %D[sum], %[s]  \n"
                     "ld    %[x], X+       \n" /* high byte */
                     "muls  %[w], %[x]     \n"
                     "sbc   %[s], %[s]     \n"
                     "add   %B[sum], r0    \n"
                     "adc   %C[sum], r1    \n"
                     "adc   %D[sum], %[s]  \n"
                     "sbiw  %[n], 1        \n"
                     "brne  1b             \n"
                     "clr   r1             \n"
                     : [sum] "+r"(sum), "+z"(w),
                       "+x"(x), [n] "+w"(n), [w] "=&a"(weight), [x] "=&a"(half), [s] "=&r"(sign)
                     :
                     : "r0", "memory");
    return sum;
}

void stw_dot_avr(int32_t *sum, int n_rows, const STW_ROM int8_t *w, const int16_t *x, size_t n)
{
    for (; n_rows > 0; n_rows--, w += n) {
        *sum++ = one_row(w, x, n);
    }
}
#endif
