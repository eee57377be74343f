/* stw_dot.h - dot products: the one seam for code that depends on the CPU.
 *
 * Sums are exact in int32 (the exporter's overflow proof bounds every partial sum in any order), so each variant
 * may order and split them as it likes and gives the same bits.  This is the portable one.
 */
#ifndef STW_DOT_H
#define STW_DOT_H

#include <stddef.h>
#include <stdint.h>

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
