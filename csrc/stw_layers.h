/* stw_layers.h - the layer kinds, for stepwell.c and the optional files; applications need stepwell.h only. */
#ifndef STW_LAYERS_H
#define STW_LAYERS_H

#include "stepwell.h"

/* What unit u does for layer input x and previous hidden states h; c is the unit's cell state before the step. */
void stw_lstm_unit(const stw_layer *l, const int16_t *x, const int16_t *h, int32_t c, size_t u, stw_unit *out);

/* One step of a whole layer: c[n_out] is updated in place, h_new[n_out] receives the hidden states that follow h. */
void stw_lstm_step(const stw_layer *l, const int16_t *x, const int16_t *h, int32_t *c, int16_t *h_new);

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
