/* stw_check.c - whether a model can be run: every kind, shape, source and size, before anything is computed. */
#include "stw_fix.h"
#include "stw_layers.h"
#include "stw_pairs.h"

#define STATE_LIMIT   ((uint64_t)1 << 28) /* values: no microcontroller has more, and sizes stay within 32 bits */
#define SCRATCH_LIMIT ((uint64_t)1 << 28)
#define LAG_LIMIT     65535u /* steps after a window's end */
#define AHEAD_LAYERS  1024u  /* of a model that looks ahead: each of its layers is followed back to the input */

/* Whether this build knows the kind. */
static int kind_known(const stw_layer *l)
{
    switch (l->kind) {
    case STW_LSTM:
        return STW_WITH_LSTM;
    case STW_GRU:
    case STW_GRU_BEFORE:
        return STW_WITH_GRU;
    case STW_RNN:
        return STW_WITH_RNN;
    case STW_DENSE:
        return STW_WITH_DENSE;
    case STW_ACTIVATION:
        return STW_WITH_ACTIVATION;
    case STW_WINDOW:
        return STW_WITH_WINDOW;
    case STW_ADD:
    case STW_MUL:
    case STW_CONCAT:
    case STW_SLICE:
    case STW_MAX_POOL:
    case STW_EMBEDDING:
    case STW_ARG_MAX:
        return STW_WITH_MIX;
    case STW_LAYER_NORM:
        return STW_WITH_NORM;
    case STW_ATTENTION:
        return STW_WITH_ATTENTION;
    default:
        return 0;
    }
}

static int has_activation(const stw_layer *l)
{
    return l->kind == STW_DENSE || l->kind == STW_ACTIVATION || l->kind == STW_ADD || l->kind == STW_MUL;
}

static int activation_known(const stw_layer *l, int is_last)
{
    switch (l->act) {
    case STW_NONE:
        return 1;
    case STW_RELU:
    case STW_TANH:
    case STW_SIGMOID:
        return has_activation(l);
    case STW_TABLE:
        return has_activation(l) && l->extra;
    case STW_SOFTMAX:
        return STW_WITH_SOFTMAX && is_last && l->kind == STW_DENSE && l->n_out <= STW_SOFTMAX_MAX;
    default:
        return 0;
    }
}

/* Whether the arrays that the kind needs are there. */
static int has_arrays(const stw_layer *l)
{
    switch (l->kind) {
    case STW_LSTM:
    case STW_GRU:
    case STW_GRU_BEFORE:
    case STW_RNN:
        return l->w && l->r && l->rows;
    case STW_LAYER_NORM:
        return l->w && l->rows && l->extra;
    case STW_DENSE:
    case STW_ADD:
        return l->w && l->rows;
    case STW_ACTIVATION:
    case STW_MUL:
    case STW_CONCAT:
        return l->rows != 0;
    case STW_ATTENTION:
        return l->rows && (l->w || l->p[1] != STW_ADDITIVE);
    case STW_EMBEDDING:
        return l->w != 0;
    default:
        return 1;
    }
}

/* Formats of a cell's variants within the bounds of docs/numerics.md. */
static int cell_fits(const stw_layer *l)
{
    stw_cell cell;

    unsigned int bits = stw_weight_bits(l), packing = stw_packing_of(l);

    if ((bits != 8 && !(STW_WITH_W4 && bits == 4)) || (l->p[2] != 8 && l->p[2] != 16)) {
        return 0;
    }
    if (packing != STW_PLAIN && !(stw_is_paired(l) && bits == 8 && !l->extra && packing == STW_PAIRS)) {
        return 0;
    }
    if (!STW_WITH_VARIANTS) {
        return !l->extra && l->p[0] != 0 && l->p[0] == l->n_out;
    }
    stw_cell_open(l, &cell);
    if (cell.clip < 1 || cell.g_frac < 7 || cell.g_frac > 15 || cell.a_frac > 15 || cell.h_frac > 15 ||
        cell.flags > (STW_COUPLED | STW_REVERSE | STW_FINAL)) {
        return 0;
    }
    if (cell.peephole && (cell.peephole_frac < 6 || cell.peephole_frac > 15)) {
        return 0;
    }
    if (l->kind != STW_LSTM &&
        (cell.peephole || cell.projection || cell.output || cell.flags & STW_COUPLED || l->p[0] != l->n_out)) {
        return 0;
    }
    return l->p[0] != 0 && (cell.projection || l->p[0] == l->n_out);
}

