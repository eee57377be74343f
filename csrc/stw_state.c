/* stw_state.c - snapshots of a stream: "STS", format number u8, model id, c[] as int32 (cells, counters, the last
 * output), h[] as int16 (hidden states and what is remembered of inputs), CRC-32; all little endian. */
#include "stw_bytes.h"
#include "stw_layers.h"

#define SNAPSHOT_MAGIC 0x02535453u /* "STS", format 2; format 1, without the last output, began with "STWS" */
#define HEADER_BYTES   8u
#define CRC_BYTES      4u

static size_t n_hidden(const stw_model *m)
{
    size_t each = 0;

    for (const stw_layer *l = m->layers; l < m->layers + m->n_layers; l++) {
        each += stw_n_hidden(l);
    }
    return stw_hidden_before(m) + stw_model_layout(m).n_copies * each;
}

/* Goes over the n_hidden values of a stream without the gaps between them. */
typedef struct hidden_walk {
    const stw_model *m;
    const stw_layer *next; /* behind it */
    int16_t         *h;
    size_t           left, gap;
} hidden_walk;

static hidden_walk hidden_first(const stw_stream *s)
{
    size_t      before = stw_hidden_before(s->model);
    hidden_walk walk   = {s->model, s->model->layers, s->h, before, before & 1u};

    return walk;
}

static int16_t *hidden_next(hidden_walk *walk)
{
    while (walk->left == 0) {
        walk->h += walk->gap;
        walk->left = stw_n_hidden(walk->next);
        walk->gap  = walk->left & 1u;
        walk->next = walk->next + 1 == walk->m->layers + walk->m->n_layers ? walk->m->layers : walk->next + 1;
    }
    walk->left--;
    return walk->h++;
}

size_t stw_snapshot_bytes(const stw_model *m)
{
    return HEADER_BYTES + stw_model_layout(m).n_cells * 4u + n_hidden(m) * 2u + CRC_BYTES;
}

int stw_save(const stw_stream *s, void *buf, size_t buf_bytes)
{
    uint8_t    *p = (uint8_t *)buf;
    size_t      n, n_h, n_bytes;
    hidden_walk walk;

    if (!s || !s->model || !buf) {
        return STW_E_ARG;
    }
    n       = stw_model_layout(s->model).n_cells;
    n_h     = n_hidden(s->model);
    n_bytes = stw_snapshot_bytes(s->model);
    if (buf_bytes < n_bytes) {
        return STW_E_SPACE;
    }
    walk = hidden_first(s);
    stw_put32(p, SNAPSHOT_MAGIC);
    stw_put32(p + 4, s->model->id);
    p += HEADER_BYTES;
    for (size_t u = 0; u < n; u++, p += 4) {
        stw_put32(p, (uint32_t)s->c[u]);
    }
    for (size_t u = 0; u < n_h; u++, p += 2) {
        stw_put16(p, (uint16_t)*hidden_next(&walk));
    }
    stw_put32(p, stw_crc32(0, buf, n_bytes - CRC_BYTES));
    return STW_OK;
}

/* Whether the value at p is in 0 .. limit - 1. */
static int below(const uint8_t *p, uint32_t limit)
{
    return stw_get32(p) < limit;
}

/* Counters index memory: those of a snapshot must be ones that steps could have given. */
static int counters_fit(const stw_model *m, const uint8_t *p)
{
    stw_layout       plan = stw_model_layout(m);
    const stw_layer *last = m->layers + m->n_layers - 1;

    if (plan.cells_before && !below(p, m->mode == STW_STAGGER ? 2u * (uint32_t)m->window : m->window)) {
        return 0;
    }
    p += plan.cells_before * 4u;
    for (size_t copy = 0; copy < plan.n_copies; copy++) {
        if (stw_has_clock(m)) {
            if (!below(p, (uint32_t)last->first + last->every)) {
                return 0;
            }
            p += 4;
        }
        for (const stw_layer *l = m->layers; l <= last; l++) {
            if (stw_counter_limit(l) && !below(p, (uint32_t)stw_counter_limit(l))) {
                return 0;
            }
            p += stw_n_cells(l) * 4u;
        }
    }
    return 1;
}

static int snapshot_check(const stw_model *m, const uint8_t *p, size_t n_bytes)
{
    if (n_bytes != stw_snapshot_bytes(m) || stw_get32(p) != SNAPSHOT_MAGIC) {
        /* a snapshot of another model usually has another size: name that cause when the rest is sound */
        int sound = n_bytes >= HEADER_BYTES + CRC_BYTES && stw_get32(p) == SNAPSHOT_MAGIC &&
                    stw_crc32(0, p, n_bytes - CRC_BYTES) == stw_get32(p + n_bytes - CRC_BYTES);
        return sound ? STW_E_MISMATCH : STW_E_FORMAT;
    }
    if (stw_crc32(0, p, n_bytes - CRC_BYTES) != stw_get32(p + n_bytes - CRC_BYTES)) {
        return STW_E_CHECKSUM;
    }
    if (stw_get32(p + 4) != m->id) {
        return STW_E_MISMATCH;
    }
    return counters_fit(m, p + HEADER_BYTES) ? STW_OK : STW_E_FORMAT;
}

int stw_load(stw_stream *s, const void *buf, size_t buf_bytes)
{
    const uint8_t *p = (const uint8_t *)buf;
    size_t         n, n_h;
    hidden_walk    walk;
    int            status;

    if (!s || !s->model || !buf) {
        return STW_E_ARG;
    }
    status = snapshot_check(s->model, p, buf_bytes);
    if (status != STW_OK) {
        return status;
    }
    n    = stw_model_layout(s->model).n_cells;
    n_h  = n_hidden(s->model);
    walk = hidden_first(s);
    p += HEADER_BYTES;
    for (size_t u = 0; u < n; u++, p += 4) {
        s->c[u] = (int32_t)stw_get32(p);
    }
    for (size_t u = 0; u < n_h; u++, p += 2) {
        *hidden_next(&walk) = (int16_t)stw_get16(p);
    }
    return STW_OK;
}

static uint32_t fnv1a(uint32_t hash, const uint8_t *p, size_t n)
{
    while (n--) {
        hash = (hash ^ *p++) * 16777619u;
    }
    return hash;
}

uint32_t stw_digest(const stw_stream *s)
{
    uint32_t    hash = 2166136261u;
    size_t      n = stw_model_layout(s->model).n_cells, n_h = n_hidden(s->model);
    hidden_walk walk = hidden_first(s);
    uint8_t     bytes[4];

    for (size_t u = 0; u < n; u++) {
        stw_put32(bytes, (uint32_t)s->c[u]);
        hash = fnv1a(hash, bytes, 4);
    }
    for (size_t u = 0; u < n_h; u++) {
        stw_put16(bytes, (uint16_t)*hidden_next(&walk));
        hash = fnv1a(hash, bytes, 2);
    }
    return hash;
}
