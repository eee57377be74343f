/* stw_lstm.c - one LSTM step, as in docs/numerics.md, "One LSTM step". */
#include "stw_dot.h"
#include "stw_fix.h"
#include "stw_lanes.h"
#include "stw_layers.h"
#include "stw_pairs.h"

#if defined(__ARM_FEATURE_MVE) && __ARM_FEATURE_MVE
#define STW_MVE 1
#include "stw_lstm_mve.h"
#else
#define STW_MVE 0
#endif

/* One gate's pre-activation before SAT16, Q4.11: the input sum, brought to the hidden sum's scale, then both plus bias.
 */
static inline int32_t pre_activation(const STW_ROM stw_row *row, int32_t ax, int32_t ah)
{
    return stw_rq(stw_join(ax, row->kx) + ah + row->bias, row->mult, row->shift);
}

/* Those of a unit, z[4]. */
static inline void pre_activations(int32_t z[4], const STW_ROM stw_row *row, const STW_ROM int8_t *w,
                                   const STW_ROM int8_t *r, const int16_t *x, const int16_t *h, size_t n_in,
                                   size_t n_out, unsigned int bits)
{
    int32_t ax[4], ah[4];

    stw_dot_rows(ax, 4, w, bits, x, n_in);
    stw_dot_rows(ah, 4, r, bits, h, n_out);
    z[0] = pre_activation(row, ax[0], ah[0]);
    z[1] = pre_activation(row + 1, ax[1], ah[1]);
    z[2] = pre_activation(row + 2, ax[2], ah[2]);
    z[3] = pre_activation(row + 3, ax[3], ah[3]);
}

static void unit_pre_activations(const stw_layer *l, const int16_t *x, const int16_t *h, size_t u, int16_t z[4])
{
    unsigned int          bits = stw_weight_bits(l);
    const STW_ROM int8_t *w    = (const STW_ROM int8_t *)l->w + u * 4 * stw_row_bytes(bits, l->n_in);
    const STW_ROM int8_t *r    = l->r + u * 4 * stw_row_bytes(bits, l->n_out);
    int32_t               wide[4];

#if STW_WITH_PAIRS
    if (stw_is_paired(l)) {
        stw_pairs_unit(l, x, h, u, z);
        return;
    }
#endif
    pre_activations(wide, l->rows + 4 * u, w, r, x, h, l->n_in, l->n_out, bits);
    for (int k = 0; k < 4; k++) {
        z[k] = stw_sat16(wide[k]);
    }
}

/* The cell in all its variants, as in docs/numerics.md, "Variants of the cells". */
static void variant_unit(const stw_layer *l, const stw_cell *cell, int32_t c, size_t u, stw_unit *out)
{
    const STW_ROM int16_t *p = cell->peephole ? cell->peephole + u : 0;
    int                    n = cell->peephole_frac + 11;
    int32_t                i, f, g, o, a;

    if (p) {
        out->z[0] = stw_sat16(out->z[0] + stw_peephole(c, p[0], n));
        out->z[1] = stw_sat16(out->z[1] + stw_peephole(c, p[l->p[0]], n));
    }
    for (int k = 0; k < 3; k++) {
        out->z[k] = stw_clip(out->z[k], cell->clip);
    }
    i = cell->gate ? stw_lookup(cell->gate, out->z[0]) : stw_sigmoid(out->z[0]);
    f = cell->gate ? stw_lookup(cell->gate, out->z[1]) : stw_sigmoid(out->z[1]);
    f = cell->flags & STW_COUPLED ? stw_min(32768 - i, 32767) : f;
    g = cell->candidate ? stw_lookup(cell->candidate, out->z[2]) : stw_tanh(out->z[2]);

    out->c = stw_sat_add(stw_gate_mul(c, f), stw_rsh(i * g, cell->g_frac - 7));
    if (p) {
        out->z[3] = stw_sat16(out->z[3] + stw_peephole(out->c, p[2 * (size_t)l->p[0]], n));
    }
    out->z[3] = stw_clip(out->z[3], cell->clip);
    o         = cell->gate ? stw_lookup(cell->gate, out->z[3]) : stw_sigmoid(out->z[3]);
    a         = stw_sat16(stw_rsh(out->c, 11));
    a         = cell->output ? stw_lookup(cell->output, a) : stw_tanh((int16_t)a);

    n            = cell->projection ? cell->a_frac : cell->h_frac; /* a projection brings its sum to h's format */
    out->h       = stw_limit(stw_rsh(o * a, 15 + cell->a_frac - n), cell->projection ? 32767 : cell->h_max);
    out->gate[0] = (int16_t)i;
    out->gate[1] = (int16_t)f;
    out->gate[2] = (int16_t)g;
    out->gate[3] = (int16_t)o;
}

