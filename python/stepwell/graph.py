"""The float graph: what a trained model is, once the exporter's plumbing is taken away.

A graph is a chain of layers, each applied at every timestep. It is what the importer yields, what calibration runs, and the
float side of every accuracy figure. Arrays are float64; gate rows are stacked in the order i, f, g, o (input, forget, cell
candidate, output), which is torch's order and that of the integer specification; the ONNX operator's own order is i, o, f, c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from stepwell.errors import ImportRefused

ACTIVATIONS = ("none", "relu", "tanh", "sigmoid", "softmax")
SOFTMAX_MAX = 512  # STW_SOFTMAX_MAX


class Recurrent:
    """What the recurrent layers share: ``w_x`` [G*H, D] and ``w_h`` [G*H, H], rows stacked gate by gate."""

    gates: ClassVar[tuple[str, ...]]
    w_x: np.ndarray
    w_h: np.ndarray

    @property
    def n_in(self) -> int:
        return self.w_x.shape[1]

    @property
    def n_out(self) -> int:
        return self.w_h.shape[1]


@dataclass(frozen=True, eq=False)
class Lstm(Recurrent):
    """One unidirectional LSTM layer (Hochreiter & Schmidhuber 1997, with forget gate: Gers et al. 2000).

    Shapes: ``w_x`` [4H, D], ``w_h`` [4H, H], ``bias`` [4H]: the sum of the input and the recurrent bias.
    """

    name: str
    w_x: np.ndarray
    w_h: np.ndarray
    bias: np.ndarray

    gates = ("i", "f", "g", "o")


@dataclass(frozen=True, eq=False)
class Gru(Recurrent):
    """One unidirectional GRU layer (Cho et al. 2014), the reset gate applied after the recurrent product, as in torch and cuDNN.

    Shapes: ``w_x`` [3H, D], ``w_h`` [3H, H], ``bias`` [3H] added to the inputs' part, ``bias_h`` [3H] to the hidden state's part:
    n = tanh(W_n x + b_n + r * (U_n h + bh_n)); for r and z only the sum of both counts.
    """

    name: str
    w_x: np.ndarray
    w_h: np.ndarray
    bias: np.ndarray
    bias_h: np.ndarray

    gates = ("r", "z", "n")


@dataclass(frozen=True, eq=False)
class Rnn(Recurrent):
    """One unidirectional Elman layer (Elman 1990): h = tanh(w_x x + w_h h + bias); ``w_x`` [H, D], ``w_h`` [H, H], ``bias`` [H]."""

    name: str
    w_x: np.ndarray
    w_h: np.ndarray
    bias: np.ndarray

    gates = ("h",)


@dataclass(frozen=True, eq=False)
class Dense:
    """``y = activation(weight @ x + bias)``; ``weight`` [n_out, n_in], ``bias`` [n_out]."""

    name: str
    weight: np.ndarray
    bias: np.ndarray
    activation: str = "none"

    @property
    def n_in(self) -> int:
        return self.weight.shape[1]

    @property
    def n_out(self) -> int:
        return self.weight.shape[0]


@dataclass(frozen=True)
class Activation:
    """An elementwise activation that follows a recurrent layer (a dense layer carries its own)."""

    name: str
    activation: str
    n_in: int

    @property
    def n_out(self) -> int:
        return self.n_in


Layer = Lstm | Gru | Rnn | Dense | Activation


@dataclass(frozen=True)
class Source:
    """Where a graph came from: for provenance lines, never for arithmetic."""

    file: str = ""
    sha256: str = ""
    producer: str = ""
    opset: int = 0


@dataclass(frozen=True)
class Graph:
    """A chain of layers.

    ``readout`` tells which outputs the source model gives: "every" step or the "last" one only. A stream computes the output
    at every step either way. ``notes`` are sentences for the user about what the importer did ("weights were float16").
    """

    layers: tuple[Layer, ...]
    readout: str = "every"
    source: Source = field(default_factory=Source)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ImportRefused, naming the layer, when the chain cannot be run."""
        if not any(isinstance(layer, Recurrent) for layer in self.layers):
            raise ImportRefused("a graph needs at least one recurrent layer")
        for index, layer in enumerate(self.layers):
            is_last = index == len(self.layers) - 1
            reason = _fault(layer) or _activation_fault(layer, is_last)
            if not is_last and layer.n_out != self.layers[index + 1].n_in:
                reason = reason or f"gives {layer.n_out} values, the next layer takes {self.layers[index + 1].n_in}"
            if reason:
                raise ImportRefused(f"layer {index} '{layer.name}': {reason}")

    @property
    def n_in(self) -> int:
        return self.layers[0].n_in

    @property
    def n_out(self) -> int:
        return self.layers[-1].n_out