/* Whether parameters and widths of a kind fit each other. */
static int shape_fits(const stw_layer *l)
{
    uint32_t n_in = l->n_in, n_out = l->n_out;

    switch (l->kind) {
    case STW_LSTM:
    case STW_GRU:
    case STW_GRU_BEFORE:
    case STW_RNN:
        return cell_fits(l);
    case STW_DENSE:
        return (uint32_t)l->p[0] * l->p[1] == n_out && (uint32_t)l->p[0] * l->p[2] == n_in;
#if STW_WITH_WINDOW
    case STW_WINDOW:
        return l->p[0] != 0 && l->p[1] != 0 && n_in * l->p[0] == n_out && ((uint64_t)l->p[0] - 1u) * l->p[1] < 65535u &&
               n_in * (uint64_t)stw_window_span(l) < STATE_LIMIT && stw_ahead(l) < stw_window_span(l);
#endif
#if STW_WITH_MIX
    case STW_CONCAT:
        return n_in < n_out;
    case STW_SLICE:
        return (uint32_t)l->p[0] + n_out <= n_in;
    case STW_MAX_POOL:
        return l->p[0] != 0 && n_out * l->p[0] == n_in;
    case STW_EMBEDDING:
        return l->p[0] != 0 && l->p[0] <= 32768u && n_in * l->p[1] == n_out && l->src[0] == 0;
    case STW_ARG_MAX:
        return n_out == 1;
#endif
#if STW_WITH_NORM
    case STW_LAYER_NORM:
        return n_in == n_out && n_in >= 2 && n_in <= STW_NORM_MAX && l->p[0] <= 5;
#endif
#if STW_WITH_ATTENTION
    case STW_ATTENTION:
        return l->p[0] >= 1 && l->p[0] <= STW_SOFTMAX_MAX && l->p[1] <= STW_ADDITIVE && l->p[2] == n_in && n_in >= 1 &&
               n_in <= STW_NORM_MAX && (l->p[1] != STW_SCORE || n_in == 1);
#endif
    default: /* activation, add, mul */
        return n_in == n_out;
    }
}

/* How many values the layer takes from its j-th source; 0: it has no such source. */
static uint16_t width_of(const stw_layer *l, int j)
{
    if (j == 0) {
        return l->n_in;
    }
    switch (l->kind) {
#if STW_WITH_MIX
    case STW_ADD:
    case STW_MUL:
        return j == 1 ? l->n_in : 0u;
    case STW_CONCAT:
        return j == 1 ? (uint16_t)(l->n_out - l->n_in) : 0u;
#endif
#if STW_WITH_ATTENTION
    case STW_ATTENTION:
        if (l->p[1] == STW_SCORE) {
            return j == 1 ? l->n_out : 0u;
        }
        return j == 1 ? l->n_in : l->n_out;
#endif
    default:
        return 0;
    }
}

/* Whether n is a multiple of `of`; the library links no division. */
static int is_multiple(uint32_t n, uint32_t of)
{
    while (of && n >= of) {
        n -= of;
    }
    return of && n == 0;
}

/* A layer runs when its sources do; a window may start later and skip some of their steps. */
static int timing_fits(const stw_layer *l, uint16_t first, uint16_t every)
{
    if (!STW_WITH_WINDOW || l->kind != STW_WINDOW) {
        return l->first == first && l->every == every;
    }
    return l->every && l->first >= first && is_multiple((uint32_t)l->first - first, every) &&
           is_multiple(l->every, every);
}

static int sources_fit(const stw_model *m, size_t index)
{
    const stw_layer *l = m->layers + index;

    for (int j = 0; j < 3; j++) {
        const stw_layer *source = l->src[j] ? m->layers + l->src[j] - 1 : 0;
        uint16_t         width  = width_of(l, j);

        if (width == 0) {
            if (l->src[j] != 0) {
                return 0;
            }
            continue;
        }
        if (l->src[j] > index || width != (source ? source->n_out : m->n_in) ||
            !timing_fits(l, source ? source->first : 0u, source ? source->every : 1u)) {
            return 0;
        }
    }
    return 1;
}

static int looks_ahead(const stw_model *m)
{
    for (size_t i = 0; i < m->n_layers; i++) {
        if (stw_ahead(m->layers + i)) {
            return 1;
        }
    }
    return 0;
}

/* Whether the layer's sources run until the same step after a window's end. */
static int lags_fit(const stw_model *m, size_t index)
{
    const stw_layer *l = m->layers + index;

    for (int j = 1; j < 3; j++) {
        if (width_of(l, j) && stw_lag(m, l->src[j]) != stw_lag(m, l->src[0])) {
            return 0;
        }
    }
    return stw_lag(m, index + 1u) <= LAG_LIMIT;
}

