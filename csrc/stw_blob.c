/* stw_blob.c - opens a packed model.  Everything in the blob is hostile until it has been checked here.
 *
 * Layout, little endian, arrays aligned to 4 bytes (docs/format.md; python/stepwell/blob.py writes it):
 *   header[40]   magic, format u16, n_layers u16, total_bytes u32, device_bytes u32, id u32, n_in u16, n_out u16,
 *                y_frac u8, mode u8, missing u8, packing u8, window u16, stride u16, offset of channels u32, zero u32
 *   layers[40]   kind u8, act u8, n_in u16, n_out u16, src u16[3], out u16, first u16, every u16, p u16[3],
 *                offsets of w, r, rows, extra u32 (0 = none)
 *   arrays       up to device_bytes; id = CRC-32 of everything from n_in to here
 *   notes        anything (scales and provenance as JSON), not read by C
 *   crc u32      of all bytes before it; the last 4 of total_bytes
 */
#include <string.h>

#include "stw_bytes.h"
#include "stw_dot.h"
#include "stw_layers.h"
#include "stw_pairs.h"

#ifndef __AVR__ /* its models are read from flash by instructions of their own: no blob can stand in RAM */

#define BLOB_MAGIC   0x31575453u /* "STW1" */
#define NATIVE_MAGIC 0x4E575453u /* "STWN": arrays are in the order of this machine, which is not the blob's */
#define HEADER_BYTES 40u
#define ID_FROM      20u
#define LAYER_BYTES  40u
#define CRC_BYTES    4u

/* The blob's arrays are used in place, so the machine must store int16 and int32 as the blob does, or turn them first.
 */
static int machine_is_little_endian(void)
{
    const uint16_t one = 1;
    return *(const uint8_t *)&one;
}

/* A value of an array, which may have been turned. */
static uint16_t array16(const uint8_t *blob, const uint8_t *p)
{
    uint16_t v;

    if (machine_is_little_endian() || stw_get32(blob) != NATIVE_MAGIC) {
        return stw_get16(p);
    }
    memcpy(&v, p, sizeof v);
    return v;
}

/* magic: what the blob must start with.  A turned one had its sums checked before. */
static int header_check(const uint8_t *p, size_t n_bytes, uint32_t magic)
{
    uint32_t device_bytes;
    int      with_sums = magic == BLOB_MAGIC;

    if (n_bytes < HEADER_BYTES + CRC_BYTES || stw_get32(p) != magic || stw_get16(p + 4) != STW_MODEL_FORMAT) {
        return STW_E_FORMAT;
    }
    if (stw_get32(p + 8) != n_bytes ||
        (with_sums && stw_crc32(0, p, n_bytes - CRC_BYTES) != stw_get32(p + n_bytes - CRC_BYTES))) {
        return STW_E_CHECKSUM;
    }
    device_bytes = stw_get32(p + 12);
    if (device_bytes < HEADER_BYTES || device_bytes > n_bytes - CRC_BYTES) {
        return STW_E_SHAPE;
    }
    if (with_sums && p[27] == STW_PLAIN && stw_crc32(0, p + ID_FROM, device_bytes - ID_FROM) != stw_get32(p + 16)) {
        return STW_E_CHECKSUM; /* a packed model has the id of the plain one, which only the exporter can compute */
    }
    return stw_get32(p + 36) == 0 ? STW_OK : STW_E_FORMAT;
}

/* The array of n_bytes at the offset stored in field, or null when it does not lie inside [first, end). */
static const void *array_at(const uint8_t *blob, const uint8_t *field, uint64_t n_bytes, uint32_t first, uint32_t end)
{
    uint32_t offset = stw_get32(field);

    if (offset % 4u != 0 || offset < first || offset > end || n_bytes > end - offset) {
        return 0;
    }
    return blob + offset;
}

/* int16 values of a recurrent layer's `extra`, from its header. */
static uint64_t cell_values(const stw_layer *l, unsigned int parts)
{
    uint64_t n = STW_EXTRA_HEADER, units = l->p[0];

    for (unsigned int bit = STW_PART_GATE; bit <= STW_PART_OUTPUT; bit *= 2u) {
        n += parts & bit ? STW_TABLE_ENTRIES : 0u;
    }
    n += parts & STW_PART_PEEPHOLE ? 3u * units : 0u;
    n += parts & STW_PART_START ? l->n_out + 2u * units : 0u;
    n += parts & STW_PART_PROJECTION ? l->n_out * units : 0u;
    return n;
}

