"""What recurrent layers share: steps over time, the fields of a cell, rows by gates, packings.

Gate rows are stacked gate by gate (row = gate * H + unit), in torch's order: an LSTM's are i, f, g,
o (input, forget, cell candidate, output). The ONNX operator's own order is i, o, f, c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from stepwell.errors import QuantizeError
from stepwell.integer.fixed import Rows, lookup, rsh
from stepwell.integer.formats import (
    C_FRAC,
    C_LIMIT,
    H_FRAC,
    H_SCALE,
    TABLE_ENTRIES,
    Z_SCALE,
    frac_for,
    largest,
    table_of,
    table_points,
)
from stepwell.integer.functions import Function, as_function
from stepwell.integer.packing import (
    PACKINGS,
    from_nibbles,
    gate_major,
    pairs_records,
    records_of,
    rows_of,
    to_nibbles,
    to_pairs,
    unit_major,
)
from stepwell.integer.precision import Precision
from stepwell.integer.proof import abs_sum
from stepwell.layers.base import Array, Fields, IntLayer, Layer, Packed, Turn, function_fault
from stepwell.layers.place import HEADROOM, HEADROOM_8, Place

G_FRAC_MIN = 7
CELL_HEADER = 8  # int16 values of ``Packed.extra`` before a cell's arrays
# STW_PART_GATE, ..
CELL_ARRAYS = (
    "gate",
    "candidate",
    "output",
    "peephole",
    "start",
    "projection",
)

CELL_NAME = "cell state c"  # of a cell of its own, which nothing bounds

Step = tuple[Array, Array, Array]  # new hidden state, new cell state, pre-activations


class _GateRows:
    """``w_x`` [G*H, n_in] and ``w_h`` [G*H, n_out], G ``gates``."""

    gates: ClassVar[tuple[str, ...]]
    w_x: Array
    w_h: Array

    @property
    def n_in(self) -> int:
        return self.w_x.shape[1]

    @property
    def n_out(self) -> int:
        return self.w_h.shape[1]

    @property
    def n_units(self) -> int:
        """Units H; another number than n_out only where a projection follows them."""
        return self.w_h.shape[0] // len(self.gates)


# ---- float ----


class Recurrent(_GateRows, Layer):
    """What the recurrent layers share: ``w_x`` [G*H, D] and ``w_h`` [G*H, n_out], rows stacked gate
    by gate.

    ``functions``: the activations f of the gates and g of the candidate (and h of an LSTM's
    output), as in the ONNX operators. ``clip``: what enters an activation is limited to +-clip.
    ``h0``: initial hidden state [n_out], None for zeros. ``reverse``: the layer reads a window
    backwards, which only a window mode can do; ``final``: every step gives the state at the
    window's end.
    """

    is_recurrent = True
    gates: ClassVar[tuple[str, ...]]
    w_x: Array
    w_h: Array
    bias: Array
    functions: tuple[str | Function, ...]
    clip: float
    h0: Array | None
    reverse: bool
    final: bool

    def arrays(self) -> Iterator[tuple[str, Array | None, tuple[int, ...]]]:
        rows = len(self.gates) * self.n_units
        yield "w_x", self.w_x, (rows, self.w_x.shape[-1])
        yield "w_h", self.w_h, (rows, self.n_out)
        yield "bias", self.bias, (rows,)
        yield "h0", self.h0, (self.n_out,)

    def fault(self) -> str:
        if not self.clip > 0:
            return f"clip must be positive, it is {self.clip}"
        reasons = (function_fault(f, softmax=False) for f in self.functions)
        return next(filter(None, reasons), "")

    @property
    def n_summed(self) -> int:
        return self.n_in + self.n_out

    # ---- values ----

    @property
    def cell_start(self) -> Array | None:
        """What the cell state begins with, [n_units]; None for zeros."""
        return self.h0

    def step(self, x: Array, h: Array, c: Array) -> Step:
        """One step of shapes [..., D], [..., n_out], [..., H]."""
        raise NotImplementedError

    def clipped(self, z: Array) -> Array:
        return np.clip(z, -self.clip, self.clip)

    def run(self, turn: Turn, x: Array) -> Array:
        lead, n_steps = x.shape[:-2], x.shape[-2]
        pairs = ((self.h0, self.n_out), (self.cell_start, self.n_units))
        start = [np.zeros(n) if v is None else v for v, n in pairs]
        state = None if self.reverse else turn.state
        h, c = state or (np.broadcast_to(v, (*lead, len(v))) for v in start)
        seen: dict[str, list[Array]] = {name: [] for name in "hzcy"}
        for t in range(n_steps)[:: -1 if self.reverse else 1]:
            seen["h"].append(h)
            h, c, z = self.step(x[..., t, :], h, c)
            for name, value in (("z", z), ("c", c), ("y", h)):
                seen[name].append(value)
        turn.state = (h, c)
        if not n_steps:
            return np.zeros((*lead, 0, self.n_out))
        in_order = slice(None, None, -1 if self.reverse else 1)
        stacked = {name: np.stack(v[in_order], axis=-2) for name, v in seen.items()}
        for name in "hzc":
            turn.observe(name, stacked[name])
        return np.repeat(h[..., None, :], n_steps, axis=-2) if self.final else stacked["y"]

    # ---- integers ----

    def code_limit(self, precision: Precision, limits: list[int]) -> int:
        return precision.h_limit

    def row_name(self, row: int) -> str:
        """How messages call a row of the gates."""
        gate, unit = self.gates[row // self.n_units], row % self.n_units
        return f"layer '{self.name}' row {row} (gate {gate}, unit {unit})"

    def gate_table(self, lowest: float = -1.0) -> Array | None:
        """The table of the gates' activation, Q0.15, None for the sigmoid. Its values are within
        ``lowest`` .. 1, else QuantizeError.
        """
        if self.functions[0] == "sigmoid":
            return None
        function = as_function(self.functions[0])
        values = function(table_points())
        if values.min() < lowest or values.max() > 1.0:
            raise QuantizeError(
                f"layer '{self.name}': the gates' activation {function} leaves {lowest:g} .. 1, "
                "so that nothing bounds the state: train with sigmoid or hard_sigmoid gates"
            )
        return table_of(function, Z_SCALE, H_SCALE)

    def value_table(self, activation: str | Function) -> tuple[Array | None, int]:
        """The table of a candidate's or output's activation and its format, None for tanh."""
        if activation == "tanh":
            return None, H_FRAC
        function = as_function(activation)
        frac = frac_for(largest(function))
        if frac < G_FRAC_MIN:
            raise QuantizeError(
                f"layer '{self.name}': activation {function} reaches {largest(function):.3g} "
                "within +-16: train with another one"
            )
        return table_of(function, Z_SCALE, 2.0**-frac), frac

    def h_frac(self, bounded: bool, place: Place) -> int:
        """The format of the hidden state: Q0.15 (or Q0.7) where it is at most 1, else what
        calibration saw, with headroom.
        """
        precision = place.precision
        finest = precision.h_bits - 1
        peak = max(place.peak("y"), place.peak("h"))
        bounded = bounded and (self.h0 is None or np.abs(self.h0).max() <= 1.0)
        headroom = HEADROOM_8 if precision.h_bits == 8 else HEADROOM
        frac = finest if bounded else frac_for(headroom * peak, finest, precision.h_limit)
        if frac < 0:
            raise QuantizeError(
                f"layer '{self.name}': the hidden state reaches {peak:.3g}: normalise the inputs "
                "or use tanh"
            )
        return frac

    def common_cell(self, h_frac: int, place: Place, z_scale: float = Z_SCALE) -> dict[str, Any]:
        """Fields of ``Cell`` that every kind has."""
        clip = int(min(32767.0, max(1.0, np.floor(self.clip / z_scale + 0.5))))
        flags = {"reverse": self.reverse, "final": self.final}
        formats = {"h_bits": place.precision.h_bits, "h_frac": h_frac}
        return {"clip": clip, **flags, **formats, **self._start_codes(h_frac, place.precision)}

    def _start_codes(self, h_frac: int, precision: Precision) -> dict[str, Array | None]:
        """Initial states as codes, both or neither."""
        h0, c0 = self.h0, self.cell_start
        if h0 is None and c0 is None:
            return {"h0": None, "c0": None}
        h0 = np.zeros(self.n_out) if h0 is None else h0
        c0 = np.zeros(self.n_units) if c0 is None else c0
        if np.abs(c0).max() >= C_LIMIT:
            raise QuantizeError(
                f"layer '{self.name}': an initial cell state is {np.abs(c0).max():.3g}, Q9.22 "
                f"holds less than {C_LIMIT:.0f}"
            )
        h_codes = np.floor(h0 * 2.0**h_frac + 0.5).clip(-precision.h_limit, precision.h_limit)
        c_codes = np.clip(np.floor(c0 * 2.0**C_FRAC + 0.5), -(2.0**31), 2.0**31 - 1)
        return {"h0": h_codes.astype(np.int16), "c0": c_codes.astype(np.int32)}


# ---- integers ----


@dataclass(frozen=True, eq=False)
class Cell:
    """What a recurrent layer has beyond the plain cell.

    ``gate``, ``candidate``, ``output``: tables int16 [513] of the activations, None for sigmoid,
    tanh, tanh. ``peephole`` int16 [3, H] in Q(peephole_frac). ``h0`` int16 [n_out], ``c0`` int32
    [H]. ``projection`` int16 [n_out, H]. ``clip``: limit of pre-activations, Q4.11. ``h_bits``:
    hidden states are within +-(2^(h_bits - 1) - 1). ``g_frac``, ``a_frac``, ``h_frac``: formats of
    the candidate, the output's activation and h.
    """

    gate: Array | None = None
    candidate: Array | None = None
    output: Array | None = None
    peephole: Array | None = None
    h0: Array | None = None
    c0: Array | None = None
    projection: Array | None = None
    clip: int = 32767
    coupled: bool = False
    reverse: bool = False
    final: bool = False
    h_bits: int = 16
    g_frac: int = H_FRAC
    a_frac: int = H_FRAC
    h_frac: int = H_FRAC
    peephole_frac: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether the kernel needs no more than rows and weights."""
        return self.packed() is None

    def clipped(self, z: Array) -> Array:
        """CLIP(z) = min(max(z, -clip - 1), clip)."""
        return np.clip(z, -self.clip - 1, self.clip)

    def from_peephole(self, which: int, c: Array) -> Array:
        """RSH(p * c, peephole_frac + 11)."""
        if self.peephole is None:
            return np.zeros(1, np.int64)
        return rsh(self.peephole[which].astype(np.int64) * c, self.peephole_frac + 11)

    def packed(self) -> Array | None:
        """``Packed.extra``: a header and arrays, int16."""
        start = None
        if self.h0 is not None:
            start = np.concatenate([self.h0, self.c0.astype("<i4").view("<i2")])
        names = [name for name in CELL_ARRAYS if name != "start"]
        arrays = {**{name: getattr(self, name) for name in names}, "start": start}
        given = [name for name in CELL_ARRAYS if arrays[name] is not None]
        parts = sum(1 << CELL_ARRAYS.index(name) for name in given)
        flags = self.coupled + 2 * self.reverse + 4 * self.final
        formats = [self.g_frac, self.a_frac, self.h_frac]
        plain = [15, 15, 15 if self.h_bits == 16 else 7]
        if (parts, flags, self.clip, formats) == (0, 0, 32767, plain):
            return None
        header = np.array([parts, flags, self.clip, *formats, self.peephole_frac, 0], "<i2")
        return np.concatenate([header, *(arrays[n].reshape(-1).astype("<i2") for n in given)])

    @classmethod
    def unpacked(cls, f: Fields, n_units: int, h_bits: int) -> Cell:
        """The inverse of ``packed``."""
        if not f.has_extra:
            return cls(h_bits=h_bits, h_frac=15 if h_bits == 16 else 7)
        header = (int(v) for v in f.extra(0, CELL_HEADER))
        parts, flags, clip, g_frac, a_frac, h_frac, peephole_frac, _ = header
        lengths = (*(TABLE_ENTRIES,) * 3, 3 * n_units, f.n_out + 2 * n_units, f.n_out * n_units)
        arrays: dict[str, Array] = {}
        at = CELL_HEADER
        for bit, (name, length) in enumerate(zip(CELL_ARRAYS, lengths, strict=True)):
            if parts >> bit & 1:
                arrays[name] = f.extra(at, length)
                at += length
        if "peephole" in arrays:
            arrays["peephole"] = arrays["peephole"].reshape(3, n_units)
        if "projection" in arrays:
            arrays["projection"] = arrays["projection"].reshape(f.n_out, n_units)
        if "start" in arrays:
            start = arrays.pop("start")
            c0 = start[f.n_out :].astype("<i2").view("<i4").astype(np.int32)
            arrays |= {"h0": start[: f.n_out], "c0": c0}
        bits = {"coupled": bool(flags & 1), "reverse": bool(flags & 2), "final": bool(flags & 4)}
        formats = {"g_frac": g_frac, "a_frac": a_frac, "h_frac": h_frac}
        formats |= {"peephole_frac": peephole_frac, "h_bits": h_bits}
        return cls(**arrays, clip=clip, **bits, **formats)


