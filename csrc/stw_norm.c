/* stw_norm.c - LayerNorm without division, as in docs/numerics.md, "LayerNorm". */
#include "stw_fix.h"
#include "stw_layers.h"

/* The largest r with r^2 w <= 2^62, for w in [2^30, 2^32): 2^15 .. 2^16. */
static uint32_t inverse_root(uint32_t w)
{
    uint32_t r = 1u << 15;

    for (uint32_t bit = 1u << 14; bit; bit >>= 1) {
        uint64_t square = (uint64_t)(r + bit) * (r + bit); /* < 2^32 */
        uint64_t fits   = square * w <= (uint64_t)1 << 62;

        r += bit & (0u - (uint32_t)fits);
    }
    return w == (uint32_t)1 << 30 ? (uint32_t)1 << 16 : r;
}

/* W = w * 2^e with e even and w in [2^30, 2^32). */
static uint32_t normalise(uint64_t sum, int *e)
{
    *e = 0;
    while (sum >> 32) {
        sum >>= 2;
        *e += 2;
    }
    while (sum < (uint64_t)1 << 30) {
        sum <<= 2;
        *e -= 2;
    }
    return (uint32_t)sum;
}

static uint64_t epsilon(const stw_layer *l)
{
    uint64_t e = 0;

    for (int k = 3; k >= 0; k--) {
        e = e << 16 | (uint16_t)l->extra[k];
    }
    return e;
}

/* RSH(d * r, n) for n of any sign; |d * r| < 2^46. */
static int16_t scaled(int32_t d, uint32_t r, int n)
{
    int64_t v = (int64_t)d * r;

    v = n > 0 ? ((v >> (n - 1)) + 1) >> 1 : v * ((int64_t)1 << -n);
    return v > 32767 ? 32767 : v < -32768 ? -32768 : (int16_t)v;
}

void stw_layer_norm(const stw_layer *l, const int16_t *x, int16_t *out)
{
    const STW_ROM int16_t *gamma = (const STW_ROM int16_t *)l->w;
    int32_t                n = l->n_in, sum = 0;
    uint64_t               total = epsilon(l);
    uint32_t               r;
    int                    e, shift;

    for (int32_t k = 0; k < n; k++) {
        sum += x[k];
    }
    for (int32_t k = 0; k < n; k++) {
        int64_t d = n * (int32_t)x[k] - sum; /* |d| <= 2^26 */
        total += (uint64_t)(d * d);
    }
    r     = inverse_root(normalise(total, &e));
    shift = 16 + e / 2 - l->p[0];
    for (int32_t k = 0; k < n; k++) {
        const STW_ROM stw_row *row = l->rows + k;
        int32_t                q   = scaled(n * (int32_t)x[k] - sum, r, shift);

        out[k] = stw_sat16(stw_rq((int32_t)gamma[k] * q + row->bias, row->mult, row->shift));
    }
}
