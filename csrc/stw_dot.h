/* stw_dot.h - dot products: the one seam for code that depends on the CPU.
 *
 * Sums are exact in int32 (the exporter's overflow proof bounds every partial sum in any order), so each variant
 * may order and split them as it likes and gives the same bits.  This is the portable one.
 */
#ifndef STW_DOT_H
#define STW_DOT_H

#include <stddef.h>
#include <stdint.h>

#include "stepwell.h"
#include "stw_config.h"

/* Bytes of a row of n weights of a recurrent layer. */
static inline size_t stw_row_bytes(unsigned int bits, size_t n)
{
    return bits == 4 ? (n + 1u) / 2u : n;
}

/* sum[g] = sum_j w[g][j] * x[j] for the four gate rows w int8 [4][n] of one unit; n >= 1. */
#if defined(__ARM_ARCH_6M__)
void stw_dot4_v6m(int32_t sum[4], const STW_ROM int8_t *w, const int16_t *x, size_t n);
#define stw_dot4 stw_dot4_v6m
#elif defined(__riscv_mul)
void                  stw_dot4_riscv(int32_t sum[4], const STW_ROM int8_t *w, const int16_t *x, size_t n);
#define stw_dot4 stw_dot4_riscv
#elif !defined(__AVR_HAVE_MUL__)
static inline void stw_dot4(int32_t sum[4], const STW_ROM int8_t *w, const int16_t *x, size_t n)
{
    const STW_ROM int8_t *w0 = w, *w1 = w + n, *w2 = w + 2 * n, *w3 = w + 3 * n;
    int32_t               a0 = 0, a1 = 0, a2 = 0, a3 = 0;

    for (size_t j = 0; j < n; j++) {
        int32_t xj = x[j];
        a0 += w0[j] * xj;
        a1 += w1[j] * xj;
        a2 += w2[j] * xj;
        a3 += w3[j] * xj;
    }
    sum[0] = a0;
    sum[1] = a1;
    sum[2] = a2;
    sum[3] = a3;
}
#endif

/* The same for one row and for the three rows of a GRU unit. */
#if defined(__AVR_HAVE_MUL__)
void stw_dot_avr(int32_t *sum, int n_rows, const STW_ROM int8_t *w, const int16_t *x, size_t n);
#else
static inline int32_t stw_dot1_int8(const STW_ROM int8_t *w, const int16_t *x, size_t n)
{
    int32_t sum = 0;

    for (size_t j = 0; j < n; j++) {
        sum += (int32_t)w[j] * x[j];
    }
    return sum;
}

static inline void stw_dot3(int32_t sum[3], const STW_ROM int8_t *w, const int16_t *x, size_t n)
{
    const STW_ROM int8_t *w0 = w, *w1 = w + n, *w2 = w + 2 * n;
    int32_t               a0 = 0, a1 = 0, a2 = 0;

    for (size_t j = 0; j < n; j++) {
        int32_t xj = x[j];
        a0 += w0[j] * xj;
        a1 += w1[j] * xj;
        a2 += w2[j] * xj;
    }
    sum[0] = a0;
    sum[1] = a1;
    sum[2] = a2;
}
#endif

#if STW_WITH_W4
/* The two weights of 4 bits in a byte. */
static inline int32_t stw_low_half(int32_t pair)
{
    return (int32_t)((uint32_t)pair << 28) >> 28;
}

static inline int32_t stw_high_half(int32_t pair)
{
    return pair >> 4;
}

/* The same for one row and for four rows of n weights of 4 bits, two in a byte, the low half first. */
static inline int32_t stw_dot1_int4(const STW_ROM int8_t *w, const int16_t *x, size_t n)
{
    int32_t sum = 0;

    for (size_t j = 0; j + 1 < n; j += 2, w++) {
        sum += stw_low_half(*w) * x[j] + stw_high_half(*w) * x[j + 1];
    }
    return n & 1u ? sum + stw_low_half(*w) * x[n - 1] : sum;
}

static inline void stw_dot4_int4(int32_t sum[4], const STW_ROM int8_t *w, const int16_t *x, size_t n)
{
    size_t                n_bytes = stw_row_bytes(4, n);
    const STW_ROM int8_t *w0 = w, *w1 = w + n_bytes, *w2 = w + 2 * n_bytes, *w3 = w + 3 * n_bytes;
    int32_t               a0 = 0, a1 = 0, a2 = 0, a3 = 0;

    for (size_t k = 0; k < n / 2; k++) {
        int32_t low = x[2 * k], high = x[2 * k + 1];

        a0 += stw_low_half(w0[k]) * low + stw_high_half(w0[k]) * high;
        a1 += stw_low_half(w1[k]) * low + stw_high_half(w1[k]) * high;
        a2 += stw_low_half(w2[k]) * low + stw_high_half(w2[k]) * high;
        a3 += stw_low_half(w3[k]) * low + stw_high_half(w3[k]) * high;
    }
    if (n & 1u) {
        size_t last = n / 2;

        a0 += stw_low_half(w0[last]) * x[n - 1];
        a1 += stw_low_half(w1[last]) * x[n - 1];
        a2 += stw_low_half(w2[last]) * x[n - 1];
        a3 += stw_low_half(w3[last]) * x[n - 1];
    }
    sum[0] = a0;
    sum[1] = a1;
    sum[2] = a2;
    sum[3] = a3;
}
#endif

/* sum[k] = the dot product of row k with x, for n_rows (1, 3 or 4) rows of n weights of `bits` bits each. */
static inline void stw_dot_rows(int32_t *sum, int n_rows, const STW_ROM int8_t *w, unsigned int bits, const int16_t *x,
                                size_t n)
{
#if STW_WITH_W4
    if (bits == 4 && n_rows == 4) {
        stw_dot4_int4(sum, w, x, n);
        return;
    }
    if (bits == 4) {
        for (int k = 0; k < n_rows; k++) {
            sum[k] = stw_dot1_int4(w + (size_t)k * stw_row_bytes(bits, n), x, n);
        }
        return;
    }
#endif
    (void)bits;
#if defined(__AVR_HAVE_MUL__)
    stw_dot_avr(sum, n_rows, w, x, n);
#else
    if (n_rows == 4) {
        stw_dot4(sum, w, x, n);
    } else if (n_rows == 3) {
        stw_dot3(sum, w, x, n);
    } else {
        sum[0] = stw_dot1_int8(w, x, n);
    }
#endif
}

/* sum_j w[j] * x[j] for one dense row w int16 [n]. */
static inline int32_t stw_dot1(const STW_ROM int16_t *w, const int16_t *x, size_t n)
{
    int32_t acc = 0;

    for (size_t j = 0; j < n; j++) {
        acc += (int32_t)w[j] * x[j];
    }
    return acc;
}

#endif /* STW_DOT_H */
