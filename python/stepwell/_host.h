/* _host.h - what the host adds to the C library: real numbers in and out, loops over time and over streams. */
#ifndef STW_HOST_H
#define STW_HOST_H

#include "stepwell.h"

/* @cdef-begin */

/* One or many streams of a model, bound once to the buffers that every call uses.  All memory belongs to the caller. */
typedef struct stw_session {
    stw_stream stream;
    double     y_unit;  /* value of one output code: 2^-y_frac */
    double    *x_codes; /* [n_in]  codes per unit of input */
    double    *offset;  /* [n_in]  input of code 0 */
    double    *low;     /* [n_in]  inputs are clamped to low .. high */
    double    *high;
    int16_t   *fill;    /* [n_in]  codes of missing samples */
    int32_t   *raw;     /* [n_in]  counts, for models that take them */
    size_t     held_at; /* where the last codes stand in stream.h, if the model holds missing samples */
    double    *x;       /* [n_in]  real input of stw_session_step */
    double    *y;       /* [n_out] real output; the last one again where a step makes none */
    int16_t   *x_q;     /* [n_in]  codes */
    int32_t   *y_q;     /* [n_out] codes */
    int        fresh;   /* whether the last step made a new output; of a batch all streams do, or none */
    uint8_t   *many;    /* stw_session_many_bytes of working memory for stw_session_batch, or null */
} stw_session;

/* A new sequence; the outputs are zero until the first new one. */
void stw_session_reset(stw_session *s);

/* stw_load, and the outputs are those of the snapshot. */
int stw_session_load(stw_session *s, const void *snapshot, size_t n_bytes);

/* Real step: x -> x_q -> y_q -> y.  Returns 0, or 1 + the index of the first input that is not finite (NaN is
 * a missing sample where the model has a rule for those). */
int stw_session_step(stw_session *s);

/* n_steps timesteps of one stream, or one timestep of n streams whose states lie state_bytes apart.
 * x [n][n_in], y [n][n_out].  Return 0, or 1 + the flat index of the first input that is not finite; then no state has
 * changed. */
int64_t stw_session_run(stw_session *s, int64_t n_steps, const double *x, double *y);
int64_t stw_session_batch(stw_session *s, int64_t n_streams, uint8_t *states, const double *x, double *y);

/* Memory with which a batch takes the weights once for many streams; 0 where it goes stream by stream. */
size_t stw_session_many_bytes(const stw_session *s);

/* 0, or 1 + the index of the first of n inputs that is not finite. */
int64_t stw_session_unusable(const stw_session *s, int64_t n, const double *x);

/* Which instructions steps use from now on: the best that the CPU has, up to `wanted` of 0 portable, 1 AVX2, 2
 * AVX-VNNI, 3 AVX512-VNNI.  Returns what they use.  Not while streams are stepped. */
int stw_host_kernel(int wanted);

/* The same on codes. */
void stw_session_run_q(stw_session *s, int64_t n_steps, const int16_t *x_q, int32_t *y_q);

/* @cdef-end */

#endif /* STW_HOST_H */
