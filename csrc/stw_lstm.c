/* stw_lstm.c - one LSTM step, as in docs/numerics.md, "One LSTM step". */
#include "stw_dot.h"
#include "stw_fix.h"
#include "stw_layers.h"

/* Pre-activations z[4] of unit u, Q4.11: the input sums, brought to the hidden sums' scale, then both plus bias. */
static void unit_pre_activations(const stw_layer *l, const int16_t *x, const int16_t *h, size_t u, int16_t z[4])
{
    const int8_t  *w      = (const int8_t *)l->w + u * 4 * l->n_in;
    const int8_t  *r      = l->r + u * 4 * l->n_out;
    const stw_row *row    = l->rows + u * 4;
    int32_t        acc[4] = {0, 0, 0, 0};

    stw_dot4(acc, w, x, l->n_in);
    for (int k = 0; k < 4; k++) {
        acc[k] = stw_join(acc[k], row[k].kx) + row[k].bias;
    }
    stw_dot4(acc, r, h, l->n_out);
    for (int k = 0; k < 4; k++) {
        z[k] = stw_sat16(stw_rq(acc[k], row[k].mult, row[k].shift));
    }
}

void stw_lstm_unit(const stw_layer *l, const int16_t *x, const int16_t *h, int32_t c, size_t u, stw_unit *out)
{
    int32_t i, f, g, o;

    unit_pre_activations(l, x, h, u, out->z);
    i = out->gate[0] = stw_sigmoid(out->z[0]);
    f = out->gate[1] = stw_sigmoid(out->z[1]);
    g = out->gate[2] = stw_tanh(out->z[2]);
    o = out->gate[3] = stw_sigmoid(out->z[3]);

    out->c = stw_sat_add(stw_gate_mul(c, f), stw_rsh(i * g, 8));                 /* Q9.22 */
    out->h = (int16_t)stw_rsh(o * stw_tanh(stw_sat16(stw_rsh(out->c, 11))), 15); /* Q0.15 */
}
