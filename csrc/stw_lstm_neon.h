/* stw_lstm_neon.h - four units of a plain LSTM layer at once on AArch64; part of stw_lstm.c. */
#include <arm_neon.h>
#include <string.h>

static inline int32x4_t neon_add_products(int32x4_t sum, int8x8_t w, int16x8_t x)
{
    int16x8_t wide = vmovl_s8(w);

    return vmlal_high_s16(vmlal_s16(sum, vget_low_s16(wide), vget_low_s16(x)), wide, x);
}

/* The first n of 8 weights, n < 8, and zeros. */
static inline int8x8_t neon_last_weights(const int8_t *w, size_t n)
{
    int8_t some[8] = {0};

    memcpy(some, w, n);
    return vld1_s8(some);
}

/* The last n % 8 codes, and zeros. */
static inline int16x8_t neon_last_codes(const int16_t *x, size_t n)
{
    int16_t some[8] = {0};

    memcpy(some, x + (n & ~(size_t)7u), (n & 7u) * sizeof *x);
    return vld1q_s16(some);
}

/* The sums of four rows over n columns; they stand `stride` bytes apart. */
static inline int32x4_t neon_sums(const int8_t *w, size_t stride, const int16_t *x, size_t n, int16x8_t x_last)
{
    const int8_t *w1 = w + stride, *w2 = w1 + stride, *w3 = w2 + stride;
    int32x4_t     a0 = vdupq_n_s32(0), a1 = a0, a2 = a0, a3 = a0;
    size_t        j = 0;

    for (; j + 8 <= n; j += 8) {
        int16x8_t v = vld1q_s16(x + j);

        a0 = neon_add_products(a0, vld1_s8(w + j), v);
        a1 = neon_add_products(a1, vld1_s8(w1 + j), v);
        a2 = neon_add_products(a2, vld1_s8(w2 + j), v);
        a3 = neon_add_products(a3, vld1_s8(w3 + j), v);
    }
    if (j < n) {
        a0 = neon_add_products(a0, neon_last_weights(w + j, n - j), x_last);
        a1 = neon_add_products(a1, neon_last_weights(w1 + j, n - j), x_last);
        a2 = neon_add_products(a2, neon_last_weights(w2 + j, n - j), x_last);
        a3 = neon_add_products(a3, neon_last_weights(w3 + j, n - j), x_last);
    }
    return vpaddq_s32(vpaddq_s32(a0, a1), vpaddq_s32(a2, a3));
}

/* Word `word` of the records of one gate of four units: 0 is bias, 1 mult, kx and shift. */
static inline int32x4_t neon_field(const stw_row *row, int word)
{
    int32_t some[4];

    for (int u = 0; u < 4; u++) {
        memcpy(some + u, (const int8_t *)(const void *)(row + 4 * u) + 4 * word, 4);
    }
    return vld1q_s32(some);
}

/* Pre-activations of one gate of four units, Q4.11 before SAT16.  Shifts of 17 or more: RQ(a, mult, shift) =
 * RSH(floor(a * mult / 2^16), shift - 16); *can is negative while all are. */
static inline int32x4_t neon_pre_activations(const stw_row *row, int32x4_t ax, int32x4_t ah, int32x4_t *can)
{
    int32x4_t word = neon_field(row, 1);
    int32x4_t mult = vshrq_n_s32(vshlq_n_s32(word, 16), 16), kx = vshrq_n_s32(vshlq_n_s32(word, 8), 24);
    int32x4_t left = vsubq_s32(vdupq_n_s32(16), vshrq_n_s32(word, 24));
    int32x4_t acc  = vaddq_s32(vrshlq_s32(ax, kx), vaddq_s32(ah, neon_field(row, 0)));
    int32x2_t low  = vshrn_n_s64(vmull_s32(vget_low_s32(acc), vget_low_s32(mult)), 16);
    int32x4_t high = vshrn_high_n_s64(low, vmull_high_s32(acc, mult), 16);

    *can = vmaxq_s32(*can, left);
    return vrshlq_s32(high, left);
}

