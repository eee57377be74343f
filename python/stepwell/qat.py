"""Quantisation-aware fine-tuning: a torch module whose forward is the integer specification, so
that what is trained is what runs.

    student = stepwell.qat.prepare("motor.onnx", "train.npz", precision="w4a16")
    optimizer = torch.optim.Adam(student.parameters(), 1e-3)
    for x, y in batches:                                  # x [B, T, n_in] in the user's units
        loss = torch.nn.functional.mse_loss(student(x)[:, -1], y)
        ...
    student.model().save("motor.stw")

Every integer is computed exactly, in double precision; gradients pass through each rounding as if
it were not there (the straight-through estimator, Bengio et al. 2013, arXiv:1308.3432). Scales stay
as the quantiser chose them: weights and biases are trained.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from stepwell.api import Samples, Source, loads
from stepwell.api import prepare as prepare_source
from stepwell.errors import QuantizeError
from stepwell.integer import proof
from stepwell.integer.fixed import Rows, sig, tanh
from stepwell.integer.formats import SOFTMAX_SCALE, Z_SCALE
from stepwell.integer.precision import Plan, Precision, parse_precision
from stepwell.layers import (
    ActivationLayer,
    DenseLayer,
    GruLayer,
    IntLayer,
    LstmLayer,
    RecurrentLayer,
)
from stepwell.model import Model
from stepwell.quantize.dequantize import dense_scale, recurrent_steps, units

INSIDE = 0.49  # of a step: how far a real weight may begin from its integer


def prepare(
    source: Source,
    calib: Samples,
    *,
    precision: str | Precision | Plan = "w4a16",
    **options: object,
) -> Student:
    """The module to train: ``source`` quantised as by ``convert``, whose arguments and errors it
    has.

    Raises QuantizeError for a model of other layers than LSTM, GRU (reset after), dense and
    activations in a chain.
    """
    prepared = prepare_source(source, calib, **options)
    model = prepared.quantized(parse_precision(precision))
    layers = tuple(
        _with_room(layer) if isinstance(layer, DenseLayer) else layer for layer in model.layers
    )
    return Student(model.replace(layers=layers), prepared.graph)


def _with_room(layer: DenseLayer) -> DenseLayer:
    """The quantiser makes dense rows as fine as the overflow proof allows; a bit less leaves them
    room to grow in training.
    """
    rows = layer.rows
    halved = (rows.shift > 1)[:, None]
    weight = np.where(halved, np.floor(layer.weight / 2 + 0.5), layer.weight).astype(np.int16)
    bias = np.where(halved[:, 0], np.floor(rows.bias / 2 + 0.5), rows.bias).astype(np.int32)
    return replace(
        layer,
        weight=weight,
        rows=replace(rows, bias=bias, shift=rows.shift - halved[:, 0].astype(np.int8)),
    )


class Student(torch.nn.Module):
    """``student(x)``: [B, T, n_in] in the user's units -> [B, T, n_out], each sequence from the
    initial state; float64.

    A model that ends in softmax gives logits, for torch.nn.functional.cross_entropy.
    """

    def __init__(self, model: Model, graph):
        super().__init__()
        self._model = model
        if any(sources != (index,) for index, sources in enumerate(model.sources)):
            raise QuantizeError("fine-tuning knows layers in a chain only: this model branches")
        floats = [*graph.layers, *[None] * (len(model.layers) - len(graph.layers))]
        pairs = zip(model.layers, floats, strict=True)
        self.layers = torch.nn.ModuleList(_trained(layer, source) for layer, source in pairs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes = self._model.quantize(np.asarray(x.detach().cpu(), np.float64))
        return self.codes(torch.from_numpy(codes.astype(np.float64))) * self._output_scale()

    def codes(self, x: torch.Tensor) -> torch.Tensor:
        """The same on integers, held in float64: the model's y_q (before a softmax), bit for bit."""
        *others, last = self.layers
        for layer in others:
            x = sat16(layer(x))
        return last(x)

    def _output_scale(self) -> float:
        return (
            SOFTMAX_SCALE
            if self._model.layers[-1].activation == "softmax"
            else 2.0**-self._model.y_frac
        )

    def model(self) -> Model:
        """The integer model as it is trained now. QuantizeError, naming the layer, when a row could
        overflow.
        """
        layers = tuple(layer.integer() for layer in self.layers)
        for layer in layers:
            failing = proof.failing_rows(*layer.weight_sums(), layer.rows)
            if len(failing):
                raise QuantizeError(
                    f"layer '{layer.name}' row {failing[0]} was trained beyond the overflow "
                    "proof: use a lower learning rate"
                )
        notes = self._model.notes | {"fine_tuned": True}
        return loads(self._model.replace(layers=layers, notes=notes).blob)


