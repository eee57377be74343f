"""LayerNorm: the values of a step, brought to mean 0 and variance 1."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import floor, isqrt, log2, sqrt
from typing import ClassVar

import numpy as np

from stepwell.errors import QuantizeError
from stepwell.integer.fixed import Rows, rq, sat
from stepwell.integer.packing import records_of
from stepwell.integer.rows import Moments, reach, single_rows
from stepwell.layers.base import (
    NORM_MAX,
    Array,
    AsWide,
    Fields,
    IntLayer,
    Layer,
    Packed,
    Turn,
    without_hidden,
)
from stepwell.layers.place import Place

EPSILON_MAX = 2**61 - 1
NORM_BITS = 3  # a normalised value is held up to 2^3 standard deviations


class _Normalised(AsWide):
    """``gamma`` [n] has a factor for each value."""

    gamma: Array

    @property
    def n_in(self) -> int:
        return len(self.gamma)


@dataclass(frozen=True, eq=False)
class LayerNorm(_Normalised, Layer):
    """``y = gamma * (x - mean(x)) / sqrt(var(x) + epsilon) + beta`` over n values (Ba et al. 2016)."""

    name: str
    gamma: Array
    beta: Array
    epsilon: float = 1e-5

    def arrays(self) -> Iterator[tuple[str, Array | None, tuple[int, ...]]]:
        yield "gamma", self.gamma, (self.n_in,)
        yield "beta", self.beta, (self.n_in,)

    def fault(self) -> str:
        if not 2 <= self.n_in <= NORM_MAX:
            return f"normalises over {self.n_in} values, 2 to {NORM_MAX} are supported"
        return "" if 0 <= self.epsilon < np.inf else f"epsilon is {self.epsilon}"

    def run(self, turn: Turn, x: Array) -> Array:
        d = x - x.mean(axis=-1, keepdims=True)
        n = d / np.sqrt((d**2).mean(axis=-1, keepdims=True) + self.epsilon)
        return self.gamma * n + self.beta

    def quantized(self, place: Place) -> LayerNormLayer:
        n = self.n_in
        exponent = max(0, floor(log2(n) / 2) - NORM_BITS)
        q_scale = sqrt(n) * 2.0 ** -(15 + exponent)  # of a normalised value
        y_scale = place.int16_scale(float(reach(self.gamma[:, None], self.beta, q_scale).max()))
        epsilon = max(1, round(self.epsilon / place.x_scale**2 * n**3))
        if epsilon > EPSILON_MAX:
            raise QuantizeError(
                f"layer '{self.name}': its inputs, at most {place.peak('x'):.3g}, are too small "
                f"against epsilon {self.epsilon:.3g}: scale them up"
            )

        def row_name(row: int) -> str:
            return f"layer '{self.name}' value {row}"

        single = Moments(np.zeros(1), np.ones((1, 1)))
        given = self.gamma[:, None], self.beta, single, q_scale, y_scale
        q, rows = single_rows(*given, 32767, row_name, place.report)
        scales = place.x_scale, y_scale
        return LayerNormLayer(self.name, q[:, 0].astype(np.int16), rows, epsilon, exponent, *scales)


@dataclass(frozen=True, eq=False)
class LayerNormLayer(_Normalised, IntLayer):
    """``gamma`` int16 [n], ``rows`` [n]. ``epsilon`` 1..2^61-1 and ``exponent`` as in numerics.md."""

    name: str
    gamma: Array
    rows: Rows
    epsilon: int
    exponent: int
    x_scale: float
    y_scale: float

    kind = "layer_norm"
    number = 13
    knob = "NORM"
    extra_what = "epsilon"
    activation: ClassVar[str] = "none"

    @property
    def macs(self) -> int:
        return self.gamma.size

    def run(self, turn: Turn, x: Array) -> Array:
        """docs/numerics.md, "LayerNorm", in Python's integers."""
        d = self.n_in * x - x.sum(axis=-1, keepdims=True)
        q = np.empty_like(d)
        for place in np.ndindex(d.shape[:-1]):
            w = sum(int(v) ** 2 for v in d[place]) + self.epsilon
            e = (w.bit_length() - 31) // 2 * 2  # even, and w / 2^e in [2^30, 2^32)
            mantissa = w >> e if e >= 0 else w << -e
            r = isqrt((1 << 62) // mantissa)
            q[place] = [_scaled(int(v) * r, 16 + e // 2 - self.exponent) for v in d[place]]
        q = sat(q, 16)
        acc = self.gamma.astype(np.int64) * q + self.rows.bias.astype(np.int64)
        return sat(rq(acc, self.rows), 16)

    def weight_sums(self) -> tuple[Array, Array]:
        return without_hidden(np.abs(self.gamma.astype(np.int64)))

    def packed(self, packing: str = "plain") -> Packed:
        epsilon = np.frombuffer(struct.pack("<Q", self.epsilon), "<i2")
        gamma, rows = self.gamma.astype("<i2"), records_of(self.rows)
        return Packed(w=gamma, rows=rows, extra=epsilon, p=(self.exponent, 0, 0))

    @classmethod
    def unpacked(cls, f: Fields) -> LayerNormLayer:
        epsilon = struct.unpack("<Q", f.extra(0, 4).astype("<i2").tobytes())[0]
        gamma, rows = f.weights(f.n_in), f.rows(f.n_in)
        return cls(f.name, gamma, rows, epsilon, f.p[0], f.x_scale, f.y_scale)


def _scaled(v: int, n: int) -> int:
    """RSH(v, n), for n of any sign, within int64."""
    v = v << -n if n <= 0 else (v + (1 << (n - 1))) >> n
    return min(max(v, -(2**40)), 2**40)
