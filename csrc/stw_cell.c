/* stw_cell.c - what layers are made of: sizes of their parts, and the variants of recurrent cells. */
#include "stw_dot.h"
#include "stw_fix.h"
#include "stw_layers.h"

size_t stw_n_rows(const stw_layer *l)
{
    switch (l->kind) {
    case STW_LSTM:
        return 4u * (size_t)l->p[0] + (stw_cell_has(l, STW_PART_PROJECTION) ? l->n_out : 0u);
    case STW_GRU:
    case STW_GRU_BEFORE:
    case STW_RNN:
        return stw_n_records(l) * l->n_out;
    case STW_DENSE:
    case STW_LAYER_NORM:
        return l->n_out;
    case STW_CONCAT:
        return 2u;
    case STW_ACTIVATION:
    case STW_ADD:
    case STW_MUL:
    case STW_ATTENTION:
        return 1u;
    default:
        return 0u;
    }
}

size_t stw_n_cells(const stw_layer *l)
{
    switch (l->kind) {
    case STW_LSTM:
    case STW_GRU:
    case STW_GRU_BEFORE:
        return l->p[0];
    case STW_ATTENTION:
        return 1u; /* its counter */
    default:
        return 0u;
    }
}

size_t stw_window_span(const stw_layer *l)
{
    return (l->p[0] - 1u) * (size_t)l->p[1] + 1u;
}

size_t stw_n_hidden(const stw_layer *l)
{
    if (l->kind == STW_WINDOW) {
        return l->n_in * stw_window_span(l);
    }
    if (l->kind == STW_ATTENTION) {
        return (size_t)l->p[0] * ((size_t)l->p[2] + l->n_out);
    }
    return stw_is_recurrent(l) ? l->n_out : 0u;
}

/* The next array of n values in `extra`, if the layer has that part. */
static const STW_ROM int16_t *part(const stw_layer *l, int bit, size_t n, size_t *length)
{
    const STW_ROM int16_t *found = l->extra + *length;

    if (!((uint16_t)l->extra[0] & (unsigned int)bit)) {
        return 0;
    }
    *length += n;
    return found;
}

size_t stw_cell_open(const stw_layer *l, stw_cell *cell)
{
    static const stw_cell plain  = {0, 0, 0, 0, 0, 0, 0, 32767, 32767, 0, 15, 15, 15, 0};
    size_t                length = STW_EXTRA_HEADER, units = l->p[0];

    *cell = plain;
    if (l->p[2] == 8) {
        cell->h_max  = 127;
        cell->h_frac = 7;
    }
    if (!stw_variant(l->extra)) {
        return 0;
    }
    cell->flags         = (uint16_t)l->extra[1];
    cell->clip          = l->extra[2];
    cell->g_frac        = (uint8_t)l->extra[3];
    cell->a_frac        = (uint8_t)l->extra[4];
    cell->h_frac        = (uint8_t)l->extra[5];
    cell->peephole_frac = (uint8_t)l->extra[6];
    cell->gate          = part(l, STW_PART_GATE, STW_TABLE_ENTRIES, &length);
    cell->candidate     = part(l, STW_PART_CANDIDATE, STW_TABLE_ENTRIES, &length);
    cell->output        = part(l, STW_PART_OUTPUT, STW_TABLE_ENTRIES, &length);
    cell->peephole      = part(l, STW_PART_PEEPHOLE, 3 * units, &length);
    cell->h0            = part(l, STW_PART_START, l->n_out + 2 * units, &length);
    cell->c0            = cell->h0 ? cell->h0 + l->n_out : 0;
    cell->projection    = part(l, STW_PART_PROJECTION, l->n_out * units, &length);
    return length;
}

int32_t stw_joined_row(const stw_layer *l, size_t row, const int16_t *x, const int16_t *h)
{
    unsigned int          bits = stw_weight_bits(l);
    const STW_ROM int8_t *w    = (const STW_ROM int8_t *)l->w + row * stw_row_bytes(bits, l->n_in),
                         *r    = l->r + row * stw_row_bytes(bits, l->n_out);
    int32_t ax, ah;

    stw_dot_rows(&ax, 1, w, bits, x, l->n_in);
    stw_dot_rows(&ah, 1, r, bits, h, l->n_out);
    return stw_join(ax, l->rows[row].kx) + ah + l->rows[row].bias;
}

int16_t stw_project(const stw_layer *l, const stw_cell *cell, const int16_t *y, size_t r)
{
    const STW_ROM stw_row *row = l->rows + 4u * (size_t)l->p[0] + r;
    int32_t                acc = stw_dot1(cell->projection + r * l->p[0], y, l->p[0]) + row->bias;

    return stw_limit(stw_rq(acc, row->mult, row->shift), cell->h_max);
}

void stw_recurrent_unit(const stw_layer *l, const stw_cell *cell, const int16_t *x, const int16_t *h,
                        const int16_t *reset, int32_t c, size_t u, stw_unit *out)
{
    (void)reset, (void)c; /* which cells need them depends on the build */
#if STW_WITH_LSTM
    if (l->kind == STW_LSTM) {
        stw_lstm_unit(l, cell, x, h, c, u, out);
    }
#endif
#if STW_WITH_GRU
    if (l->kind == STW_GRU) {
        stw_gru_unit(l, cell, x, h, c, u, out);
    }
    if (l->kind == STW_GRU_BEFORE) {
        stw_gru_before_unit(l, cell, x, h, reset, c, u, out);
    }
#endif
#if STW_WITH_RNN
    if (l->kind == STW_RNN) {
        stw_rnn_unit(l, cell, x, h, u, out);
    }
#endif
}
