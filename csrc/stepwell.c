/* stepwell.c - lays out a stream's RAM and walks the layers once per timestep; stw_check.c checks the model first. */
#include "stepwell.h"

#include <string.h>

#include "stw_fix.h"
#include "stw_lanes.h"
#include "stw_layers.h"
#include "stw_pairs.h"

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
    case STW_E_MISSING:
        return "a sample is missing";
    case STW_HOLD:
        return "no new output at this step";
    default:
        return "unknown status";
    }
#else
    (void)status;
    return "";
#endif
}

/* ---- memory ---- */

static int lives_in_state(const stw_model *m, const stw_layer *l)
{
    return (!STW_WITH_MODES || m->mode != STW_SLIDE) &&
           (stw_is_recurrent(l) || (l->kind == STW_WINDOW && l->p[1] == 1));
}

/* Layers that compute their values one by one: int32 before they are stored. */
static int computes_values(const stw_layer *l)
{
    return l->kind == STW_DENSE || l->kind == STW_ACTIVATION || l->kind == STW_ADD || l->kind == STW_MUL;
}

/* A last layer that writes to the caller's y at once. */
static int writes_output(const stw_model *m, const stw_layer *l)
{
    return l + 1 == m->layers + m->n_layers && (computes_values(l) || l->kind == STW_ARG_MAX);
}

size_t stw_scratch_read(const stw_model *m, const stw_layer *l)
{
    return lives_in_state(m, l) ? 0 : l->n_out * stw_chunk(m);
}

static size_t round_up_4(size_t n)
{
    return (n + 3u) & ~(size_t)3u;
}

size_t stw_temporary(const stw_layer *l)
{
    if (l->kind == STW_GRU_BEFORE) {
        return l->n_out; /* hidden states times the reset gate */
    }
    if (l->kind == STW_LSTM && stw_cell_has(l, STW_PART_PROJECTION)) {
        return l->p[0]; /* what the projection takes */
    }
    return l->kind == STW_ATTENTION ? 2u * (size_t)l->p[0] : 0u; /* scores, int32 */
}

size_t stw_layer_scratch(const stw_model *m, const stw_layer *l, size_t chunk)
{
    if (writes_output(m, l) || (l->kind == STW_WINDOW && lives_in_state(m, l))) {
        return 0;
    }
    return stw_even(l->n_out * chunk) + stw_temporary(l);
}

int stw_has_clock(const stw_model *m)
{
    const stw_layer *last = m->layers + m->n_layers - 1;

    return STW_WITH_WINDOW && (last->first != 0 || last->every != 1); /* only windows make others wait */
}

/* The mode's counter; its window of inputs and the last codes, in front of the layers' state. */
static size_t cells_before(const stw_model *m)
{
    return m->mode != STW_CARRY ? 1u : 0u;
}

static size_t window_values(const stw_model *m)
{
    return m->mode == STW_SLIDE ? (size_t)m->window * m->n_in : 0u;
}

size_t stw_hidden_before(const stw_model *m)
{
    return window_values(m) + (m->missing == STW_MISSING_HOLD ? m->n_in : 0u);
}

int16_t *stw_held_codes(const stw_stream *s)
{
    return s->h + window_values(s->model);
}

/* Whether some step after the first output makes no new one.  Those before it give zeros: nothing to remember. */
static int repeats_output(const stw_model *m)
{
    const stw_layer *last = m->layers + m->n_layers - 1;

    if (STW_WITH_MODES && (m->stride != 1 || m->mode == STW_SLIDE)) {
        return m->stride != 1;
    }
    return STW_WITH_WINDOW && (last->every != 1 || (m->mode == STW_TUMBLE && last->first != 0));
}

int32_t *stw_last_output(const stw_stream *s)
{
    return repeats_output(s->model) ? (int32_t *)(void *)s->h - s->model->n_out : 0; /* c[] ends where h[] begins */
}

