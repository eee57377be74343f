"""Dense: a product of weights with the values of a step, and an activation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stepwell.integer.fixed import Rows, rq, stacked
from stepwell.integer.functions import Function
from stepwell.integer.packing import records_of
from stepwell.integer.proof import abs_sum
from stepwell.integer.rows import reach, single_rows
from stepwell.layers.base import (
    Array,
    Fields,
    IntLayer,
    Layer,
    Packed,
    Turn,
    function_fault,
    without_hidden,
)
from stepwell.layers.place import Place


class _Grouped:
    """``weight`` [n_out, n_in / groups]."""

    weight: Array
    groups: int

    @property
    def n_in(self) -> int:
        return self.weight.shape[1] * self.groups

    @property
    def n_out(self) -> int:
        return self.weight.shape[0]


@dataclass(frozen=True, eq=False)
class Dense(_Grouped, Layer):
    """``y = activation(weight @ x + bias)``; ``weight`` [n_out, n_in / groups], ``bias`` [n_out].

    With groups the rows of group k read the k-th part of the input only.
    With groups = n_in = n_out each value is scaled by itself.
    """

    name: str
    weight: Array
    bias: Array
    activation: str | Function = "none"
    groups: int = 1

    @property
    def n_summed(self) -> int:
        return self.n_in

    def arrays(self) -> Iterator[tuple[str, Array | None, tuple[int, ...]]]:
        yield "weight", self.weight, self.weight.shape[:2]
        yield "bias", self.bias, self.weight.shape[:1]

    def fault(self) -> str:
        if self.groups < 1 or self.n_out % self.groups:
            return f"{self.n_out} rows do not divide into {self.groups} groups"
        return function_fault(self.activation)

    def product(self, x: Array) -> Array:
        """weight @ x, group by group: [..., n_in] -> [..., n_out]."""
        return x @ self.weight.T if self.groups == 1 else _grouped(self.weight, self.groups, x)

    def run(self, turn: Turn, x: Array) -> Array:
        return self.activated(turn, self.product(x) + self.bias)

    def quantized(self, place: Place) -> DenseLayer:
        highest = float(reach(self.weight, self.bias, place.x_scale).max())
        v_scale, y_scale, activation, table = place.formats(self.activation, highest)
        n_rows, n_columns = self.n_out // self.groups, self.weight.shape[1]
        parts = []
        for group in range(self.groups):
            rows = slice(group * n_rows, (group + 1) * n_rows)
            moments = place.stats.moments.part(slice(group * n_columns, (group + 1) * n_columns))

            def row_name(row: int, first: int = rows.start) -> str:
                return f"layer '{self.name}' row {first + row}"

            given = self.weight[rows], self.bias[rows], moments, place.x_scale, v_scale
            parts.append(single_rows(*given, 32767, row_name, place.report))
        q, rows = np.vstack([part for part, _ in parts]), stacked(*(r for _, r in parts))
        scales = place.x_scale, y_scale
        return DenseLayer(
            self.name, q.astype(np.int16), rows, activation, *scales, self.groups, table
        )


def _grouped(weight: Array, groups: int, x: Array) -> Array:
    parts = x.reshape(*x.shape[:-1], groups, weight.shape[1])
    weight = weight.reshape(groups, -1, weight.shape[1])
    return np.einsum("...gk,gok->...go", parts, weight).reshape(
        *x.shape[:-1], groups * weight.shape[1]
    )


@dataclass(frozen=True, eq=False)
class DenseLayer(_Grouped, IntLayer):
    """``weight`` int16 [n_out, n_in / groups]. ``rows`` [n_out], kx = 0.

    ``table`` int16 [513] where the activation is "table".
    """

    name: str
    weight: Array
    rows: Rows
    activation: str
    x_scale: float
    y_scale: float
    groups: int = 1
    table: Array | None = None

    kind = "dense"
    number = 2
    knob = "DENSE"
    writes_output = True

    @property
    def macs(self) -> int:
        return self.weight.size

    def run(self, turn: Turn, x: Array) -> Array:
        """docs/numerics.md, "Dense layers"."""
        acc = _grouped(self.weight.astype(np.int64), self.groups, x)
        v = rq(acc + self.rows.bias.astype(np.int64), self.rows)
        return self.activated(turn, v)

    def weight_sums(self) -> tuple[Array, Array]:
        return without_hidden(abs_sum(self.weight))

    def packed(self, packing: str = "plain") -> Packed:
        p = (self.groups, self.n_out // self.groups, self.weight.shape[1])
        weight, rows = self.weight.astype("<i2"), records_of(self.rows)
        return Packed(w=weight, rows=rows, extra=self.packed_table(), p=p)

    @classmethod
    def unpacked(cls, f: Fields) -> DenseLayer:
        weight, rows = f.weights(f.n_out, f.p[2]), f.rows(f.n_out)
        return cls(f.name, weight, rows, f.activation, f.x_scale, f.y_scale, f.p[0], f.table)