/* int16 values of `extra`, whose place is stored in field and, for recurrent layers, known to hold a header. */
static uint64_t extra_values(const stw_layer *l, const uint8_t *blob, const uint8_t *field)
{
    if (stw_is_recurrent(l)) {
        return stw_get32(field) ? cell_values(l, array16(blob, blob + stw_get32(field))) : 0u;
    }
    return l->act == STW_TABLE ? STW_TABLE_ENTRIES : l->kind == STW_LAYER_NORM ? 4u : 0u;
}

/* Sets l->extra when the layer has one; 0 when it leaves the blob. */
static int extra_open(stw_layer *l, const uint8_t *blob, const uint8_t *field, uint32_t first, uint32_t end)
{
    uint64_t n;

    if (stw_is_recurrent(l)) {
        const uint8_t *header = (const uint8_t *)array_at(blob, field, 2u * STW_EXTRA_HEADER, first, end);

        if (stw_get32(field) == 0) {
            return 1;
        }
        if (!header || array16(blob, header) >= 2u * STW_PART_PROJECTION || array16(blob, header + 14) != 0) {
            return 0;
        }
        for (size_t k = 3; k < 7; k++) {
            if (array16(blob, header + 2 * k) > 15) {
                return 0;
            }
        }
    }
    n        = extra_values(l, blob, field);
    l->extra = n ? (const int16_t *)array_at(blob, field, 2u * n, first, end) : 0;
    return (l->extra != 0) == (stw_get32(field) != 0);
}

/* Bytes of the array w. */
static uint64_t weight_bytes(const stw_layer *l)
{
    if (stw_is_recurrent(l)) {
        return (uint64_t)stw_n_gates(l) * l->p[0] * stw_row_bytes(stw_weight_bits(l), l->n_in);
    }
    switch (l->kind) {
    case STW_DENSE:
        return 2u * (uint64_t)l->n_out * l->p[2];
    case STW_ADD:
        return 4;
    case STW_LAYER_NORM:
        return 2u * (uint64_t)l->n_in;
    case STW_EMBEDDING:
        return 2u * (uint64_t)l->p[0] * l->p[1];
    case STW_ATTENTION:
        return l->p[1] == STW_ADDITIVE ? 2u * (uint64_t)l->p[2] : 0u;
    default:
        return 0;
    }
}

/* Bytes of the array r. */
static uint64_t recurrent_bytes(const stw_layer *l)
{
    uint64_t row = stw_is_recurrent(l) ? stw_row_bytes(stw_weight_bits(l), l->n_out) : 0u;

    return row * stw_n_gates(l) * l->p[0];
}

/* Row records; those of a projection are told by `extra`, which may not have been turned yet. */
static size_t row_records(const stw_layer *l, const uint8_t *blob)
{
    const uint8_t *extra = (const uint8_t *)l->extra;

    if (l->kind != STW_LSTM) {
        return stw_n_rows(l);
    }
    return 4u * (size_t)l->p[0] + (extra && array16(blob, extra) & STW_PART_PROJECTION ? l->n_out : 0u);
}

/* Their bytes. */
static uint64_t row_bytes(const stw_layer *l, const uint8_t *blob)
{
    return stw_is_paired(l) ? (uint64_t)l->p[0] * sizeof(stw_pairs_rows)
                            : (uint64_t)row_records(l, blob) * sizeof(stw_row);
}

