"""The integer specification in NumPy: the oracle that every other implementation must equal, bit for bit.

Written from docs/numerics.md alone, with names as there, in int64, so that nothing here can wrap. It shares no code with the C.
All functions take any leading dimensions: many sequences can be run side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import ROUND_FLOOR, Decimal, localcontext
from functools import cache
from math import isqrt

import numpy as np

from stepwell.errors import SampleError
from stepwell.graph import Timing
from stepwell.mode import run_windows
from stepwell.model import (
    LAST_OUTPUT,
    ActivationLayer,
    AddLayer,
    ArgMaxLayer,
    AttentionLayer,
    Cell,
    ConcatLayer,
    DenseLayer,
    EmbeddingLayer,
    GruBeforeLayer,
    GruLayer,
    IntLayer,
    LayerNormLayer,
    LstmLayer,
    MaxPoolLayer,
    Model,
    MulLayer,
    Part,
    RecurrentLayer,
    RnnLayer,
    Rows,
    SliceLayer,
    WindowLayer,
)

Array = np.ndarray


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
        return np.array([_half_up(32768 * Decimal(2) ** (Decimal(-k) / 64)) for k in range(65)], np.int64)


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


def lookup(table: Array, z: Array) -> Array:
    """TAB(z) = T[k] + (((T[k+1] - T[k]) * (a & 127) + 64) >> 7), a = z + 32768, k = a >> 7; z int16."""
    t, a = table.astype(np.int64), z + 32768
    k = a >> 7
    return t[k] + (((t[k + 1] - t[k]) * (a & 127) + 64) >> 7)


def activate(v: Array, layer: IntLayer) -> Array:
    """The activation of a dense, activation, add or mul layer."""
    if layer.activation == "relu":
        return np.maximum(v, 0)
    if layer.activation == "tanh":
        return tanh(sat(v, 16))
    if layer.activation == "sigmoid":
        return sig(sat(v, 16))
    if layer.activation == "table":
        return lookup(layer.table, sat(v, 16))
    return softmax(v) if layer.activation == "softmax" else v


# ---- recurrent layers: one step ----


def joined(layer: RecurrentLayer, x: Array, h: Array, rows: slice) -> Array:
    """acc of some rows: shift_kx(Wx x) + Wh h + bias, [..., n_rows]."""
    ax = x @ layer.w_x[rows].T.astype(np.int64)
    kx = layer.rows.kx[rows].astype(np.int64)
    ax = np.where(kx >= 0, ax << np.maximum(kx, 0), rsh(ax, np.maximum(-kx, 0)))
    return ax + h @ layer.w_h[rows].T.astype(np.int64) + layer.rows.bias[rows].astype(np.int64)


def part_of(rows: Rows, which: slice) -> Rows:
    return Rows(*(getattr(rows, name)[which] for name in ("bias", "mult", "kx", "shift")))


def clip(cell: Cell, z: Array) -> Array:
    """CLIP(z) = min(max(z, -clip - 1), clip)"""
    return np.clip(z, -cell.clip - 1, cell.clip)


def applied(table: Array | None, plain: Callable[[Array], Array], z: Array) -> Array:
    return plain(z) if table is None else lookup(table, z)


def limit(x: Array, bits: int = 16) -> Array:
    largest = 2 ** (bits - 1) - 1
    return np.clip(x, -largest, largest)


def peephole(cell: Cell, which: int, c: Array) -> Array:
    """RSH(p * c, peephole_frac + 11)"""
    if cell.peephole is None:
        return np.zeros(1, np.int64)
    return rsh(cell.peephole[which].astype(np.int64) * c, cell.peephole_frac + 11)


def lstm_step(layer: LstmLayer, x: Array, h: Array, c: Array) -> dict[str, Array]:
    """docs/numerics.md, "One LSTM step" and "Variants of the cells"."""
    cell, n = layer.cell, 4 * layer.n_units
    acc = joined(layer, x, h, slice(0, n))
    z = sat(rq(acc, part_of(layer.rows, slice(0, n))), 16)
    z_i, z_f, z_g, z_o = np.split(z, 4, axis=-1)
    z_i = clip(cell, sat(z_i + peephole(cell, 0, c), 16))
    z_f = clip(cell, sat(z_f + peephole(cell, 1, c), 16))
    z_g = clip(cell, z_g)
    i = applied(cell.gate, sig, z_i)
    f = np.minimum(32767, 32768 - i) if cell.coupled else applied(cell.gate, sig, z_f)
    g = applied(cell.candidate, tanh, z_g)
    c_wide = rsh(f * c, 15) + rsh(i * g, cell.g_frac - 7)
    c = sat(c_wide, 32)
    z_o = clip(cell, sat(z_o + peephole(cell, 2, c), 16))
    o = applied(cell.gate, sig, z_o)
    a = applied(cell.output, tanh, sat(rsh(c, 11), 16))
    y_frac = cell.h_frac if cell.projection is None else cell.a_frac
    y = limit(rsh(o * a, 15 + cell.a_frac - y_frac), cell.h_bits if cell.projection is None else 16)
    h_new = y if cell.projection is None else projected(layer, y)
    gates, z = np.stack([i, f, g, o], axis=-2), np.concatenate([z_i, z_f, z_g, z_o], axis=-1)
    return {"acc": acc, "z": z, "gates": gates, "c_wide": c_wide, "c": c, "unit_h": y, "h_new": h_new}


def projected(layer: LstmLayer, y: Array) -> Array:
    rows = part_of(layer.rows, slice(4 * layer.n_units, None))
    acc = y @ layer.cell.projection.T.astype(np.int64) + rows.bias.astype(np.int64)
    return limit(rq(acc, rows), layer.cell.h_bits)


def gru_step(layer: GruLayer, x: Array, h: Array, s: Array) -> dict[str, Array]:
    """docs/numerics.md, "One GRU step"; S stands for the cell."""
    n_out, cell = layer.n_out, layer.cell
    bias = layer.rows.bias.astype(np.int64)
    acc_nx = x @ layer.w_x[2 * n_out :].T.astype(np.int64) + bias[2 * n_out : 3 * n_out]
    acc_nh = h @ layer.w_h[2 * n_out :].T.astype(np.int64) + bias[3 * n_out :]
    acc = np.concatenate([joined(layer, x, h, slice(0, 2 * n_out)), acc_nx, acc_nh], axis=-1)
    z_r, z_z, nx, nh = np.split(sat(rq(acc, layer.rows), 16), 4, axis=-1)
    z_r, z_z = clip(cell, z_r), clip(cell, z_z)
    r = applied(cell.gate, sig, z_r)
    n_in = sat(nx + rsh(r * nh, 15), 16)
    return _new_state(layer, acc, r, z_r, z_z, [nx, nh], n_in, s)


def gru_before_step(layer: GruBeforeLayer, x: Array, h: Array, s: Array) -> dict[str, Array]:
    """docs/numerics.md, "One GRU step", the reset before the product."""
    n, cell = layer.n_out, layer.cell
    acc_r, acc_z = np.split(joined(layer, x, h, slice(0, 2 * n)), 2, axis=-1)
    z_r = clip(cell, sat(rq(acc_r, part_of(layer.rows, slice(0, n))), 16))
    z_z = clip(cell, sat(rq(acc_z, part_of(layer.rows, slice(n, 2 * n))), 16))
    r = applied(cell.gate, sig, z_r)
    acc_n = joined(layer, x, rsh(r * h, 15), slice(2 * n, 3 * n))
    n_in = clip(cell, sat(rq(acc_n, part_of(layer.rows, slice(2 * n, 3 * n))), 16))
    acc = np.concatenate([acc_r, acc_z, acc_n], axis=-1)
    return _new_state(layer, acc, r, z_r, z_z, [n_in], n_in, s)


def _new_state(layer, acc, r, z_r, z_z, n_parts, n_in, s) -> dict[str, Array]:
    """Steps 2 to 4 of both GRUs, from the update gate and what enters the candidate's activation."""
    cell = layer.cell
    z = applied(cell.gate, sig, z_z)
    n = applied(cell.candidate, tanh, clip(cell, n_in))
    s_wide = rsh(z * s, 15) + rsh(np.minimum(32767, 32768 - z) * n, cell.g_frac - 7)
    s = sat(s_wide, 32)
    h_new = limit(rsh(s, 22 - cell.h_frac), cell.h_bits)
    z_all, gates = np.concatenate([z_r, z_z, *n_parts], axis=-1), np.stack([r, z, n], axis=-2)
    return {"acc": acc, "z": z_all, "gates": gates, "c_wide": s_wide, "c": s, "unit_h": h_new, "h_new": h_new}