PLAIN = Cell()


def applied(table: Array | None, plain: Callable[[Array], Array], z: Array) -> Array:
    """``plain`` or the table that stands in its place, of z."""
    return plain(z) if table is None else lookup(table, z)


def limit(x: Array, bits: int = 16) -> Array:
    """``x`` within the codes of a hidden state."""
    largest_code = 2 ** (bits - 1) - 1
    return np.clip(x, -largest_code, largest_code)


@dataclass(frozen=True, eq=False)
class RecurrentLayer(_GateRows, IntLayer):
    """``w_x`` int8 [G*H, D], ``w_h`` int8 [G*H, n_out], G ``gates``.

    Weights are -127..127, or -7..7 with 4 ``weight_bits``. ``rows`` [R*H]: R ``records`` of each
    unit, then those of a projection.
    """

    name: str
    w_x: Array
    w_h: Array
    rows: Rows
    x_scale: float
    cell: Cell = PLAIN
    weight_bits: int = 8

    gates: ClassVar[tuple[str, ...]]
    records: ClassVar[tuple[str, ...]]
    has_cell: ClassVar[bool] = True
    cell_name: ClassVar[str] = "state S"  # the same number as h, in Q9.22
    like: ClassVar[str] = "gru"  # the cell whose fitted costs it has (costs.json)
    activation: ClassVar[str] = "none"
    extra_what = "header: parts, flags, clip, formats; tables, peephole, h0, c0, projection"
    is_recurrent = True
    in_state = True

    @property
    def y_scale(self) -> float:
        return 2.0**-self.cell.h_frac

    @property
    def n_cells(self) -> int:
        return self.n_units if self.has_cell else 0

    @property
    def n_hidden(self) -> int:
        return self.n_out

    @property
    def macs(self) -> int:
        projection = self.cell.projection
        return self.w_x.size + self.w_h.size + (0 if projection is None else projection.size)

    def described(self) -> dict[str, Any]:
        bits, frac = self.cell.h_bits, self.cell.h_frac
        h = f"int{bits} Q{bits - 1 - frac}.{frac}"
        formats = {"w": f"int{self.weight_bits}", "h": h, "z": "int16 Q4.11"}
        return {"formats": formats | ({"c": "int32 Q9.22"} if self.has_cell else {})}

    # ---- the specification ----

    def step(self, x: Array, h: Array, c: Array) -> dict[str, Array]:
        """One step: what ``Reference`` lets observe, "h_new" and "c" among it."""
        raise NotImplementedError

    def joined(self, x: Array, h: Array, rows: slice) -> Array:
        """acc of some rows: shift_kx(Wx x) + Wh h + bias, [..., n_rows]."""
        ax = x @ self.w_x[rows].T.astype(np.int64)
        kx = self.rows.kx[rows].astype(np.int64)
        ax = np.where(kx >= 0, ax << np.maximum(kx, 0), rsh(ax, np.maximum(-kx, 0)))
        bias = self.rows.bias[rows].astype(np.int64)
        return ax + h @ self.w_h[rows].T.astype(np.int64) + bias

    def run(self, turn: Turn, x: Array) -> Array:
        lead, cell, n_steps = x.shape[:-2], self.cell, x.shape[-2]
        pairs = ((cell.h0, self.n_out), (cell.c0, self.n_units))
        start = (np.zeros(n, np.int64) if v is None else v.astype(np.int64) for v, n in pairs)
        h, c = turn.state or (np.broadcast_to(v, (*lead, len(v))) for v in start)
        seen: dict[str, list[Array]] = {}
        for t in range(n_steps)[:: -1 if cell.reverse else 1]:
            values = {"h": h, **self.step(x[..., t, :], h, c)}
            for name, value in values.items():
                seen.setdefault(name, []).append(value)
            h, c = values["h_new"], values["c"]
        turn.state = (h, c)
        in_order = slice(None, None, -1 if cell.reverse else 1)
        stacked = {name: np.stack(v[in_order], axis=len(lead)) for name, v in seen.items()}
        for name, value in stacked.items():
            turn.observe(name, value)
        if not stacked:
            return np.zeros((*lead, 0, self.n_out), np.int64)
        return np.repeat(h[..., None, :], n_steps, axis=-2) if cell.final else stacked["h_new"]

    def restored(self, c: Array, h: Array) -> tuple[Array, Array]:
        return h, c

    # ---- the overflow proof ----

    def weight_sums(self) -> tuple[Array, Array]:
        sum_x, sum_h = self.gate_sums()
        if self.cell.projection is None:
            return sum_x, sum_h
        none = np.zeros(self.n_out, np.int64)
        sum_p = abs_sum(self.cell.projection)
        return np.concatenate([sum_x, sum_p]), np.concatenate([sum_h, none])

    def gate_sums(self) -> tuple[Array, Array]:
        """``weight_sums`` of the units' records."""
        return abs_sum(self.w_x), abs_sum(self.w_h)

    # ---- memory ----

    def may_pair(self) -> bool:
        """Whether the kernel of paired rows knows the layer: plain cells of 8 bits."""
        fits = ((self.rows.shift >= 16) & (self.rows.shift <= 32)).all()
        return self.weight_bits == 8 and bool(fits) and self.cell.is_plain

    def in_pairs(self, weights: Array) -> Array:
        """int8 [H, G, n] -> as the kernel of paired rows reads them."""
        return to_pairs(weights)

    def packed(self, packing: str = "plain") -> Packed:
        packing = self.packing(packing)
        unit_rows = [unit_major(w, len(self.gates)) for w in (self.w_x, self.w_h)]
        if packing == "pairs":
            (w, r), rows = map(self.in_pairs, unit_rows), pairs_records(self.rows, self.n_units)
        else:
            w, r = unit_rows if self.weight_bits == 8 else map(to_nibbles, unit_rows)
            rows = self._unit_records()
        p = (self.n_units, self.weight_bits + 256 * PACKINGS.index(packing), self.cell.h_bits)
        return Packed(w, r, rows, self.cell.packed(), p, packing)

    def _unit_records(self) -> Array:
        """The records unit by unit, those of a projection last."""
        records, n = records_of(self.rows), len(self.records) * self.n_units
        of_units = unit_major(records[:n], len(self.records)).reshape(-1)
        return np.concatenate([of_units, records[n:]])

    @classmethod
    def unpacked(cls, f: Fields) -> RecurrentLayer:
        n_units, bits, h_bits = f.p
        cell = Cell.unpacked(f, n_units, h_bits)
        shapes = {"w": (n_units, len(cls.gates), f.n_in), "r": (n_units, len(cls.gates), f.n_out)}
        w_x, w_h = (gate_major(_weights(f, which, shape, bits)) for which, shape in shapes.items())
        n = len(cls.records) * n_units
        records = f.records(n + (f.n_out if cell.projection is not None else 0))
        of_units = gate_major(records[:n].reshape(n_units, len(cls.records)))
        rows = rows_of(np.concatenate([of_units, records[n:]]))
        return cls(f.name, w_x, w_h, rows, f.x_scale, cell, bits)


def _weights(f: Fields, which: str, shape: tuple[int, int, int], bits: int) -> Array:
    if bits == 8:
        return f.bytes_of(which, *shape)
    return from_nibbles(f.bytes_of(which, *shape[:2], (shape[2] + 1) // 2), shape[2])
