/* stw_probe.c - one unit of one layer, seen from outside: finds which gate of a wrong step is the first wrong one. */
#include "stw_layers.h"

int stw_probe(const stw_stream *s, size_t layer, const int16_t *x, size_t unit, stw_unit *out)
{
    const stw_layer *l;
    size_t           first_cell = 0, first_hidden = 0;

    if (!s || !s->model || !x || !out || layer >= s->model->n_layers) {
        return STW_E_ARG;
    }
    for (l = s->model->layers; l < s->model->layers + layer; l++) {
        first_cell += stw_n_cells(l);
        first_hidden += stw_n_hidden(l);
    }
    if (!stw_is_recurrent(l) || unit >= l->n_out) {
        return STW_E_ARG;
    }
    stw_recurrent_unit(l, x, s->h + first_hidden, stw_n_cells(l) ? s->c[first_cell + unit] : 0, unit, out);
    return STW_OK;
}
