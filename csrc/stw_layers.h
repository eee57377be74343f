/* stw_layers.h - the layer kinds, for stepwell.c and the optional files; applications need stepwell.h only. */
#ifndef STW_LAYERS_H
#define STW_LAYERS_H

#include "stepwell.h"
#include "stw_config.h"

#define STW_SOFTMAX_MAX   512
#define STW_NORM_MAX      1024 /* values of a LayerNorm, width of attention keys: their sums stay in 64 bits */
#define STW_TABLE_ENTRIES 513

static inline int stw_is_recurrent(const stw_layer *l)
{
    return l->kind == STW_LSTM || l->kind == STW_GRU || l->kind == STW_RNN || l->kind == STW_GRU_BEFORE;
}

/* Bits of a recurrent layer's weight, and how its rows are packed. */
static inline unsigned int stw_weight_bits(const stw_layer *l)
{
    return l->p[1] & 255u;
}

static inline unsigned int stw_packing_of(const stw_layer *l)
{
    return (unsigned int)l->p[1] >> 8;
}

/* Rows of weights for each unit of a recurrent layer. */
static inline size_t stw_n_gates(const stw_layer *l)
{
    return l->kind == STW_LSTM ? 4u : l->kind == STW_RNN ? 1u : 3u;
}

/* Row records for each unit of a recurrent layer: a GRU's candidate has two where its reset comes after. */
static inline size_t stw_n_records(const stw_layer *l)
{
    return l->kind == STW_GRU ? 4u : stw_n_gates(l);
}

/* What a recurrent layer has beyond the plain cell, unpacked from its `extra`:
 *   header  [8]: parts, flags, clip, formats: g_frac, a_frac, h_frac, peephole_frac, 0
 *   then, for each bit of parts, an array: tables [513] each of the gates', the candidate's and the output's
 *   activation, peephole [3][units], initial state h0 [n_out] and c0 [units] (int32, low half first), projection
 *   [n_out][units]. */
typedef struct stw_cell {
    const STW_ROM int16_t *gate, *candidate, *output; /* tables; null: sigmoid, tanh, tanh */
    const STW_ROM int16_t *peephole;                  /* i, f, o */
    const STW_ROM int16_t *h0, *c0;
    const STW_ROM int16_t *projection;
    int16_t                clip;  /* limit of pre-activations, Q4.11 */
    int16_t                h_max; /* of hidden states: 32767, or 127 where they have 8 bits */
    uint16_t               flags;
    uint8_t                g_frac, a_frac, h_frac, peephole_frac; /* of candidate, output activation, h, peephole */
} stw_cell;

enum { STW_EXTRA_HEADER = 8 };
enum {
    STW_PART_GATE       = 1,
    STW_PART_CANDIDATE  = 2,
    STW_PART_OUTPUT     = 4,
    STW_PART_PEEPHOLE   = 8,
    STW_PART_START      = 16,
    STW_PART_PROJECTION = 32
};
enum { STW_COUPLED = 1, STW_REVERSE = 2, STW_FINAL = 4 };

/* Unpacks `extra`; returns its length in int16 values.  A layer without gives the plain cell, and 0. */
size_t stw_cell_open(const stw_layer *l, stw_cell *cell);

static inline uint16_t stw_cell_flags(const stw_layer *l)
{
    return STW_WITH_VARIANTS && l->extra ? (uint16_t)l->extra[1] : 0u;
}

/* Whether the layer has a part of `extra`, STW_PART_... */
static inline int stw_cell_has(const stw_layer *l, unsigned int part)
{
    return STW_WITH_VARIANTS && l->extra && ((unsigned int)l->extra[0] & part);
}

/* A part of a variant; a build without variants knows at compile time that there is none. */
static inline const STW_ROM int16_t *stw_variant(const STW_ROM int16_t *part)
{
    return STW_WITH_VARIANTS ? part : 0;
}

/* Row records of a layer. */
size_t stw_n_rows(const stw_layer *l);

/* Values of c (cells and counters) and of h that a layer keeps from step to step. */
size_t stw_n_cells(const stw_layer *l);
size_t stw_n_hidden(const stw_layer *l);

