"""GRU: a reset and an update gate, the reset after the recurrent product or before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from stepwell.integer.fixed import rq, rsh, sat, sig, stacked, tanh
from stepwell.integer.formats import Z_SCALE, largest
from stepwell.integer.functions import Function, as_function
from stepwell.integer.packing import gru_quads
from stepwell.integer.rows import joined_rows, single_rows
from stepwell.layers.base import Array
from stepwell.layers.place import Place
from stepwell.layers.recurrent import Cell, Recurrent, RecurrentLayer, Step, applied, limit


@dataclass(frozen=True, eq=False)
class Gru(Recurrent):
    """One GRU layer (Cho et al. 2014). ``reset_after``: reset gate applied after the recurrent
    product, as in torch and cuDNN.

    Shapes: ``w_x`` [3H, D], ``w_h`` [3H, H], ``bias`` [3H] added to the inputs' part, ``bias_h``
    [3H] to the hidden state's part: n = tanh(W_n x + b_n + r * (U_n h + bh_n)), or tanh(W_n x + b_n
    + U_n (r * h) + bh_n) where the reset comes before; for r and z only the sum of both biases
    counts.
    """

    name: str
    w_x: Array
    w_h: Array
    bias: Array
    bias_h: Array
    functions: tuple[str | Function, ...] = ("sigmoid", "tanh")
    clip: float = np.inf
    reset_after: bool = True
    h0: Array | None = None
    reverse: bool = False
    final: bool = False

    gates = ("r", "z", "n")

    def arrays(self) -> Iterator[tuple[str, Array | None, tuple[int, ...]]]:
        yield from super().arrays()
        yield "bias_h", self.bias_h, (3 * self.n_units,)

    # ---- values ----

    def step(self, x: Array, h: Array, c: Array) -> Step:
        """A GRU's state is its h, given twice. Pre-activations: r, z and n, which has two parts
        where the reset comes after.
        """
        gate, candidate = (as_function(f) for f in self.functions)
        x_r, x_z, x_n = np.split(x @ self.w_x.T + self.bias, 3, axis=-1)
        u_r, u_z, u_n = np.split(self.w_h, 3)
        b_r, b_z, b_n = np.split(self.bias_h, 3)
        z_r, z_z = x_r + h @ u_r.T + b_r, x_z + h @ u_z.T + b_z
        r, z = gate(self.clipped(z_r)), gate(self.clipped(z_z))
        if self.reset_after:
            h_n = h @ u_n.T + b_n
            parts, n_in = [x_n, h_n], x_n + r * h_n
        else:
            n_in = x_n + (r * h) @ u_n.T + b_n
            parts = [n_in]
        h = z * h + (1.0 - z) * candidate(self.clipped(n_in))
        return h, h, np.concatenate([z_r, z_z, *parts], axis=-1)

    # ---- integers ----

    def quantized(self, place: Place) -> GruLayer | GruBeforeLayer:
        candidate, g_frac = self.value_table(self.functions[1])
        bounded = candidate is None or largest(as_function(self.functions[1])) <= 1.0
        h_frac = self.h_frac(bounded, place)
        common = self.common_cell(h_frac, place)
        gate = self.gate_table(lowest=0.0)
        cell = Cell(gate=gate, candidate=candidate, g_frac=g_frac, **common)
        x_scale, bits, report = place.x_scale, place.precision.weight_bits, place.report
        h_scale, most = 2.0**-h_frac, place.precision.weight_limit
        scales, bias = (x_scale, h_scale, Z_SCALE), self.bias + self.bias_h
        moments = place.stats.moments
        if not self.reset_after:
            given = (self.w_x, self.w_h), bias, moments, scales, self.row_name, report
            q_x, q_h, rows = joined_rows(*given, most)
            return GruBeforeLayer(self.name, q_x, q_h, rows, x_scale, cell, bits)
        gates, new = slice(0, 2 * self.n_out), slice(2 * self.n_out, None)
        weights = (self.w_x[gates], self.w_h[gates])
        q_x, q_h, rows = joined_rows(
            weights, bias[gates], moments, scales, self.row_name, report, most
        )
        of_x, of_h = moments.part(slice(0, self.n_in)), moments.part(slice(self.n_in, None))

        def name_of(part: str) -> Callable[[int], str]:
            return lambda unit: f"layer '{self.name}' unit {unit} (gate n, {part} part)"

        from_x = self.w_x[new], self.bias[new], of_x, x_scale, Z_SCALE
        from_h = self.w_h[new], self.bias_h[new], of_h, h_scale, Z_SCALE
        q_nx, rows_nx = single_rows(*from_x, most, name_of("input"), report)
        q_nh, rows_nh = single_rows(*from_h, most, name_of("hidden"), report)
        q_x, q_h = np.vstack([q_x, q_nx.astype(np.int8)]), np.vstack([q_h, q_nh.astype(np.int8)])
        rows = stacked(rows, rows_nx, rows_nh)
        return GruLayer(self.name, q_x, q_h, rows, x_scale, cell, bits)


class GruLayer(RecurrentLayer):
    """State: h, and the same number in Q9.22 as S. The candidate n keeps its two parts apart."""

    kind = "gru"
    number = 4
    knob = "GRU"
    gates = ("r", "z", "n")
    records = ("r", "z", "nx", "nh")

    def step(self, x: Array, h: Array, c: Array) -> dict[str, Array]:
        """docs/numerics.md, "One GRU step"; S stands for the cell."""
        n_out, cell = self.n_out, self.cell
        bias = self.rows.bias.astype(np.int64)
        acc_nx = x @ self.w_x[2 * n_out :].T.astype(np.int64) + bias[2 * n_out : 3 * n_out]
        acc_nh = h @ self.w_h[2 * n_out :].T.astype(np.int64) + bias[3 * n_out :]
        joined = self.joined(x, h, slice(0, 2 * n_out))
        acc = np.concatenate([joined, acc_nx, acc_nh], axis=-1)
        z_r, z_z, nx, nh = np.split(sat(rq(acc, self.rows), 16), 4, axis=-1)
        z_r, z_z = cell.clipped(z_r), cell.clipped(z_z)
        r = applied(cell.gate, sig, z_r)
        n_in = sat(nx + rsh(r * nh, 15), 16)
        return _new_state(cell, acc, (r, z_r, z_z), [nx, nh], n_in, c)

    def gate_sums(self) -> tuple[Array, Array]:
        """nx has no hidden state, nh no input."""
        sum_x, sum_h = super().gate_sums()
        none, n = np.zeros(self.n_out, np.int64), 2 * self.n_out
        return np.concatenate([sum_x, none]), np.concatenate([sum_h[:n], none, sum_h[n:]])

    def packing(self, wanted: str) -> str:
        return wanted if self.may_pair() and self.n_units % 4 == 0 else "plain"

    def in_pairs(self, weights: Array) -> Array:
        return super().in_pairs(gru_quads(weights))


class GruBeforeLayer(RecurrentLayer):
    """The GRU whose reset gate is applied before the recurrent product."""

    kind = "gru_before"
    number = 6
    knob = "GRU"
    gates = records = ("r", "z", "n")

    @property
    def spare(self) -> int:
        return self.n_units

    def step(self, x: Array, h: Array, c: Array) -> dict[str, Array]:
        """docs/numerics.md, "One GRU step", the reset before the product."""
        n, cell = self.n_out, self.cell
        of_r, of_z, of_n = (slice(k * n, (k + 1) * n) for k in range(3))
        acc_r, acc_z = np.split(self.joined(x, h, slice(0, 2 * n)), 2, axis=-1)
        z_r = cell.clipped(sat(rq(acc_r, self.rows.part(of_r)), 16))
        z_z = cell.clipped(sat(rq(acc_z, self.rows.part(of_z)), 16))
        r = applied(cell.gate, sig, z_r)
        acc_n = self.joined(x, rsh(r * h, 15), of_n)
        n_in = cell.clipped(sat(rq(acc_n, self.rows.part(of_n)), 16))
        acc = np.concatenate([acc_r, acc_z, acc_n], axis=-1)
        return _new_state(cell, acc, (r, z_r, z_z), [n_in], n_in, c)


def _new_state(
    cell: Cell,
    acc: Array,
    gate_values: tuple[Array, Array, Array],
    n_parts: list[Array],
    n_in: Array,
    s: Array,
) -> dict[str, Array]:
    """Steps 2 to 4 of both GRUs, from r, z_r, z_z and what enters the candidate's activation."""
    r, z_r, z_z = gate_values
    z = applied(cell.gate, sig, z_z)
    n = applied(cell.candidate, tanh, cell.clipped(n_in))
    s_wide = rsh(z * s, 15) + rsh(np.minimum(32767, 32768 - z) * n, cell.g_frac - 7)
    s = sat(s_wide, 32)
    h_new = limit(rsh(s, 22 - cell.h_frac), cell.h_bits)
    z_all, gates = np.concatenate([z_r, z_z, *n_parts], axis=-1), np.stack([r, z, n], axis=-2)
    sums = {"acc": acc, "z": z_all, "gates": gates, "c_wide": s_wide}
    return sums | {"c": s, "unit_h": h_new, "h_new": h_new}
