/* stw_dot.h - dot products: the one seam for code that depends on the CPU.
 *
 * Sums are exact in int32 (the exporter's overflow proof bounds every partial sum in any order), so each variant
 * may order and split them as it likes and gives the same bits.  This is the portable one.
 */
#ifndef STW_DOT_H
#define STW_DOT_H

#include <stddef.h>
#include <stdint.h>

#include "stw_config.h"

/* Bytes of a row of n weights of a recurrent layer. */
static inline size_t stw_row_bytes(unsigned int bits, size_t n)
{
    return bits == 4 ? (n + 1u) / 2u : n;
}

/* acc[g] += sum_j w[g][j] * x[j] for the four gate rows w int8 [4][n] of one unit. */
static inline void stw_dot4(int32_t acc[4], const int8_t *w, const int16_t *x, size_t n)
{
    const int8_t *w0 = w, *w1 = w + n, *w2 = w + 2 * n, *w3 = w + 3 * n;
    int32_t       a0 = acc[0], a1 = acc[1], a2 = acc[2], a3 = acc[3];

    for (size_t j = 0; j < n; j++) {
        int32_t xj = x[j];
        a0 += w0[j] * xj;
        a1 += w1[j] * xj;
        a2 += w2[j] * xj;
        a3 += w3[j] * xj;
    }
    acc[0] = a0;
    acc[1] = a1;
    acc[2] = a2;
    acc[3] = a3;
}

/* The same for one row and for the three rows of a GRU unit. */
static inline int32_t stw_dot1_int8(const int8_t *w, const int16_t *x, size_t n)
{
    int32_t acc = 0;

    for (size_t j = 0; j < n; j++) {
        acc += (int32_t)w[j] * x[j];
    }
    return acc;
}

static inline void stw_dot3(int32_t acc[3], const int8_t *w, const int16_t *x, size_t n)
{
    const int8_t *w0 = w, *w1 = w + n, *w2 = w + 2 * n;
    int32_t       a0 = acc[0], a1 = acc[1], a2 = acc[2];

    for (size_t j = 0; j < n; j++) {
        int32_t xj = x[j];
        a0 += w0[j] * xj;
        a1 += w1[j] * xj;
        a2 += w2[j] * xj;
    }
    acc[0] = a0;
    acc[1] = a1;
    acc[2] = a2;
}

#if STW_WITH_W4
/* The same for one row of n weights of 4 bits, two in a byte, the low half first. */
static inline int32_t stw_dot1_int4(const int8_t *w, const int16_t *x, size_t n)
{
    int32_t even = 0, odd = 0;

    for (size_t j = 0; j + 1 < n; j += 2) {
        int32_t pair = *w++;

        even += ((pair & 15) ^ 8) * x[j] - 8 * x[j];
        odd += (pair >> 4) * x[j + 1];
    }
    if (n & 1u) {
        even += ((*w & 15) ^ 8) * x[n - 1] - 8 * x[n - 1];
    }
    return even + odd;
}
#endif

/* acc[k] += the dot product of row k with x, for n_rows (1, 3 or 4) rows of n weights of `bits` bits each. */
static inline void stw_dot_rows(int32_t *acc, int n_rows, const int8_t *w, unsigned int bits, const int16_t *x,
                                size_t n)
{
#if STW_WITH_W4
    if (bits == 4) {
        for (int k = 0; k < n_rows; k++) {
            acc[k] += stw_dot1_int4(w + (size_t)k * stw_row_bytes(bits, n), x, n);
        }
        return;
    }
#endif
    (void)bits;
    if (n_rows == 4) {
        stw_dot4(acc, w, x, n);
    } else if (n_rows == 3) {
        stw_dot3(acc, w, x, n);
    } else {
        acc[0] += stw_dot1_int8(w, x, n);
    }
}

/* sum_j w[j] * x[j] for one dense row w int16 [n]. */
static inline int32_t stw_dot1(const int16_t *w, const int16_t *x, size_t n)
{
    int32_t acc = 0;

    for (size_t j = 0; j < n; j++) {
        acc += (int32_t)w[j] * x[j];
    }
    return acc;
}

#endif /* STW_DOT_H */