/* The next even number: int16 values begin at multiples of 4 bytes, which the kernels of Cortex-M4, M7 and M33 need. */
static inline size_t stw_even(size_t n)
{
    return (n + 1u) & ~(size_t)1u;
}

/* Numbers of c that count: they stay below this limit; 0 for layers that have none. */
static inline int32_t stw_counter_limit(const stw_layer *l)
{
    return l->kind == STW_ATTENTION ? 2 * (int32_t)l->p[0] : 0;
}

/* What follows the end of a window of the mode, for a STW_WINDOW: p[2] holds how many steps the layer looks ahead, and
 * whether it pads with the lowest code in place of zeros. */
#define STW_AHEAD_MAX   0x7FFFu
#define STW_PADS_LOWEST 0x8000u

static inline uint32_t stw_ahead(const stw_layer *l)
{
    return STW_WITH_WINDOW && l->kind == STW_WINDOW ? l->p[2] & STW_AHEAD_MAX : 0u;
}

/* The code that stands before and after a sequence. */
static inline int16_t stw_window_edge(const stw_layer *l)
{
    return l->p[2] & STW_PADS_LOWEST ? INT16_MIN : 0;
}

/* Steps after a window's end at which value `value` is still made: what the layers on the way to it look ahead. */
static inline uint32_t stw_lag(const stw_model *m, size_t value)
{
    uint32_t lag = 0;

    while (STW_WITH_WINDOW && value != 0) {
        const stw_layer *l = m->layers + value - 1;

        value = l->src[0];
        lag += stw_ahead(l) * (value ? m->layers[value - 1].every : 1u);
    }
    return lag;
}

/* int16 values of scratch behind its output that a layer uses during a step. */
size_t stw_temporary(const stw_layer *l);

/* int16 values of scratch, from the layer's place on (out * stw_chunk), that it writes during a step; those of them
 * that later layers read. */
size_t stw_layer_scratch(const stw_model *m, const stw_layer *l, size_t chunk);
size_t stw_scratch_read(const stw_model *m, const stw_layer *l);

/* State of the model as a whole: for each copy of the state (stagger has several, others one) a clock, if a layer has a
 * stride or a warm-up, and the layers' cells; before them the mode's counter, behind them the last output [n_out], if
 * some step repeats it.  h likewise, before them the input window of STW_SLIDE and the last codes of STW_MISSING_HOLD;
 * each layer's begins at an even place. */
typedef struct stw_layout {
    size_t n_copies;
    size_t cells_before, cells_each,
        n_cells;                       /* c[cells_before + copy * cells_each + ...]: clock, layers; last output */
    size_t hidden_before, hidden_each; /* with the gaps */
    size_t n_scratch;                  /* int16 values */
} stw_layout;

stw_layout stw_model_layout(const stw_model *m);

/* Values in front of the layers' state, without a gap; where the last codes of STW_MISSING_HOLD stand. */
size_t   stw_hidden_before(const stw_model *m);
int16_t *stw_held_codes(const stw_stream *s);
int      stw_has_clock(const stw_model *m);

/* Where the stream remembers its last output, [n_out]; null when no step repeats one. */
int32_t *stw_last_output(const stw_stream *s);

/* Steps that the layers run over at once: the window for STW_SLIDE, with what follows its end, else 1. */
static inline size_t stw_chunk(const stw_model *m)
{
    return STW_WITH_MODES && m->mode == STW_SLIDE ? m->window + (size_t)stw_lag(m, m->n_layers) : 1u;
}

/* stw_raw.c: raw samples [n_in] to codes x[n_in]; missing ones by the model's rule.  STW_OK or STW_E_MISSING. */
int stw_raw_codes(stw_stream *s, const int32_t *raw, int16_t *x);

/* One copy of the layers' state. */
typedef struct stw_copy {
    int32_t *clock; /* null: no layer needs it */
    int32_t *c;
    int16_t *h;
} stw_copy;

