/* stw_mode.c - models that were trained on windows, as in docs/numerics.md, "Modes". */
#include <string.h>

#include "stw_layers.h"

/* The steps after a window's end; x is not read.  1 when y is new. */
static int run_late(const stw_stream *s, stw_copy state, const int16_t *x, int32_t *y)
{
    uint32_t lag   = stw_lag(s->model, s->model->n_layers);
    int      fresh = 0;

    for (uint32_t late = 1; late <= lag; late++) {
        fresh |= stw_run_layers(s, state, x, y, late);
    }
    return fresh;
}

/* Resets where a window starts; the counter runs from 0 to window - 1. */
static int tumble(stw_stream *s, const int16_t *x, int32_t *y)
{
    const stw_model *m     = s->model;
    stw_copy         state = stw_first_copy(s);
    int32_t          step  = s->c[0];
    int              ends  = step + 1 == m->window;
    int              due   = m->stride == 1 || ends, fresh;

    if (step == 0) {
        stw_copy_reset(s, state);
    }
    s->c[0] = ends ? 0 : step + 1;
    fresh   = stw_run_layers(s, state, x, due ? y : 0, 0) && due;
    return (ends && run_late(s, state, x, y)) || fresh;
}

/* Keeps the last inputs and runs them all from a reset; the counter tells the steps up to window, then up to stride. */
static int slide(stw_stream *s, const int16_t *x, int32_t *y)
{
    const stw_model *m     = s->model;
    stw_copy         state = stw_first_copy(s);
    size_t           n = m->n_in, older = (size_t)(m->window - 1) * n;

    memmove(s->h, s->h + n, older * sizeof *s->h);
    memcpy(s->h + older, x, n * sizeof *x);
    if (s->c[0] + 1 < m->window) {
        s->c[0]++;
        return 0;
    }
    s->c[0] = m->window - m->stride;
    stw_copy_reset(s, state);
    return stw_run_layers(s, state, s->h, y, 0);
}

/* Copy k of the state starts at steps k * stride, k * stride + window, ...; the counter runs on to 2 * window - 1 and
 * then in turns of window, so that it tells whether all copies have started. */
static int stagger(stw_stream *s, const int16_t *x, int32_t *y)
{
    const stw_model *m    = s->model;
    stw_layout       plan = stw_model_layout(m);
    int32_t          step = s->c[0], start = 0;
    int              fresh = 0;

    for (size_t k = 0; start < m->window && start <= step; k++, start += m->stride) {
        stw_copy state = stw_copy_of(s, &plan, k);
        int32_t  local = step - start;
        int      due;

        local = local >= m->window ? local - m->window : local;
        due   = local + 1 == m->window;
        if (local == 0) {
            stw_copy_reset(s, state);
        }
        if (stw_run_layers(s, state, x, due ? y : 0, 0) && due) {
            fresh = 1;
        }
        if (due && run_late(s, state, x, y)) {
            fresh = 1;
        }
    }
    s->c[0] = step + 1 == 2 * (int32_t)m->window ? m->window : step + 1;
    return fresh;
}

int stw_mode_step(stw_stream *s, const int16_t *x, int32_t *y)
{
    switch (s->model->mode) {
    case STW_TUMBLE:
        return tumble(s, x, y);
    case STW_SLIDE:
        return slide(s, x, y);
    default:
        return stagger(s, x, y);
    }
}
