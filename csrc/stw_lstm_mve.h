/* stw_lstm_mve.h - four units of a plain LSTM layer at once with the M-profile vector extension (Cortex-M55, M85); part
 * of stw_lstm.c. */
#include <arm_mve.h>

/* The sums of the four gates of four units over n columns, n >= 1, to sum[4 * gate + unit].
 *
 * r4, r6, r8, r10 are the sums, r1, r3, r5, r7 walk over the rows and r12 over x.  The loop has tail predication: its
 * last turn takes the columns that are left. */
void stw_mve_sums(int32_t sum[16], const int8_t *w, const int16_t *x, uint32_t n);
__attribute__((naked, noinline, used)) void stw_mve_sums(int32_t        sum[16] __attribute__((unused)),
                                                         const int8_t  *w __attribute__((unused)),
                                                         const int16_t *x __attribute__((unused)),
                                                         uint32_t       n __attribute__((unused)))
{
    __asm__ volatile("push       {r4-r12, lr}      \n"
                     "mov        r9, r3            \n"
                     "mov        r11, r1           \n"
                     ".rept      4                 \n"
                     "mov        r1, r11           \n"
                     "add        r3, r1, r9        \n"
                     "add        r5, r3, r9        \n"
                     "add        r7, r5, r9        \n"
                     "add        r11, r7, r9       \n"
                     "mov        r12, r2           \n"
                     "movs       r4, #0            \n"
                     "movs       r6, #0            \n"
                     "mov        r8, #0            \n"
                     "mov        r10, #0           \n"
                     "dlstp.16   lr, r9            \n"
                     "1:                           \n"
                     "vldrh.u16  q0, [r12], #16    \n"
                     "vldrb.s16  q1, [r1], #8      \n"
                     "vmlava.s16 r4, q0, q1        \n"
                     "vldrb.s16  q2, [r3], #8      \n"
                     "vmlava.s16 r6, q0, q2        \n"
                     "vldrb.s16  q1, [r5], #8      \n"
                     "vmlava.s16 r8, q0, q1        \n"
                     "vldrb.s16  q2, [r7], #8      \n"
                     "vmlava.s16 r10, q0, q2       \n"
                     "letp       lr, 1b            \n"
                     "str        r6, [r0, #16]     \n"
                     "str        r8, [r0, #32]     \n"
                     "str        r10, [r0, #48]    \n"
                     "str        r4, [r0], #4      \n"
                     ".endr                        \n"
                     "pop        {r4-r12, pc}      \n");
}

/* Pre-activations of one gate of four units, Q4.11 before SAT16; their records stand four apart: `at` is 0, 32, 64, 96.
 * Shifts of 17 or more: RQ(a, mult, shift) = RSH(floor(a * mult / 2^16), shift - 16); *can is negative while all are.
 */
static inline int32x4_t mve_pre_activations(const stw_row *row, uint32x4_t at, const int32_t *ax, const int32_t *ah,
                                            int32x4_t *can)
{
    int32x4_t bias = vldrwq_gather_offset_s32((const int32_t *)(const void *)row, at);
    int32x4_t word = vldrwq_gather_offset_s32((const int32_t *)(const void *)row + 1, at); /* mult, kx, shift */
    int32x4_t kx   = vshrq_n_s32(vshlq_n_s32(word, 8), 24);
    int32x4_t acc  = vaddq_s32(vrshlq_s32(vldrwq_s32(ax), kx), vaddq_s32(vldrwq_s32(ah), bias));
    int32x4_t high = vmulhq_s32(acc, vshlq_n_s32(word, 16));
    int32x4_t left = vsubq_s32(vdupq_n_s32(16), vshrq_n_s32(word, 24));

    *can = vandq_s32(*can, left);
    return vrshlq_s32(high, left);
}

/* Y(a) - 2^21 */
static inline int32x4_t mve_table(int32x4_t a)
{
    uint32x4_t k     = vreinterpretq_u32_s32(vshrq_n_s32(a, 6));
    int32x4_t  below = vldrhq_gather_shifted_offset_s32(stw_sigmoid_table, k);
    int32x4_t  above = vldrhq_gather_shifted_offset_s32(stw_sigmoid_table + 1, k);
    int32x4_t  f     = vandq_s32(a, vdupq_n_s32(63));

    return vaddq_s32(vshlq_n_s32(below, 6), vmulq_s32(f, vsubq_s32(above, below)));
}

static inline int32x4_t mve_with_sign(int32x4_t y, int32x4_t z)
{
    return vpselq_s32(vnegq_s32(y), y, vcmpltq_n_s32(z, 0));
}

static inline int32x4_t mve_sigmoid(int32x4_t z)
{
    int32x4_t y = vrshrq_n_s32(mve_table(vminq_s32(vabsq_s32(z), vdupq_n_s32(22527))), 7);

    return vminq_s32(vaddq_n_s32(mve_with_sign(y, z), 16384), vdupq_n_s32(32767));
}

static inline int32x4_t mve_tanh(int32x4_t z)
{
    int32x4_t a = vshlq_n_s32(vminq_s32(vabsq_s32(z), vdupq_n_s32(11263)), 1);

    return mve_with_sign(vrshrq_n_s32(mve_table(a), 6), z);
}

/* New c of four units. */
static inline int32x4_t mve_new_cells(const int32_t *c, int32x4_t i, int32x4_t f, int32x4_t g)
{
    int32x4_t kept = vqrdmulhq_s32(vldrwq_s32(c), vshlq_n_s32(f, 16)); /* RSH(f * c, 15) */

    return vqaddq_s32(kept, vrshrq_n_s32(vmulq_s32(i, g), 8));
}

/* New h of four units. */
static inline int32x4_t mve_new_hidden(int32x4_t o, int32x4_t c, unsigned int h_bits)
{
    int32x4_t y = vmulq_s32(o, mve_tanh(vrshrq_n_s32(c, 11)));

    if (h_bits == 8) {
        return vmaxq_s32(vminq_s32(vrshrq_n_s32(y, 23), vdupq_n_s32(127)), vdupq_n_s32(-127));
    }
    return vrshrq_n_s32(y, 15);
}