# ---- integers with gradients ----


def rounded(x: torch.Tensor) -> torch.Tensor:
    """floor(x + 1/2), with the gradient of x."""
    return x + (torch.floor(x + 0.5) - x).detach()


def rsh(x: torch.Tensor, n) -> torch.Tensor:
    """RSH(x, n) of docs/numerics.md; exact as long as |x| < 2^52."""
    return rounded(x * 2.0**-n)


def sat16(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(-32768, 32767)


class _Lookup(torch.autograd.Function):
    """SIG or TANH at every int16; backwards with the derivative of the function it stands for."""

    @staticmethod
    def forward(ctx, z, table, is_tanh):
        y = table[z.long() + 32768]
        ctx.save_for_backward(y)
        ctx.is_tanh = is_tanh
        return y

    @staticmethod
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        a = y / 32768
        slope = 1 - a * a if ctx.is_tanh else a * (1 - a)
        return gradient * slope * (32768 * Z_SCALE), None, None


ALL_Z = np.arange(-32768, 32768, dtype=np.int64)
SIGMOID = torch.from_numpy(sig(ALL_Z).astype(np.float64))
TANH = torch.from_numpy(tanh(ALL_Z).astype(np.float64))


def sigmoid(z: torch.Tensor) -> torch.Tensor:
    return _Lookup.apply(z, SIGMOID, False)


def tangent(z: torch.Tensor) -> torch.Tensor:
    return _Lookup.apply(z, TANH, True)


class _Weights(torch.nn.Module):
    """Real weights [R, K] behind integers: trained; what a step of each row is worth stays."""

    def __init__(self, q: np.ndarray, source: np.ndarray, steps: np.ndarray, limit: int):
        super().__init__()
        # the float weight, unless rounding chose another integer
        near = np.clip(source / steps, q - INSIDE, q + INSIDE)
        self.weight = torch.nn.Parameter(_tensor(near * steps))
        self.register_buffer("steps", _tensor(steps))
        self.limit = limit

    def integers(self) -> torch.Tensor:
        return rounded(self.weight / self.steps).clamp(-self.limit, self.limit)


class _Bias(torch.nn.Module):
    """Real biases [R] behind integers of ``unit`` each."""

    def __init__(self, q: np.ndarray, unit: np.ndarray):
        super().__init__()
        self.value = torch.nn.Parameter(_tensor(q * unit))
        self.register_buffer("unit", _tensor(unit))

    def integers(self) -> torch.Tensor:
        return rounded(self.value / self.unit).clamp(-(2.0**31) + 1, 2.0**31 - 1)


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(values, np.float64))


# ---- layers ----


def _trained(layer: IntLayer, source) -> torch.nn.Module:
    kinds = {LstmLayer: _Lstm, GruLayer: _Gru, DenseLayer: _Dense, ActivationLayer: _Activation}
    if (
        type(layer) not in kinds
        or layer.packed().extra is not None
        or getattr(layer, "groups", 1) != 1
    ):
        raise QuantizeError(
            f"layer '{layer.name}' ({layer.kind}): fine-tuning knows plain LSTM and GRU cells, "
            "dense layers and activations"
        )
    return kinds[type(layer)](layer, source)