def _fault(layer: Layer) -> str:
    """What is wrong with a layer's arrays; empty when nothing is."""
    shapes: dict[str, tuple[int, ...]] = {}
    if isinstance(layer, Recurrent):
        rows = len(layer.gates) * layer.w_h.shape[-1]
        shapes = {"w_x": (rows, layer.w_x.shape[-1]), "w_h": (rows, rows // len(layer.gates)), "bias": (rows,)}
        shapes |= {"bias_h": (rows,)} if isinstance(layer, Gru) else {}
    elif isinstance(layer, Dense):
        shapes = {"weight": layer.weight.shape[:2], "bias": layer.weight.shape[:1]}
    for name, shape in shapes.items():
        array = getattr(layer, name)
        if array.shape != shape or array.size == 0:
            return f"{name} has shape {list(array.shape)}, expected {list(shape)}"
        if not np.isfinite(array).all():
            return f"{name} holds NaN or infinity: the training has diverged"
    return "" if 0 < layer.n_in < 65536 and 0 < layer.n_out < 65536 else "more than 65535 inputs or outputs"


def _activation_fault(layer: Layer, is_last: bool) -> str:
    if isinstance(layer, Recurrent):
        return ""
    known = ACTIVATIONS if isinstance(layer, Dense) else ("relu", "tanh", "sigmoid")
    if layer.activation not in known:
        return f"activation '{layer.activation}' is not one of {', '.join(known)}"
    if layer.activation == "softmax" and (not is_last or layer.n_out > SOFTMAX_MAX):
        return f"softmax must come last and have at most {SOFTMAX_MAX} classes"
    return ""


def sigmoid(z: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-z)), computed by way of tanh so that no z overflows."""
    return 0.5 * (1.0 + np.tanh(0.5 * z))


def activate(z: np.ndarray, activation: str) -> np.ndarray:
    """Apply one of ACTIVATIONS; softmax runs over the last axis."""
    if activation == "relu":
        return np.maximum(z, 0.0)
    if activation == "tanh":
        return np.tanh(z)
    if activation == "sigmoid":
        return sigmoid(z)
    if activation == "softmax":
        e = np.exp(z - z.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)
    return z


def lstm_step(layer: Lstm, x: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """New hidden state, new cell state, pre-activations [..., 4H]."""
    z = x @ layer.w_x.T + h @ layer.w_h.T + layer.bias
    i, f, g, o = np.split(z, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c, z


def gru_step(layer: Gru, x: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """New hidden state (twice: a GRU's state is its h), pre-activations [..., 4H]: r, z, and the two parts of n."""
    x_r, x_z, x_n = np.split(x @ layer.w_x.T + layer.bias, 3, axis=-1)
    h_r, h_z, h_n = np.split(h @ layer.w_h.T + layer.bias_h, 3, axis=-1)
    r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
    n = np.tanh(x_n + r * h_n)
    h = z * h + (1.0 - z) * n
    return h, h, np.concatenate([x_r + h_r, x_z + h_z, x_n, h_n], axis=-1)


def rnn_step(layer: Rnn, x: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """New hidden state (twice), pre-activations [..., H]."""
    z = x @ layer.w_x.T + h @ layer.w_h.T + layer.bias
    return np.tanh(z), np.tanh(z), z


class FloatStream:
    """The float graph as a stream of one or more parallel sequences; leading dimensions of ``x`` are sequences.

    ``observe(layer_index, name, values)`` is called for every quantity a calibration needs: "x" (the layer's input), and for
    a recurrent layer "h" (the hidden state that enters the step), "z" (pre-activations) and "c" (the new cell state; for a GRU
    or RNN its new h), for the others "y".
    """

    def __init__(self, graph: Graph, observe: Callable[[int, str, np.ndarray], None] | None = None):
        self.graph = graph
        self._observe = observe or (lambda index, name, values: None)
        self.reset()

    def reset(self) -> None:
        self._state: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def step(self, x: np.ndarray) -> np.ndarray:
        """One timestep: ``x`` [..., n_in] -> [..., n_out]."""
        a = np.asarray(x, dtype=np.float64)
        for index, layer in enumerate(self.graph.layers):
            self._observe(index, "x", a)
            if isinstance(layer, Recurrent):
                a = self._recurrent(index, layer, a)
            elif isinstance(layer, Dense):
                a = activate(a @ layer.weight.T + layer.bias, layer.activation)
                self._observe(index, "y", a)
            else:
                a = activate(a, layer.activation)
                self._observe(index, "y", a)
        return a

    def _recurrent(self, index: int, layer: Lstm | Gru | Rnn, x: np.ndarray) -> np.ndarray:
        zero = np.zeros((*x.shape[:-1], layer.n_out))
        h, c = self._state.get(index, (zero, zero))
        self._observe(index, "h", h)
        step = {Lstm: lstm_step, Gru: gru_step, Rnn: rnn_step}[type(layer)]
        h, c, z = step(layer, x, h, c)
        self._observe(index, "z", z)
        self._observe(index, "c", c)
        self._state[index] = (h, c)
        return h

    def run(self, x: np.ndarray) -> np.ndarray:
        """A whole sequence: ``x`` [..., T, n_in] -> [..., T, n_out]; state carries on from earlier calls."""
        steps = [self.step(x[..., t, :]) for t in range(x.shape[-2])]
        return np.stack(steps, axis=-2)
