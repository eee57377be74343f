/* stw_attention.c - a weighted mean of the last steps' values, as in docs/numerics.md, "Attention". */
#include <string.h>

#include "stw_fix.h"
#include "stw_layers.h"

#if STW_WITH_ATTENTION /* the softmax it calls may be left out otherwise */

/* RSH(acc * mult, shift) limited to +-(2^31 - 2^16); |acc| < 2^40 + 2^31, so the product stays in 64 bits. */
static int32_t score_scaled(int64_t acc, const STW_ROM stw_row *row)
{
    const int64_t limit = ((int64_t)1 << 31) - 65536;
    int64_t       v     = (((acc * row->mult) >> (row->shift - 1)) + 1) >> 1;

    return (int32_t)(v > limit ? limit : v < -limit ? -limit : v);
}

static int32_t score(const stw_layer *l, const int16_t *query, const int16_t *key)
{
    const STW_ROM int16_t *weight = (const STW_ROM int16_t *)l->w;
    int64_t                acc    = 0;

    for (size_t j = 0; j < l->p[2]; j++) {
        switch (l->p[1]) {
        case STW_SCORE:
            acc += key[j];
            break;
        case STW_DOT:
            acc += (int32_t)query[j] * key[j];
            break;
        default:
            acc += (int32_t)weight[j] * stw_tanh(stw_sat16((int32_t)query[j] + key[j]));
        }
    }
    return score_scaled(acc, l->rows);
}

void stw_attention_step(const stw_layer *l, const int16_t *const in[3], int32_t *counter, int16_t *memory,
                        int32_t *scores, int16_t *out)
{
    int            given = l->p[1] == STW_SCORE; /* sources: score, value; else query, key, value */
    const int16_t *key   = given ? in[0] : in[1];
    const int16_t *value = given ? in[1] : in[2];
    size_t         n = l->p[0], n_key = l->p[2], n_value = l->n_out;
    size_t         seen   = (size_t)*counter; /* 0 .. 2n - 1: steps since the reset, wrapped once the memory is full */
    size_t         place  = seen < n ? seen : seen - n;
    size_t         filled = seen < n ? seen + 1 : n;
    int16_t       *keys = memory, *values = memory + n * n_key;

    memcpy(keys + place * n_key, key, n_key * sizeof *keys);
    memcpy(values + place * n_value, value, n_value * sizeof *values);
    *counter = (int32_t)(seen + 1 == 2 * n ? n : seen + 1);

    for (size_t i = 0; i < filled; i++) {
        scores[i] = score(l, in[0], keys + i * n_key);
    }
    stw_softmax(scores, filled);
    for (size_t k = 0; k < n_value; k++) {
        int32_t sum = 0; /* |sum| <= 2^15 * (2^15 + filled / 2) */

        for (size_t i = 0; i < filled; i++) {
            sum += scores[i] * values[i * n_value + k];
        }
        out[k] = stw_sat16(stw_rsh(sum, 15));
    }
}
#endif
