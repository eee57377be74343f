/* stw_softmax.c - softmax without exp or division, as in docs/numerics.md, "Softmax". */
#include "stw_fix.h"
#include "stw_layers.h"

#if STW_WITH_SOFTMAX || STW_WITH_ATTENTION /* as its table */

/* 2^-d for d in Q16 (d >= 0): Q22, 0 .. 2^22. */
static uint32_t exp2_neg(uint32_t d)
{
    uint32_t k     = (d >> 10) & 63u;
    uint32_t below = stw_exp2_table[k];
    uint32_t drop  = below - stw_exp2_table[k + 1];
    uint32_t y     = below * 1024u - (d & 1023u) * drop; /* Q25 */
    int32_t  n     = stw_min((int32_t)(d >> 16), 28);    /* y >> 31 is 0 already */

    return y >> (n + 3);
}

/* floor(2^15 * e / sum + 1/2) by long division, 0 <= e <= sum <= 2^31: the core links no divide. */
static int32_t ratio_q15(uint32_t e, uint32_t sum)
{
    uint32_t q = 0, r = e; /* e = sum gives sixteen ones, which round to 2^15 */

    STW_CHECK(e <= sum && sum <= 0x80000000u);
    for (int bit = 0; bit < 16; bit++) {
        uint32_t fits;

        r *= 2u;
        fits = ~(r - sum) >> 31; /* r < 2 * sum < 2^32: the top bit tells that sum was too large */
        r -= sum & (0u - fits);
        q = q * 2u + fits;
    }
    return (int32_t)((q + 1u) >> 1);
}

void stw_softmax(int32_t *y, size_t n)
{
    int32_t  top = y[0];
    uint32_t sum = 0;

    for (size_t k = 1; k < n; k++) {
        top = y[k] > top ? y[k] : top;
    }
    for (size_t k = 0; k < n; k++) {
        y[k] = (int32_t)exp2_neg((uint32_t)top - (uint32_t)y[k]);
        sum += (uint32_t)y[k];
    }
    for (size_t k = 0; k < n; k++) {
        y[k] = ratio_q15((uint32_t)y[k], sum);
    }
}
#endif
