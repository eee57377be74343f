"""LSTM: a cell state behind an input, a forget and an output gate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stepwell.errors import QuantizeError
from stepwell.integer.fixed import Rows, rq, rsh, sat, sig, stacked, tanh
from stepwell.integer.formats import Z_SCALE, frac_for, largest
from stepwell.integer.functions import Function, as_function
from stepwell.integer.rows import Moments, Report, joined_rows, single_rows
from stepwell.layers.base import Array
from stepwell.layers.place import Place
from stepwell.layers.recurrent import (
    CELL_NAME,
    Cell,
    Recurrent,
    RecurrentLayer,
    Step,
    applied,
    limit,
)

PEEPHOLE_FRAC_MIN = 6
OUTPUT_RANGE = 16  # |c| up to which the output's activation has a table


@dataclass(frozen=True, eq=False)
class Lstm(Recurrent):
    """One LSTM layer (Hochreiter & Schmidhuber 1997, with forget gate: Gers et al. 2000).

    Shapes: ``w_x`` [4H, D], ``w_h`` [4H, n_out], ``bias`` [4H]: the sum of the input and the
    recurrent bias. ``peephole`` [3H]: what the cell adds to the gates i, f, o (Gers & Schmidhuber
    2000). ``coupled``: f = 1 - i, row f is not used. ``projection`` [n_out, H]: h = projection @ (o
    * tanh(c)) (Sak et al. 2014). ``c0``: initial cell state [H].
    """

    name: str
    w_x: Array
    w_h: Array
    bias: Array
    functions: tuple[str | Function, ...] = ("sigmoid", "tanh", "tanh")
    clip: float = np.inf
    peephole: Array | None = None
    coupled: bool = False
    projection: Array | None = None
    h0: Array | None = None
    c0: Array | None = None
    reverse: bool = False
    final: bool = False

    gates = ("i", "f", "g", "o")

    def arrays(self) -> Iterator[tuple[str, Array | None, tuple[int, ...]]]:
        yield from super().arrays()
        yield "peephole", self.peephole, (3 * self.n_units,)
        yield "projection", self.projection, (self.n_out, self.n_units)
        yield "c0", self.c0, (self.n_units,)

    def fault(self) -> str:
        if self.projection is None and self.n_units != self.n_out:
            return f"{self.n_units} units give {self.n_out} values, but there is no projection"
        return super().fault()

    # ---- values ----

    @property
    def cell_start(self) -> Array | None:
        return self.c0

    def step(self, x: Array, h: Array, c: Array) -> Step:
        """One step of shapes [..., D], [..., n_out], [..., H]; pre-activations [..., 4H]."""
        gate, candidate, output = (as_function(f) for f in self.functions)
        z = x @ self.w_x.T + h @ self.w_h.T + self.bias
        z_i, z_f, z_g, z_o = np.split(z, 4, axis=-1)
        has_peephole = self.peephole is not None
        p_i, p_f, p_o = np.split(self.peephole, 3) if has_peephole else (0.0, 0.0, 0.0)
        i = gate(self.clipped(z_i + p_i * c))
        f = 1.0 - i if self.coupled else gate(self.clipped(z_f + p_f * c))
        c_new = f * c + i * candidate(self.clipped(z_g))
        o_in = self.clipped(z_o + p_o * c_new)
        h_new = gate(o_in) * output(c_new)
        z = np.concatenate([z_i + p_i * c, z_f + p_f * c, z_g, z_o + p_o * c_new], axis=-1)
        return (h_new if self.projection is None else h_new @ self.projection.T), c_new, z

    # ---- integers ----

    def quantized(self, place: Place) -> LstmLayer:
        candidate, g_frac = self.value_table(self.functions[1])
        output, a_frac = self.value_table(self.functions[2])
        is_small = output is None or largest(as_function(self.functions[2])) <= 1.0
        h_frac = self.h_frac(self.projection is None and is_small, place)
        w_x, w_h, bias = (self._without_forget(a) for a in (self.w_x, self.w_h, self.bias))
        scales, most = (place.x_scale, 2.0**-h_frac, Z_SCALE), place.precision.weight_limit
        given = (w_x, w_h), bias, place.stats.moments, scales, self.row_name, place.report
        q_x, q_h, rows = joined_rows(*given, most)
        projection = None
        if self.projection is not None:
            projection, rows_p = self._projection_rows(a_frac, h_frac, place.report)
            rows = stacked(rows, rows_p)
        peephole, peephole_frac = self._peephole_codes()
        if output is not None and place.peak("c") > OUTPUT_RANGE:
            place.report.warnings.append(
                f"layer '{self.name}': the cell state reaches {place.peak('c'):.3g}, its "
                f"activation {self.functions[2]} is "
                f"held up to {OUTPUT_RANGE} only: expect large errors, train with tanh"
            )
        cell = Cell(
            gate=self.gate_table(lowest=0.0 if self.coupled else -1.0),
            candidate=candidate,
            output=output,
            peephole=peephole,
            projection=projection,
            coupled=self.coupled,
            g_frac=g_frac,
            a_frac=a_frac,
            peephole_frac=peephole_frac,
            **self.common_cell(h_frac, place),
        )
        bits = place.precision.weight_bits
        return LstmLayer(self.name, q_x, q_h, rows, place.x_scale, cell, bits)

    def _without_forget(self, array: Array) -> Array:
        """A coupled cell's forget gate has no weights of its own."""
        if not self.coupled:
            return array
        array = array.copy()
        array[self.n_units : 2 * self.n_units] = 0.0
        return array

    def _projection_rows(self, a_frac: int, h_frac: int, report: Report) -> tuple[Array, Rows]:
        """Integers [n_out, H] over the cell's output, in its activation's format, and rows to h."""
        n = self.n_units
        plain = Moments(np.zeros(n), np.eye(n))

        def name(row: int) -> str:
            return f"layer '{self.name}' row {row} of the projection"

        given = self.projection, np.zeros(self.n_out), plain, 2.0**-a_frac, 2.0**-h_frac
        q, rows = single_rows(*given, 32767, name, report)
        return q.astype(np.int16), rows

    def _peephole_codes(self) -> tuple[Array | None, int]:
        """int16 [3, H] and their format."""
        if self.peephole is None or not np.any(self.peephole):
            return None, 0
        peak = float(np.abs(self.peephole).max())
        frac = frac_for(peak)
        if frac < PEEPHOLE_FRAC_MIN:
            raise QuantizeError(
                f"layer '{self.name}': a peephole weight is {peak:.3g}, 511 at most: retrain with "
                "weight decay"
            )
        codes = np.floor(self.peephole.reshape(3, -1) * 2.0**frac + 0.5)
        return codes.clip(-32768, 32767).astype(np.int16), frac


