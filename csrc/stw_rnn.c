/* stw_rnn.c - one Elman step, as in docs/numerics.md, "One RNN step". */
#include "stw_dot.h"
#include "stw_fix.h"
#include "stw_layers.h"

void stw_rnn_unit(const stw_layer *l, const stw_cell *cell, const int16_t *x, const int16_t *h, size_t u, stw_unit *out)
{
    const stw_row *row = l->rows + u;
    int32_t        acc = stw_join(stw_dot1_int8((const int8_t *)l->w + u * l->n_in, x, l->n_in), row->kx) + row->bias;

    acc += stw_dot1_int8(l->r + u * l->n_out, h, l->n_out);
    for (int k = 0; k < 4; k++) {
        out->z[k] = out->gate[k] = 0;
    }
    out->z[0] = stw_clip(stw_sat16(stw_rq(acc, row->mult, row->shift)), cell->clip);
    out->c    = 0;
    out->h =
        stw_variant(cell->candidate) ? stw_limit(stw_lookup(cell->candidate, out->z[0]), 32767) : stw_tanh(out->z[0]);
}