stw_layout stw_model_layout(const stw_model *m)
{
    stw_layout plan  = {1, 0, 0, 0, 0, 0, 0};
    size_t     chunk = stw_chunk(m);

    plan.cells_before  = cells_before(m);
    plan.hidden_before = stw_even(stw_hidden_before(m));
    plan.cells_each    = stw_has_clock(m) ? 1u : 0u;
    for (size_t i = 0; i < m->n_layers; i++) {
        const stw_layer *l    = m->layers + i;
        size_t           used = stw_layer_scratch(m, l, chunk), place = l->out * chunk;

        plan.cells_each += stw_n_cells(l);
        plan.hidden_each += stw_even(stw_n_hidden(l));
        if (used && plan.n_scratch < place + used) {
            plan.n_scratch = place + used;
        }
    }
    plan.n_scratch += m->channels ? stw_even(m->n_in) : 0u; /* the codes that stw_step_raw makes */
    if (m->mode == STW_STAGGER) {
        plan.n_copies = 0;
        for (size_t steps = 0; steps < m->window; steps += m->stride) {
            plan.n_copies++;
        }
    }
    plan.n_cells = plan.cells_before + plan.n_copies * plan.cells_each + (repeats_output(m) ? m->n_out : 0u);
    return plan;
}

size_t stw_state_bytes(const stw_model *m)
{
    stw_layout plan = stw_model_layout(m);

    return round_up_4(plan.n_cells * sizeof(int32_t) +
                      (plan.hidden_before + plan.n_copies * plan.hidden_each) * sizeof(int16_t));
}

size_t stw_scratch_bytes(const stw_model *m)
{
    return round_up_4(stw_model_layout(m).n_scratch * sizeof(int16_t));
}

size_t stw_ram_bytes(const stw_model *m)
{
    return stw_state_bytes(m) + stw_scratch_bytes(m);
}