static int layer_check(const stw_model *m, size_t index)
{
    const stw_layer *l       = m->layers + index;
    int              is_last = index + 1u == m->n_layers;

    if (!kind_known(l) || !activation_known(l, is_last) || (l->kind == STW_ARG_MAX && !is_last)) {
        return STW_E_LAYER;
    }
    if (l->n_in == 0 || l->n_out == 0 || !shape_fits(l) || !sources_fit(m, index) || l->out & 1u) {
        return STW_E_SHAPE;
    }
    if (!has_arrays(l)) {
        return STW_E_ARG;
    }
    if (stw_is_recurrent(l) && stw_cell_flags(l) & (STW_REVERSE | STW_FINAL) && m->mode != STW_SLIDE) {
        return STW_E_SHAPE;
    }
    return STW_OK;
}

static int mode_fits(const stw_model *m)
{
    switch (m->mode) {
    case STW_CARRY:
        return m->window == 0 && m->stride == 1;
#if STW_WITH_MODES
    case STW_TUMBLE:
        return m->window && (m->stride == 1 || m->stride == m->window);
    case STW_SLIDE:
        return m->stride && m->stride <= m->window;
    case STW_STAGGER:
        return m->window && is_multiple(m->window, m->stride);
#endif
    default:
        return 0;
    }
}

/* Whether an output comes with the last step of a window, or after it. */
static int ends_with_output(const stw_model *m)
{
    const stw_layer *last = m->layers + m->n_layers - 1;
    uint32_t         lag  = stw_lag(m, m->n_layers);

    for (uint32_t t = m->window - 1u; t <= m->window - 1u + lag; t++) {
        if (t >= last->first && is_multiple(t - last->first, last->every)) {
            return 1;
        }
    }
    return 0;
}

/* Whether the mode's windows meet an output of the layers: slide takes the last one of a window, a tumbling window all
 * of them or, like stagger, that of its end. */
static int gives_outputs(const stw_model *m)
{
    const stw_layer *last = m->layers + m->n_layers - 1;

    if (!STW_WITH_MODES || m->mode == STW_CARRY) {
        return 1;
    }
    if (last->first >= m->window + stw_lag(m, m->n_layers)) {
        return 0;
    }
    return m->mode == STW_SLIDE || (m->mode == STW_TUMBLE && m->stride == 1) || ends_with_output(m);
}

/* Whether all sizes stay far from 32 bits. */
static int sizes_fit(const stw_model *m)
{
    uint64_t chunk = stw_chunk(m), each = 1, scratch = 0, before = (uint64_t)m->window * m->n_in + m->n_in + 1u;
    uint64_t copies = m->mode == STW_STAGGER ? m->window : 1u;

    for (size_t i = 0; i < m->n_layers; i++) {
        const stw_layer *l    = m->layers + i;
        uint64_t         used = ((uint64_t)l->out + l->n_out + 2u) * chunk + stw_temporary(l);

        each += 2u * (uint64_t)stw_n_cells(l) + stw_even(stw_n_hidden(l));
        scratch = used > scratch ? used : scratch;
        if (each > STATE_LIMIT || scratch > SCRATCH_LIMIT) {
            return 0;
        }
    }
    return each * copies + before <= STATE_LIMIT;
}

int stw_model_check(const stw_model *m)
{
    const stw_layer *last;
    int              ahead;

    if (!m || !m->layers) {
        return STW_E_ARG;
    }
    if (m->format != STW_MODEL_FORMAT || m->y_frac > 30 || m->missing > STW_MISSING_FILL) {
        return STW_E_FORMAT;
    }
    if (m->n_layers == 0 || m->n_in == 0 || !mode_fits(m)) {
        return STW_E_SHAPE;
    }
    ahead = looks_ahead(m);
    if (ahead && (m->mode == STW_CARRY || m->n_layers > AHEAD_LAYERS)) {
        return STW_E_SHAPE; /* only a window has an end */
    }
    last = m->layers + m->n_layers - 1;
    for (size_t i = 0; i < m->n_layers; i++) {
        int status = layer_check(m, i);

        if (status != STW_OK) {
            return status;
        }
        if (ahead && !lags_fit(m, i)) {
            return STW_E_SHAPE;
        }
        if (m->layers[i].first > last->first || !is_multiple(last->every, m->layers[i].every)) {
            return STW_E_SHAPE;
        }
    }
    return last->n_out == m->n_out && gives_outputs(m) && sizes_fit(m) ? STW_OK : STW_E_SHAPE;
}
