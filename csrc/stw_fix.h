/* stw_fix.h - every fixed-point operation of the library, once.
 *
 * The names are those of docs/numerics.md.  All results are defined by exact mathematics on integers, so any
 * instruction sequence that gives the same integer may stand in for what is written here.
 * With STW_CHECKED every operation asserts the bounds in its comment, in 64-bit arithmetic.
 */
#ifndef STW_FIX_H
#define STW_FIX_H

#include <stdint.h>

#include "stw_config.h"
#include "stw_table.h"

#ifdef STW_CHECKED
#include <assert.h>
#define STW_CHECK(condition) assert(condition)
#else
#define STW_CHECK(condition) ((void)0)
#endif

/* The specification's >> is the floor shift, and a sum that wraps is taken modulo 2^32.  C99 leaves both to the
 * compiler for negative values: refuse one that differs. */
typedef char stw_shift_must_be_arithmetic[((-3) >> 1) == -2 ? 1 : -1];
typedef char stw_conversion_must_wrap[(int32_t)0xFFFFFFFEu == -2 ? 1 : -1];

/* RSH(x, n): x / 2^n, rounded half up.  0 <= n <= 31; x < 2^31 - 1 where n = 1. */
static inline int32_t stw_rsh(int32_t x, int n)
{
    STW_CHECK(n >= 0 && n <= 31 && (n != 1 || x < INT32_MAX));
    return n == 0 ? x : ((x >> (n - 1)) + 1) >> 1;
}

/* RSH(a * m, s) with the product exact.  0 <= m <= 32767, 1 <= s <= 46; the result must be within
 * +-(2^31 - 2^16), which the overflow proof or the caller's formats guarantee.
 * a = hi * 2^16 + lo splits the 48-bit product so that no step needs more than 32 bits. */
static inline int32_t stw_rq(int32_t a, int32_t m, int s)
{
    uint32_t lo;
#if STW_WIDE_MULTIPLY
    int32_t high = (int32_t)(((int64_t)a * (m * 65536)) >> 32); /* floor(a * m / 2^16) */
#else
    int32_t high =
        (a >> 16) * m + (int32_t)((((uint32_t)a & 0xFFFFu) * (uint32_t)m) >> 16); /* terms below 2^30, 2^15 */
#endif

    STW_CHECK(m >= 0 && m <= 32767 && s >= 1 && s <= 46);
    STW_CHECK(((((int64_t)a * m) >> (s - 1)) + 1) >> 1 >= -(((int64_t)1 << 31) - 65536));
    STW_CHECK(((((int64_t)a * m) >> (s - 1)) + 1) >> 1 <= ((int64_t)1 << 31) - 65536);
    if (s > 16) {
        return stw_rsh(high, s - 16);
    }
    lo = ((uint32_t)a & 0xFFFFu) * (uint32_t)m;   /* < 2^31 */
    lo = ((lo & 0xFFFFu) + (1u << (s - 1))) >> s; /* <= 2^15 */
    return high * ((int32_t)1 << (16 - s)) + (int32_t)lo;
}

/* RSH(g * c, 15) for a gate g in -32767..32767 (Q0.15) and any int32 c. */
static inline int32_t stw_gate_mul(int32_t c, int32_t g)
{
    int32_t lo = (c & 0xFFFF) * g;

    STW_CHECK(g >= -32767 && g <= 32767);
    return (c >> 16) * g * 2 + ((lo + (1 << 14)) >> 15);
}

/* RSH(c * p, n) for a peephole weight p int16 and any int32 c; 17 <= n <= 26, so |result| <= 2^29. */
static inline int32_t stw_peephole(int32_t c, int32_t p, int n)
{
    STW_CHECK(p >= -32768 && p <= 32767 && n >= 17 && n <= 26);
    return stw_rsh((c >> 16) * p + (((c & 0xFFFF) * p) >> 16), n - 16);
}

/* An input sum brought to the scale of the hidden sum: ax * 2^kx, rounded when kx < 0.  -15 <= kx <= 15. */
static inline int32_t stw_join(int32_t ax, int kx)
{
    STW_CHECK(kx >= -15 && kx <= 15);
    return kx >= 0 ? ax * ((int32_t)1 << kx) : stw_rsh(ax, -kx);
}

/* Hides the value of a variable from the compiler; adds no instruction. */
#if STW_HIDE_MASKS
#define STW_HIDE(x) __asm__("" : "+r"(x))
#else
#define STW_HIDE(x) ((void)0)
#endif

