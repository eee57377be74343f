/* stw_pairs.h - LSTM and GRU layers whose rows are stored in pairs, for cores that multiply two 16-bit halves at once
 * (Cortex-M4, M7, M33): docs/numerics.md, "Packings".
 *
 * A halfword holds the weights of two gates for one column: a * 256 + (b + 128), a the gate i or g, b the gate f or o.
 * Two columns make a word, and
 *     P = sum of halfword * x (64 bits),  Q = sum of (b + 128) * x   give   b.x = Q - 128 * sum x,  a.x = (P - Q) / 256
 * so that three instructions do four products.  Sums are exact: the same bits as from plain rows.
 * Order: for each two columns the word of i and f, then that of g and o; a last odd column has one word, i f | g o.
 * A GRU's rows go likewise, four units in three such quads: r z r z of two units, of the other two, and n n n n.
 */
#ifndef STW_PAIRS_H
#define STW_PAIRS_H

#include "stw_layers.h"

/* Row records of one unit; RQ(a, mult, shift) with 16 <= shift <= 32 is RQ(a, mult * 2^(32 - shift), 32). */
typedef struct stw_pairs_rows {
    int32_t bias[4];
    int8_t  kx[4];
    int32_t mult[4]; /* mult * 2^(32 - shift) */
} stw_pairs_rows;

static inline int stw_is_paired(const stw_layer *l)
{
    int kind = l->kind == STW_LSTM || (STW_WITH_GRU && l->kind == STW_GRU && (l->p[0] & 3u) == 0);

    return STW_WITH_PAIRS && kind && stw_packing_of(l) == STW_PAIRS;
}

/* Where gate g of unit u stands: 4 * quad + place. */
static inline size_t stw_pairs_place(const stw_layer *l, size_t u, size_t g)
{
    size_t quads = 3 * (u >> 2);

    if (l->kind == STW_LSTM) {
        return 4 * u + g;
    }
    return g == 2 ? 4 * (quads + 2) + (u & 3u) : 4 * (quads + (u >> 1 & 1u)) + 2 * (u & 1u) + g;
}

/* The weight of column j in place g of the quad that starts at w, n columns. */
static inline int32_t stw_pairs_weight(const int8_t *w, size_t n, size_t j, size_t g)
{
    size_t pair = g >> 1, at = 8 * (j >> 1) + (j + 1 == n && n & 1u ? 2 * pair : 4 * pair + 2 * (j & 1u));

    return g & 1u ? (int32_t)(uint8_t)w[at] - 128 : w[at + 1];
}

/* The record of row r = 4 * unit + gate in the form of other layers. */
stw_row stw_pairs_row(const stw_layer *l, size_t r);

/* Pre-activations z[4] of unit u, Q4.11; of a GRU as in stw_gru.c. */
void stw_pairs_unit(const stw_layer *l, const int16_t *x, const int16_t *h, size_t u, int16_t z[4]);

/* One step of the whole layer for x [n_in] and old hidden states h: new c in place, new hidden states to out [n_out].
 */
void stw_pairs_step(const stw_layer *l, const int16_t *x, const int16_t *h, int32_t *c, int16_t *out);

#endif /* STW_PAIRS_H */
