/* _host.c - see _host.h.  Compiled into the Python extension only; the C library itself has no floating point. */
#include "_host.h"

#include <math.h>
#include <string.h>

#include "stw_lanes.h"
#include "stw_layers.h"

/* floor((clamp(x) - offset) / scale + 1/2), clamped: Scaler.codes is the same in NumPy and a test compares them. */
static int16_t code(const stw_session *s, size_t j, double x)
{
    double cut = x < s->low[j] ? s->low[j] : x > s->high[j] ? s->high[j] : x;
    double v   = floor((cut - s->offset[j]) * s->x_codes[j] + 0.5);

    return (int16_t)(v < -32768.0 ? -32768.0 : v > 32767.0 ? 32767.0 : v);
}

/* A count as it is; what is missing is INT32_MIN. */
static int32_t raw_of(double x)
{
    double v = floor(x + 0.5);

    return isnan(x) ? INT32_MIN : (int32_t)(v < -2147483647.0 ? -2147483647.0 : v > 2147483647.0 ? 2147483647.0 : v);
}

static int usable(const stw_model *m, double x)
{
    return isfinite(x) || (isnan(x) && m->missing != STW_MISSING_REFUSE);
}

static int64_t first_unusable(const stw_model *m, const double *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (!usable(m, x[i])) {
            return 1 + i;
        }
    }
    return 0;
}

/* Real numbers to codes, missing ones by the model's rule. */
static void codes_of(stw_session *s, stw_stream *stream, const double *x)
{
    const stw_model *m    = stream->model;
    int16_t         *held = stream->h + s->held_at;

    if (m->channels) {
        for (size_t j = 0; j < m->n_in; j++) {
            s->raw[j] = raw_of(x[j]);
        }
        stw_raw_codes(stream, s->raw, s->x_q);
        return;
    }
    for (size_t j = 0; j < m->n_in; j++) {
        if (!isnan(x[j])) {
            s->x_q[j] = code(s, j, x[j]);
        } else {
            s->x_q[j] = m->missing == STW_MISSING_HOLD ? held[j] : s->fill[j];
        }
    }
    if (m->missing == STW_MISSING_HOLD) {
        memcpy(held, s->x_q, m->n_in * sizeof *held);
    }
}

/* y_q as real numbers. */
static void real_outputs(const stw_session *s, double *y)
{
    for (size_t k = 0; k < s->stream.model->n_out; k++) {
        y[k] = s->y_q[k] * s->y_unit;
    }
}

static void step(stw_session *s, stw_stream *stream, const double *x, double *y)
{
    codes_of(s, stream, x);
    s->fresh = stw_step(stream, s->x_q, s->y_q) == STW_OK;
    real_outputs(s, y);
}

/* What the next held step would give, before any step. */
static void show_last_output(stw_session *s)
{
    const int32_t *last = stw_last_output(&s->stream);

    for (size_t k = 0; k < s->stream.model->n_out; k++) {
        s->y_q[k] = last ? last[k] : 0;
    }
    s->fresh = 0;
    real_outputs(s, s->y);
}

void stw_session_reset(stw_session *s)
{
    const stw_model *m = s->stream.model;

    stw_reset(&s->stream);
    for (size_t j = 0; m->missing == STW_MISSING_HOLD && j < m->n_in; j++) {
        s->stream.h[s->held_at + j] = s->fill[j];
    }
    show_last_output(s);
}

int stw_session_load(stw_session *s, const void *snapshot, size_t n_bytes)
{
    int status = stw_load(&s->stream, snapshot, n_bytes);

    if (status == STW_OK) {
        show_last_output(s);
    }
    return status;
}

int stw_session_step(stw_session *s)
{
    int64_t bad = first_unusable(s->stream.model, s->x, s->stream.model->n_in);

    if (bad == 0) {
        step(s, &s->stream, s->x, s->y);
    }
    return (int)bad;
}

int64_t stw_session_run(stw_session *s, int64_t n_steps, const double *x, double *y)
{
    const stw_model *m   = s->stream.model;
    int64_t          bad = first_unusable(m, x, n_steps * m->n_in);

    for (int64_t t = 0; bad == 0 && t < n_steps; t++) {
        step(s, &s->stream, x + t * m->n_in, s->y);
        memcpy(y + t * m->n_out, s->y, m->n_out * sizeof *y);
    }
    return bad;
}