/* -1 when x is negative, else 0.  Choices are made with such masks: no branch depends on the data, so a step takes the
 * same instructions whatever it computes.  clang knows a mask by its sign and a choice by its mask, and makes branches
 * of both where the core has no conditional move, unless it sees neither. */
static inline int32_t stw_mask(int32_t x)
{
    int32_t mask = x;

    STW_HIDE(mask);
    mask >>= 31;
    STW_HIDE(mask);
    return mask;
}

/* The smaller and the larger of two values whose difference fits int32. */
static inline int32_t stw_min(int32_t a, int32_t b)
{
    return b + ((a - b) & stw_mask(a - b));
}

static inline int32_t stw_max(int32_t a, int32_t b)
{
    return a - ((a - b) & stw_mask(a - b));
}

/* x or, where mask is -1, -x. */
static inline int32_t stw_negate_if(int32_t x, int32_t mask)
{
    return (x ^ mask) - mask;
}

/* SAT16(x), |x| <= 2^31 - 2^16. */
static inline int16_t stw_sat16(int32_t x)
{
    STW_CHECK(x >= -(INT32_MAX - 65535) && x <= INT32_MAX - 65535);
    return (int16_t)stw_max(stw_min(x, 32767), -32768);
}

/* min(max(x, -limit), limit) */
static inline int16_t stw_limit(int32_t x, int32_t limit)
{
    return (int16_t)stw_max(stw_min(x, limit), -limit);
}

/* CLIP(z, clip) = min(max(z, -clip - 1), clip); clip = 32767 changes nothing. */
static inline int16_t stw_clip(int32_t z, int32_t clip)
{
    return (int16_t)stw_max(stw_min(z, clip), ~clip);
}

/* SAT32(a + b) */
static inline int32_t stw_sat_add(int32_t a, int32_t b)
{
    int32_t sum      = (int32_t)((uint32_t)a + (uint32_t)b);
    int32_t overflow = stw_mask((a ^ sum) & (b ^ sum)); /* both terms differ in sign from the sum */

    return (sum & ~overflow) | ((stw_mask(a) ^ INT32_MAX) & overflow);
}

/* Y(a) - 2^21: the table stw_sigmoid_table, which holds T[k] - 2^15, read with linear interpolation; 0 <= a <= 22527,
 * result 0 .. 2^21. */
static inline int32_t stw_table_y(int32_t a)
{
    int32_t below = stw_sigmoid_table[a >> 6];
    int32_t above = stw_sigmoid_table[(a >> 6) + 1];

    STW_CHECK(a >= 0 && a <= 22527);
    return 64 * below + (a & 63) * (above - below);
}

/* min(|z|, limit) */
static inline int32_t stw_magnitude(int32_t z, int32_t limit)
{
    return stw_min(stw_negate_if(z, stw_mask(z)), limit);
}

/* SIG(SAT16(z)): z Q4.11, |z| <= 2^31 - 2^16 -> 0..32767 in Q0.15, monotone, within 1.01 LSB of the logistic function.
 * SAT16 has no work, since the table ends long before. */
static inline int16_t stw_sigmoid(int32_t z)
{
    int32_t y = (stw_table_y(stw_magnitude(z, 22527)) + 64) >> 7; /* of |z|, less 1/2 */

    return (int16_t)stw_min(16384 + stw_negate_if(y, stw_mask(z)), 32767);
}

/* TANH(SAT16(z)), likewise: z Q4.11 -> -32767..32767 in Q0.15, monotone and odd, within 1.46 LSB.  The table's last two
 * values are the same, so that 2 * 11263 does for 22527. */
static inline int16_t stw_tanh(int32_t z)
{
    int32_t y = (stw_table_y(2 * stw_magnitude(z, 11263)) + 32) >> 6;

    return (int16_t)stw_negate_if(y, stw_mask(z));
}

/* TAB(z): a table of 513 values over the int16 range read with linear interpolation, z int16. */
static inline int16_t stw_lookup(const STW_ROM int16_t *table, int32_t z)
{
    int32_t k     = (z + 32768) >> 7;
    int32_t below = table[k];
    int32_t rise  = (table[k + 1] - below) * ((z + 32768) & 127);

    STW_CHECK(z >= -32768 && z <= 32767);
    return (int16_t)(below + ((rise + 64) >> 7));
}

#endif /* STW_FIX_H */
