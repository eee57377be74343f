/* stw_blob.c - opens a packed model.  Everything in the blob is hostile until it has been checked here.
 *
 * Layout, little endian, arrays aligned to 4 bytes (docs/format.md; python/stepwell/blob.py writes it):
 *   header[32]   magic, format u16, n_layers u16, total_bytes u32, device_bytes u32, id u32,
 *                n_in u16, n_out u16, y_frac u8, 7 zero bytes
 *   layers[20]   kind u8, act u8, n_in u16, n_out u16, 2 zero bytes, offsets of w, r, rows u32 (0 = none)
 *   arrays       up to device_bytes; id = CRC-32 of everything from n_in to here
 *   notes        anything (scales and provenance as JSON), not read by C
 *   crc u32      of all bytes before it; the last 4 of total_bytes
 */
#include <string.h>

#include "stw_bytes.h"
#include "stw_layers.h"

#define BLOB_MAGIC   0x31575453u /* "STW1" */
#define HEADER_BYTES 32u
#define ID_FROM      20u
#define LAYER_BYTES  20u
#define CRC_BYTES    4u

/* The blob's arrays are used in place, so the machine must store int16 and int32 as the blob does. */
static int machine_is_little_endian(void)
{
    const uint16_t one = 1;
    return *(const uint8_t *)&one;
}

