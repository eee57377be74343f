/* stw_dense.c - dense rows and elementwise activations, as in docs/numerics.md, "Dense" and "Activation". */
#include "stw_config.h"
#include "stw_dot.h"
#include "stw_fix.h"
#include "stw_layers.h"

int32_t stw_dense_row(const stw_layer *l, const int16_t *x, size_t r)
{
    size_t                 columns = l->p[2];
    const STW_ROM stw_row *row     = l->rows + r;

    for (size_t first = l->p[1]; first <= r; first += l->p[1]) {
        x += columns; /* the next group's part of the input */
    }
    return stw_rq(stw_dot1((const STW_ROM int16_t *)l->w + r * columns, x, columns) + row->bias, row->mult, row->shift);
}

int32_t stw_activate(const stw_layer *l, int32_t v)
{
    switch (l->act) {
    case STW_RELU:
        return v & ~stw_mask(v);
    case STW_TANH:
        return stw_tanh(stw_sat16(v));
    case STW_SIGMOID:
        return stw_sigmoid(stw_sat16(v));
    case STW_TABLE:
        return stw_lookup(l->extra, stw_sat16(v));
    default:
        return v;
    }
}
