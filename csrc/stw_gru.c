/* stw_gru.c - one GRU step, reset after the product, as in docs/numerics.md, "One GRU step". */
#include "stw_dot.h"
#include "stw_fix.h"
#include "stw_layers.h"

/* Pre-activations z[4] of unit u, Q4.11: r and z join input and hidden sums, n keeps the two apart. */
static void unit_pre_activations(const stw_layer *l, const int16_t *x, const int16_t *h, size_t u, int16_t z[4])
{
    const stw_row *row   = l->rows + u * 4;
    int32_t        ax[3] = {0, 0, 0}, ah[3] = {0, 0, 0}, acc[4];

    stw_dot3(ax, (const int8_t *)l->w + u * 3 * l->n_in, x, l->n_in);
    stw_dot3(ah, l->r + u * 3 * l->n_out, h, l->n_out);
    acc[0] = stw_join(ax[0], row[0].kx) + ah[0];
    acc[1] = stw_join(ax[1], row[1].kx) + ah[1];
    acc[2] = ax[2];
    acc[3] = ah[2];
    for (int k = 0; k < 4; k++) {
        z[k] = stw_sat16(stw_rq(acc[k] + row[k].bias, row[k].mult, row[k].shift));
    }
}

void stw_gru_unit(const stw_layer *l, const int16_t *x, const int16_t *h, int32_t c, size_t u, stw_unit *out)
{
    int32_t r, z, n, keep, fresh;

    unit_pre_activations(l, x, h, u, out->z);
    r = out->gate[0] = stw_sigmoid(out->z[0]);
    z = out->gate[1] = stw_sigmoid(out->z[1]);
    n = out->gate[2] = stw_tanh(stw_sat16(out->z[2] + stw_rsh(r * out->z[3], 15)));
    out->gate[3]     = 0;

    keep   = stw_gate_mul(c, z);
    fresh  = stw_min(32768 - z, 32767);
    out->c = stw_sat_add(keep, stw_rsh(fresh * n, 8)); /* S, Q9.22 */
    out->h = (int16_t)stw_max(stw_min(stw_rsh(out->c, 7), 32767), -32767);
}
