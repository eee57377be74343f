/* stepwell.c - checks a model, lays out a stream's RAM, and walks the layers once per timestep. */
#include "stepwell.h"

#include <string.h>

#include "stw_config.h"
#include "stw_fix.h"
#include "stw_layers.h"

uint32_t stw_version(void)
{
    return STW_VERSION;
}

const char *stw_strerror(int status)
{
#if STW_WITH_STRINGS
    switch (status) {
    case STW_OK:
        return "ok";
    case STW_E_ARG:
        return "null pointer or index outside the model";
    case STW_E_SPACE:
        return "ram or buffer too small";
    case STW_E_ALIGN:
        return "ram or blob not aligned to 4 bytes";
    case STW_E_FORMAT:
        return "not a stepwell model or snapshot of this format";
    case STW_E_CHECKSUM:
        return "checksum mismatch: the bytes were damaged";
    case STW_E_MISMATCH:
        return "snapshot of another model";
    case STW_E_LAYER:
        return "layer kind unknown or left out of this build";
    case STW_E_SHAPE:
        return "layers do not fit each other or leave the blob";
    case STW_E_OVERFLOW:
        return "weights could overflow an accumulator";
    default:
        return "unknown status";
    }
#else
    (void)status;
    return "";
#endif
}

static int activation_known(const stw_layer *l, int is_last)
{
    switch (l->act) {
    case STW_NONE:
    case STW_RELU:
    case STW_TANH:
    case STW_SIGMOID:
        return 1;
    case STW_SOFTMAX:
        return STW_WITH_SOFTMAX && is_last && l->kind == STW_DENSE && l->n_out <= STW_SOFTMAX_MAX;
    default:
        return 0;
    }
}

static int recurrent_known(uint8_t kind)
{
    return kind == STW_LSTM ? STW_WITH_LSTM : kind == STW_GRU ? STW_WITH_GRU : STW_WITH_RNN;
}

static int layer_check(const stw_layer *l, int is_last)
{
    switch (l->kind) {
    case STW_LSTM:
    case STW_GRU:
    case STW_RNN:
        if (!recurrent_known(l->kind) || l->act != STW_NONE) {
            return STW_E_LAYER;
        }
        return l->w && l->r && l->rows ? STW_OK : STW_E_ARG;
    case STW_DENSE:
        if (!STW_WITH_DENSE || !activation_known(l, is_last)) {
            return STW_E_LAYER;
        }
        return l->w && l->rows ? STW_OK : STW_E_ARG;
    case STW_ACTIVATION:
        if (!STW_WITH_ACTIVATION || !activation_known(l, is_last)) {
            return STW_E_LAYER;
        }
        if (l->n_in != l->n_out) {
            return STW_E_SHAPE;
        }
        return l->rows ? STW_OK : STW_E_ARG;
    default:
        return STW_E_LAYER;
    }
}

int stw_model_check(const stw_model *m)
{
    uint16_t width;

    if (!m || !m->layers) {
        return STW_E_ARG;
    }
    if (m->format != STW_MODEL_FORMAT || m->y_frac > 30) {
        return STW_E_FORMAT;
    }
    if (m->n_layers == 0 || m->n_in == 0) {
        return STW_E_SHAPE;
    }
    width = m->n_in;
    for (size_t i = 0; i < m->n_layers; i++) {
        const stw_layer *l      = m->layers + i;
        int              status = layer_check(l, i + 1u == m->n_layers);

        if (status != STW_OK) {
            return status;
        }
        if (l->n_in != width || l->n_out == 0) {
            return STW_E_SHAPE;
        }
        width = l->n_out;
    }
    return width == m->n_out ? STW_OK : STW_E_SHAPE;
}

/* Scratch: the output of a layer may not overwrite its input, so two buffers take turns.  A recurrent layer's output is
 * copied to its h at once and leaves its buffer free again; the last layer writes to the caller's y. */
typedef struct layout {
    size_t n_cells;      /* values of c, all layers */
    size_t n_hidden;     /* values of h, all layers */
    size_t n_scratch[2]; /* int16 values in each buffer */
} layout;

static layout model_layout(const stw_model *m)
{
    layout       plan = {0, 0, {0, 0}};
    unsigned int next = 0; /* buffer that the layer at hand may write */

    for (size_t i = 0; i < m->n_layers; i++) {
        const stw_layer *l = m->layers + i;

        plan.n_cells += stw_n_cells(l);
        plan.n_hidden += stw_n_hidden(l);
        if ((stw_is_recurrent(l) || i + 1u < m->n_layers) && plan.n_scratch[next] < l->n_out) {
            plan.n_scratch[next] = l->n_out;
        }
        next = stw_is_recurrent(l) ? 0u : 1u - next;
    }
    return plan;
}

static size_t round_up_4(size_t n)
{
    return (n + 3u) & ~(size_t)3u;
}

static size_t layout_state_bytes(layout plan)
{
    return round_up_4(plan.n_cells * sizeof(int32_t) + plan.n_hidden * sizeof(int16_t));
}

static size_t layout_scratch_bytes(layout plan)
{
    return round_up_4((plan.n_scratch[0] + plan.n_scratch[1]) * sizeof(int16_t));
}

size_t stw_state_bytes(const stw_model *m)
{
    return layout_state_bytes(model_layout(m));
}

