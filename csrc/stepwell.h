/* stepwell.h - streaming int8 LSTM inference for small machines.
 *
 * This is the one header an application reads.  A model is constant data (put it
 * in flash); a stream is the small RAM that one sensor channel carries from step
 * to step.  Nothing here allocates, prints, divides, or uses floating point.
 *
 *     static STW_ALIGN4 uint8_t ram[MOTOR_RAM_BYTES];   // from motor.h, generated
 *     stw_stream s;
 *     stw_init(&s, &motor, ram, sizeof ram);
 *     for (;;) { read_sensor(x); stw_step(&s, x, y); }  // one timestep each call
 *
 * Conventions
 *   result    int: STW_OK (0) or a negative stw_status; sizes come back as size_t.
 *   ownership nothing is freed here; the caller keeps model and ram alive while
 *             the stream is used.  One model may serve many streams.
 *   checks    stw_init, stw_step, stw_save, stw_load and stw_blob_open refuse null pointers; the others expect a model
 *             that stw_model_check or stw_blob_open accepted, or a stream that stw_init bound.
 *   threads   a stream belongs to one caller at a time; models are read only.
 *   _qN       an integer v that stands for v / 2^N.
 *
 * The arithmetic is specified in docs/numerics.md; every target gives the same bits.
 */
#ifndef STEPWELL_H
#define STEPWELL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define STW_VERSION      0x000100 /* library, 0xMMmmpp */
#define STW_MODEL_FORMAT 2        /* generated files and blobs carry this number */

#if defined(__GNUC__) || defined(__clang__)
#define STW_ALIGN4 __attribute__((aligned(4)))
#elif defined(_MSC_VER)
#define STW_ALIGN4 __declspec(align(4))
#else
#define STW_ALIGN4 /* place the array yourself so that its address is a multiple of 4 */
#endif

/* Where a model's arrays stand.  AVR reads its flash by instructions of its own: compile as gnu99 there, and all arrays
 * must lie in the first 64 kB (the linker puts them first).  C++ sees the same pointers, but cannot read through them.
 */
#if defined(__AVR__) && !defined(__cplusplus)
#define STW_ROM __flash
#else
#define STW_ROM
#endif

/* @cdef-begin: python/stepwell/_ffi_build.py reads from here to @cdef-end */

typedef enum stw_status {
    STW_OK         = 0,
    STW_E_ARG      = -1,  /* null pointer, or an index outside the model */
    STW_E_SPACE    = -2,  /* ram or buffer smaller than needed */
    STW_E_ALIGN    = -3,  /* ram or blob is not 4-byte aligned */
    STW_E_FORMAT   = -4,  /* not a model or snapshot, or of another format number */
    STW_E_CHECKSUM = -5,  /* bytes were damaged */
    STW_E_MISMATCH = -6,  /* the snapshot was taken from another model */
    STW_E_LAYER    = -7,  /* a layer kind that is unknown or that this build left out */
    STW_E_SHAPE    = -8,  /* layers do not fit each other, or an array leaves the blob */
    STW_E_OVERFLOW = -9,  /* weights that could overflow an accumulator */
    STW_E_MISSING  = -10, /* a sample is missing and the model refuses that */
    STW_HOLD       = 1    /* no error: this step makes no new output, y is the last one again */
} stw_status;

typedef enum stw_kind {
    STW_LSTM       = 1,  /* gates i,f,g,o of each unit; state c int32 Q9.22, h int16 Q0.15 */
    STW_DENSE      = 2,  /* int16 weights, one row per output; in groups, each of which reads a part of the input */
    STW_ACTIVATION = 3,  /* elementwise, for an activation that follows a layer without one */
    STW_GRU        = 4,  /* gates r,z,n, reset after the product; state S int32 Q9.22 and h int16 Q0.15 */
    STW_RNN        = 5,  /* Elman; state h int16 Q0.15 */
    STW_GRU_BEFORE = 6,  /* GRU with the reset before the product */
    STW_WINDOW     = 7,  /* the last values of each channel: what a convolution or a pooling looks at */
    STW_ADD        = 8,  /* weighted sum of two sources */
    STW_MUL        = 9,  /* product of two sources, elementwise */
    STW_CONCAT     = 10, /* two sources, each brought to the output's scale */
    STW_SLICE      = 11, /* some of the source's values */
    STW_MAX_POOL   = 12, /* the largest of each run of values */
    STW_LAYER_NORM = 13, /* mean 0, variance 1 over the values of a step, then scaled */
    STW_EMBEDDING  = 14, /* a row of a table for each token of the model's input */
    STW_ARG_MAX    = 15, /* index of the largest value; last layer only */
    STW_ATTENTION  = 16  /* weighted mean of the last steps' values */
} stw_kind;

typedef enum stw_activation {
    STW_NONE    = 0,
    STW_RELU    = 1,
    STW_TANH    = 2,
    STW_SIGMOID = 3,
    STW_SOFTMAX = 4, /* last layer only; rows give log2-scaled logits in Q15.16 */
    STW_TABLE   = 5  /* any other function: a table in extra */
} stw_activation;

