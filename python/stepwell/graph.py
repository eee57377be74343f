"""The float graph: what a trained model is, once the exporter's plumbing is taken away.

A graph is a chain of layers, each applied at every timestep. It is what the importer yields, what calibration runs, and the
float side of every accuracy figure. Arrays are float64; gate rows are stacked in the order i, f, g, o (input, forget, cell
candidate, output), which is torch's order and that of the integer specification; the ONNX operator's own order is i, o, f, c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

ACTIVATIONS = ("none", "relu", "tanh", "sigmoid", "softmax")


@dataclass(frozen=True, eq=False)
class Lstm:
    """One unidirectional LSTM layer (Hochreiter & Schmidhuber 1997, with forget gate: Gers et al. 2000).

    Shapes: ``w_x`` [4H, D], ``w_h`` [4H, H], ``bias`` [4H]: the sum of the input and the recurrent bias.
    """

    name: str
    w_x: np.ndarray
    w_h: np.ndarray
    bias: np.ndarray

    @property
    def n_in(self) -> int:
        return self.w_x.shape[1]

    @property
    def n_out(self) -> int:
        return self.w_h.shape[1]


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


Layer = Lstm | Dense | Activation


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

    @property
    def n_in(self) -> int:
        return self.layers[0].n_in

    @property
    def n_out(self) -> int:
        return self.layers[-1].n_out


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


class FloatStream:
    """The float graph as a stream of one or more parallel sequences; leading dimensions of ``x`` are sequences.

    ``observe(layer_index, name, values)`` is called for every quantity a calibration needs: "x" (the layer's input), and for
    an LSTM "h" (the hidden state that enters the step), "z" (pre-activations [..., 4H]) and "c" (the new cell state), for
    the others "y".
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
            if isinstance(layer, Lstm):
                a = self._lstm(index, layer, a)
            elif isinstance(layer, Dense):
                a = activate(a @ layer.weight.T + layer.bias, layer.activation)
                self._observe(index, "y", a)
            else:
                a = activate(a, layer.activation)
                self._observe(index, "y", a)
        return a

    def _lstm(self, index: int, layer: Lstm, x: np.ndarray) -> np.ndarray:
        n = layer.n_out
        zero = np.zeros((*x.shape[:-1], n))
        h, c = self._state.get(index, (zero, zero))
        self._observe(index, "h", h)
        z = x @ layer.w_x.T + h @ layer.w_h.T + layer.bias
        i, f, g, o = (z[..., k * n : (k + 1) * n] for k in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        self._observe(index, "z", z)
        self._observe(index, "c", c)
        self._state[index] = (h, c)
        return h

    def run(self, x: np.ndarray) -> np.ndarray:
        """A whole sequence: ``x`` [..., T, n_in] -> [..., T, n_out]; state carries on from earlier calls."""
        steps = [self.step(x[..., t, :]) for t in range(x.shape[-2])]
        return np.stack(steps, axis=-2)
