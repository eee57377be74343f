/* stw_layers.h - the layer kinds, for stepwell.c and the optional files; applications need stepwell.h only. */
#ifndef STW_LAYERS_H
#define STW_LAYERS_H

#include "stepwell.h"

static inline int stw_is_recurrent(const stw_layer *l)
{
    return l->kind == STW_LSTM || l->kind == STW_GRU || l->kind == STW_RNN;
}

/* Rows of weights for each unit of a recurrent layer. */
static inline size_t stw_n_gates(const stw_layer *l)
{
    return l->kind == STW_LSTM ? 4u : l->kind == STW_GRU ? 3u : 1u;
}

/* Row records of a layer. */
static inline size_t stw_n_rows(const stw_layer *l)
{
    return l->kind == STW_LSTM || l->kind == STW_GRU ? 4u * (size_t)l->n_out
           : l->kind == STW_ACTIVATION               ? 1u
                                                     : l->n_out;
}

/* Values of c and of h that a layer keeps from step to step. */
static inline size_t stw_n_cells(const stw_layer *l)
{
    return l->kind == STW_LSTM || l->kind == STW_GRU ? l->n_out : 0u;
}

static inline size_t stw_n_hidden(const stw_layer *l)
{
    return stw_is_recurrent(l) ? l->n_out : 0u;
}

/* What unit u does for layer input x and previous hidden states h; c is the unit's cell state before the step. */
void stw_lstm_unit(const stw_layer *l, const int16_t *x, const int16_t *h, int32_t c, size_t u, stw_unit *out);
void stw_gru_unit(const stw_layer *l, const int16_t *x, const int16_t *h, int32_t c, size_t u, stw_unit *out);
void stw_rnn_unit(const stw_layer *l, const int16_t *x, const int16_t *h, size_t u, stw_unit *out);

/* The unit function of the layer's kind. */
void stw_recurrent_unit(const stw_layer *l, const int16_t *x, const int16_t *h, int32_t c, size_t u, stw_unit *out);

/* y[r] before the activation, in the layer's output format; bounded by the overflow proof. */
int32_t stw_dense_row(const stw_layer *l, const int16_t *x, size_t r);

/* Row 0 of the layer's rows applied to one input code. */
int32_t stw_activation_scale(const stw_layer *l, int16_t x);

/* An activation of v: relu keeps v's format, tanh and sigmoid take Q4.11 and give Q0.15. */
int32_t stw_activate(uint8_t act, int32_t v);

/* y[n]: log2-scaled logits in Q15.16 -> probabilities 0..32768 in Q0.15, in place.  1 <= n <= STW_SOFTMAX_MAX. */
void stw_softmax(int32_t *y, size_t n);

#define STW_SOFTMAX_MAX 512

#endif /* STW_LAYERS_H */
