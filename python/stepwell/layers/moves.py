"""Layers that move values or pick some: concatenation, slices, pooling, the index of the largest."""

from __future__ import annotations

from dataclasses import dataclass
from math import log2
from typing import ClassVar

import numpy as np

from stepwell.integer.fixed import Rows, rq, sat, stacked
from stepwell.integer.packing import records_of
from stepwell.integer.precision import W8A16, Precision
from stepwell.integer.rows import scaling_row
from stepwell.layers.base import Array, Fields, IntLayer, Layer, Packed, Turn, without_hidden
from stepwell.layers.place import Place

FEW_BITS = 8  # of a value beside a larger one in a concatenation


# ---- two sources one after the other ----


@dataclass(frozen=True)
class Concat(Layer):
    """Two sources one after the other."""

    name: str
    parts: tuple[int, int]

    @property
    def widths(self) -> tuple[int, ...]:
        return self.parts

    @property
    def n_in(self) -> int:
        return sum(self.parts)

    @property
    def n_out(self) -> int:
        return self.n_in

    def run(self, turn: Turn, a: Array, b: Array) -> Array:
        return np.concatenate([a, b], axis=-1)

    def quantized(self, place: Place) -> ConcatLayer:
        # codes of 8 bits get finer ones, so that they do not coarsen what stands beside them
        pairs = zip(place.scales, place.limits, strict=True)
        fills = [scale * (limit / W8A16.h_limit) for scale, limit in pairs]
        y_scale = max(fills)
        kept = 15 + log2(min(fills) / y_scale)
        if kept < FEW_BITS:
            place.report.warnings.append(
                f"layer '{self.name}': its inputs differ in size, and the smaller keeps "
                f"{max(0.0, kept):.0f} bits beside the larger: bring them to the same size before "
                "they meet (LayerNorm, tanh)"
            )
        rows = stacked(*(scaling_row(scale / y_scale) for scale in place.scales))
        return ConcatLayer(self.name, self.parts, rows, place.x_scale, y_scale)


@dataclass(frozen=True, eq=False)
class ConcatLayer(IntLayer):
    """Two sources one after the other, each brought to y_scale by one of ``rows`` [2]."""

    name: str
    parts: tuple[int, int]
    rows: Rows
    x_scale: float
    y_scale: float

    kind = "concat"
    number = 10
    activation: ClassVar[str] = "none"

    @property
    def n_in(self) -> int:
        return self.parts[0]

    @property
    def n_out(self) -> int:
        return sum(self.parts)

    @property
    def widths(self) -> tuple[int, ...]:
        return self.parts

    def run(self, turn: Turn, *x: Array) -> Array:
        parts = [rq(a, self.rows.part(slice(k, k + 1))) for k, a in enumerate(x)]
        return np.concatenate([sat(part, 16) for part in parts], axis=-1)

    def weight_sums(self) -> tuple[Array, Array]:
        return without_hidden(np.ones(2, np.int64))

    def packed(self, packing: str = "plain") -> Packed:
        return Packed(rows=records_of(self.rows))

    @classmethod
    def unpacked(cls, f: Fields) -> ConcatLayer:
        return cls(f.name, (f.n_in, f.n_out - f.n_in), f.rows(2), f.x_scale, f.y_scale)


# ---- some of the values ----


@dataclass(frozen=True)
class Slice(Layer):
    """Values ``start`` .. ``start + n_out`` of the source."""

    name: str
    n_in: int
    start: int
    n_out: int

    def fault(self) -> str:
        inside = self.start >= 0 and self.start + self.n_out <= self.n_in
        return "" if inside else f"values {self.start} .. {self.start + self.n_out} of {self.n_in}"

    def run(self, turn: Turn, x: Array) -> Array:
        return x[..., self.start : self.start + self.n_out]

    def quantized(self, place: Place) -> SliceLayer:
        scales = place.x_scale, place.x_scale
        return SliceLayer(self.name, self.n_in, self.start, self.n_out, *scales)

    def code_limit(self, precision: Precision, limits: list[int]) -> int:
        return limits[0]


@dataclass(frozen=True)
class SliceLayer(IntLayer):
    """Values ``start`` .. ``start + n_out`` of the source."""

    name: str
    n_in: int
    start: int
    n_out: int
    x_scale: float
    y_scale: float

    kind = "slice"
    number = 11
    activation: ClassVar[str] = "none"

    def run(self, turn: Turn, x: Array) -> Array:
        return x[..., self.start : self.start + self.n_out]

    def packed(self, packing: str = "plain") -> Packed:
        return Packed(p=(self.start, 0, 0))

    @classmethod
    def unpacked(cls, f: Fields) -> SliceLayer:
        return cls(f.name, f.n_in, f.p[0], f.n_out, f.x_scale, f.y_scale)


# ---- the largest of runs ----


@dataclass(frozen=True)
class MaxPool(Layer):
    """The largest of each run of ``taps`` values: after a Window, each channel's largest in it."""

    name: str
    n_in: int
    taps: int

    takes_lowest = True

    @property
    def n_out(self) -> int:
        return self.n_in // self.taps

    def fault(self) -> str:
        fits = self.taps > 0 and self.n_in % self.taps == 0
        return "" if fits else f"{self.n_in} values in runs of {self.taps}"

    def run(self, turn: Turn, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.n_out, self.taps).max(axis=-1)

    def quantized(self, place: Place) -> MaxPoolLayer:
        return MaxPoolLayer(self.name, self.n_in, self.taps, place.x_scale, place.x_scale)

    def code_limit(self, precision: Precision, limits: list[int]) -> int:
        return limits[0]


@dataclass(frozen=True)
class MaxPoolLayer(IntLayer):
    """The largest of each run of ``taps`` values."""

    name: str
    n_in: int
    taps: int
    x_scale: float
    y_scale: float

    kind = "max_pool"
    number = 12
    activation: ClassVar[str] = "none"

    @property
    def n_out(self) -> int:
        return self.n_in // self.taps

    def run(self, turn: Turn, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.n_out, self.taps).max(axis=-1)

    def packed(self, packing: str = "plain") -> Packed:
        return Packed(p=(self.taps, 0, 0))

    @classmethod
    def unpacked(cls, f: Fields) -> MaxPoolLayer:
        return cls(f.name, f.n_in, f.p[0], f.x_scale, f.y_scale)


# ---- the index of the largest ----


@dataclass(frozen=True)
class ArgMax(Layer):
    """The index of the largest value, the first of equals; last layer only."""

    name: str
    n_in: int
    n_out: ClassVar[int] = 1

    comes_last = True

    def run(self, turn: Turn, x: Array) -> Array:
        return np.argmax(x, axis=-1)[..., None].astype(np.float64)

    def quantized(self, place: Place) -> ArgMaxLayer:
        return ArgMaxLayer(self.name, self.n_in, place.x_scale)


@dataclass(frozen=True)
class ArgMaxLayer(IntLayer):
    """The index of the largest value."""

    name: str
    n_in: int
    x_scale: float
    y_scale: float = 1.0
    n_out: ClassVar[int] = 1

    kind = "arg_max"
    number = 15
    writes_output = True
    activation: ClassVar[str] = "none"

    def run(self, turn: Turn, x: Array) -> Array:
        return np.argmax(x, axis=-1)[..., None]

    def packed(self, packing: str = "plain") -> Packed:
        return Packed()

    @classmethod
    def unpacked(cls, f: Fields) -> ArgMaxLayer:
        return cls(f.name, f.n_in, f.x_scale, f.y_scale)