static int layer_open(stw_layer *l, const uint8_t *blob, const uint8_t *d, uint32_t first, uint32_t end)
{
    uint64_t n_w, n_r;

    memset(l, 0, sizeof *l);
    l->kind  = d[0];
    l->act   = d[1];
    l->n_in  = stw_get16(d + 2);
    l->n_out = stw_get16(d + 4);
    for (size_t k = 0; k < 3; k++) {
        l->src[k] = stw_get16(d + 6 + 2 * k);
        l->p[k]   = stw_get16(d + 18 + 2 * k);
    }
    l->out   = stw_get16(d + 12);
    l->first = stw_get16(d + 14);
    l->every = stw_get16(d + 16);
    if (l->kind < STW_LSTM || l->kind > STW_ATTENTION) {
        return STW_E_LAYER;
    }
    if (!extra_open(l, blob, d + 36, first, end)) {
        return STW_E_SHAPE;
    }
    n_w = weight_bytes(l);
    n_r = recurrent_bytes(l);
    if (n_w) {
        l->w = array_at(blob, d + 24, n_w, first, end);
    }
    if (n_r) {
        l->r = (const int8_t *)array_at(blob, d + 28, n_r, first, end);
    }
    if (row_bytes(l, blob)) {
        l->rows = (const stw_row *)array_at(blob, d + 32, row_bytes(l, blob), first, end);
    }
    return (l->w || !n_w) && (l->r || !n_r) && (l->rows || !row_bytes(l, blob)) ? STW_OK : STW_E_SHAPE;
}

static int channels_open(stw_model *m, const uint8_t *blob, const uint8_t *field, uint32_t first, uint32_t end)
{
    if (stw_get32(field) == 0) {
        return STW_OK;
    }
    m->channels = (const stw_channel *)array_at(blob, field, (uint64_t)m->n_in * sizeof(stw_channel), first, end);
    for (size_t k = 0; m->channels && k < m->n_in; k++) {
        const stw_channel *channel = m->channels + k;

        if (channel->mult < 1 || channel->mult >= (int32_t)1 << 30 || channel->shift < 1 || channel->shift > 62 ||
            channel->low > channel->high) {
            return STW_E_OVERFLOW;
        }
    }
    return m->channels ? STW_OK : STW_E_SHAPE;
}

/* The overflow proof of docs/numerics.md for one row: sum_x = sum |w| over inputs, sum_h over hidden states,
 * both up to 2^15.  Both sums are below 2^32, so every product here fits 64 bits. */
static int row_is_safe(const stw_row *row, uint64_t sum_x, uint64_t sum_h)
{
    uint64_t bias = row->bias < 0 ? 0u - (uint64_t)row->bias : (uint64_t)row->bias;
    uint64_t x    = 32768u * sum_x + 16384u;
    uint64_t bound;

    if (row->mult < 1 || row->shift < 1 || row->shift > 46 || row->kx < -15 || row->kx > 15 || x >= 0x80000000u) {
        return 0;
    }
    x     = row->kx >= 0 ? x << row->kx : (x >> -row->kx) + 1u;
    bound = x + 32768u * sum_h + bias;
    return bound <= 0x7FFFFFFFu && (bound * (uint64_t)row->mult) >> row->shift <= 0x7FFF0000u;
}

#define TOO_MUCH 0x80000000u /* more than any proof allows */

/* |w|, and TOO_MUCH for the weight that has no opposite: no quantiser writes it. */
static uint64_t magnitude(int32_t w, int32_t without_opposite)
{
    return w == without_opposite ? TOO_MUCH : (uint64_t)(w < 0 ? -w : w);
}

static uint64_t no_more_than_too_much(uint64_t sum)
{
    return sum < TOO_MUCH ? sum : TOO_MUCH;
}

/* Sum of |w| of n int8 weights. */
static uint64_t sum_abs8(const int8_t *w, size_t n)
{
    uint64_t sum = 0;

    for (size_t j = 0; j < n; j++) {
        sum += magnitude(w[j], -128);
    }
    return no_more_than_too_much(sum);
}

#if STW_WITH_PAIRS
/* The same for place g of a quad of rows that are packed in pairs. */
static uint64_t sum_abs_paired(const int8_t *w, size_t n, size_t g)
{
    uint64_t sum = 0;

    for (size_t j = 0; j < n; j++) {
        sum += magnitude(stw_pairs_weight(w, n, j, g), -128);
    }
    return no_more_than_too_much(sum);
}
#endif

