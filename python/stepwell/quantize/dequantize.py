"""What integers stand for: the real weights behind quantised rows, and float layers that have them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stepwell.integer.formats import Z_SCALE
from stepwell.layers import (
    Dense,
    DenseLayer,
    Gru,
    GruLayer,
    IntLayer,
    Layer,
    Lstm,
    RecurrentLayer,
    Rnn,
)

SOFTMAX_SCALE = 2.0**-16 * float(np.log(2))  # a softmax layer computes log2-scaled logits in Q15.16


def units(layer: RecurrentLayer | DenseLayer, v_scale: float) -> np.ndarray:
    """Real value of one accumulator unit of each row record, whose results have ``v_scale``."""
    return layer.rows.mult * 2.0 ** -layer.rows.shift.astype(np.float64) * v_scale


def gate_records(layer: RecurrentLayer) -> tuple[np.ndarray, np.ndarray]:
    """Which row record each row of w_x and of w_h belongs to: a GRU's candidate has two."""
    n = len(layer.w_x)
    rows = np.arange(n)
    if not isinstance(layer, GruLayer):
        return rows, rows
    return rows, np.where(rows >= 2 * layer.n_units, rows + layer.n_units, rows)


def recurrent_steps(layer: RecurrentLayer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Real value of an integer of each row of w_x and of w_h, [G*H, 1], and of each record's bias
    [R*H]; z in Q4.11.
    """
    unit = units(layer, Z_SCALE)
    of_x, of_h = gate_records(layer)
    step_x = (unit * 2.0 ** layer.rows.kx.astype(np.float64))[of_x, None] / layer.x_scale
    return step_x, unit[of_h, None] / layer.y_scale, unit


def dense_scale(layer: DenseLayer) -> float | None:
    """Real value of a dense layer's result before its activation; None where only its table knows."""
    if layer.activation in ("tanh", "sigmoid"):
        return Z_SCALE
    if layer.activation == "table":
        return None
    return SOFTMAX_SCALE if layer.activation == "softmax" else layer.y_scale


def float_layer(layer: IntLayer, source: Layer) -> Layer | None:
    """``source`` with the weights and biases that ``layer``'s integers stand for; None for kinds
    without, and where a table hides the scale of the result.
    """
    if isinstance(layer, DenseLayer) and isinstance(source, Dense):
        v_scale = dense_scale(layer)
        if v_scale is None:
            return None
        unit = units(layer, v_scale)
        return replace(
            source, weight=layer.weight * unit[:, None] / layer.x_scale, bias=layer.rows.bias * unit
        )
    plain = layer.is_recurrent and layer.cell.projection is None
    if not plain or (isinstance(source, Rnn) and layer.cell.candidate is not None):
        return None
    step_x, step_h, unit = recurrent_steps(layer)
    changed = {"w_x": layer.w_x * step_x, "w_h": layer.w_h * step_h}
    bias, n = layer.rows.bias * unit, len(layer.w_x)
    if isinstance(source, Gru):
        of_h = (
            np.zeros(n)
            if not isinstance(layer, GruLayer)
            else np.concatenate([np.zeros(n - layer.n_units), bias[n:]])
        )
        return replace(source, **changed, bias=bias[:n], bias_h=of_h)
    return replace(source, **changed, bias=bias) if isinstance(source, (Lstm, Rnn)) else None