/* The layout counts its copies one by one: it is made once, not for each of them. */
stw_copy stw_first_copy(const stw_stream *s);
stw_copy stw_copy_of(const stw_stream *s, const stw_layout *plan, size_t copy);
void     stw_copy_reset(const stw_stream *s, stw_copy to);

/* Runs all layers over stw_chunk() steps, of which x holds those with input; y may be null, then the output is not
 * computed.  late: 0, or k for the k-th step after a window's end, which has no input.  1 when y is new. */
int stw_run_layers(const stw_stream *s, stw_copy state, const int16_t *x, int32_t *y, uint32_t late);

/* One step of a model whose mode is not STW_CARRY: 1 when y is new. */
int stw_mode_step(stw_stream *s, const int16_t *x, int32_t *y);

/* What unit u does for layer input x and previous hidden states h; c is the unit's cell state before the step, reset
 * the hidden states times the reset gate (STW_GRU_BEFORE only). */
void stw_lstm_unit(const stw_layer *l, const stw_cell *cell, const int16_t *x, const int16_t *h, int32_t c, size_t u,
                   stw_unit *out);
/* One step of all units of a plain LSTM layer in plain packing: new c in place, new hidden states to out. */
void stw_lstm_plain_step(const stw_layer *l, const int16_t *x, const int16_t *h, int32_t *c, int16_t *out);
void stw_gru_unit(const stw_layer *l, const stw_cell *cell, const int16_t *x, const int16_t *h, int32_t c, size_t u,
                  stw_unit *out);
void stw_gru_before_unit(const stw_layer *l, const stw_cell *cell, const int16_t *x, const int16_t *h,
                         const int16_t *reset, int32_t c, size_t u, stw_unit *out);
void stw_rnn_unit(const stw_layer *l, const stw_cell *cell, const int16_t *x, const int16_t *h, size_t u,
                  stw_unit *out);

/* h times the reset gate for all units of a STW_GRU_BEFORE layer. */
void stw_gru_before_reset(const stw_layer *l, const stw_cell *cell, const int16_t *x, const int16_t *h, int16_t *reset);

/* The unit function of the layer's kind. */
void stw_recurrent_unit(const stw_layer *l, const stw_cell *cell, const int16_t *x, const int16_t *h,
                        const int16_t *reset, int32_t c, size_t u, stw_unit *out);

/* Row `row` of a layer whose gates are computed one by one: input sum, hidden sum and bias joined. */
int32_t stw_joined_row(const stw_layer *l, size_t row, const int16_t *x, const int16_t *h);

/* Row r of a projection of y[units], row records from l->rows on: a hidden state. */
int16_t stw_project(const stw_layer *l, const stw_cell *cell, const int16_t *y, size_t r);

/* A row of weights over x before the activation, in the layer's output format; bounded by the overflow proof. */
int32_t stw_dense_row(const stw_layer *l, const int16_t *x, size_t r);

/* An activation of v: relu keeps v's format, tanh and sigmoid take Q4.11 and give Q0.15. */
int32_t stw_activate(const stw_layer *l, int32_t v);

/* y[n]: log2-scaled logits in Q15.16 -> probabilities 0..32768 in Q0.15, in place.  1 <= n <= STW_SOFTMAX_MAX. */
void stw_softmax(int32_t *y, size_t n);

/* Layers that look back.  stw_window_push remembers a step, one outside the sequence if x is null; gather collects the
 * taps in out[n_out]. */
size_t stw_window_span(const stw_layer *l);
void   stw_window_push(const stw_layer *l, const int16_t *x, int16_t *past);
void   stw_window_gather(const stw_layer *l, const int16_t *past, int16_t *out);

/* One step of attention: key and value of this step are remembered, out[n_out] is the weighted mean; scores int32
 * [steps] is free before and after. */
void stw_attention_step(const stw_layer *l, const int16_t *const in[3], int32_t *counter, int16_t *memory,
                        int32_t *scores, int16_t *out);

/* out[n] = gamma * (x - mean) / sqrt(var + epsilon) + beta */
void stw_layer_norm(const stw_layer *l, const int16_t *x, int16_t *out);

#endif /* STW_LAYERS_H */
