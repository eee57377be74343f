/* stw_pairs.c - one step of a layer that is packed in pairs (stw_pairs.h). */
#include "stw_pairs.h"

#include "stw_fix.h"

#if STW_WITH_PAIRS

static const stw_pairs_rows *rows_of(const stw_layer *l, size_t u)
{
    return (const stw_pairs_rows *)(const void *)l->rows + u;
}

stw_row stw_pairs_row(const stw_layer *l, size_t r)
{
    const stw_pairs_rows *rows = rows_of(l, r >> 2);
    int32_t               mult = rows->mult[r & 3u];
    stw_row               row;

    for (row.shift = 32; mult > 32767 && !(mult & 1); row.shift--) {
        mult >>= 1;
    }
    row.bias = rows->bias[r & 3u];
    row.mult = mult < 1 || mult > 32767 ? 0 : (int16_t)mult; /* 0: no row of the exporter's; the checks refuse it */
    row.kx   = rows->kx[r & 3u];
    return row;
}

/* acc[g] += the sums of the four gates over n columns. */
static void dot4(int32_t acc[4], const int8_t *w, const int16_t *x, size_t n)
{
    size_t even = n & ~(size_t)1u;

    for (size_t j = 0; j < n; j++) {
        const int8_t *pair = w + 8 * (j >> 1) + (j < even ? 2 * (j & 1u) : 0);
        size_t        next = j < even ? 4 : 2;
        int32_t       xj   = x[j];

        acc[0] += pair[1] * xj;
        acc[1] += ((int32_t)(uint8_t)pair[0] - 128) * xj;
        acc[2] += pair[next + 1] * xj;
        acc[3] += ((int32_t)(uint8_t)pair[next] - 128) * xj;
    }
}

/* RQ, then SAT16. */
static int16_t requantise(int32_t acc, int32_t mult)
{
    return stw_sat16((int32_t)(((int64_t)acc * mult + ((int64_t)1 << 31)) >> 32));
}

static void lstm_unit(const stw_layer *l, const int16_t *x, const int16_t *h, size_t u, int16_t z[4])
{
    const stw_pairs_rows *rows  = rows_of(l, u);
    int32_t               ax[4] = {0, 0, 0, 0}, ah[4] = {0, 0, 0, 0};

    dot4(ax, (const int8_t *)l->w + u * 4 * l->n_in, x, l->n_in);
    dot4(ah, l->r + u * 4 * l->n_out, h, l->n_out);
    for (int k = 0; k < 4; k++) {
        z[k] = requantise(stw_join(ax[k], rows->kx[k]) + ah[k] + rows->bias[k], rows->mult[k]);
    }
}

#if STW_WITH_GRU
/* The sum of gate g of unit u, w of n columns. */
static int32_t one_sum(const stw_layer *l, const int8_t *w, const int16_t *x, size_t n, size_t u, size_t g)
{
    size_t  place = stw_pairs_place(l, u, g);
    int32_t sum   = 0;

    for (size_t j = 0; j < n; j++) {
        sum += stw_pairs_weight(w + (place >> 2) * 4 * n, n, j, place & 3u) * x[j];
    }
    return sum;
}

static void gru_unit(const stw_layer *l, const int16_t *x, const int16_t *h, size_t u, int16_t z[4])
{
    const stw_pairs_rows *rows = rows_of(l, u);
    int32_t               ax[3], ah[3];

    for (size_t g = 0; g < 3; g++) {
        ax[g] = one_sum(l, (const int8_t *)l->w, x, l->n_in, u, g);
        ah[g] = one_sum(l, l->r, h, l->n_out, u, g);
    }
    for (size_t g = 0; g < 2; g++) {
        z[g] = requantise(stw_join(ax[g], rows->kx[g]) + ah[g] + rows->bias[g], rows->mult[g]);
    }
    z[2] = requantise(ax[2] + rows->bias[2], rows->mult[2]);
    z[3] = requantise(ah[2] + rows->bias[3], rows->mult[3]);
}
#endif

void stw_pairs_unit(const stw_layer *l, const int16_t *x, const int16_t *h, size_t u, int16_t z[4])
{
#if STW_WITH_GRU
    if (l->kind == STW_GRU) {
        gru_unit(l, x, h, u, z);
        return;
    }
#endif
    lstm_unit(l, x, h, u, z);
}

/* The same in portable C, for cores without the instructions and for x at odd places. */
static void portable_step(const stw_layer *l, const int16_t *x, const int16_t *h, int32_t *c, int16_t *out)
{
    stw_cell cell;
    stw_unit unit;

    stw_cell_open(l, &cell);
    for (size_t u = 0; u < l->n_out; u++) {
        stw_recurrent_unit(l, &cell, x, h, 0, c[u], u, &unit);
        c[u]   = unit.c;
        out[u] = unit.h;
    }
}

#if defined(__ARM_FEATURE_DSP) && !defined(__ARM_FEATURE_MVE)
#include "stw_pairs_dsp.h"
#endif

void stw_pairs_step(const stw_layer *l, const int16_t *x, const int16_t *h, int32_t *c, int16_t *out)
{
#if defined(__ARM_FEATURE_DSP) && !defined(__ARM_FEATURE_MVE)
    if ((((uintptr_t)x | (uintptr_t)h) & 3u) == 0) {
        dsp_step(l, x, h, c, out);
        return;
    }
#endif
    portable_step(l, x, h, c, out);
}

#endif /* STW_WITH_PAIRS */