class _Recurrent(torch.nn.Module):
    """Input and hidden weights with the rows of the integer layer; ``_step`` is the cell."""

    def __init__(self, layer: RecurrentLayer, source):
        super().__init__()
        self.layer = layer
        limit = 2 ** (layer.weight_bits - 1) - 1
        step_x, step_h, unit = recurrent_steps(layer)
        self.x = _Weights(layer.w_x.astype(float), source.w_x, step_x, limit)
        self.h = _Weights(layer.w_h.astype(float), source.w_h, step_h, limit)
        self.bias = _Bias(layer.rows.bias, unit)
        for name in ("mult", "shift", "kx"):
            self.register_buffer(name, _tensor(getattr(layer.rows, name)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w_x, w_h, bias = self.x.integers(), self.h.integers(), self.bias.integers()
        sums = x @ w_x.T
        h = c = torch.zeros(*x.shape[:-2], self.layer.n_out, dtype=torch.float64)
        outputs = []
        for t in range(x.shape[-2]):
            h, c = self._step(sums[..., t, :], h @ w_h.T, bias, c)
            outputs.append(h)
        return torch.stack(outputs, dim=-2)

    def _z(self, acc: torch.Tensor, rows: slice) -> torch.Tensor:
        return sat16(rsh(acc * self.mult[rows], self.shift[rows]))

    def _joined(self, ax: torch.Tensor, kx: torch.Tensor) -> torch.Tensor:
        return torch.where(kx >= 0, ax * 2.0**kx, rounded(ax * 2.0**kx))

    def _limited(self, h: torch.Tensor) -> torch.Tensor:
        largest = 2 ** (self.layer.cell.h_bits - 1) - 1
        return h.clamp(-largest, largest)

    def integer(self) -> RecurrentLayer:
        with torch.no_grad():
            w_x, w_h = (weights.integers().numpy().astype(np.int8) for weights in (self.x, self.h))
            bias = self.bias.integers().numpy().astype(np.int32)
        rows = replace(self.layer.rows, bias=bias)
        return replace(self.layer, w_x=w_x, w_h=w_h, rows=rows)


class _Lstm(_Recurrent):
    """docs/numerics.md, "One LSTM step"."""

    def _step(self, ax, ah, bias, c):
        z = self._z(self._joined(ax, self.kx) + ah + bias, slice(None))
        z_i, z_f, z_g, z_o = z.chunk(4, dim=-1)
        c = rsh(sigmoid(z_f) * c, 15) + rsh(sigmoid(z_i) * tangent(z_g), 8)
        c = c.clamp(-(2.0**31), 2.0**31 - 1)
        a = tangent(sat16(rsh(c, 11)))
        return self._limited(rsh(sigmoid(z_o) * a, 30 - self.layer.cell.h_frac)), c


class _Gru(_Recurrent):
    """docs/numerics.md, "One GRU step", reset after the product."""

    def _step(self, ax, ah, bias, s):
        n = self.layer.n_out
        joined = self._joined(ax[..., : 2 * n], self.kx[: 2 * n]) + ah[..., : 2 * n]
        acc = torch.cat([joined, ax[..., 2 * n :], ah[..., 2 * n :]], dim=-1) + bias
        z_r, z_z, nx, nh = self._z(acc, slice(None)).chunk(4, dim=-1)
        r, z = sigmoid(z_r), sigmoid(z_z)
        new = tangent(sat16(nx + rsh(r * nh, 15)))
        s = rsh(z * s, 15) + rsh((32768 - z).clamp(max=32767) * new, 8)
        s = s.clamp(-(2.0**31), 2.0**31 - 1)
        return self._limited(rsh(s, 22 - self.layer.cell.h_frac)), s


def _activated(layer: IntLayer, v: torch.Tensor) -> torch.Tensor:
    if layer.activation == "relu":
        return v.clamp(min=0)
    if layer.activation in ("tanh", "sigmoid"):
        return (tangent if layer.activation == "tanh" else sigmoid)(sat16(v))
    return v


class _Dense(torch.nn.Module):
    def __init__(self, layer: DenseLayer, source):
        super().__init__()
        self.layer = layer
        unit = units(layer, dense_scale(layer))
        self.weights = _Weights(
            layer.weight.astype(float), source.weight, unit[:, None] / layer.x_scale, 32767
        )
        self.bias = _Bias(layer.rows.bias, unit)
        for name in ("mult", "shift"):
            self.register_buffer(name, _tensor(getattr(layer.rows, name)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        acc = x @ self.weights.integers().T + self.bias.integers()
        return _activated(self.layer, rsh(acc * self.mult, self.shift))

    def integer(self) -> DenseLayer:
        with torch.no_grad():
            weight = self.weights.integers().numpy().astype(np.int16)
            bias = self.bias.integers().numpy().astype(np.int32)
        return replace(self.layer, weight=weight, rows=replace(self.layer.rows, bias=bias))


class _Activation(torch.nn.Module):
    def __init__(self, layer: ActivationLayer, _source):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows: Rows = self.layer.rows
        return _activated(self.layer, rsh(x * float(rows.mult[0]), float(rows.shift[0])))

    def integer(self) -> ActivationLayer:
        return self.layer