/* How the rows of a recurrent layer stand in memory: p[1] / 256.  The bits of all results are the same. */
typedef enum stw_packing {
    STW_PLAIN = 0, /* as below */
    STW_PAIRS = 1  /* stw_pairs.h: LSTM and GRU without extra, for cores with dual 16-bit multiplies */
} stw_packing;

/* What attention compares: scores given, query . key, or weight . tanh(query + key). */
typedef enum stw_attention { STW_SCORE = 0, STW_DOT = 1, STW_ADDITIVE = 2 } stw_attention;

/* When a model gives an output, and from which steps. */
typedef enum stw_mode {
    STW_CARRY   = 0, /* the state runs on, an output at every step */
    STW_TUMBLE  = 1, /* reset every `window` steps */
    STW_SLIDE   = 2, /* the last `window` steps from a zero state, every `stride` steps */
    STW_STAGGER = 3  /* window / stride states, started `stride` steps apart: an output every `stride` steps */
} stw_mode;

/* What a missing sample (raw code INT32_MIN) becomes. */
typedef enum stw_missing {
    STW_MISSING_REFUSE = 0, /* STW_E_MISSING */
    STW_MISSING_HOLD   = 1, /* the channel's last code */
    STW_MISSING_FILL   = 2  /* the channel's fill code */
} stw_missing;

/* One row of weights becomes a number:  RSH(acc * mult, shift), acc = shift_kx(sum x) + sum h + bias. */
typedef struct stw_row {
    int32_t bias;  /* in units of the row's accumulator */
    int16_t mult;  /* 2^14 .. 2^15 - 1 */
    int8_t  kx;    /* -15 .. 15: the input sum is scaled by 2^kx before it joins the hidden sum */
    int8_t  shift; /* 1 .. 46 */
} stw_row;

/* A raw sample becomes a code:  SAT16(RSH((clamp(raw, low, high) - offset) * mult + bias, shift)). */
typedef struct stw_channel {
    int32_t low, high, offset;
    int32_t mult;  /* 1 .. 2^30 - 1 */
    int32_t bias;  /* what the offset has behind the point */
    int16_t shift; /* 1 .. 62 */
    int16_t fill;  /* the code of a missing sample */
} stw_channel;

typedef struct stw_layer {
    uint8_t  kind;   /* stw_kind */
    uint8_t  act;    /* stw_activation; STW_NONE for kinds without one */
    uint16_t n_in;   /* values of the first source */
    uint16_t n_out;  /* hidden size of recurrent layers */
    uint16_t src[3]; /* values it reads: 0 the model's input, k the output of layer k - 1 */
    uint16_t out;    /* where its output stands in scratch: int16 values from the start, even */
    uint16_t first;  /* it runs at the steps first, first + every, first + 2 every, ... */
    uint16_t every;
    uint16_t p[3]; /* recurrent: units, bits of a weight (8, 4) + 256 * stw_packing, of h (16, 8); dense: groups, rows
                      and columns of each; window: taps, dilation, steps ahead; slice: start; max pool: taps; norm:
                      exponent; embedding: tokens, width; attention: steps, form, key width */
    const STW_ROM void *w; /* recurrent int8 [units][gates][n_in]; dense int16 [n_out][columns]; add, norm, embedding,
                      additive attention int16; others: null */
    const STW_ROM int8_t  *r;    /* recurrent int8 [units][gates][n_out]; others: null */
    const STW_ROM stw_row *rows; /* LSTM [units][4]; GRU [units][4]: r, z, n's input part, n's hidden part; GRU_BEFORE
                            [units][3]; RNN, dense, norm [n_out]; concat [2]; activation, add, mul, attention [1] */
    const STW_ROM int16_t
        *extra; /* STW_TABLE: table [513]; norm: epsilon, 4 words; recurrent: stw_layers.h; else null */
} stw_layer;

typedef struct stw_model {
    uint16_t                   format; /* STW_MODEL_FORMAT */
    uint16_t                   n_layers;
    uint16_t                   n_in;     /* int16 codes eaten by one step */
    uint16_t                   n_out;    /* int32 values made by one step */
    uint16_t                   window;   /* steps of the mode's window; carry: 0 */
    uint16_t                   stride;   /* steps from one output of the mode to the next; carry: 1 */
    uint8_t                    mode;     /* stw_mode */
    uint8_t                    missing;  /* stw_missing */
    uint8_t                    y_frac;   /* an output v stands for v / 2^y_frac */
    uint32_t                   id;       /* CRC-32 of all constants; ties snapshots to a model */
    const stw_layer           *layers;   /* [n_layers] */
    const STW_ROM stw_channel *channels; /* [n_in], for stw_step_raw; null: the model takes codes only */
} stw_model;

