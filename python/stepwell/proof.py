"""The static overflow proof: no accumulator of a model can leave int32, for any input and any state.

For every row, with |x| <= 2^15 and |h| <= 2^15 - 1 (docs/numerics.md, "Static overflow proof"):

    (1)  X = 2^15 * sum|w_x| + 2^14           < 2^31
    (2)  B = shift(X, kx) + 32767 * sum|w_h| + |bias|  <= 2^31 - 1
    (3)  B * mult / 2^shift                   <= 2^31 - 2^16

B bounds every partial sum in any order, which is why all summation orders and lane splits give the same bits.
"""

from __future__ import annotations

import numpy as np

from stepwell.model import ActivationLayer, DenseLayer, GruLayer, IntLayer, RecurrentLayer, Rows

INT32_MAX = 2**31 - 1
X_MAX = 2**15
H_MAX = 2**15 - 1
RESULT_MAX = 2**31 - 2**16


def bounds(sum_x: np.ndarray, sum_h: np.ndarray, rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The left sides of (1), (2) and (3) for every row: int64 [n_rows] each. ``sum_*`` are sums of |weights|."""
    x = X_MAX * np.asarray(sum_x, np.int64) + 2**14
    kx = rows.kx.astype(np.int64)
    joined = np.where(kx >= 0, x << np.maximum(kx, 0), (x >> np.maximum(-kx, 0)) + 1)
    total = joined + H_MAX * np.asarray(sum_h, np.int64) + np.abs(rows.bias.astype(np.int64))
    # total < 2^62 / 2^15 unless (1) has failed already: clip so that the product stays in int64
    result = (np.minimum(total, 2**47) * rows.mult.astype(np.int64)) >> rows.shift.astype(np.int64)
    return x, total, result


def failing_rows(sum_x: np.ndarray, sum_h: np.ndarray, rows: Rows) -> np.ndarray:
    """Indices of the rows that break (1), (2) or (3)."""
    x, total, result = bounds(sum_x, sum_h, rows)
    return np.flatnonzero((x > INT32_MAX) | (total > INT32_MAX) | (result > RESULT_MAX))


def weight_sums(layer: IntLayer) -> tuple[np.ndarray, np.ndarray]:
    """Sums of |weight| per row: over the inputs and over the hidden state, int64 [n_rows] each."""
    if isinstance(layer, GruLayer):
        n = layer.n_out  # the last gate's two parts are rows of their own: nx has no hidden state, nh no input
        sum_x, sum_h, none = abs_sum(layer.w_x), abs_sum(layer.w_h), np.zeros(n, np.int64)
        return np.concatenate([sum_x, none]), np.concatenate([sum_h[: 2 * n], none, sum_h[2 * n :]])
    if isinstance(layer, RecurrentLayer):
        return abs_sum(layer.w_x), abs_sum(layer.w_h)
    if isinstance(layer, DenseLayer):
        return abs_sum(layer.weight), np.zeros(layer.n_out, np.int64)
    assert isinstance(layer, ActivationLayer)
    return np.ones(1, np.int64), np.zeros(1, np.int64)


def abs_sum(weights: np.ndarray) -> np.ndarray:
    """Sum of |weights| along the columns, int64 [n_rows]."""
    return np.abs(weights.astype(np.int64)).sum(axis=1)


def layer_margin_bits(layer: IntLayer) -> float:
    """log2 of how far the layer's largest accumulator bound stays below 2^31."""
    _, total, _ = bounds(*weight_sums(layer), layer.rows)
    return float(31 - np.log2(max(1, int(total.max()))))
