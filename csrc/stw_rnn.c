/* stw_rnn.c - one Elman step, as in docs/numerics.md, "One RNN step". */
#include "stw_dot.h"
#include "stw_fix.h"
#include "stw_layers.h"

void stw_rnn_unit(const stw_layer *l, const stw_cell *cell, const int16_t *x, const int16_t *h, size_t u, stw_unit *out)
{
    const STW_ROM stw_row *row = l->rows + u;
    int32_t                acc = stw_joined_row(l, u, x, h), new_h;
    int                    n   = 15 - cell->h_frac;

    for (int k = 0; k < 4; k++) {
        out->z[k] = out->gate[k] = 0;
    }
    out->z[0] = stw_clip(stw_sat16(stw_rq(acc, row->mult, row->shift)), cell->clip);
    out->c    = 0;
    new_h     = stw_variant(cell->candidate) ? stw_lookup(cell->candidate, out->z[0])
                                             : (stw_tanh(out->z[0]) + (((int32_t)1 << n) >> 1)) >> n; /* RSH, n may be 0 */
    out->h    = stw_limit(new_h, cell->h_max);
}
