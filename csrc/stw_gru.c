/* stw_gru.c - one GRU step, the reset after or before the product, as in docs/numerics.md, "One GRU step". */
#include "stw_dot.h"
#include "stw_fix.h"
#include "stw_layers.h"
#include "stw_pairs.h"

static int32_t gate_of(const stw_cell *cell, int16_t z)
{
    return stw_variant(cell->gate) ? stw_lookup(cell->gate, z) : stw_sigmoid(z);
}

/* The new state from the update gate z and what enters the candidate's activation. */
static void new_state(const stw_cell *cell, int32_t c, int32_t z, int32_t n_in, stw_unit *out)
{
    int16_t n_z   = stw_clip(n_in, cell->clip);
    int32_t n     = stw_variant(cell->candidate) ? stw_lookup(cell->candidate, n_z) : stw_tanh(n_z);
    int32_t fresh = stw_min(32768 - z, 32767);

    out->gate[2] = (int16_t)n;
    out->c       = stw_sat_add(stw_gate_mul(c, z), stw_rsh(fresh * n, cell->g_frac - 7)); /* S, Q9.22 */
    out->h       = stw_limit(stw_rsh(out->c, 22 - cell->h_frac), cell->h_max);
}

/* ---- reset after the product ---- */

/* Pre-activations z[4] of unit u, Q4.11: r and z join input and hidden sums, n keeps the two apart. */
static void unit_pre_activations(const stw_layer *l, const int16_t *x, const int16_t *h, size_t u, int16_t z[4])
{
    const STW_ROM stw_row *row  = l->rows + u * 4;
    unsigned int           bits = stw_weight_bits(l);
    int32_t                ax[3], ah[3], acc[4];

#if STW_WITH_PAIRS
    if (stw_is_paired(l)) {
        stw_pairs_unit(l, x, h, u, z);
        return;
    }
#endif
    stw_dot_rows(ax, 3, (const STW_ROM int8_t *)l->w + u * 3 * stw_row_bytes(bits, l->n_in), bits, x, l->n_in);
    stw_dot_rows(ah, 3, l->r + u * 3 * stw_row_bytes(bits, l->n_out), bits, h, l->n_out);
    acc[0] = stw_join(ax[0], row[0].kx) + ah[0];
    acc[1] = stw_join(ax[1], row[1].kx) + ah[1];
    acc[2] = ax[2];
    acc[3] = ah[2];
    for (int k = 0; k < 4; k++) {
        z[k] = stw_sat16(stw_rq(acc[k] + row[k].bias, row[k].mult, row[k].shift));
    }
}

void stw_gru_unit(const stw_layer *l, const stw_cell *cell, const int16_t *x, const int16_t *h, int32_t c, size_t u,
                  stw_unit *out)
{
    int32_t r, z;

    unit_pre_activations(l, x, h, u, out->z);
    out->z[0] = stw_clip(out->z[0], cell->clip);
    out->z[1] = stw_clip(out->z[1], cell->clip);
    r = out->gate[0] = (int16_t)gate_of(cell, out->z[0]);
    z = out->gate[1] = (int16_t)gate_of(cell, out->z[1]);
    out->gate[3]     = 0;
    new_state(cell, c, z, stw_sat16(out->z[2] + stw_rsh(r * out->z[3], 15)), out);
}

/* ---- reset before the product ---- */

/* Pre-activation of one gate of unit u: k = 0, 1, 2 for r, z, n; n takes the hidden states times the reset gate. */
static int16_t gate_pre_activation(const stw_layer *l, const stw_cell *cell, const int16_t *x, const int16_t *h,
                                   size_t u, size_t k)
{
    const STW_ROM stw_row *row = l->rows + u * 3 + k;
    int32_t                acc = stw_joined_row(l, u * 3 + k, x, h);

    return stw_clip(stw_sat16(stw_rq(acc, row->mult, row->shift)), cell->clip);
}

void stw_gru_before_reset(const stw_layer *l, const stw_cell *cell, const int16_t *x, const int16_t *h, int16_t *reset)
{
    for (size_t u = 0; u < l->n_out; u++) {
        reset[u] = (int16_t)stw_rsh(gate_of(cell, gate_pre_activation(l, cell, x, h, u, 0)) * h[u], 15);
    }
}

void stw_gru_before_unit(const stw_layer *l, const stw_cell *cell, const int16_t *x, const int16_t *h,
                         const int16_t *reset, int32_t c, size_t u, stw_unit *out)
{
    out->z[0]    = gate_pre_activation(l, cell, x, h, u, 0);
    out->z[1]    = gate_pre_activation(l, cell, x, h, u, 1);
    out->z[2]    = gate_pre_activation(l, cell, x, reset, u, 2);
    out->z[3]    = 0;
    out->gate[0] = (int16_t)gate_of(cell, out->z[0]);
    out->gate[1] = (int16_t)gate_of(cell, out->z[1]);
    out->gate[3] = 0;
    new_state(cell, c, out->gate[1], out->z[2], out);
}
