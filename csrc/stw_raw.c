/* stw_raw.c - raw samples to codes, as in docs/numerics.md, "Raw input". */
#include <string.h>

#include "stw_layers.h"

/* SAT16(RSH((clamp(raw, low, high) - offset) * mult + bias, shift)); the sum stays below 2^63. */
static int16_t code_of(const STW_ROM stw_channel *channel, int32_t raw)
{
    int64_t v = raw < channel->low ? channel->low : raw > channel->high ? channel->high : raw;

    v = (v - channel->offset) * channel->mult + channel->bias;
    v = ((v >> (channel->shift - 1)) + 1) >> 1;
    return v > 32767 ? 32767 : v < -32768 ? -32768 : (int16_t)v;
}

int stw_raw_codes(stw_stream *s, const int32_t *raw, int16_t *x)
{
    const stw_model *m = s->model;
    int16_t         *held;

    for (size_t k = 0; m->missing == STW_MISSING_REFUSE && k < m->n_in; k++) {
        if (raw[k] == INT32_MIN) {
            return STW_E_MISSING;
        }
    }
    held = m->missing == STW_MISSING_HOLD ? stw_held_codes(s) : 0;
    for (size_t k = 0; k < m->n_in; k++) {
        if (raw[k] != INT32_MIN) {
            x[k] = code_of(m->channels + k, raw[k]);
        } else {
            x[k] = held ? held[k] : m->channels[k].fill;
        }
    }
    if (held) {
        memcpy(held, x, m->n_in * sizeof *x);
    }
    return STW_OK;
}

int stw_step_raw(stw_stream *s, const int32_t *raw, int32_t *y)
{
    int16_t *x;
    int      status;

    if (!s || !s->model || !raw || !y || !s->model->channels) {
        return STW_E_ARG;
    }
    x      = s->scratch + stw_model_layout(s->model).n_scratch - stw_even(s->model->n_in);
    status = stw_raw_codes(s, raw, x);
    return status == STW_OK ? stw_step(s, x, y) : status;
}
