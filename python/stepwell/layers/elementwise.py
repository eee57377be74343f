"""Layers that compute each value by itself: activations, weighted sums and products of two sources."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

import numpy as np

from stepwell.integer.fixed import Rows, rq
from stepwell.integer.formats import power_of_two
from stepwell.integer.functions import Function
from stepwell.integer.packing import records_of
from stepwell.integer.proof import CODE_MAX, abs_sum
from stepwell.layers.base import (
    Array,
    AsWide,
    Fields,
    IntLayer,
    Layer,
    Packed,
    Pairwise,
    Turn,
    function_fault,
    without_hidden,
)
from stepwell.layers.place import Place

ADD_LIMIT = 16384  # the larger of the two weights of an addition


# ---- activation ----


@dataclass(frozen=True)
class Activation(AsWide, Layer):
    """An elementwise activation that follows a layer which has none of its own."""

    name: str
    activation: str | Function
    n_in: int

    def fault(self) -> str:
        if self.activation == "none":
            return "activation 'none' is not one of relu, tanh, sigmoid or a Function: leave the layer out"
        return function_fault(self.activation, softmax=False)

    def run(self, turn: Turn, x: Array) -> Array:
        return self.activated(turn, x)

    def quantized(self, place: Place) -> ActivationLayer:
        if self.activation == "relu":
            y_scale = power_of_two(place.x_scale) if place.is_last else place.x_scale
            v_scale, name, table = y_scale, "relu", None
        else:
            highest = 32768 * place.x_scale
            v_scale, y_scale, name, table = place.formats(self.activation, highest, is_sum=False)
        row = place.scaling_row(place.x_scale / v_scale)
        return ActivationLayer(self.name, self.n_in, row, name, place.x_scale, y_scale, table)


@dataclass(frozen=True, eq=False)
class ActivationLayer(AsWide, IntLayer):
    """``rows`` [1] brings a code to the format that the activation takes."""

    name: str
    n_in: int
    rows: Rows
    activation: str
    x_scale: float
    y_scale: float
    table: Array | None = None

    kind = "activation"
    number = 3
    knob = "ACTIVATION"
    writes_output = True

    def run(self, turn: Turn, x: Array) -> Array:
        return self.activated(turn, rq(x, self.rows))

    def weight_sums(self) -> tuple[Array, Array]:
        return without_hidden(np.ones(1, np.int64))

    def packed(self, packing: str = "plain") -> Packed:
        return Packed(rows=records_of(self.rows), extra=self.packed_table())

    @classmethod
    def unpacked(cls, f: Fields) -> ActivationLayer:
        return cls(f.name, f.n_in, f.rows(1), f.activation, f.x_scale, f.y_scale, f.table)


# ---- weighted sum ----


@dataclass(frozen=True)
class Add(Pairwise, Layer):
    """``y = activation(weights[0] * a + weights[1] * b)``: residual connections, differences."""

    name: str
    n_in: int
    weights: tuple[float, float] = (1.0, 1.0)
    activation: str | Function = "none"

    def fault(self) -> str:
        finite = np.isfinite(self.weights).all() and any(self.weights)
        return (
            function_fault(self.activation, softmax=False) if finite else f"weights {self.weights}"
        )

    def run(self, turn: Turn, a: Array, b: Array) -> Array:
        return self.activated(turn, self.weights[0] * a + self.weights[1] * b)

    def quantized(self, place: Place) -> AddLayer:
        parts = [weight * scale for weight, scale in zip(self.weights, place.scales, strict=True)]
        highest = 32768 * sum(abs(part) for part in parts)
        v_scale, y_scale, activation, table = place.formats(self.activation, highest)
        unit = max(abs(part) for part in parts) / ADD_LIMIT
        weights = np.array([floor(part / unit + 0.5) for part in parts], np.int16)
        row = place.scaling_row(unit / v_scale, 32768.0 * float(np.abs(weights.astype(int)).sum()))
        scales = place.x_scale, y_scale
        return AddLayer(self.name, self.n_in, weights, row, activation, *scales, table)


@dataclass(frozen=True, eq=False)
class AddLayer(Pairwise, IntLayer):
    """Weighted sum of two sources: ``weights`` int16 [2], ``rows`` [1]."""

    name: str
    n_in: int
    weights: Array
    rows: Rows
    activation: str
    x_scale: float
    y_scale: float
    table: Array | None = None

    kind = "add"
    number = 8
    writes_output = True
    macs = 2

    def run(self, turn: Turn, a: Array, b: Array) -> Array:
        acc = int(self.weights[0]) * a + int(self.weights[1]) * b
        return self.activated(turn, rq(acc, self.rows))

    def weight_sums(self) -> tuple[Array, Array]:
        return without_hidden(abs_sum(self.weights[None]))

    def packed(self, packing: str = "plain") -> Packed:
        weights, rows = self.weights.astype("<i2"), records_of(self.rows)
        return Packed(w=weights, rows=rows, extra=self.packed_table())

    @classmethod
    def unpacked(cls, f: Fields) -> AddLayer:
        scales = f.x_scale, f.y_scale
        return cls(f.name, f.n_in, f.weights(2), f.rows(1), f.activation, *scales, f.table)


# ---- product ----


@dataclass(frozen=True)
class Mul(Pairwise, Layer):
    """``y = activation(a * b)``, elementwise: gates between layers."""

    name: str
    n_in: int
    activation: str | Function = "none"

    def fault(self) -> str:
        return function_fault(self.activation, softmax=False)

    def run(self, turn: Turn, a: Array, b: Array) -> Array:
        return self.activated(turn, a * b)

    def quantized(self, place: Place) -> MulLayer:
        unit = place.scales[0] * place.scales[1]
        v_scale, y_scale, activation, table = place.formats(self.activation, 2.0**30 * unit)
        row = place.scaling_row(unit / v_scale, 2.0**30)
        return MulLayer(self.name, self.n_in, row, activation, place.x_scale, y_scale, table)


@dataclass(frozen=True, eq=False)
class MulLayer(Pairwise, IntLayer):
    """Product of two sources; ``rows`` [1]."""

    name: str
    n_in: int
    rows: Rows
    activation: str
    x_scale: float
    y_scale: float
    table: Array | None = None

    kind = "mul"
    number = 9
    writes_output = True

    def run(self, turn: Turn, a: Array, b: Array) -> Array:
        return self.activated(turn, rq(a * b, self.rows))

    def weight_sums(self) -> tuple[Array, Array]:
        return without_hidden(np.full(1, CODE_MAX))  # a product of two codes

    def packed(self, packing: str = "plain") -> Packed:
        return Packed(rows=records_of(self.rows), extra=self.packed_table())

    @classmethod
    def unpacked(cls, f: Fields) -> MulLayer:
        return cls(f.name, f.n_in, f.rows(1), f.activation, f.x_scale, f.y_scale, f.table)
