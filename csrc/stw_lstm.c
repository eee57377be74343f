/* stw_lstm.c - one LSTM step, as in docs/numerics.md, "One LSTM step". */
#include "stw_dot.h"
#include "stw_fix.h"
#include "stw_layers.h"
#include "stw_pairs.h"

/* Pre-activations z[4] of unit u, Q4.11: the input sums, brought to the hidden sums' scale, then both plus bias. */
static void unit_pre_activations(const stw_layer *l, const int16_t *x, const int16_t *h, size_t u, int16_t z[4])
{
    unsigned int   bits   = stw_weight_bits(l);
    const int8_t  *w      = (const int8_t *)l->w + u * 4 * stw_row_bytes(bits, l->n_in);
    const int8_t  *r      = l->r + u * 4 * stw_row_bytes(bits, l->n_out);
    const stw_row *row    = l->rows + u * 4;
    int32_t        acc[4] = {0, 0, 0, 0};

#if STW_WITH_PAIRS
    if (stw_is_paired(l)) {
        stw_pairs_unit(l, x, h, u, z);
        return;
    }
#endif
    stw_dot_rows(acc, 4, w, bits, x, l->n_in);
    for (int k = 0; k < 4; k++) {
        acc[k] = stw_join(acc[k], row[k].kx) + row[k].bias;
    }
    stw_dot_rows(acc, 4, r, bits, h, l->n_out);
    for (int k = 0; k < 4; k++) {
        z[k] = stw_sat16(stw_rq(acc[k], row[k].mult, row[k].shift));
    }
}

/* The cell in all its variants, as in docs/numerics.md, "Variants of the cells". */
static void variant_unit(const stw_layer *l, const stw_cell *cell, int32_t c, size_t u, stw_unit *out)
{
    const int16_t *p = cell->peephole ? cell->peephole + u : 0;
    int            n = cell->peephole_frac + 11;
    int32_t        i, f, g, o, a;

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

void stw_lstm_unit(const stw_layer *l, const stw_cell *cell, const int16_t *x, const int16_t *h, int32_t c, size_t u,
                   stw_unit *out)
{
    int32_t i, f, g, o;

    unit_pre_activations(l, x, h, u, out->z);
    if (stw_variant(l->extra)) {
        variant_unit(l, cell, c, u, out);
        return;
    }
    i = out->gate[0] = stw_sigmoid(out->z[0]);
    f = out->gate[1] = stw_sigmoid(out->z[1]);
    g = out->gate[2] = stw_tanh(out->z[2]);
    o = out->gate[3] = stw_sigmoid(out->z[3]);

    out->c = stw_sat_add(stw_gate_mul(c, f), stw_rsh(i * g, 8)); /* Q9.22 */
    out->h = stw_limit(stw_rsh(o * stw_tanh(stw_sat16(stw_rsh(out->c, 11))), 30 - cell->h_frac), cell->h_max);
}