size_t stw_scratch_bytes(const stw_model *m)
{
    return layout_scratch_bytes(model_layout(m));
}

size_t stw_ram_bytes(const stw_model *m)
{
    layout plan = model_layout(m);
    return layout_state_bytes(plan) + layout_scratch_bytes(plan);
}

int stw_init_shared(stw_stream *s, const stw_model *m, void *state, size_t state_bytes, void *scratch,
                    size_t scratch_bytes)
{
    int    status = stw_model_check(m);
    layout plan;

    if (status != STW_OK) {
        return status;
    }
    plan = model_layout(m);
    if (!s || (!state && layout_state_bytes(plan)) || (!scratch && layout_scratch_bytes(plan))) {
        return STW_E_ARG;
    }
    if (((uintptr_t)state | (uintptr_t)scratch) & 3u) {
        return STW_E_ALIGN;
    }
    if (state_bytes < layout_state_bytes(plan) || scratch_bytes < layout_scratch_bytes(plan)) {
        return STW_E_SPACE;
    }
    s->model      = m;
    s->c          = (int32_t *)state;
    s->h          = (int16_t *)(void *)(s->c + plan.n_cells);
    s->scratch[0] = (int16_t *)scratch;
    s->scratch[1] = s->scratch[0] + plan.n_scratch[0];
    stw_reset(s);
    return STW_OK;
}

int stw_init(stw_stream *s, const stw_model *m, void *ram, size_t ram_bytes)
{
    int    status = stw_model_check(m);
    size_t state_bytes;

    if (status != STW_OK) {
        return status;
    }
    if (!ram) {
        return STW_E_ARG;
    }
    state_bytes = stw_state_bytes(m);
    if (ram_bytes < state_bytes) {
        return STW_E_SPACE;
    }
    return stw_init_shared(s, m, ram, state_bytes, (uint8_t *)ram + state_bytes, ram_bytes - state_bytes);
}

void stw_reset(stw_stream *s)
{
    memset(s->c, 0, stw_state_bytes(s->model));
}

void stw_recurrent_unit(const stw_layer *l, const int16_t *x, const int16_t *h, int32_t c, size_t u, stw_unit *out)
{
#if STW_WITH_LSTM
    if (l->kind == STW_LSTM) {
        stw_lstm_unit(l, x, h, c, u, out);
    }
#endif
#if STW_WITH_GRU
    if (l->kind == STW_GRU) {
        stw_gru_unit(l, x, h, c, u, out);
    }
#endif
#if STW_WITH_RNN
    if (l->kind == STW_RNN) {
        stw_rnn_unit(l, x, h, u, out);
    }
#endif
}

/* One step of a whole recurrent layer: all units read the old h, then it is replaced. */
static void recurrent_step(const stw_layer *l, const int16_t *x, int16_t *h, int32_t *c, int16_t *h_new)
{
    int      has_cell = stw_n_cells(l) != 0;
    stw_unit unit;

    for (size_t u = 0; u < l->n_out; u++) {
        stw_recurrent_unit(l, x, h, has_cell ? c[u] : 0, u, &unit);
        if (has_cell) {
            c[u] = unit.c;
        }
        h_new[u] = unit.h;
    }
    memcpy(h, h_new, l->n_out * sizeof *h);
}

#if STW_WITH_DENSE || STW_WITH_ACTIVATION
/* One value of a layer that is not recurrent, before it is stored: int32 in the layer's output format. */
static int32_t layer_value(const stw_layer *l, const int16_t *x, size_t r)
{
    int32_t v = 0;

#if STW_WITH_DENSE
    if (l->kind == STW_DENSE) {
        v = stw_dense_row(l, x, r);
    }
#endif
#if STW_WITH_ACTIVATION
    if (l->kind == STW_ACTIVATION) {
        v = stw_activation_scale(l, x[r]);
    }
#endif
    return stw_activate(l->act, v);
}
#else
#define layer_value(l, x, r) 0 /* stw_model_check has refused every layer that would come here */
#endif

static void last_layer(const stw_layer *l, const int16_t *x, int32_t *y)
{
    for (size_t r = 0; r < l->n_out; r++) {
        y[r] = stw_is_recurrent(l) ? x[r] : layer_value(l, x, r);
    }
#if STW_WITH_SOFTMAX
    if (l->act == STW_SOFTMAX) {
        stw_softmax(y, l->n_out);
    }
#endif
}

int stw_step(stw_stream *s, const int16_t *x, int32_t *y)
{
    const stw_layer *l, *last;
    int32_t         *c;
    int16_t         *h;
    unsigned int     next = 0;

    if (!s || !s->model || !x || !y) {
        return STW_E_ARG;
    }
    c    = s->c;
    h    = s->h;
    last = s->model->layers + s->model->n_layers - 1;
    for (l = s->model->layers; l <= last; l++) {
        int16_t *out = s->scratch[next];

        if (stw_is_recurrent(l)) {
            recurrent_step(l, x, h, c, out);
            x = h;
            c += stw_n_cells(l);
            h += l->n_out;
            next = 0;
        } else if (l < last) {
            for (size_t r = 0; r < l->n_out; r++) {
                out[r] = stw_sat16(layer_value(l, x, r));
            }
            x    = out;
            next = 1u - next;
        }
    }
    last_layer(last, x, y);
    return STW_OK;
}
