/* _host.c - see _host.h.  Compiled into the Python extension only; the C library itself has no floating point. */
#include "_host.h"

#include <math.h>

/* floor(x / x_scale + 1/2), clamped: Model.quantize is the same in NumPy and a test compares them. */
static int16_t code(double x, double codes)
{
    double v = floor(x * codes + 0.5);
    return (int16_t)(v < -32768.0 ? -32768.0 : v > 32767.0 ? 32767.0 : v);
}

static int64_t first_not_finite(const double *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(x[i])) {
            return 1 + i;
        }
    }
    return 0;
}

static void step(stw_session *s, stw_stream *stream, const double *x, double *y)
{
    const stw_model *m = stream->model;

    for (size_t j = 0; j < m->n_in; j++) {
        s->x_q[j] = code(x[j], s->x_codes);
    }
    stw_step(stream, s->x_q, s->y_q);
    for (size_t k = 0; k < m->n_out; k++) {
        y[k] = s->y_q[k] * s->y_unit;
    }
}

int stw_session_step(stw_session *s)
{
    int64_t bad = first_not_finite(s->x, s->stream.model->n_in);

    if (bad == 0) {
        step(s, &s->stream, s->x, s->y);
    }
    return (int)bad;
}

int64_t stw_session_run(stw_session *s, int64_t n_steps, const double *x, double *y)
{
    const stw_model *m   = s->stream.model;
    int64_t          bad = first_not_finite(x, n_steps * m->n_in);

    for (int64_t t = 0; bad == 0 && t < n_steps; t++) {
        step(s, &s->stream, x + t * m->n_in, y + t * m->n_out);
    }
    return bad;
}

int64_t stw_session_batch(stw_session *s, int64_t n_streams, uint8_t *states, const double *x, double *y)
{
    const stw_model *m           = s->stream.model;
    size_t           state_bytes = stw_state_bytes(m);
    int64_t          bad         = first_not_finite(x, n_streams * m->n_in);
    stw_stream       stream      = s->stream; /* the scratch is shared, the state moves on */
    size_t           h_from_c    = (size_t)((uint8_t *)stream.h - (uint8_t *)stream.c);

    for (int64_t k = 0; bad == 0 && k < n_streams; k++) {
        stream.c = (int32_t *)(void *)(states + (size_t)k * state_bytes);
        stream.h = (int16_t *)(void *)((uint8_t *)stream.c + h_from_c);
        step(s, &stream, x + k * m->n_in, y + k * m->n_out);
    }
    return bad;
}

void stw_session_run_q(stw_session *s, int64_t n_steps, const int16_t *x_q, int32_t *y_q)
{
    const stw_model *m = s->stream.model;

    for (int64_t t = 0; t < n_steps; t++) {
        stw_step(&s->stream, x_q + t * m->n_in, y_q + t * m->n_out);
    }
}