/* The plain cell: gates, c and h from the pre-activations. */
static inline void plain_unit(stw_unit *out, const int32_t z[4], int32_t c, unsigned int h_bits)
{
    int32_t i = out->gate[0] = stw_sigmoid(z[0]);
    int32_t f = out->gate[1] = stw_sigmoid(z[1]);
    int32_t g = out->gate[2] = stw_tanh(z[2]);
    int32_t o = out->gate[3] = stw_sigmoid(z[3]);

    out->c = stw_sat_add(stw_gate_mul(c, f), stw_rsh(i * g, 8)); /* Q9.22 */
    o *= stw_tanh(stw_rsh(out->c, 11));
    out->h = h_bits == 8 ? stw_limit(stw_rsh(o, 23), 127) : (int16_t)stw_rsh(o, 15); /* |h| < 32767: LIM has no work */
}

void stw_lstm_unit(const stw_layer *l, const stw_cell *cell, const int16_t *x, const int16_t *h, int32_t c, size_t u,
                   stw_unit *out)
{
    int32_t z[4];

    unit_pre_activations(l, x, h, u, out->z);
    if (stw_variant(l->extra)) {
        variant_unit(l, cell, c, u, out);
        return;
    }
    for (int k = 0; k < 4; k++) {
        z[k] = out->z[k];
    }
    plain_unit(out, z, c, l->p[2]);
}

/* What a step walks over, unit by unit. */
typedef struct walk {
    const STW_ROM stw_row *row;
    const STW_ROM int8_t  *w, *r;
    const int16_t         *x, *h;
    size_t                 n_in, n_out;
    unsigned int           bits, h_bits;
} walk;

static void one_unit(walk *at, int32_t *c, int16_t *out)
{
    stw_unit unit;
    int32_t  z[4];

    pre_activations(z, at->row, at->w, at->r, at->x, at->h, at->n_in, at->n_out, at->bits);
    plain_unit(&unit, z, *c, at->h_bits);
    *c   = unit.c;
    *out = unit.h;
    at->row += 4;
    at->w += 4 * stw_row_bytes(at->bits, at->n_in);
    at->r += 4 * stw_row_bytes(at->bits, at->n_out);
}

#if STW_MVE
/* 0 when the units must be computed one by one; then nothing has changed. */
static int four_units(walk *at, int32_t *c, int16_t *out)
{
    const uint32x4_t offsets = vmulq_n_u32(vidupq_n_u32(0, 4), 8);
    int32x4_t        i, f, g, o, new_c, can = vdupq_n_s32(-1);
    int32_t          ax[16], ah[16];

    stw_mve_sums(ax, at->w, at->x, at->n_in);
    stw_mve_sums(ah, at->r, at->h, at->n_out);
    i     = mve_sigmoid(mve_pre_activations(at->row, offsets, ax, ah, &can));
    f     = mve_sigmoid(mve_pre_activations(at->row + 1, offsets, ax + 4, ah + 4, &can));
    g     = mve_tanh(mve_pre_activations(at->row + 2, offsets, ax + 8, ah + 8, &can));
    new_c = mve_new_cells(c, i, f, g);
    o     = mve_sigmoid(mve_pre_activations(at->row + 3, offsets, ax + 12, ah + 12, &can));
    if (vcmpgeq_n_s32(can, 0)) {
        return 0;
    }
    vstrwq_s32(c, new_c);
    vstrhq_s32(out, mve_new_hidden(o, new_c, at->h_bits));
    at->row += 16;
    at->w += 16 * at->n_in;
    at->r += 16 * at->n_out;
    return 1;
}
#endif

#if STW_WITH_AVX2
#include "stw_lstm_avx2.h"
#endif
#if defined(__aarch64__) && defined(__ARM_NEON) && !defined(__AARCH64EB__)
#define STW_NEON 1
#include "stw_lstm_neon.h"
#else
#define STW_NEON 0
#endif

void stw_lstm_plain_step(const stw_layer *l, const int16_t *x, const int16_t *h, int32_t *c, int16_t *out)
{
    walk   at = {l->rows, (const STW_ROM int8_t *)l->w, l->r, x, h, l->n_in, l->n_out, stw_weight_bits(l), l->p[2]};
    size_t u  = 0;

#if STW_WITH_AVX2
    if (at.bits == 8 && avx2_is_on()) {
        u = avx2_step(&at, c, out);
    }
#endif
#if STW_NEON
    if (at.bits == 8) {
        u = neon_step(&at, c, out);
    }
#endif
#if STW_MVE
    while (at.bits == 8 && u + 4 <= at.n_out && four_units(&at, c + u, out + u)) {
        u += 4;
    }
#endif
    for (; u < at.n_out; u++) {
        one_unit(&at, c + u, out + u);
    }
}
