"""The static overflow proof: no accumulator of a model can leave int32, for any input and any
state.

For every row, with |x|, |h| <= 2^15 (docs/numerics.md, "Static overflow proof"):

    (1)  X = 2^15 * sum|w_x| + 2^14           < 2^31
    (2)  B = shift(X, kx) + 2^15 * sum|w_h| + |bias|  <= 2^31 - 1
    (3)  B * mult / 2^shift                   <= 2^31 - 2^16

B bounds every partial sum in any order, which is why all summation orders and lane splits give the
same bits.
"""

from __future__ import annotations

import numpy as np

from stepwell.integer.fixed import Rows

INT32_MAX = 2**31 - 1
CODE_MAX = 2**15
RESULT_MAX = 2**31 - 2**16


def bounds(
    sum_x: np.ndarray, sum_h: np.ndarray, rows: Rows
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The left sides of (1), (2) and (3) for every row: int64 [n_rows] each. ``sum_*`` are sums of
    |weights|.
    """
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


def abs_sum(weights: np.ndarray) -> np.ndarray:
    """Sum of |weights| along the columns, int64 [n_rows]."""
    return np.abs(weights.astype(np.int64)).sum(axis=1)


def margin_bits(sum_x: np.ndarray, sum_h: np.ndarray, rows: Rows) -> np.ndarray:
    """log2 of how far each row's accumulator bound stays below 2^31, [n_rows]."""
    _, total, _ = bounds(sum_x, sum_h, rows)
    return 31 - np.log2(np.maximum(1, total.astype(np.float64)))