/* Fields are for stepwell.c; the size may change between versions. */
typedef struct stw_stream {
    const stw_model *model;
    int32_t         *c;       /* cell states, Q9.22, counters, and the last output if some step repeats it */
    int16_t         *h;       /* hidden states and what layers and modes remember of their inputs */
    int16_t         *scratch; /* free between steps */
} stw_stream;

uint32_t    stw_version(void);
const char *stw_strerror(int status); /* never null */

/* Check a model before first use: format, layer kinds, shapes that fit each other. */
int    stw_model_check(const stw_model *model);
size_t stw_state_bytes(const stw_model *model);   /* what a stream must keep between steps */
size_t stw_scratch_bytes(const stw_model *model); /* used during a step only */
size_t stw_ram_bytes(const stw_model *model);     /* state + scratch */

/* Bind a stream to a model and to ram (4-byte aligned, stw_ram_bytes() or more) and reset it.
 * On an error the stream is unchanged. */
int stw_init(stw_stream *s, const stw_model *model, void *ram, size_t ram_bytes);

/* The same with scratch shared by streams that never step at the same time. Both areas 4-byte aligned. */
int stw_init_shared(stw_stream *s, const stw_model *model, void *state, size_t state_bytes, void *scratch,
                    size_t scratch_bytes);

void stw_reset(stw_stream *s); /* a new sequence starts from the initial state (zeros, if the model has no other) */

/* One timestep: x[n_in] codes -> y[n_out] in Q(y_frac).  In LSTM, GRU, RNN and dense layers no loop and no
 * branch depends on the data: they take the same number of instructions each time (LayerNorm, a softmax's search for
 * the largest logit, and attention until its memory is full do not).  Cortex-M4, M7 and M33 need x at a multiple of 4
 * bytes for their dual multiplies; elsewhere it may be at any even place there, too, and takes three times as long.  y
 * may not overlap x.  STW_HOLD when a model with strides, a warm-up or a window mode makes no new output at this step:
 * y is the last one again, zeros before the first.  The stream remembers it, so that any y will do and a snapshot
 * brings it back.  STW_E_ARG on a null pointer, then nothing has changed. */
int stw_step(stw_stream *s, const int16_t *x, int32_t *y);

/* stw_raw.c (optional): the same from raw samples (ADC counts), for models that were made with a scaler for them.
 * INT32_MIN is a missing sample; STW_E_MISSING when the model refuses those, then nothing has changed.  STW_E_ARG on a
 * null pointer, or when the model takes codes only. */
int stw_step_raw(stw_stream *s, const int32_t *raw, int32_t *y);

/* stw_state.c (optional): snapshots of c and h, to sleep or to move a stream; little endian, with format number, model
 * id and CRC-32.  They hold the output that held steps give again.  stw_save and stw_load return STW_OK or a negative
 * status; stw_load leaves the stream alone on error.  A snapshot of another format number is STW_E_FORMAT. */
size_t   stw_snapshot_bytes(const stw_model *model);
int      stw_save(const stw_stream *s, void *buf, size_t buf_bytes);
int      stw_load(stw_stream *s, const void *buf, size_t buf_bytes);
uint32_t stw_digest(const stw_stream *s); /* FNV-1a-32 over c[] then h[] as little-endian bytes */

/* stw_probe.c (optional): what one unit of a recurrent layer would do next, for finding the first wrong gate.
 * x[n_in of that layer] is the layer's input; h and c come from the stream, which stays unchanged. */
typedef struct stw_unit {
    int16_t z[4];    /* pre-activations in Q4.11: i,f,g,o; GRU r, z, n's two parts; RNN h in z[0] */
    int16_t gate[4]; /* gates in Q0.15: i,f,g,o; GRU r, z, n; RNN none */
    int32_t c;       /* new cell state, Q9.22; RNN 0 */
    int16_t h;       /* new hidden state, Q0.15 */
} stw_unit;
int stw_probe(const stw_stream *s, size_t layer, const int16_t *x, size_t unit, stw_unit *out);

/* stw_blob.c (optional): a model as one byte string, for updates in the field and for the host.
 * Checks checksum, format, every bound and the overflow proof, then fills model and layers[max_layers];
 * the blob (4-byte aligned) stays in use, nothing is copied.  On an error model is unchanged. */
int stw_blob_open(stw_model *model, stw_layer *layers, size_t max_layers, const void *blob, size_t blob_bytes);

/* For machines whose words start with the high byte, before stw_blob_open: checks a blob's checksum and bounds and
 * turns its arrays to the machine's order, in place.  Elsewhere it does nothing.  On an error the blob is unchanged. */
int stw_blob_to_native(void *blob, size_t blob_bytes);

/* stw_crc.c: CRC-32 of zlib (reflected 0xEDB88320).  Start with crc = 0; pass the result on to continue. */
uint32_t stw_crc32(uint32_t crc, const void *data, size_t n_bytes);

/* @cdef-end */

#ifdef __cplusplus
}
#endif
#endif /* STEPWELL_H */