int stw_init_shared(stw_stream *s, const stw_model *m, void *state, size_t state_bytes, void *scratch,
                    size_t scratch_bytes)
{
    int        status = stw_model_check(m);
    stw_layout plan;

    if (status != STW_OK) {
        return status;
    }
    plan = stw_model_layout(m);
    if (!s || (!state && stw_state_bytes(m)) || (!scratch && plan.n_scratch)) {
        return STW_E_ARG;
    }
    if (((uintptr_t)state | (uintptr_t)scratch) & 3u) {
        return STW_E_ALIGN;
    }
    if (state_bytes < stw_state_bytes(m) || scratch_bytes < stw_scratch_bytes(m)) {
        return STW_E_SPACE;
    }
    s->model   = m;
    s->c       = (int32_t *)state;
    s->h       = (int16_t *)(void *)(s->c + plan.n_cells);
    s->scratch = (int16_t *)scratch;
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

/* The copy of the state that lies so many cells and hidden states behind the first. */
static stw_copy copy_at(const stw_stream *s, size_t cells_on, size_t hidden_on)
{
    const stw_model *m     = s->model;
    int32_t         *cells = s->c + cells_before(m) + cells_on;
    stw_copy         found;

    found.h     = s->h + stw_even(stw_hidden_before(m)) + hidden_on;
    found.clock = stw_has_clock(m) ? cells : 0;
    found.c     = found.clock ? cells + 1 : cells;
    return found;
}

stw_copy stw_first_copy(const stw_stream *s)
{
    return copy_at(s, 0, 0);
}

stw_copy stw_copy_of(const stw_stream *s, const stw_layout *plan, size_t copy)
{
    return copy_at(s, copy * plan->cells_each, copy * plan->hidden_each);
}

/* The initial state of a layer: zeros, unless the model was trained with another. */
static void layer_reset(const stw_layer *l, int32_t *c, int16_t *h)
{
    stw_cell cell;

    memset(c, 0, stw_n_cells(l) * sizeof *c);
    memset(h, 0, stw_n_hidden(l) * sizeof *h);
#if STW_WITH_WINDOW
    for (size_t k = 0; l->kind == STW_WINDOW && stw_window_edge(l) && k < stw_n_hidden(l); k++) {
        h[k] = stw_window_edge(l);
    }
#endif
    if (!stw_is_recurrent(l) || !stw_cell_open(l, &cell) || !stw_variant(cell.h0)) {
        return;
    }
    for (size_t u = 0; u < l->n_out; u++) {
        h[u] = cell.h0[u];
    }
    for (size_t u = 0; u < stw_n_cells(l); u++) {
        uint32_t low = (uint16_t)cell.c0[2 * u], high = (uint16_t)cell.c0[2 * u + 1];

        c[u] = (int32_t)(high << 16 | low);
    }
}

void stw_copy_reset(const stw_stream *s, stw_copy to)
{
    const stw_model *m = s->model;

    if (to.clock) {
        *to.clock = 0;
    }
    for (const stw_layer *l = m->layers; l < m->layers + m->n_layers; l++) {
        layer_reset(l, to.c, to.h);
        to.c += stw_n_cells(l);
        to.h += stw_even(stw_n_hidden(l));
    }
}

void stw_reset(stw_stream *s)
{
    stw_layout plan = stw_model_layout(s->model);
    int32_t   *last = stw_last_output(s);

    if (last) {
        memset(last, 0, s->model->n_out * sizeof *last);
    }
    memset(s->c, 0, plan.cells_before * sizeof *s->c);
    memset(s->h, 0, plan.hidden_before * sizeof *s->h);
    for (size_t k = 0; k < plan.n_copies; k++) {
        stw_copy_reset(s, stw_copy_of(s, &plan, k));
    }
    for (size_t k = 0; s->model->missing == STW_MISSING_HOLD && k < s->model->n_in; k++) {
        stw_held_codes(s)[k] = s->model->channels ? s->model->channels[k].fill : 0;
    }
}

/* ---- one layer, one step ---- */

#if STW_WITH_GRU || STW_WITH_RNN || STW_WITH_VARIANTS
/* A step of any recurrent layer, unit by unit. */
static void unit_by_unit(const stw_layer *l, const int16_t *x, const int16_t *h, int32_t *c, int16_t *out,
                         int16_t *spare)
{
    int      has_cell = stw_n_cells(l) != 0;
    int16_t *y;
    stw_cell cell;
    stw_unit unit;

    stw_cell_open(l, &cell);
    y = stw_variant(cell.projection) ? spare : out;
#if STW_WITH_GRU
    if (l->kind == STW_GRU_BEFORE) {
        stw_gru_before_reset(l, &cell, x, h, spare);
    }
#endif
    for (size_t u = 0; u < l->p[0]; u++) {
        stw_recurrent_unit(l, &cell, x, h, spare, has_cell ? c[u] : 0, u, &unit);
        if (has_cell) {
            c[u] = unit.c;
        }
        y[u] = unit.h;
    }
    for (size_t r = 0; stw_variant(cell.projection) && r < l->n_out; r++) {
        out[r] = stw_project(l, &cell, y, r);
    }
}
#endif

/* One step of a whole recurrent layer: all units read the old h, then it is replaced. out: n_out values. */
static void recurrent_step(const stw_layer *l, const int16_t *x, int16_t *h, int32_t *c, int16_t *out, int16_t *spare)
{
    (void)spare;
#if STW_WITH_PAIRS
    if (stw_is_paired(l)) {
        stw_pairs_step(l, x, h, c, out);
    } else
#endif
#if STW_WITH_LSTM
        if (l->kind == STW_LSTM && !stw_variant(l->extra)) {
        stw_lstm_plain_step(l, x, h, c, out);
    } else
#endif
    {
#if STW_WITH_GRU || STW_WITH_RNN || STW_WITH_VARIANTS
        unit_by_unit(l, x, h, c, out, spare);
#endif
    }
    memcpy(h, out, l->n_out * sizeof *h);
}

#if STW_WITH_DENSE || STW_WITH_ACTIVATION || STW_WITH_MIX
/* Value r of a layer that computes its values one by one, before it is stored: int32 in the layer's output format. */
static int32_t layer_value(const stw_layer *l, const int16_t *const in[3], size_t r)
{
    int32_t v = 0;

    switch (l->kind) {
#if STW_WITH_ACTIVATION
    case STW_ACTIVATION:
        v = stw_rq(in[0][r], l->rows->mult, l->rows->shift);
        break;
#endif
#if STW_WITH_MIX
    case STW_ADD: {
        const STW_ROM int16_t *w = (const STW_ROM int16_t *)l->w;

        v = stw_rq((int32_t)w[0] * in[0][r] + (int32_t)w[1] * in[1][r], l->rows->mult, l->rows->shift);
        break;
    }
    case STW_MUL:
        v = stw_rq((int32_t)in[0][r] * in[1][r], l->rows->mult, l->rows->shift);
        break;
#endif
    default:
#if STW_WITH_DENSE
        v = stw_dense_row(l, in[0], r);
#endif
        break;
    }
    return stw_activate(l, v);
}
#else
#define layer_value(l, in, r) 0 /* stw_model_check has refused every layer that would come here */
#endif

#if STW_WITH_MIX
static int16_t concat_value(const stw_layer *l, const int16_t *const in[3], size_t r)
{
    int                    second = r >= l->n_in;
    const STW_ROM stw_row *row    = l->rows + second;

    return stw_sat16(stw_rq(second ? in[1][r - l->n_in] : in[0][r], row->mult, row->shift));
}

static int16_t largest(const int16_t *x, size_t n)
{
    int32_t top = x[0];

    for (size_t k = 1; k < n; k++) {
        top = stw_max(top, x[k]);
    }
    return (int16_t)top;
}

static int16_t embedded(const stw_layer *l, const int16_t *x, size_t r)
{
    size_t  token = 0;
    int32_t index;

    while (r >= l->p[1]) { /* value r belongs to token r / width */
        r -= l->p[1];
        token++;
    }
    index = stw_max(stw_min(x[token], l->p[0] - 1), 0);
    return ((const STW_ROM int16_t *)l->w)[(size_t)index * l->p[1] + r];
}

/* Value r of a layer that moves values about. */
static int16_t moved_value(const stw_layer *l, const int16_t *const in[3], size_t r)
{
    switch (l->kind) {
    case STW_CONCAT:
        return concat_value(l, in, r);
    case STW_SLICE:
        return in[0][l->p[0] + r];
    case STW_MAX_POOL:
        return largest(in[0] + r * l->p[0], l->p[0]);
    default:
        return embedded(l, in[0], r);
    }
}
#endif

/* One step of a layer that gives int16 values. */
static void vector_step(const stw_layer *l, const int16_t *const in[3], int32_t *c, int16_t *h, int16_t *out,
                        int16_t *spare)
{
    (void)in;
    (void)c;
    (void)h;
    (void)spare;
    if (computes_values(l)) {
        for (size_t r = 0; r < l->n_out; r++) {
            out[r] = stw_sat16(layer_value(l, in, r));
        }
        return;
    }
    switch (l->kind) {
#if STW_WITH_WINDOW
    case STW_WINDOW:
        stw_window_gather(l, h, out);
        break;
#endif
#if STW_WITH_NORM
    case STW_LAYER_NORM:
        stw_layer_norm(l, in[0], out);
        break;
#endif
#if STW_WITH_ATTENTION
    case STW_ATTENTION:
        stw_attention_step(l, in, c, h, (int32_t *)(void *)spare, out);
        break;
#endif
    default:
#if STW_WITH_MIX
        for (size_t r = 0; r < l->n_out; r++) {
            out[r] = moved_value(l, in, r);
        }
#endif
        break;
    }
}

#if STW_WITH_MIX
static int32_t arg_max(const int16_t *x, size_t n)
{
    int32_t best = 0;

    for (size_t k = 1; k < n; k++) {
        best += ((int32_t)k - best) & stw_mask(x[best] - x[k]);
    }
    return best;
}
#endif

/* The model's output at the last layer's inputs; its int16 values, where it gives those, are in out. */
static void last_layer(const stw_layer *l, const int16_t *const in[3], const int16_t *out, int32_t *y)
{
#if STW_WITH_MIX
    if (l->kind == STW_ARG_MAX) {
        y[0] = arg_max(in[0], l->n_in);
        return;
    }
#endif
    (void)in;
    if (!computes_values(l)) {
        for (size_t r = 0; r < l->n_out; r++) {
            y[r] = out[r];
        }
        return;
    }
    for (size_t r = 0; r < l->n_out; r++) {
        y[r] = layer_value(l, in, r);
    }
#if STW_WITH_SOFTMAX
    if (l->act == STW_SOFTMAX) {
        stw_softmax(y, l->n_out);
    }
#endif
}

/* ---- all layers ---- */

/* Whether a layer runs at step t.  Strides are small numbers: subtracting is shorter than dividing. */
static int runs_at(const stw_layer *l, size_t t)
{
    if (t < l->first) {
        return 0;
    }
    for (t -= l->first; t >= l->every;) {
        t -= l->every;
    }
    return t == 0;
}

/* The step after t of a clock: it runs on until every layer has started, then in turns of the last layer's stride. */
static size_t clock_after(const stw_model *m, size_t t)
{
    const stw_layer *last = m->layers + m->n_layers - 1;

    return t + 1u == (size_t)last->first + last->every ? last->first : t + 1u;
}

/* One walk over the layers; each runs over all n_steps steps from `start` on before the next one does. */
typedef struct walk {
    const stw_model *m;
    const int16_t   *x; /* [n_steps][n_in] */
    int16_t         *scratch;
    int16_t         *h_first; /* state of the first layer */
    size_t           start, n_steps;
    int32_t          n_inputs; /* steps of the walk that have input; below 1: x is behind it */
} walk;

/* Whether value `value` is made no more at step t of the walk: the window has ended, and what looked ahead for it. */
static int has_ended(const walk *w, size_t value, size_t t)
{
    int32_t late = (int32_t)t - w->n_inputs;

    return STW_WITH_MODES && late >= 0 && (uint32_t)late >= stw_lag(w->m, value);
}

/* Where layer l puts its output of step t. */
static int16_t *place_at(const walk *w, const stw_layer *l, size_t t)
{
    return w->scratch + l->out * w->n_steps + t * l->n_out;
}

/* Output of layer l at step t; h is its state. */
static int16_t *value_at(const walk *w, const stw_layer *l, int16_t *h, size_t t)
{
    return lives_in_state(w->m, l) ? h : place_at(w, l, t);
}

/* What a layer reads: value 0 is the model's input, value k the output of layer k - 1. */
static const int16_t *source_at(const walk *w, size_t value, size_t t)
{
    int16_t         *h = w->h_first;
    const stw_layer *l = w->m->layers;

    if (value == 0) {
        return has_ended(w, 0, t) ? w->x : w->x + t * w->m->n_in;
    }
    for (; l < w->m->layers + value - 1; l++) {
        h += stw_even(stw_n_hidden(l));
    }
    return value_at(w, l, h, t);
}

/* A window remembers whenever its source runs; when that has ended, what stands after a sequence. */
static void remember(const walk *w, const stw_layer *l, const int16_t *x, int16_t *h, size_t t)
{
#if STW_WITH_WINDOW
    if (l->kind == STW_WINDOW && (l->src[0] == 0 || runs_at(w->m->layers + l->src[0] - 1, w->start + t))) {
        stw_window_push(l, has_ended(w, l->src[0], t) ? 0 : x, h);
    }
#else
    (void)w, (void)l, (void)x, (void)h, (void)t;
#endif
}

/* Layer l at step t of the walk; the last layer's output goes to y, unless that is null.  1 if the layer ran. */
static int layer_at(const walk *w, const stw_layer *l, int32_t *c, int16_t *h, size_t t, int32_t *y)
{
    int16_t       *out   = place_at(w, l, t);
    int16_t       *spare = place_at(w, l, 0) + stw_even(l->n_out * w->n_steps);
    const int16_t *in[3];

    for (int j = 0; j < 3; j++) {
        in[j] = source_at(w, l->src[j], t);
    }
    if (has_ended(w, (size_t)(l - w->m->layers) + 1u, t)) {
        return 0;
    }
    remember(w, l, in[0], h, t);
    if (!runs_at(l, w->start + t)) {
        return 0;
    }
    if (stw_is_recurrent(l)) {
        recurrent_step(l, in[0], h, c, out, spare);
    } else if (lives_in_state(w->m, l)) {
        out = h;
    } else if (!writes_output(w->m, l)) {
        vector_step(l, in, c, h, out, spare);
    }
    if (y && t + l->every >= w->n_steps) {
        last_layer(l, in, out, y);
    }
    return 1;
}

/* A final layer gives the state at the end of its way at every step. */
static void repeat_state(const walk *w, const stw_layer *l, const int16_t *h, int32_t *y)
{
    for (size_t t = 0; t < w->n_steps; t++) {
        memcpy(place_at(w, l, t), h, l->n_out * sizeof *h);
    }
    for (size_t r = 0; y && r < l->n_out; r++) {
        y[r] = h[r];
    }
}

/* Layer l over all steps of the walk.  1 if it ran at one of them. */
static int run_layer(const walk *w, const stw_layer *l, int32_t *c, int16_t *h, int32_t *y)
{
    uint16_t flags = stw_is_recurrent(l) ? stw_cell_flags(l) : 0u;
    int      ran   = 0;

    for (size_t k = 0; k < w->n_steps; k++) {
        ran |= layer_at(w, l, c, h, flags & STW_REVERSE ? w->n_steps - 1 - k : k, y);
    }
    if (flags & STW_FINAL) {
        repeat_state(w, l, h, y);
    }
    return ran;
}

int stw_run_layers(const stw_stream *s, stw_copy state, const int16_t *x, int32_t *y, uint32_t late)
{
    const stw_model *m    = s->model;
    const stw_layer *last = m->layers + m->n_layers - 1;
    size_t           t    = state.clock ? (size_t)*state.clock : 0;
    walk             w;
    int              fresh = 0;

    w.m        = m;
    w.x        = x;
    w.scratch  = s->scratch;
    w.h_first  = state.h;
    w.n_steps  = stw_chunk(m);
    w.start    = m->mode == STW_SLIDE ? 0 : t;
    w.n_inputs = late ? 1 - (int32_t)late : m->mode == STW_SLIDE ? (int32_t)m->window : 1;
    for (const stw_layer *l = m->layers; l <= last; l++) {
        fresh = run_layer(&w, l, state.c, state.h, l == last ? y : 0);
        state.c += stw_n_cells(l);
        state.h += stw_even(stw_n_hidden(l));
    }
    if (state.clock) {
        *state.clock = (int32_t)clock_after(m, t);
    }
    return fresh;
}

/* The end of a step: a new output y is remembered, otherwise y is the last one. */
static int with_output(const stw_stream *s, int fresh, int32_t *y)
{
    int32_t *last    = stw_last_output(s);
    size_t   n_bytes = s->model->n_out * sizeof *y;

    if (last) {
        memcpy(fresh ? last : y, fresh ? y : last, n_bytes);
    } else if ((STW_WITH_MODES || STW_WITH_WINDOW) && !fresh) {
        memset(y, 0, n_bytes);
    }
    return fresh ? STW_OK : STW_HOLD;
}

int stw_step(stw_stream *s, const int16_t *x, int32_t *y)
{
    if (!s || !s->model || !x || !y) {
        return STW_E_ARG;
    }
#if STW_WITH_MODES
    if (s->model->mode != STW_CARRY) {
        return with_output(s, stw_mode_step(s, x, y), y);
    }
#endif
    return with_output(s, stw_run_layers(s, stw_first_copy(s), x, y, 0), y);
}

#if STW_WITH_AVX2
#include "stw_many.h"
#endif