def rnn_step(layer: RnnLayer, x: Array, h: Array, c: Array) -> dict[str, Array]:
    """docs/numerics.md, "One RNN step"."""
    acc = joined(layer, x, h, slice(None))
    z = clip(layer.cell, sat(rq(acc, layer.rows), 16))
    cell = layer.cell
    h_new = rsh(tanh(z), 15 - cell.h_frac) if cell.candidate is None else lookup(cell.candidate, z)
    h_new = limit(h_new, cell.h_bits)
    return {"acc": acc, "z": z, "c": c, "unit_h": h_new, "h_new": h_new}


STEPS = {LstmLayer: lstm_step, GruLayer: gru_step, GruBeforeLayer: gru_before_step, RnnLayer: rnn_step}


# ---- layers without memory: [..., n_in] -> [..., n_out] ----


def dense(layer: DenseLayer, x: Array) -> Array:
    parts = x.reshape(*x.shape[:-1], layer.groups, layer.weight.shape[1])
    weight = layer.weight.astype(np.int64).reshape(layer.groups, -1, layer.weight.shape[1])
    acc = np.einsum("...gk,gok->...go", parts, weight).reshape(*x.shape[:-1], layer.n_out)
    return rq(acc + layer.rows.bias.astype(np.int64), layer.rows)


