/* stw_probe.c - one unit of one layer, seen from outside: finds which gate of a wrong step is the first wrong one. */
#include "stw_layers.h"

int stw_probe(const stw_stream *s, size_t layer, const int16_t *x, size_t unit, stw_unit *out)
{
    const stw_layer *l;
    stw_copy         state;
    stw_cell         cell;

    if (!s || !s->model || !x || !out || layer >= s->model->n_layers) {
        return STW_E_ARG;
    }
    state = stw_first_copy(s);
    for (l = s->model->layers; l < s->model->layers + layer; l++) {
        state.c += stw_n_cells(l);
        state.h += stw_even(stw_n_hidden(l));
    }
    if (!stw_is_recurrent(l) || unit >= l->p[0]) {
        return STW_E_ARG;
    }
    stw_cell_open(l, &cell);
#if STW_WITH_GRU
    if (l->kind == STW_GRU_BEFORE) {
        stw_gru_before_reset(l, &cell, x, state.h, s->scratch);
    }
#endif
    stw_recurrent_unit(l, &cell, x, state.h, s->scratch, stw_n_cells(l) ? state.c[unit] : 0, unit, out);
    return STW_OK;
}