/* Sum of |w| of the row of a gate of a unit of a recurrent layer, of its weights w of n columns. */
static uint64_t sum_abs_row(const stw_layer *l, const int8_t *w, size_t unit, size_t gate, size_t n)
{
    uint64_t sum = 0;

#if STW_WITH_PAIRS
    if (stw_is_paired(l)) {
        size_t place = stw_pairs_place(l, unit, gate);

        return sum_abs_paired(w + (place >> 2) * 4 * n, n, place & 3u);
    }
#endif
    w += (unit * stw_n_gates(l) + gate) * stw_row_bytes(stw_weight_bits(l), n);
    if (stw_weight_bits(l) != 4) {
        return sum_abs8(w, n);
    }
    for (size_t j = 0; j < n; j++) {
        sum += magnitude(j & 1u ? w[j / 2] >> 4 : ((w[j / 2] & 15) ^ 8) - 8, -8);
    }
    return no_more_than_too_much(sum);
}

static uint64_t sum_abs16(const int16_t *w, size_t n)
{
    uint64_t sum = 0;

    for (size_t j = 0; j < n; j++) {
        sum += magnitude(w[j], INT32_MIN);
    }
    return no_more_than_too_much(sum);
}

/* Sums of |w| of the weights that row record r of a recurrent layer scales: over the inputs and over the hidden state.
 */
static void recurrent_sums(const stw_layer *l, size_t r, uint64_t *sum_x, uint64_t *sum_h)
{
    size_t   n_gates = stw_n_gates(l), n_records = stw_n_records(l), unit = 0, gate;
    stw_cell cell;

    *sum_x = *sum_h = 0;
    if (r >= n_records * l->p[0]) {
        stw_cell_open(l, &cell);
        *sum_x = sum_abs16(cell.projection + (r - n_records * l->p[0]) * l->p[0], l->p[0]);
        return;
    }
    for (gate = r; gate >= n_records; gate -= n_records) {
        unit++;
    }
    /* a GRU's last gate has two records: gate 2 its inputs, gate 3 its hidden states */
    if (gate < n_gates) {
        *sum_x = sum_abs_row(l, (const int8_t *)l->w, unit, gate, l->n_in);
    }
    if (l->kind != STW_GRU || gate != 2) {
        *sum_h = sum_abs_row(l, l->r, unit, gate < n_gates ? gate : 2, l->n_out);
    }
}

/* The same for any layer. */
static void row_sums(const stw_layer *l, size_t r, uint64_t *sum_x, uint64_t *sum_h)
{
    const int16_t *w = (const int16_t *)l->w;

    *sum_h = 0;
    if (stw_is_recurrent(l)) {
        recurrent_sums(l, r, sum_x, sum_h);
    } else if (l->kind == STW_DENSE) {
        *sum_x = sum_abs16(w + r * l->p[2], l->p[2]);
    } else if (l->kind == STW_ADD) {
        *sum_x = sum_abs16(w, 2);
    } else if (l->kind == STW_LAYER_NORM) {
        *sum_x = sum_abs16(w + r, 1);
    } else {
        *sum_x = l->kind == STW_MUL ? 32768u : 1u; /* a product of two codes, or one code */
    }
}

/* Only where input and hidden sums join has the input sum a scale of its own. */
static int row_may_join(const stw_layer *l, size_t r)
{
    return stw_is_recurrent(l) && r < stw_n_records(l) * l->p[0] && (l->kind != STW_GRU || (r & 3u) < 2);
}

static int row_may_have_bias(const stw_layer *l)
{
    return stw_is_recurrent(l) || l->kind == STW_DENSE || l->kind == STW_LAYER_NORM;
}

static int table_is_safe(const int16_t *table)
{
    for (size_t k = 0; table && k < STW_TABLE_ENTRIES; k++) {
        if (table[k] == -32768) {
            return 0;
        }
    }
    return 1;
}

static int extra_is_safe(const stw_layer *l)
{
    stw_cell cell;

    if (l->kind == STW_LAYER_NORM) {
        uint64_t low = (uint16_t)l->extra[0] | (uint16_t)l->extra[1] | (uint16_t)l->extra[2];

        return (uint16_t)l->extra[3] < 0x2000u && (low | (uint16_t)l->extra[3]) != 0; /* 1 .. 2^61 - 1 */
    }
    if (!stw_is_recurrent(l)) {
        return l->act != STW_TABLE || table_is_safe(l->extra);
    }
    stw_cell_open(l, &cell);
    return table_is_safe(cell.gate) && table_is_safe(cell.candidate) && table_is_safe(cell.output);
}