/* Stream k of a batch; its scratch is that of the session. */
static stw_stream stream_of(const stw_session *s, uint8_t *states, size_t state_bytes, size_t k)
{
    stw_stream stream = s->stream;

    stream.c = (int32_t *)(void *)(states + k * state_bytes);
    stream.h = (int16_t *)(void *)((uint8_t *)stream.c + ((uint8_t *)s->stream.h - (uint8_t *)s->stream.c));
    return stream;
}

#if STW_WITH_AVX2
/* Scratch and codes of a block of streams, and what stw_many_step needs, one after the other. */
typedef struct many {
    size_t   scratch_bytes;
    uint8_t *scratch, *work;
    int16_t *x_q; /* [STW_LANES][n_in] */
    int32_t *y_q; /* [STW_LANES][n_out] */
} many;

static many many_of(const stw_session *s)
{
    const stw_model *m = s->stream.model;
    many             at;

    at.scratch_bytes = (stw_scratch_bytes(m) + 3u) & ~(size_t)3u;
    at.scratch       = s->many;
    at.y_q           = (int32_t *)(void *)(at.scratch + STW_LANES * at.scratch_bytes);
    at.x_q           = (int16_t *)(void *)(at.y_q + STW_LANES * (size_t)m->n_out);
    at.work          = (uint8_t *)(at.x_q + STW_LANES * (size_t)m->n_in);
    return at;
}

size_t stw_session_many_bytes(const stw_session *s)
{
    const stw_model *m         = s->stream.model;
    size_t           of_stream = stw_scratch_bytes(m) + 4u + 4u * (size_t)m->n_out + 2u * (size_t)m->n_in;

    return stw_many_can(m) ? STW_LANES * of_stream + stw_many_bytes(m) : 0;
}

/* A step of the n <= STW_LANES streams from k on. */
static void step_block(stw_session *s, uint8_t *states, size_t state_bytes, size_t n, const double *x, double *y)
{
    const stw_model *m  = s->stream.model;
    many             at = many_of(s);
    stw_stream       streams[STW_LANES];

    for (size_t i = 0; i < n; i++) {
        streams[i]         = stream_of(s, states, state_bytes, i);
        streams[i].scratch = (int16_t *)(void *)(at.scratch + i * at.scratch_bytes);
        codes_of(s, streams + i, x + i * m->n_in);
        memcpy(at.x_q + i * m->n_in, s->x_q, m->n_in * sizeof *at.x_q);
    }
    stw_many_step(streams, n, at.x_q, at.y_q, at.work); /* of models that make an output at every step */
    s->fresh = 1;
    for (size_t k = 0; k < n * m->n_out; k++) {
        y[k] = at.y_q[k] * s->y_unit;
    }
}

/* As many streams as pay to go together; the rest goes stream by stream. */
static size_t block_of(const stw_session *s, size_t n)
{
    size_t block = n < STW_LANES ? n : STW_LANES;

    return s->many && stw_kernel() > STW_PORTABLE && block >= STW_MANY_MIN ? block : 0;
}
#else
size_t stw_session_many_bytes(const stw_session *s)
{
    (void)s;
    return 0;
}
#endif

int64_t stw_session_batch(stw_session *s, int64_t n_streams, uint8_t *states, const double *x, double *y)
{
    const stw_model *m           = s->stream.model;
    size_t           state_bytes = stw_state_bytes(m), n = (size_t)n_streams;
    int64_t          bad = first_unusable(m, x, n_streams * m->n_in);

    for (size_t k = 0; bad == 0 && k < n;) {
#if STW_WITH_AVX2
        size_t block = block_of(s, n - k);

        if (block) {
            step_block(s, states + k * state_bytes, state_bytes, block, x + k * m->n_in, y + k * m->n_out);
            k += block;
            continue;
        }
#endif
        stw_stream stream = stream_of(s, states, state_bytes, k);

        step(s, &stream, x + k * m->n_in, y + k * m->n_out);
        k++;
    }
    return bad;
}

void stw_session_run_q(stw_session *s, int64_t n_steps, const int16_t *x_q, int32_t *y_q)
{
    const stw_model *m = s->stream.model;

    for (int64_t t = 0; t < n_steps; t++) {
        s->fresh = stw_step(&s->stream, x_q + t * m->n_in, s->y_q) == STW_OK;
        memcpy(y_q + t * m->n_out, s->y_q, m->n_out * sizeof *y_q);
    }
}

int64_t stw_session_unusable(const stw_session *s, int64_t n, const double *x)
{
    return first_unusable(s->stream.model, x, n);
}

int stw_host_kernel(int wanted)
{
#if STW_WITH_AVX2
    return stw_kernel_up_to(wanted);
#else
    (void)wanted;
    return 0;
#endif
}
