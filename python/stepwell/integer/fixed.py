"""The operations of docs/numerics.md in NumPy: RSH, SAT, RQ, SIG, TANH, TAB and softmax.

Everything runs in int64, so that nothing can wrap. It shares no code with the C.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal, localcontext
from functools import cache

import numpy as np

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Rows:
    """How each row's accumulator becomes a number: ``RSH(acc * mult, shift)``.

    All arrays are [n_rows]. ``bias`` int32 in accumulator units. ``mult`` int16, 2^14..2^15-1.
    ``kx`` int8, -15..15: the power of two that brings the input sum to the hidden sum's scale.
    ``shift`` int8, 1..46.
    """

    bias: Array
    mult: Array
    kx: Array
    shift: Array

    def __len__(self) -> int:
        return len(self.bias)

    def part(self, which: slice) -> Rows:
        """Some of the rows."""
        return Rows(self.bias[which], self.mult[which], self.kx[which], self.shift[which])


def stacked(*parts: Rows) -> Rows:
    """The rows of all parts, one part after the other."""
    names = ("bias", "mult", "kx", "shift")
    return Rows(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def rsh(x: Array, n: Array | int) -> Array:
    """RSH(x, n) = floor(x / 2^n + 1/2); n = 0 gives x."""
    n = np.asarray(n, np.int64)
    return np.where(n == 0, x, (x + (1 << np.maximum(n - 1, 0))) >> n)


def sat(x: Array, bits: int) -> Array:
    return np.clip(x, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def rq(acc: Array, rows: Rows) -> Array:
    """RQ(a, m, s) = RSH(a * m, s) along the last axis."""
    return rsh(acc * rows.mult.astype(np.int64), rows.shift.astype(np.int64))


@cache
def sigmoid_table() -> Array:
    """T[k] = min(65535, floor(65536 / (1 + exp(-k / 32)) + 1/2)), k = 0..352. [353] int64."""
    with localcontext() as context:
        context.prec = 50
        exact = [65536 / (1 + (Decimal(-k) / 32).exp()) for k in range(353)]
        return np.array([min(65535, _half_up(v)) for v in exact], np.int64)


@cache
def exp2_table() -> Array:
    """P[k] = floor(2^15 * 2^(-k / 64) + 1/2), k = 0..64. [65] int64."""
    with localcontext() as context:
        context.prec = 50
        return np.array(
            [_half_up(32768 * Decimal(2) ** (Decimal(-k) / 64)) for k in range(65)], np.int64
        )


def _half_up(value: Decimal) -> int:
    return int((value + Decimal("0.5")).to_integral_value(rounding=ROUND_FLOOR))


def table_y(a: Array) -> Array:
    """Y(a) = 64 T[a >> 6] + (a & 63) (T[(a >> 6) + 1] - T[a >> 6]), 0 <= a <= 22527."""
    t = sigmoid_table()
    below = t[a >> 6]
    return 64 * below + (a & 63) * (t[(a >> 6) + 1] - below)


def sig(z: Array) -> Array:
    y = (table_y(np.minimum(np.abs(z), 22527)) + 64) >> 7
    return np.where(z < 0, 32768 - y, np.minimum(y, 32767))


def tanh(z: Array) -> Array:
    y = ((table_y(np.minimum(2 * np.abs(z), 22527)) + 32) >> 6) - 32768
    return np.where(z < 0, -y, y)


def softmax(z: Array) -> Array:
    """Log2-scaled logits in Q15.16 -> probabilities in Q0.15 (0..32768), along the last axis."""
    d = z.max(axis=-1, keepdims=True) - z
    p = exp2_table()
    k, n = (d >> 10) & 63, d >> 16
    y = p[k] * 1024 - (d & 1023) * (p[k] - p[k + 1])
    e = np.where(n > 28, 0, y >> np.minimum(n + 3, 40))
    total = e.sum(axis=-1, keepdims=True)
    return (e * 65536 // total + 1) >> 1


def limit(x: Array, bits: int = 16) -> Array:
    largest = 2 ** (bits - 1) - 1
    return np.clip(x, -largest, largest)


def lookup(table: Array, z: Array) -> Array:
    """TAB(z) = T[k] + (((T[k+1] - T[k]) * (a & 127) + 64) >> 7), a = z + 32768, k = a >> 7; z
    int16.
    """
    t, a = table.astype(np.int64), z + 32768
    k = a >> 7
    return t[k] + (((t[k + 1] - t[k]) * (a & 127) + 64) >> 7)