static stw_row row_of(const stw_layer *l, size_t r)
{
#if STW_WITH_PAIRS
    if (stw_is_paired(l)) {
        return stw_pairs_row(l, r);
    }
#endif
    return l->rows[r];
}

static int layer_is_safe(const stw_layer *l)
{
    for (size_t r = 0; r < stw_n_rows(l); r++) {
        const stw_row row = row_of(l, r);
        uint64_t      sum_x, sum_h;

        if ((row.kx != 0 && !row_may_join(l, r)) || (row.bias != 0 && !row_may_have_bias(l))) {
            return 0;
        }
        if (l->kind == STW_ATTENTION) { /* its scores are 64 bits wide and saturate */
            return row.mult >= 1 && row.shift >= 1 && row.shift <= 62;
        }
        row_sums(l, r, &sum_x, &sum_h);
        if (!row_is_safe(&row, sum_x, sum_h)) {
            return 0;
        }
    }
    return extra_is_safe(l);
}

/* The last layer that reads the output of layer i; i itself when none does. */
static size_t last_reader(const stw_model *m, size_t i)
{
    for (size_t k = m->n_layers - 1u; k > i; k--) {
        const uint16_t *src = m->layers[k].src;

        if (src[0] == i + 1 || src[1] == i + 1 || src[2] == i + 1) {
            return k;
        }
    }
    return i;
}

/* Whether every output in scratch stays there until its last reader has run: no layer writes to its place before that.
 * Sizes are those that stw_model_check has accepted. */
static int places_fit(const stw_model *m)
{
    size_t chunk = stw_chunk(m);

    for (size_t i = 0; i < m->n_layers; i++) {
        const stw_layer *l     = m->layers + i;
        size_t           start = l->out * chunk, end = start + stw_scratch_read(m, l);
        size_t           until = start < end ? last_reader(m, i) : i;

        for (size_t k = i + 1; k <= until; k++) {
            size_t other = m->layers[k].out * chunk, written = stw_layer_scratch(m, m->layers + k, chunk);

            if (written && other < end && start < other + written) {
                return 0;
            }
        }
    }
    return 1;
}

static int has_pairs(const stw_model *m)
{
    for (size_t i = 0; i < m->n_layers; i++) {
        if (stw_is_recurrent(m->layers + i) && stw_packing_of(m->layers + i) == STW_PAIRS) {
            return 1;
        }
    }
    return 0;
}

/* ---- machines with the other order ---- */

typedef struct turning {
    uint8_t *blob;
    uint32_t from; /* where the last array ended */
    int      dry;  /* nothing is turned */
} turning;

static void turn(uint8_t *p, size_t bytes)
{
    for (size_t k = 0; k < bytes / 2; k++) {
        uint8_t other = p[k];

        p[k]             = p[bytes - 1 - k];
        p[bytes - 1 - k] = other;
    }
}

/* Turns the words of n records from the place stored in field on; `record` lists the sizes of a record's words, ending
 * with 0.  Arrays must follow each other: 0 when they overlap. */
static int turn_array(turning *at, const uint8_t *field, uint64_t n, const uint8_t *record)
{
    uint32_t offset = stw_get32(field);
    uint8_t *p      = at->blob + offset;

    if (n == 0) {
        return 1;
    }
    if (offset < at->from) {
        return 0;
    }
    for (; n > 0; n--) {
        for (const uint8_t *word = record; *word; p += *word++) {
            if (!at->dry) {
                turn(p, *word);
            }
        }
    }
    at->from = (uint32_t)(p - at->blob);
    return 1;
}

static int turn_layer(turning *at, const stw_layer *l, const uint8_t *d)
{
    static const uint8_t bytes[] = {1, 0}, halves[] = {2, 0}, plain[] = {4, 2, 1, 1, 0};
    static const uint8_t paired[]  = {4, 4, 4, 4, 1, 1, 1, 1, 4, 4, 4, 4, 0};
    int                  recurrent = stw_is_recurrent(l);
    uint64_t             n_w = weight_bytes(l), n_rows = stw_is_paired(l) ? l->p[0] : row_records(l, at->blob);

    return turn_array(at, d + 24, recurrent ? n_w : n_w / 2, recurrent ? bytes : halves) &&
           turn_array(at, d + 28, recurrent_bytes(l), bytes) &&
           turn_array(at, d + 32, n_rows, stw_is_paired(l) ? paired : plain) &&
           turn_array(at, d + 36, extra_values(l, at->blob, d + 36), halves);
}

