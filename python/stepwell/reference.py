"""The integer specification in NumPy: the oracle that every other implementation must equal, bit for bit.

Written from docs/numerics.md alone, with names as there, in int64, so that nothing here can wrap. It shares no code with the C.
All functions take any leading dimensions: many sequences can be run side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import ROUND_FLOOR, Decimal, localcontext
from functools import cache

import numpy as np

from stepwell.errors import SampleError
from stepwell.model import ActivationLayer, DenseLayer, GruLayer, LstmLayer, Model, RecurrentLayer, RnnLayer, Rows

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


def activate(v: Array, activation: str) -> Array:
    if activation == "relu":
        return np.maximum(v, 0)
    if activation == "tanh":
        return tanh(sat(v, 16))
    if activation == "sigmoid":
        return sig(sat(v, 16))
    return softmax(v) if activation == "softmax" else v


def joined(layer: RecurrentLayer, x: Array, h: Array, n_rows: int) -> Array:
    """acc of the first ``n_rows`` rows: shift_kx(Wx x) + Wh h + bias, [..., n_rows]."""
    ax = x @ layer.w_x[:n_rows].T.astype(np.int64)
    kx = layer.rows.kx[:n_rows].astype(np.int64)
    ax = np.where(kx >= 0, ax << np.maximum(kx, 0), rsh(ax, np.maximum(-kx, 0)))
    return ax + h @ layer.w_h[:n_rows].T.astype(np.int64) + layer.rows.bias[:n_rows].astype(np.int64)


def lstm_step(layer: LstmLayer, x: Array, h: Array, c: Array) -> dict[str, Array]:
    """docs/numerics.md, "One LSTM step"."""
    acc = joined(layer, x, h, len(layer.rows))
    z = sat(rq(acc, layer.rows), 16)
    z_i, z_f, z_g, z_o = np.split(z, 4, axis=-1)
    i, f, g, o = sig(z_i), sig(z_f), tanh(z_g), sig(z_o)
    c_wide = rsh(f * c, 15) + rsh(i * g, 8)
    c = sat(c_wide, 32)
    h_new = rsh(o * tanh(sat(rsh(c, 11), 16)), 15)
    return {"acc": acc, "z": z, "gates": np.stack([i, f, g, o], axis=-2), "c_wide": c_wide, "c": c, "h_new": h_new}


def gru_step(layer: GruLayer, x: Array, h: Array, s: Array) -> dict[str, Array]:
    """docs/numerics.md, "One GRU step"; S stands for the cell."""
    n_out = layer.n_out
    bias = layer.rows.bias.astype(np.int64)
    acc_nx = x @ layer.w_x[2 * n_out :].T.astype(np.int64) + bias[2 * n_out : 3 * n_out]
    acc_nh = h @ layer.w_h[2 * n_out :].T.astype(np.int64) + bias[3 * n_out :]
    acc = np.concatenate([joined(layer, x, h, 2 * n_out), acc_nx, acc_nh], axis=-1)
    z_all = sat(rq(acc, layer.rows), 16)
    z_r, z_z, nx, nh = np.split(z_all, 4, axis=-1)
    r, z = sig(z_r), sig(z_z)
    n = tanh(sat(nx + rsh(r * nh, 15), 16))
    s_wide = rsh(z * s, 15) + rsh(np.minimum(32767, 32768 - z) * n, 8)
    s = sat(s_wide, 32)
    h_new = np.clip(rsh(s, 7), -32767, 32767)
    return {"acc": acc, "z": z_all, "gates": np.stack([r, z, n], axis=-2), "c_wide": s_wide, "c": s, "h_new": h_new}


def rnn_step(layer: RnnLayer, x: Array, h: Array, c: Array) -> dict[str, Array]:
    """docs/numerics.md, "One RNN step"."""
    acc = joined(layer, x, h, len(layer.rows))
    z = sat(rq(acc, layer.rows), 16)
    h_new = tanh(z)
    return {"acc": acc, "z": z, "c": c, "h_new": h_new}


class Reference:
    """One stream (or many side by side) of the integer model; the methods of ``engine.Stream``.

    ``observe(layer_index, name, values)`` is called with the integer values of every step. For a recurrent layer: "x", "h" (the
    hidden state that enters), "acc" (what RQ takes), "z" [..., records*H], "gates" (stacked: [..., gates, H]), "c_wide" (the cell
    before it saturates), "c" and "h_new"; for the others "x", "v" (before the activation) and "y".
    """

    def __init__(self, model: Model, observe: Callable[[int, str, Array], None] | None = None):
        self.model = model
        self._observe = observe or (lambda index, name, values: None)
        self.reset()

    def reset(self) -> None:
        """h = 0, c = 0 in every layer."""
        self.state: dict[int, tuple[Array, Array]] = {}

    def step_q(self, x_q: Array) -> Array:
        """One timestep on codes: int16 [..., n_in] -> int32 [..., n_out] in Q(y_frac)."""
        a = check_codes(x_q, self.model.n_in).astype(np.int64)
        last = len(self.model.layers) - 1
        for index, layer in enumerate(self.model.layers):
            self._observe(index, "x", a)
            if isinstance(layer, RecurrentLayer):
                a = self._recurrent(index, layer, a)
            else:
                v = self._dense(layer, a) if isinstance(layer, DenseLayer) else self._scaled(layer, a)
                self._observe(index, "v", v)
                a = activate(v, layer.activation)
                a = a if index == last else sat(a, 16)
                self._observe(index, "y", a)
        return a.astype(np.int32)

    def _recurrent(self, index: int, layer: RecurrentLayer, x: Array) -> Array:
        zero = np.zeros((*x.shape[:-1], layer.n_out), np.int64)
        h, c = self.state.get(index, (zero, zero))
        step = {LstmLayer: lstm_step, GruLayer: gru_step, RnnLayer: rnn_step}[type(layer)]
        seen = step(layer, x, h, c)
        for name, values in {"h": h, **seen}.items():
            self._observe(index, name, values)
        self.state[index] = (seen["h_new"], seen["c"])
        return seen["h_new"]

    @staticmethod
    def _dense(layer: DenseLayer, x: Array) -> Array:
        return rq(x @ layer.weight.T.astype(np.int64) + layer.rows.bias.astype(np.int64), layer.rows)

    @staticmethod
    def _scaled(layer: ActivationLayer, x: Array) -> Array:
        return rq(x, layer.rows)

    def run_q(self, x_q: Array) -> Array:
        """A sequence of codes: int16 [..., T, n_in] -> int32 [..., T, n_out]."""
        x_q = check_codes(x_q, self.model.n_in)
        if x_q.ndim < 2:
            raise SampleError(f"codes have shape {list(x_q.shape)}, expected [T, {self.model.n_in}]")
        y_q = np.empty((*x_q.shape[:-1], self.model.n_out), np.int32)
        for t in range(x_q.shape[-2]):
            y_q[..., t, :] = self.step_q(x_q[..., t, :])
        return y_q

    def step(self, x: Array) -> Array:
        """One timestep on real numbers: float [..., n_in] -> float64 [..., n_out]. SampleError on NaN, inf or a wrong width."""
        return self.model.dequantize(self.step_q(self.model.quantize(check_input(x, self.model.n_in))))

    def run(self, x: Array) -> Array:
        """float [..., T, n_in] -> float64 [..., T, n_out]; state carries on."""
        return self.model.dequantize(self.run_q(self.model.quantize(check_input(x, self.model.n_in))))


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


def check_input(x: Array, n_in: int) -> Array:
    """``x`` as float64 [..., n_in], or SampleError that says what is wrong with it."""
    x = as_numbers(x)
    if x.ndim == 0 or x.shape[-1] != n_in:
        raise SampleError(f"input has shape {list(x.shape)}, the model takes {n_in} values a step")
    if not np.isfinite(x).all():
        where = [int(i) for i in np.argwhere(~np.isfinite(x))[0]]
        raise SampleError(f"input has {x[tuple(where)]} at index {where}; fill or drop missing values before the step")
    return x
