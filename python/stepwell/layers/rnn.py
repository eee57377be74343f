"""Elman's recurrent network: one activation over inputs and hidden state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stepwell.integer.fixed import lookup, rq, rsh, sat, tanh
from stepwell.integer.formats import Z_FRAC, frac_for, largest, table_of
from stepwell.integer.functions import Function, as_function
from stepwell.integer.rows import joined_rows
from stepwell.layers.base import Array
from stepwell.layers.place import HEADROOM, Place
from stepwell.layers.recurrent import Cell, Recurrent, RecurrentLayer, Step, limit


@dataclass(frozen=True, eq=False)
class Rnn(Recurrent):
    """One Elman layer (Elman 1990): h = f(w_x x + w_h h + bias); ``w_x`` [H, D], ``w_h`` [H, H],
    ``bias`` [H].
    """

    name: str
    w_x: Array
    w_h: Array
    bias: Array
    functions: tuple[str | Function, ...] = ("tanh",)
    clip: float = np.inf
    h0: Array | None = None
    reverse: bool = False
    final: bool = False

    gates = ("h",)

    def step(self, x: Array, h: Array, c: Array) -> Step:
        """The new hidden state, twice; pre-activations [..., H]."""
        z = x @ self.w_x.T + h @ self.w_h.T + self.bias
        h = as_function(self.functions[0])(self.clipped(z))
        return h, h, z

    def quantized(self, place: Place) -> RnnLayer:
        """With tanh z is in Q4.11. Before a table z gets the format that calibration suggests, and
        so does h behind it.
        """
        function = as_function(self.functions[0])
        plain = self.functions[0] == "tanh"
        z_frac = Z_FRAC if plain else max(0, frac_for(HEADROOM * place.peak("z")))
        z_scale = 2.0**-z_frac
        h_frac = self.h_frac(plain or largest(function, z_scale) <= 1.0, place)
        table = None if plain else table_of(function, z_scale, 2.0**-h_frac)
        common = self.common_cell(h_frac, place, z_scale)
        if self.h0 is not None:
            common["c0"] = np.zeros(self.n_units, np.int32)
        scales, most = (place.x_scale, 2.0**-h_frac, z_scale), place.precision.weight_limit
        weights, moments = (self.w_x, self.w_h), place.stats.moments
        given = weights, self.bias, moments, scales, self.row_name, place.report
        q_x, q_h, rows = joined_rows(*given, most)
        cell, bits = Cell(candidate=table, **common), place.precision.weight_bits
        return RnnLayer(self.name, q_x, q_h, rows, place.x_scale, cell, bits)


class RnnLayer(RecurrentLayer):
    """State: h alone."""

    kind = "rnn"
    number = 5
    knob = "RNN"
    gates = records = ("h",)
    has_cell = False

    def step(self, x: Array, h: Array, c: Array) -> dict[str, Array]:
        """docs/numerics.md, "One RNN step"."""
        cell = self.cell
        acc = self.joined(x, h, slice(None))
        z = cell.clipped(sat(rq(acc, self.rows), 16))
        y = rsh(tanh(z), 15 - cell.h_frac) if cell.candidate is None else lookup(cell.candidate, z)
        h_new = limit(y, cell.h_bits)
        return {"acc": acc, "z": z, "c": c, "unit_h": h_new, "h_new": h_new}