class LstmLayer(RecurrentLayer):
    """State: h and the cell c."""

    kind = "lstm"
    number = 1
    knob = "LSTM"
    like = "lstm"
    cell_name = CELL_NAME
    gates = records = ("i", "f", "g", "o")

    @property
    def spare(self) -> int:
        return 0 if self.cell.projection is None else self.n_units

    def step(self, x: Array, h: Array, c: Array) -> dict[str, Array]:
        """docs/numerics.md, "One LSTM step" and "Variants of the cells"."""
        cell, of_gates = self.cell, slice(0, 4 * self.n_units)
        acc = self.joined(x, h, of_gates)
        z = sat(rq(acc, self.rows.part(of_gates)), 16)
        z_i, z_f, z_g, z_o = np.split(z, 4, axis=-1)
        z_i = cell.clipped(sat(z_i + cell.from_peephole(0, c), 16))
        z_f = cell.clipped(sat(z_f + cell.from_peephole(1, c), 16))
        z_g = cell.clipped(z_g)
        i = applied(cell.gate, sig, z_i)
        f = np.minimum(32767, 32768 - i) if cell.coupled else applied(cell.gate, sig, z_f)
        g = applied(cell.candidate, tanh, z_g)
        c_wide = rsh(f * c, 15) + rsh(i * g, cell.g_frac - 7)
        c = sat(c_wide, 32)
        z_o = cell.clipped(sat(z_o + cell.from_peephole(2, c), 16))
        o = applied(cell.gate, sig, z_o)
        a = applied(cell.output, tanh, sat(rsh(c, 11), 16))
        is_plain = cell.projection is None
        y_frac = cell.h_frac if is_plain else cell.a_frac
        y = limit(rsh(o * a, 15 + cell.a_frac - y_frac), cell.h_bits if is_plain else 16)
        h_new = y if is_plain else self._projected(y)
        gates, z = np.stack([i, f, g, o], axis=-2), np.concatenate([z_i, z_f, z_g, z_o], axis=-1)
        sums = {"acc": acc, "z": z, "gates": gates, "c_wide": c_wide}
        return sums | {"c": c, "unit_h": y, "h_new": h_new}

    def _projected(self, y: Array) -> Array:
        rows = self.rows.part(slice(4 * self.n_units, None))
        acc = y @ self.cell.projection.T.astype(np.int64) + rows.bias.astype(np.int64)
        return limit(rq(acc, rows), self.cell.h_bits)

    def packing(self, wanted: str) -> str:
        return wanted if self.may_pair() else "plain"
