/* stw_dense.c - dense rows and elementwise activations, as in docs/numerics.md, "Dense" and "Activation". */
#include "stw_config.h"
#include "stw_dot.h"
#include "stw_fix.h"
#include "stw_layers.h"

int32_t stw_dense_row(const stw_layer *l, const int16_t *x, size_t r)
{
    const stw_row *row = l->rows + r;
    int32_t        acc = stw_dot1((const int16_t *)l->w + r * l->n_in, x, l->n_in) + row->bias;

    return stw_rq(acc, row->mult, row->shift);
}

int32_t stw_activation_scale(const stw_layer *l, int16_t x)
{
    return stw_rq(x, l->rows->mult, l->rows->shift);
}

int32_t stw_activate(uint8_t act, int32_t v)
{
    switch (act) {
    case STW_RELU:
        return v & ~stw_mask(v);
    case STW_TANH:
        return stw_tanh(stw_sat16(v));
    case STW_SIGMOID:
        return stw_sigmoid(stw_sat16(v));
    default:
        return v;
    }
}