/* Y(a) - 2^21 */
static inline int32x4_t neon_table(int32x4_t a)
{
    int32_t   k[4], below[4], above[4];
    int32x4_t first;

    vst1q_s32(k, vshrq_n_s32(a, 6));
    for (int u = 0; u < 4; u++) {
        below[u] = stw_sigmoid_table[k[u]];
        above[u] = stw_sigmoid_table[k[u] + 1];
    }
    first = vld1q_s32(below);
    return vmlaq_s32(vshlq_n_s32(first, 6), vandq_s32(a, vdupq_n_s32(63)), vsubq_s32(vld1q_s32(above), first));
}

static inline int32x4_t neon_with_sign(int32x4_t y, int32x4_t z)
{
    return vbslq_s32(vcltzq_s32(z), vnegq_s32(y), y);
}

static inline int32x4_t neon_sigmoid(int32x4_t z)
{
    int32x4_t y = vrshrq_n_s32(neon_table(vminq_s32(vabsq_s32(z), vdupq_n_s32(22527))), 7);

    return vminq_s32(vaddq_s32(neon_with_sign(y, z), vdupq_n_s32(16384)), vdupq_n_s32(32767));
}

static inline int32x4_t neon_tanh(int32x4_t z)
{
    int32x4_t a = vshlq_n_s32(vminq_s32(vabsq_s32(z), vdupq_n_s32(11263)), 1);

    return neon_with_sign(vrshrq_n_s32(neon_table(a), 6), z);
}

/* New c and h of four units; 0 when they must be computed one by one, then nothing has changed. */
static int neon_units(const walk *at, const int16x8_t last[2], int32_t *c, int16_t *out)
{
    int32x4_t z[4], can = vdupq_n_s32(-1), i, f, g, o, kept, new_c, y;

    for (size_t k = 0; k < 4; k++) {
        int32x4_t ax = neon_sums(at->w + k * at->n_in, 4 * (size_t)at->n_in, at->x, at->n_in, last[0]);
        int32x4_t ah = neon_sums(at->r + k * at->n_out, 4 * (size_t)at->n_out, at->h, at->n_out, last[1]);

        z[k] = neon_pre_activations(at->row + k, ax, ah, &can);
    }
    if (vmaxvq_s32(can) >= 0) {
        return 0;
    }
    i     = neon_sigmoid(z[0]);
    f     = neon_sigmoid(z[1]);
    g     = neon_tanh(z[2]);
    o     = neon_sigmoid(z[3]);
    kept  = vqrdmulhq_s32(vld1q_s32(c), vshlq_n_s32(f, 16)); /* RSH(f * c, 15) */
    new_c = vqaddq_s32(kept, vrshrq_n_s32(vmulq_s32(i, g), 8));
    y     = vmulq_s32(o, neon_tanh(vrshrq_n_s32(new_c, 11)));
    if (at->h_bits == 8) {
        y = vmaxq_s32(vminq_s32(vrshrq_n_s32(y, 23), vdupq_n_s32(127)), vdupq_n_s32(-127));
    } else {
        y = vrshrq_n_s32(y, 15);
    }
    vst1q_s32(c, new_c);
    vst1_s16(out, vmovn_s32(y));
    return 1;
}

/* As many units as go four at a time, from the first on; `at` stands behind them.  Gives their number. */
static size_t neon_step(walk *at, int32_t *c, int16_t *out)
{
    int16x8_t last[2] = {neon_last_codes(at->x, at->n_in), neon_last_codes(at->h, at->n_out)};
    size_t    u       = 0;

    for (; u + 4 <= at->n_out && neon_units(at, last, c + u, out + u); u += 4) {
        at->w += 16 * (size_t)at->n_in;
        at->r += 16 * (size_t)at->n_out;
        at->row += 16;
    }
    return u;
}