/* All arrays; the first time dry, so that nothing changes when the blob is not sound. */
static int turn_all(turning *at, uint32_t end)
{
    static const uint8_t channel[] = {4, 4, 4, 4, 4, 2, 2, 0};
    size_t               n_layers  = stw_get16(at->blob + 6);
    uint32_t             first     = HEADER_BYTES + LAYER_BYTES * (uint32_t)n_layers;
    uint64_t             n         = stw_get32(at->blob + 32) ? stw_get16(at->blob + 20) : 0u;

    at->from = first;
    for (size_t i = 0; i < n_layers; i++) {
        const uint8_t *d = at->blob + HEADER_BYTES + LAYER_BYTES * i;
        stw_layer      l;

        if (first > end || layer_open(&l, at->blob, d, first, end) != STW_OK || !turn_layer(at, &l, d)) {
            return 0;
        }
    }
    return n == 0 || (first <= end && array_at(at->blob, at->blob + 32, n * sizeof(stw_channel), first, end) &&
                      turn_array(at, at->blob + 32, n, channel));
}

int stw_blob_to_native(void *blob, size_t blob_bytes)
{
    turning at = {(uint8_t *)blob, 0, 1};
    int     status;

    if (!blob) {
        return STW_E_ARG;
    }
    if (machine_is_little_endian()) {
        return STW_OK;
    }
    status = header_check(at.blob, blob_bytes, BLOB_MAGIC);
    if (status != STW_OK) {
        return status;
    }
    if (!turn_all(&at, stw_get32(at.blob + 12))) {
        return STW_E_SHAPE;
    }
    at.dry = 0;
    (void)turn_all(&at, stw_get32(at.blob + 12));
    stw_put32(at.blob, NATIVE_MAGIC);
    return STW_OK;
}

int stw_blob_open(stw_model *model, stw_layer *layers, size_t max_layers, const void *blob, size_t blob_bytes)
{
    const uint8_t *p = (const uint8_t *)blob;
    stw_model      m;
    uint32_t       first, end;
    int            status;

    if (!model || !layers || !blob) {
        return STW_E_ARG;
    }
    if ((uintptr_t)blob & 3u) {
        return STW_E_ALIGN;
    }
    status = header_check(p, blob_bytes, machine_is_little_endian() ? BLOB_MAGIC : NATIVE_MAGIC);
    if (status != STW_OK) {
        return status;
    }
    m.format   = STW_MODEL_FORMAT;
    m.n_layers = stw_get16(p + 6);
    m.id       = stw_get32(p + 16);
    m.n_in     = stw_get16(p + 20);
    m.n_out    = stw_get16(p + 22);
    m.y_frac   = p[24];
    m.mode     = p[25];
    m.missing  = p[26];
    m.window   = stw_get16(p + 28);
    m.stride   = stw_get16(p + 30);
    m.layers   = layers;
    m.channels = 0;
    if (m.n_layers > max_layers) {
        return STW_E_SPACE;
    }
    first = HEADER_BYTES + LAYER_BYTES * (uint32_t)m.n_layers;
    end   = stw_get32(p + 12);
    for (size_t i = 0; i < m.n_layers; i++) {
        const uint8_t *d = p + HEADER_BYTES + LAYER_BYTES * i;

        status = first <= end ? layer_open(layers + i, p, d, first, end) : STW_E_SHAPE;
        if (status != STW_OK) {
            return status;
        }
    }
    if (p[27] != (has_pairs(&m) ? STW_PAIRS : STW_PLAIN)) {
        return STW_E_FORMAT;
    }
    status = first <= end ? channels_open(&m, p, p + 32, first, end) : STW_E_SHAPE;
    if (status == STW_OK) {
        status = stw_model_check(&m);
    }
    if (status == STW_OK && !places_fit(&m)) {
        status = STW_E_SHAPE;
    }
    for (size_t i = 0; status == STW_OK && i < m.n_layers; i++) {
        status = layer_is_safe(layers + i) ? STW_OK : STW_E_OVERFLOW;
    }
    if (status == STW_OK) {
        *model = m;
    }
    return status;
}

#endif /* __AVR__ */
