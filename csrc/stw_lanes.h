/* stw_lanes.h - one step of a recurrent layer for many streams at once, on x86-64: a vector holds the same number of 8
 * or 16 streams, so that each weight is read once for all of them and every constant of a row is the same in all lanes.
 * Built with STW_WITH_AVX2; the same bits as stream by stream. */
#ifndef STW_LANES_H
#define STW_LANES_H

#include "stw_layers.h"

#if STW_WITH_AVX2

#define STW_LANES    32 /* streams of a block, at most */
#define STW_MANY_MIN 4  /* fewer go faster one by one */

/* The instructions that the kernels use, from few to many. */
enum { STW_PORTABLE = 0, STW_AVX2 = 1, STW_AVX_VNNI = 2, STW_AVX512_VNNI = 3 };

/* What the process uses: the best that this CPU has, or what stw_kernel_up_to chose. */
int stw_kernel(void);

/* Use, from now on, the best of these that this CPU has and that is at most `wanted`; gives it. */
int stw_kernel_up_to(int wanted);

/* What a layer reads and writes, for each stream. */
typedef struct stw_block {
    size_t         n;
    const int16_t *x[STW_LANES];   /* [n_in] */
    int16_t       *h[STW_LANES];   /* [n_out], the old hidden states */
    int32_t       *c[STW_LANES];   /* [n_out], replaced */
    int16_t       *out[STW_LANES]; /* [n_out], the new hidden states; not h */
} stw_block;

/* Whether the layer can go that way: LSTM, or GRU with the reset after the product, plain cell, weights of 8 bits. */
int stw_lanes_can(const stw_layer *l);

/* Bytes of working memory for a step, aligned to 64. */
size_t stw_lanes_bytes(const stw_layer *l);

/* Only where stw_kernel() is STW_AVX2 or more; stw_many_step likewise. */
void stw_lanes_step(const stw_layer *l, const stw_block *block, void *work);

/* Whether a model has such a layer and its streams step alike; working memory in bytes. */
int    stw_many_can(const stw_model *m);
size_t stw_many_bytes(const stw_model *m);

/* stw_step of n <= STW_LANES streams of one model, each with scratch of its own: x [n][n_in] -> y [n][n_out]. */
void stw_many_step(const stw_stream *streams, size_t n, const int16_t *x, int32_t *y, void *work);

#endif /* STW_WITH_AVX2 */
#endif /* STW_LANES_H */