static int header_check(const uint8_t *p, size_t n_bytes)
{
    uint32_t device_bytes;

    if (n_bytes < HEADER_BYTES + CRC_BYTES || stw_get32(p) != BLOB_MAGIC || stw_get16(p + 4) != STW_MODEL_FORMAT) {
        return STW_E_FORMAT;
    }
    if (stw_get32(p + 8) != n_bytes || stw_crc32(0, p, n_bytes - CRC_BYTES) != stw_get32(p + n_bytes - CRC_BYTES)) {
        return STW_E_CHECKSUM;
    }
    device_bytes = stw_get32(p + 12);
    if (device_bytes < HEADER_BYTES || device_bytes > n_bytes - CRC_BYTES) {
        return STW_E_SHAPE;
    }
    if (stw_crc32(0, p + ID_FROM, device_bytes - ID_FROM) != stw_get32(p + 16)) {
        return STW_E_CHECKSUM;
    }
    for (size_t i = 25; i < HEADER_BYTES; i++) {
        if (p[i] != 0) {
            return STW_E_FORMAT;
        }
    }
    return STW_OK;
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

static int layer_open(stw_layer *l, const uint8_t *blob, const uint8_t *d, uint32_t first, uint32_t end)
{
    uint64_t n_weight_rows;

    memset(l, 0, sizeof *l);
    l->kind  = d[0];
    l->act   = d[1];
    l->n_in  = stw_get16(d + 2);
    l->n_out = stw_get16(d + 4);
    if (!stw_is_recurrent(l) && l->kind != STW_DENSE && l->kind != STW_ACTIVATION) {
        return STW_E_LAYER;
    }
    if (d[6] | d[7]) {
        return STW_E_FORMAT;
    }
    l->rows = (const stw_row *)array_at(blob, d + 16, stw_n_rows(l) * sizeof(stw_row), first, end);
    if (l->kind == STW_ACTIVATION) {
        return l->rows ? STW_OK : STW_E_SHAPE;
    }
    n_weight_rows = stw_is_recurrent(l) ? stw_n_gates(l) * l->n_out : l->n_out;
    l->w          = array_at(blob, d + 8, n_weight_rows * l->n_in * (stw_is_recurrent(l) ? 1u : 2u), first, end);
    if (stw_is_recurrent(l)) {
        l->r = (const int8_t *)array_at(blob, d + 12, n_weight_rows * l->n_out, first, end);
    }
    return l->w && l->rows && (l->r || !stw_is_recurrent(l)) ? STW_OK : STW_E_SHAPE;
}

/* The overflow proof of docs/numerics.md for one row: sum_x = sum |w| over inputs up to 2^15, sum_h over hidden
 * states up to 32767.  Both sums are below 2^32, so every product here fits 64 bits. */
static int row_is_safe(const stw_row *row, uint64_t sum_x, uint64_t sum_h)
{
    uint64_t bias = row->bias < 0 ? 0u - (uint64_t)row->bias : (uint64_t)row->bias;
    uint64_t x    = 32768u * sum_x + 16384u;
    uint64_t bound;

    if (row->mult < 1 || row->shift < 1 || row->shift > 46 || row->kx < -15 || row->kx > 15 || x >= 0x80000000u) {
        return 0;
    }
    x     = row->kx >= 0 ? x << row->kx : (x >> -row->kx) + 1u;
    bound = x + 32767u * sum_h + bias;
    return bound <= 0x7FFFFFFFu && (bound * (uint64_t)row->mult) >> row->shift <= 0x7FFF0000u;
}

/* Sum of |w| of n int8 weights, or more than any proof allows when one is -128. */
static uint64_t sum_abs8(const int8_t *w, size_t n)
{
    uint64_t sum = 0;

    for (size_t j = 0; j < n; j++) {
        sum += w[j] == -128 ? 0x80000000u : (uint64_t)(w[j] < 0 ? -w[j] : w[j]);
    }
    return sum < 0x80000000u ? sum : 0x80000000u;
}

static uint64_t sum_abs16(const int16_t *w, size_t n)
{
    uint64_t sum = 0;

    for (size_t j = 0; j < n; j++) {
        sum += (uint64_t)(w[j] < 0 ? -(int32_t)w[j] : w[j]);
    }
    return sum < 0x80000000u ? sum : 0x80000000u;
}

/* Sums of |w| of the weights that row record r scales: over the inputs and over the hidden state. */
static void row_sums(const stw_layer *l, size_t r, uint64_t *sum_x, uint64_t *sum_h)
{
    size_t unit = r, gate = 0, n_gates = stw_n_gates(l);

    *sum_x = 1; /* an activation's row: one input of weight 1 */
    *sum_h = 0;
    if (l->kind == STW_DENSE) {
        *sum_x = sum_abs16((const int16_t *)l->w + r * l->n_in, l->n_in);
    }
    if (!stw_is_recurrent(l)) {
        return;
    }
    if (l->kind != STW_RNN) {
        unit = r >> 2;
        gate = r & 3u;
    }
    /* a GRU's last gate has two records: gate 2 its inputs, gate 3 its hidden states */
    *sum_x = 0;
    if (gate < n_gates) {
        *sum_x = sum_abs8((const int8_t *)l->w + (unit * n_gates + gate) * l->n_in, l->n_in);
    }
    if (l->kind != STW_GRU || gate != 2) {
        gate   = gate < n_gates ? gate : 2;
        *sum_h = sum_abs8(l->r + (unit * n_gates + gate) * l->n_out, l->n_out);
    }
}

/* Only where input and hidden sums join has the input sum a scale of its own. */
static int row_may_join(const stw_layer *l, size_t r)
{
    return stw_is_recurrent(l) && (l->kind != STW_GRU || (r & 3u) < 2);
}

static int layer_is_safe(const stw_layer *l)
{
    for (size_t r = 0; r < stw_n_rows(l); r++) {
        const stw_row *row = l->rows + r;
        uint64_t       sum_x, sum_h;

        row_sums(l, r, &sum_x, &sum_h);
        if (!row_is_safe(row, sum_x, sum_h) || (row->kx != 0 && !row_may_join(l, r)) ||
            (row->bias != 0 && l->kind == STW_ACTIVATION)) {
            return 0;
        }
    }
    return 1;
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
    status = machine_is_little_endian() ? header_check(p, blob_bytes) : STW_E_FORMAT;
    if (status != STW_OK) {
        return status;
    }
    m.format   = STW_MODEL_FORMAT;
    m.n_layers = stw_get16(p + 6);
    m.id       = stw_get32(p + 16);
    m.n_in     = stw_get16(p + 20);
    m.n_out    = stw_get16(p + 22);
    m.y_frac   = p[24];
    m.layers   = layers;
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
    status = stw_model_check(&m);
    for (size_t i = 0; status == STW_OK && i < m.n_layers; i++) {
        status = layer_is_safe(layers + i) ? STW_OK : STW_E_OVERFLOW;
    }
    if (status == STW_OK) {
        *model = m;
    }
    return status;
}
