"""The static overflow proof: no accumulator of a model can leave int32, for any input and any state.

For every row, with |x|, |h| <= 2^15 (docs/numerics.md, "Static overflow proof"):

    (1)  X = 2^15 * sum|w_x| + 2^14           < 2^31
    (2)  B = shift(X, kx) + 2^15 * sum|w_h| + |bias|  <= 2^31 - 1
    (3)  B * mult / 2^shift                   <= 2^31 - 2^16

B bounds every partial sum in any order, which is why all summation orders and lane splits give the same bits.
"""

from __future__ import annotations

import numpy as np

from stepwell.model import (
    AddLayer,
    AttentionLayer,
    DenseLayer,
    GruLayer,
    IntLayer,
    LayerNormLayer,
    MulLayer,
    RecurrentLayer,
    Rows,
)

INT32_MAX = 2**31 - 1
CODE_MAX = 2**15
RESULT_MAX = 2**31 - 2**16


def bounds(sum_x: np.ndarray, sum_h: np.ndarray, rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The left sides of (1), (2) and (3) for every row: int64 [n_rows] each. ``sum_*`` are sums of |weights|."""
    x = CODE_MAX * np.asarray(sum_x, np.int64) + 2**14
    kx = rows.kx.astype(np.int64)
    joined = np.where(kx >= 0, x << np.maximum(kx, 0), (x >> np.maximum(-kx, 0)) + 1)
    total = joined + CODE_MAX * np.asarray(sum_h, np.int64) + np.abs(rows.bias.astype(np.int64))
    # total < 2^62 / 2^15 unless (1) has failed already: clip so that the product stays in int64
    result = (np.minimum(total, 2**47) * rows.mult.astype(np.int64)) >> rows.shift.astype(np.int64)
    return x, total, result


def failing_rows(sum_x: np.ndarray, sum_h: np.ndarray, rows: Rows) -> np.ndarray:
    """Indices of the rows that break (1), (2) or (3)."""
    x, total, result = bounds(sum_x, sum_h, rows)
    return np.flatnonzero((x > INT32_MAX) | (total > INT32_MAX) | (result > RESULT_MAX))


def weight_sums(layer: IntLayer) -> tuple[np.ndarray, np.ndarray]:
    """Sums of |weight| per row: over the inputs and over the hidden state, int64 [n_rows] each."""
    if isinstance(layer, RecurrentLayer):
        sum_x, sum_h = _recurrent_sums(layer)
        if layer.cell.projection is None:
            return sum_x, sum_h
        return np.concatenate([sum_x, abs_sum(layer.cell.projection)]), np.append(
            sum_h, np.zeros(layer.n_out, np.int64)
        )
    if isinstance(layer, DenseLayer):
        sum_x = abs_sum(layer.weight)
    elif isinstance(layer, AddLayer):
        sum_x = abs_sum(layer.weights[None])
    elif isinstance(layer, LayerNormLayer):
        sum_x = np.abs(layer.gamma.astype(np.int64))
    elif isinstance(layer, MulLayer):
        sum_x = np.full(1, CODE_MAX)  # a product of two codes
    else:
        sum_x = np.ones(len(layer.rows), np.int64)
    return sum_x, np.zeros_like(sum_x)


def _recurrent_sums(layer: RecurrentLayer) -> tuple[np.ndarray, np.ndarray]:
    sum_x, sum_h = abs_sum(layer.w_x), abs_sum(layer.w_h)
    if not isinstance(layer, GruLayer):
        return sum_x, sum_h
    n = layer.n_out  # the last gate's two parts are rows of their own: nx has no hidden state, nh no input
    none = np.zeros(n, np.int64)
    return np.concatenate([sum_x, none]), np.concatenate([sum_h[: 2 * n], none, sum_h[2 * n :]])


def abs_sum(weights: np.ndarray) -> np.ndarray:
    """Sum of |weights| along the columns, int64 [n_rows]."""
    return np.abs(weights.astype(np.int64)).sum(axis=1)


def layer_margin_bits(layer: IntLayer) -> float:
    """log2 of how far the layer's largest accumulator bound stays below 2^31; 31 for a layer without one."""
    return float(margin_bits(layer).min(initial=31.0))


def margin_bits(layer: IntLayer) -> np.ndarray:
    """The same of each row, [R]; empty for a layer without rows of sums."""
    if isinstance(layer, AttentionLayer) or not hasattr(layer, "rows"):
        return np.empty(0)
    _, total, _ = bounds(*weight_sums(layer), layer.rows)
    return 31 - np.log2(np.maximum(1, total.astype(np.float64)))