def concatenated(layer: ConcatLayer, a: Array, b: Array) -> Array:
    parts = [sat(rq(x, part_of(layer.rows, slice(k, k + 1))), 16) for k, x in enumerate((a, b))]
    return np.concatenate(parts, axis=-1)


def layer_norm(layer: LayerNormLayer, x: Array) -> Array:
    """docs/numerics.md, "LayerNorm", in Python's integers."""
    d = layer.n_in * x - x.sum(axis=-1, keepdims=True)
    q = np.empty_like(d)
    for place in np.ndindex(d.shape[:-1]):
        w = sum(int(v) ** 2 for v in d[place]) + layer.epsilon
        e = (w.bit_length() - 31) // 2 * 2  # even, and w / 2^e in [2^30, 2^32)
        mantissa = w >> e if e >= 0 else w << -e
        r = isqrt((1 << 62) // mantissa)
        q[place] = [_scaled(int(v) * r, 16 + e // 2 - layer.exponent) for v in d[place]]
    q = sat(q, 16)
    acc = layer.gamma.astype(np.int64) * q + layer.rows.bias.astype(np.int64)
    return sat(rq(acc, layer.rows), 16)


def _scaled(v: int, n: int) -> int:
    """RSH(v, n), for n of any sign, within int64."""
    v = v << -n if n <= 0 else (v + (1 << (n - 1))) >> n
    return min(max(v, -(2**40)), 2**40)


def embedded(layer: EmbeddingLayer, x: Array) -> Array:
    rows = layer.table.astype(np.int64)[np.clip(x, 0, len(layer.table) - 1)]
    return rows.reshape(*x.shape[:-1], layer.n_out)


def scores(layer: AttentionLayer, query: Array, keys: Array) -> Array:
    """[..., D] and [..., N, D] -> logits in Q15.16, log2-scaled, [..., N]."""
    if layer.form == "score":
        acc = keys[..., 0]
    elif layer.form == "dot":
        acc = (query[..., None, :] * keys).sum(axis=-1)
    else:
        acc = tanh(sat(query[..., None, :] + keys, 16)) @ layer.weight.astype(np.int64)
    limit_ = 2**31 - 2**16
    return np.clip(rsh(acc * int(layer.rows.mult[0]), int(layer.rows.shift[0])), -limit_, limit_)


class Reference:
    """One stream (or many side by side) of the integer model; the methods of ``engine.Stream``.

    ``observe(layer_index, name, values)`` is called with the integer values, [..., steps, width]. For a recurrent layer: "x",
    "h" (the hidden state that enters a step), "acc" (what RQ takes), "z" [..., records*H], "gates" (stacked: [..., gates,
    H]), "c_wide" (the cell before it saturates), "c", "unit_h" (before a projection) and "h_new"; for the others "x" ("x0",
    "x1", .. of several sources), "v" (before the activation, where there is one) and "y".

    A mode other than carry is what docs/numerics.md says it is: the layers run over the last steps from a reset.
    """

    def __init__(self, model: Model, observe: Callable[[int, str, Array], None] | None = None):
        self.model = model
        self._observer = observe
        self.reset()

    def reset(self) -> None:
        """The initial state in every layer; no step seen."""
        self.state: dict[int, tuple[Array, ...]] = {}
        self.fresh = False  # whether the last step made a new output
        self._steps = 0  # of the layers since their reset
        self._ends = False  # whether a window's end is among the steps at hand
        self._seen: Array | None = None  # inputs, as far as a window mode needs them
        self._n_seen = 0
        self._held: Array | None = None
        self._last: Array | None = None  # codes to hold where a sample is missing

    def restore(self, parts: list[Part]) -> None:
        """The state of a snapshot of a model in mode carry (hil.snapshot_parts), without codes that stand for missing ones."""
        self.reset()
        for part in parts:
            if part.index < 0:
                self._steps = int(part.c[0]) if part.name == "clock" and part.n_cells else self._steps
                self._held = part.c.astype(np.int64) if part.name == LAST_OUTPUT and part.n_cells else self._held
                continue
            layer = self.model.layers[part.index]
            c, h = part.c.astype(np.int64), part.h.astype(np.int64)
            if isinstance(layer, RecurrentLayer):
                self.state[part.index] = (h, c)
            elif isinstance(layer, WindowLayer):
                self.state[part.index] = (h.reshape(layer.n_in, layer.span).T,)
            elif isinstance(layer, AttentionLayer):
                self.state[part.index] = self._ring(layer, int(c[0]), h)

    @staticmethod
    def _ring(layer: AttentionLayer, counter: int, h: Array) -> tuple[Array, Array]:
        """Keys and values that an attention remembers, oldest first."""
        n = layer.steps
        keys, values = np.split(h, [n * layer.key_width])
        order = np.arange(min(counter, n)) + (counter % n if counter >= n else 0)
        return keys.reshape(n, -1)[order % n], values.reshape(n, -1)[order % n]

    def _observe(self, index: int, name: str, values: Array) -> None:
        if self._observer and values.size:
            self._observer(index, name, values)

    # ---- modes ----

    def step_q(self, x_q: Array) -> Array:
        """One timestep on codes: int16 [..., n_in] -> int32 [..., n_out] in Q(y_frac); the last output where none is new."""
        return self.run_q(check_codes(x_q, self.model.n_in)[..., None, :])[..., 0, :]

    def run_q(self, x_q: Array) -> Array:
        """A sequence of codes: int16 [..., T, n_in] -> int32 [..., T, n_out]."""
        x_q = check_codes(x_q, self.model.n_in)
        if x_q.ndim < 2:
            raise SampleError(f"codes have shape {list(x_q.shape)}, expected [T, {self.model.n_in}]")
        x = x_q.astype(np.int64)
        if self._held is None:
            self._held = np.zeros((*x.shape[:-2], self.model.n_out), np.int64)
        mode, timing = self.model.mode, self.model.timing[-1]
        seen = self._steps if mode.kind == "carry" else self._n_seen
        y = self._carried(x, self._held) if mode.kind == "carry" else self._windowed(x)
        if y.shape[-2]:
            self._held = y[..., -1, :]
            self.fresh = mode.is_new(seen + y.shape[-2] - 1, timing, self.model.lags[-1])
        return y.astype(np.int32)

    def _carried(self, x: Array, held: Array) -> Array:
        """The layers over the steps of x; outputs held where none is new."""
        timing, before = self.model.timing[-1], self._steps
        known = np.concatenate([held[..., None, :], self._layers(x)], axis=-2)
        runs = [timing.runs(before + k + 1) - timing.runs(before) for k in range(x.shape[-2])]
        if self._ends:
            runs[-1] = known.shape[-2] - 1
        return known[..., runs, :]

    def _windowed(self, x: Array) -> Array:
        """Each output is that of a window from a reset; see Mode."""
        known = x if self._seen is None else np.concatenate([self._seen, x], axis=-2)
        n_past = known.shape[-2] - x.shape[-2]
        y = run_windows(self.model.mode, self._from_reset, known, n_past, self._n_seen, self._held)
        self._n_seen += x.shape[-2]
        self._seen = known[..., max(0, known.shape[-2] - self.model.mode.window) :, :]
        return y

    def _from_reset(self, x: Array, held: Array) -> Array:
        self.state, self._steps = {}, 0
        self._ends = x.shape[-2] == self.model.mode.window
        return self._carried(x, held)

    # ---- layers over a stretch of steps: [..., steps, width] -> [..., runs, n_out] ----

    def _layers(self, x: Array) -> Array:
        values = [x]
        for index, layer in enumerate(self.model.layers):
            inputs = [values[value] for value in self.model.sources[index]]
            for name, a in zip(["x"] if len(inputs) == 1 else ["x0", "x1", "x2"], inputs, strict=False):
                self._observe(index, name, a)
            is_last = index == len(self.model.layers) - 1
            y = RUNS[type(layer)](self, index, layer, *inputs)
            if hasattr(layer, "table") and not isinstance(layer, EmbeddingLayer):
                self._observe(index, "v", y)
                y = activate(y, layer)
                y = y if is_last else sat(y, 16)
            self._observe(index, "y", y)
            values.append(y)
        self._steps += x.shape[-2]
        return values[-1]

    def _recurrent(self, index: int, layer: RecurrentLayer, x: Array) -> Array:
        lead, cell = x.shape[:-2], layer.cell
        h, c = self.state.get(index, (None, None))
        if h is None:
            start = [np.zeros(n, np.int64) if v is None else v.astype(np.int64) for v, n in self._start(layer)]
            h, c = (np.broadcast_to(v, (*lead, len(v))) for v in start)
        seen: dict[str, list[Array]] = {}
        for t in range(x.shape[-2])[:: -1 if cell.reverse else 1]:
            values = {"h": h, **STEPS[type(layer)](layer, x[..., t, :], h, c)}
            for name, value in values.items():
                seen.setdefault(name, []).append(value)
            h, c = values["h_new"], values["c"]
        self.state[index] = (h, c)
        stacked = {n: np.stack(v[:: -1 if cell.reverse else 1], axis=len(lead)) for n, v in seen.items()}
        for name, value in stacked.items():
            self._observe(index, name, value)
        if not stacked:
            return np.zeros((*lead, 0, layer.n_out), np.int64)
        return np.repeat(h[..., None, :], x.shape[-2], axis=-2) if cell.final else stacked["h_new"]

    @staticmethod
    def _start(layer: RecurrentLayer) -> tuple[tuple[Array | None, int], tuple[Array | None, int]]:
        return (layer.cell.h0, layer.n_out), (layer.cell.c0, layer.n_units)

    def _window(self, index: int, layer: WindowLayer, x: Array) -> Array:
        own, source = self.model.timing[index], self._timing_of(self.model.sources[index][0])
        lead = x.shape[:-2]
        (past,) = self.state.get(index, (np.full((*lead, layer.span, layer.n_in), layer.edge, np.int64),))
        after = np.full((*lead, layer.ahead if self._ends else 0, layer.n_in), layer.edge, np.int64)
        known = np.concatenate([past, x, after], axis=-2)  # past: [oldest ..], its last value is the last step's
        self.state[index] = (known[..., known.shape[-2] - layer.span :, :],)
        before, n_runs = source.runs(self._steps), known.shape[-2] - layer.span
        windows = []
        for k in range(n_runs):
            tick = source.first + (before + k) * source.every
            if tick >= own.first and (tick - own.first) % own.every == 0:
                end = layer.span + k
                windows.append(known[..., end - layer.span + 1 : end + 1 : layer.dilation, :])
        if not windows:
            return np.zeros((*lead, 0, layer.n_out), np.int64)
        stacked = np.stack(windows, axis=-3)  # [..., runs, taps, n_in]
        return stacked.swapaxes(-1, -2).reshape(*lead, len(windows), layer.n_out)

    def _timing_of(self, value: int) -> Timing:
        return self.model.timing[value - 1] if value else Timing()

    def _attention(self, index: int, layer: AttentionLayer, *inputs: Array) -> Array:
        query, key, value = inputs if layer.form != "score" else (inputs[0], *inputs)
        keys, values = self.state.get(index, (key[..., :0, :], value[..., :0, :]))
        first = keys.shape[-2]
        keys, values = np.concatenate([keys, key], axis=-2), np.concatenate([values, value], axis=-2)
        contexts = []
        for t in range(query.shape[-2]):
            seen = slice(max(0, first + t + 1 - layer.steps), first + t + 1)
            p = softmax(scores(layer, query[..., t, :], keys[..., seen, :]))
            contexts.append(sat(rsh((p[..., None] * values[..., seen, :]).sum(axis=-2), 15), 16))
        keep = slice(max(0, keys.shape[-2] - layer.steps), None)
        self.state[index] = (keys[..., keep, :], values[..., keep, :])
        return np.stack(contexts, axis=-2) if contexts else np.zeros((*value.shape[:-2], 0, layer.n_out), np.int64)

    # ---- real numbers ----

    def step(self, x: Array) -> Array:
        """One timestep on real numbers: float [..., n_in] -> float64 [..., n_out]. SampleError on NaN, inf or a wrong width."""
        row = as_numbers(self.model.wanted.of_row(x))
        return self.run(row[..., None, :])[..., 0, :]

    def run(self, x: Array) -> Array:
        """float [..., T, n_in] -> float64 [..., T, n_out]; state carries on."""
        return self.model.dequantize(self.run_q(self.codes(x)))

    def run_window(self, x: Array) -> Array:
        """The layers over one window of the model's mode, or its first steps, from a reset: float [..., n, n_in], n <= T."""
        codes = self.codes(x).astype(np.int64)
        held = np.zeros((*codes.shape[:-2], self.model.n_out), np.int64)
        return self.model.dequantize(self._from_reset(codes, held))

    def codes(self, x: Array) -> Array:
        """float [..., T, n_in] -> int16 codes, what is missing held or filled. SampleError on a wrong width or value."""
        x, may_miss = self.model.wanted.of_rows(x), self.model.scaler.missing != "refuse"
        x = check_input(x, self.model.n_in, may_miss)
        codes = self.model.quantize(x)
        return self._held_codes(codes, np.isnan(x)) if self.model.scaler.missing == "hold" else codes

    def _held_codes(self, codes: Array, missing: Array) -> Array:
        """``codes`` [..., T, n_in] with the last code of the channel where a sample is missing; fill codes before the first."""
        for t in range(codes.shape[-2]):
            now = codes[..., t, :]
            if self._last is not None:
                now[...] = np.where(missing[..., t, :], self._last, now)
            self._last = now.copy()
        return codes


RUNS: dict[type, Callable[..., Array]] = {
    **dict.fromkeys(STEPS, Reference._recurrent),
    DenseLayer: lambda reference, index, layer, x: dense(layer, x),
    ActivationLayer: lambda reference, index, layer, x: rq(x, layer.rows),
    AddLayer: lambda reference, index, layer, a, b: rq(
        int(layer.weights[0]) * a + int(layer.weights[1]) * b, layer.rows
    ),
    MulLayer: lambda reference, index, layer, a, b: rq(a * b, layer.rows),
    ConcatLayer: lambda reference, index, layer, a, b: concatenated(layer, a, b),
    SliceLayer: lambda reference, index, layer, x: x[..., layer.start : layer.start + layer.n_out],
    MaxPoolLayer: lambda reference, index, layer, x: x.reshape(*x.shape[:-1], layer.n_out, layer.taps).max(axis=-1),
    LayerNormLayer: lambda reference, index, layer, x: layer_norm(layer, x),
    EmbeddingLayer: lambda reference, index, layer, x: embedded(layer, x),
    ArgMaxLayer: lambda reference, index, layer, x: np.argmax(x, axis=-1)[..., None],
    WindowLayer: Reference._window,
    AttentionLayer: Reference._attention,
}


def as_numbers(x: object) -> Array:
    """``x`` as contiguous float64. SampleError on text, complex or masked values, ragged rows."""
    try:
        array = np.asarray(x)
    except (TypeError, ValueError) as error:
        raise SampleError(f"input is not numeric: {error}") from error
    if array.dtype.kind not in "fiub" or isinstance(x, np.ma.MaskedArray):
        raise SampleError(f"input is not numeric: {type(x).__name__} of {array.dtype}")
    return np.ascontiguousarray(array, dtype=np.float64)


def check_codes(x_q: object, n_in: int) -> Array:
    """``x_q`` as contiguous int16 [..., n_in]. SampleError when it holds anything but integers of 16 bits."""
    try:
        codes = np.asarray(x_q)
    except ValueError as error:
        raise SampleError(f"codes are ragged: {error}") from error
    fits = codes.dtype.kind in "iu" and (codes.size == 0 or (codes.min() >= -32768 and codes.max() <= 32767))
    if not fits or codes.ndim == 0 or codes.shape[-1] != n_in:
        raise SampleError(f"expected int16 codes of shape [..., {n_in}], got {codes.dtype} {list(codes.shape)}")
    return np.ascontiguousarray(codes, dtype=np.int16)


def check_input(x: Array, n_in: int, missing: bool = False) -> Array:
    """``x`` as float64 [..., n_in], or SampleError that says what is wrong with it; NaN passes where samples may be ``missing``."""
    x = as_numbers(x)
    if x.ndim == 0 or x.shape[-1] != n_in:
        raise SampleError(f"input has shape {list(x.shape)}, the model takes {n_in} values a step")
    bad = np.isinf(x) if missing else ~np.isfinite(x)
    if bad.any():
        where = [int(i) for i in np.argwhere(bad)[0]]
        raise SampleError(f"input has {x[tuple(where)]} at index {where}; fill or drop missing values before the step")
    return x
