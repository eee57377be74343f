/* stw_window.c - the last values of each channel, as in docs/numerics.md, "Window". */
#include <string.h>

#include "stw_layers.h"

/* past int16 [n_in][span]: each channel from its oldest value to the newest. */
void stw_window_push(const stw_layer *l, const int16_t *x, int16_t *past)
{
    size_t span = stw_window_span(l);

    memmove(past, past + 1, (l->n_in * span - 1) * sizeof *past);
    for (size_t k = 0; k < l->n_in; k++) {
        past[k * span + span - 1] = x ? x[k] : stw_window_edge(l);
    }
}

void stw_window_gather(const stw_layer *l, const int16_t *past, int16_t *out)
{
    size_t span = stw_window_span(l);

    for (size_t k = 0; k < l->n_in; k++, past += span) {
        for (size_t tap = 0; tap < span; tap += l->p[1]) {
            *out++ = past[tap];
        }
    }
}
