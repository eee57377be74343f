"""The float graph as a stream: what calibration observes, and the float side of every comparison."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stepwell.functions import as_function, softmax
from stepwell.graph import (
    Activation,
    Add,
    ArgMax,
    Attention,
    Concat,
    Dense,
    Embedding,
    Graph,
    Gru,
    Layer,
    LayerNorm,
    Lstm,
    MaxPool,
    Mul,
    Recurrent,
    Rnn,
    Slice,
    Window,
)
from stepwell.mode import Mode, run_windows

Array = np.ndarray


def run_in_mode(graph: Graph, mode: Mode, x: Array) -> Array:
    """The float graph over whole sequences in a mode: ``x`` [..., T, n_in], normalised -> [..., T, n_out]."""
    graph = graph.in_mode(mode)
    if mode.kind == "carry":
        return FloatStream(graph).run(x)

    def from_reset(window: Array, held: Array) -> Array:
        stream = FloatStream(graph)
        stream._held = held
        return stream.run(window)

    return run_windows(mode, from_reset, x, 0, 0, np.zeros((*x.shape[:-2], graph.n_out)))


Step = tuple[Array, Array, Array]  # new hidden state, new cell state, pre-activations


def lstm_step(layer: Lstm, x: Array, h: Array, c: Array) -> Step:
    """One step of shapes [..., D], [..., n_out], [..., H]; pre-activations [..., 4H]."""
    gate, candidate, output = (as_function(f) for f in layer.functions)
    z = x @ layer.w_x.T + h @ layer.w_h.T + layer.bias
    z_i, z_f, z_g, z_o = np.split(z, 4, axis=-1)
    p_i, p_f, p_o = np.split(layer.peephole, 3) if layer.peephole is not None else (0.0, 0.0, 0.0)
    i = gate(_clipped(layer, z_i + p_i * c))
    f = 1.0 - i if layer.coupled else gate(_clipped(layer, z_f + p_f * c))
    c_new = f * c + i * candidate(_clipped(layer, z_g))
    o_in = _clipped(layer, z_o + p_o * c_new)
    h_new = gate(o_in) * output(c_new)
    z = np.concatenate([z_i + p_i * c, z_f + p_f * c, z_g, z_o + p_o * c_new], axis=-1)
    return (h_new if layer.projection is None else h_new @ layer.projection.T), c_new, z


def gru_step(layer: Gru, x: Array, h: Array, c: Array) -> Step:
    """A GRU's state is its h, given twice. Pre-activations: r, z and n, which has two parts where the reset comes after."""
    gate, candidate = (as_function(f) for f in layer.functions)
    x_r, x_z, x_n = np.split(x @ layer.w_x.T + layer.bias, 3, axis=-1)
    u_r, u_z, u_n = np.split(layer.w_h, 3)
    b_r, b_z, b_n = np.split(layer.bias_h, 3)
    z_r, z_z = x_r + h @ u_r.T + b_r, x_z + h @ u_z.T + b_z
    r, z = gate(_clipped(layer, z_r)), gate(_clipped(layer, z_z))
    if layer.reset_after:
        h_n = h @ u_n.T + b_n
        parts, n_in = [x_n, h_n], x_n + r * h_n
    else:
        n_in = x_n + (r * h) @ u_n.T + b_n
        parts = [n_in]
    h = z * h + (1.0 - z) * candidate(_clipped(layer, n_in))
    return h, h, np.concatenate([z_r, z_z, *parts], axis=-1)


def rnn_step(layer: Rnn, x: Array, h: Array, c: Array) -> Step:
    """The new hidden state, twice; pre-activations [..., H]."""
    z = x @ layer.w_x.T + h @ layer.w_h.T + layer.bias
    h = as_function(layer.functions[0])(_clipped(layer, z))
    return h, h, z


def _clipped(layer: Recurrent, z: Array) -> Array:
    return np.clip(z, -layer.clip, layer.clip)


STEPS: dict[type, Callable[..., Step]] = {Lstm: lstm_step, Gru: gru_step, Rnn: rnn_step}
Observer = Callable[[int, str, Array], None]


class FloatStream:
    """The float graph as a stream of one or more parallel sequences; leading dimensions of ``x`` are sequences.

    A graph of windows (``Graph.window``) runs over one of them: with its last step comes all that the layers make of the zeros
    after its end, and the next one needs a reset.

    ``observe(layer_index, name, values)`` is called for every quantity a calibration needs, values [..., steps, width]: "x" (the
    layer's input; "x0", "x1", .. where it reads several), and for a recurrent layer "h" (the hidden state that enters each step),
    "z" (pre-activations), "c" (the new cell state; for a GRU or RNN its new h) and "y" (its output), for the others "v" (before the
    activation) where there is one, and "y".
    """

    def __init__(self, graph: Graph, observe: Observer | None = None):
        self.graph = graph
        self._observer = observe
        self._pads_lowest = any(isinstance(layer, Window) and layer.lowest for layer in graph.layers)
        self.reset()

    def reset(self) -> None:
        self._steps = 0
        self._ends = False  # whether the window's end is in this call
        self._state: dict[int, tuple[Array, ...]] = {}
        self._held: Array | None = None

    def _observe(self, index: int, name: str, values: Array) -> None:
        if self._observer and values.size:
            self._observer(index, name, np.where(np.isneginf(values), 0.0, values) if self._pads_lowest else values)

    @property
    def steps(self) -> int:
        """Steps since the reset."""
        return self._steps

    def step(self, x: Array) -> Array:
        """One timestep: ``x`` [..., n_in] -> [..., n_out]."""
        return self.run(np.asarray(x, dtype=np.float64)[..., None, :])[..., 0, :]

    def run(self, x: Array) -> Array:
        """A whole sequence: ``x`` [..., T, n_in] -> [..., T, n_out]; state carries on from earlier calls.

        Where the graph has strides or a warm-up, steps without a new output repeat the last one (zeros before the first). A layer
        that reads backwards takes this call's steps for its window.
        """
        return self._spread(self._made(x), x.shape[-2])

    def outputs(self, x: Array) -> Array:
        """As ``run``, but all that the last layer makes and nothing else: [..., n, n_out]."""
        y = self._made(x)
        self._spread(y, x.shape[-2])
        return y

    def _made(self, x: Array) -> Array:
        """What the last layer makes of some more steps."""
        values = [np.asarray(x, dtype=np.float64)]
        end = self._steps + x.shape[-2]
        if 0 < self.graph.window < end:
            raise ValueError(f"{end} steps of a window of {self.graph.window}: reset first")
        self._ends = 0 < self.graph.window == end
        for index, layer in enumerate(self.graph.layers):
            inputs = [values[value] for value in self.graph.sources[index]]
            for name, a in zip(["x"] if len(inputs) == 1 else ["x0", "x1", "x2"], inputs, strict=False):
                self._observe(index, name, a)
            y = RUNS[type(layer)](self, index, layer, *inputs)
            self._observe(index, "y", y)
            values.append(y)
        return values[-1]

    def _spread(self, y: Array, n_steps: int) -> Array:
        """Outputs at the steps at which they are made, held in between; after a window's last step the last of all."""
        timing = self.graph.timing[-1]
        if self._held is None:
            self._held = np.zeros((*y.shape[:-2], y.shape[-1]))
        before = timing.runs(self._steps)
        runs = np.array([timing.runs(self._steps + k + 1) - before for k in range(n_steps)], int)
        runs[-1:] = y.shape[-2] if self._ends else runs[-1:]
        self._steps += n_steps
        y = np.concatenate([self._held[..., None, :], y], axis=-2)
        self._held = y[..., -1, :]
        return y[..., runs, :]

    # ---- the layers over a stretch of steps: [..., steps, width] -> [..., steps, n_out] ----

    def _recurrent(self, index: int, layer: Recurrent, x: Array) -> Array:
        lead = x.shape[:-2]
        c0 = layer.c0 if isinstance(layer, Lstm) else layer.h0
        start = [np.zeros(n) if v is None else v for v, n in ((layer.h0, layer.n_out), (c0, layer.n_units))]
        h, c = self._state.get(index, tuple(np.broadcast_to(v, (*lead, len(v))) for v in start))
        if layer.reverse:
            h, c = (np.broadcast_to(v, (*lead, len(v))) for v in start)
        n_steps = x.shape[-2]
        seen: dict[str, list[Array]] = {name: [] for name in "hzcy"}
        for t in range(n_steps)[:: -1 if layer.reverse else 1]:
            seen["h"].append(h)
            h, c, z = STEPS[type(layer)](layer, x[..., t, :], h, c)
            for name, value in (("z", z), ("c", c), ("y", h)):
                seen[name].append(value)
        self._state[index] = (h, c)
        if not n_steps:
            return np.zeros((*lead, 0, layer.n_out))
        stacked = {n: np.stack(v[:: -1 if layer.reverse else 1], axis=-2) for n, v in seen.items()}
        for name in "hzc":
            self._observe(index, name, stacked[name])
        return np.repeat(h[..., None, :], n_steps, axis=-2) if layer.final else stacked["y"]

    def _activated(self, index: int, layer: Layer, v: Array) -> Array:
        self._observe(index, "v", v)
        return as_function(layer.activation)(v)

    def _dense(self, index: int, layer: Dense, x: Array) -> Array:
        return self._activated(index, layer, layer.product(x) + layer.bias)

    def _add(self, index: int, layer: Add, a: Array, b: Array) -> Array:
        return self._activated(index, layer, layer.weights[0] * a + layer.weights[1] * b)

    def _mul(self, index: int, layer: Mul, a: Array, b: Array) -> Array:
        return self._activated(index, layer, a * b)

    def _concat(self, index: int, layer: Concat, a: Array, b: Array) -> Array:
        return np.concatenate([a, b], axis=-1)

    def _slice(self, index: int, layer: Slice, x: Array) -> Array:
        return x[..., layer.start : layer.start + layer.n_out]

    def _max_pool(self, index: int, layer: MaxPool, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], layer.n_out, layer.taps).max(axis=-1)

    def _layer_norm(self, index: int, layer: LayerNorm, x: Array) -> Array:
        d = x - x.mean(axis=-1, keepdims=True)
        n = d / np.sqrt((d**2).mean(axis=-1, keepdims=True) + layer.epsilon)
        return layer.gamma * n + layer.beta

    def _embedding(self, index: int, layer: Embedding, x: Array) -> Array:
        tokens = np.clip(x, 0, len(layer.table) - 1).astype(int)
        return layer.table[tokens].reshape(*x.shape[:-1], layer.n_out)

    def _arg_max(self, index: int, layer: ArgMax, x: Array) -> Array:
        return np.argmax(x, axis=-1)[..., None].astype(np.float64)

    def _window(self, index: int, layer: Window, x: Array) -> Array:
        before = np.full((*x.shape[:-2], layer.span - 1, layer.n_in), layer.edge)
        past, seen = self._state.get(index, (before, 0))
        after = np.full((*x.shape[:-2], layer.ahead if self._ends else 0, layer.n_in), layer.edge)
        known = np.concatenate([past, x, after], axis=-2)
        runs = range(seen, seen + known.shape[-2] - (layer.span - 1))  # of the source
        self._state[index] = (known[..., known.shape[-2] - (layer.span - 1) :, :], seen + x.shape[-2])
        places = [k - seen for k in runs if k >= layer.delay and (k - layer.delay) % layer.stride == 0]
        taps = np.array([[p + k * layer.dilation for k in range(layer.taps)] for p in places], int).reshape(
            -1, layer.taps
        )
        return known[..., taps, :].swapaxes(-1, -2).reshape(*x.shape[:-2], len(places), layer.n_out)

    def _attention(self, index: int, layer: Attention, *inputs: Array) -> Array:
        query, key, value = inputs if layer.form != "score" else (inputs[0], *inputs)
        empty = [np.zeros((*a.shape[:-2], 0, a.shape[-1])) for a in (key, value)]
        keys, values = self._state.get(index, tuple(empty))
        first = keys.shape[-2]
        keys, values = np.concatenate([keys, key], axis=-2), np.concatenate([values, value], axis=-2)
        contexts = []
        for t in range(query.shape[-2]):
            last = first + t + 1
            seen = slice(max(0, last - layer.steps), last)
            weights = softmax(self._scores(layer, query[..., t, :], keys[..., seen, :]))
            contexts.append((weights[..., None] * values[..., seen, :]).sum(axis=-2))
        keep = slice(max(0, keys.shape[-2] - layer.steps + 1), None)
        self._state[index] = (keys[..., keep, :], values[..., keep, :])
        return np.stack(contexts, axis=-2) if contexts else np.zeros((*value.shape[:-2], 0, layer.n_out))

    @staticmethod
    def _scores(layer: Attention, query: Array, keys: Array) -> Array:
        """[..., D] and [..., N, D] -> [..., N]"""
        if layer.form == "score":
            return layer.scale * keys[..., 0]
        if layer.form == "dot":
            return layer.scale * (query[..., None, :] * keys).sum(axis=-1)
        return layer.scale * np.tanh(query[..., None, :] + keys) @ layer.weight


RUNS: dict[type, Callable[..., Array]] = {
    Lstm: FloatStream._recurrent,
    Gru: FloatStream._recurrent,
    Rnn: FloatStream._recurrent,
    Dense: FloatStream._dense,
    Activation: lambda stream, index, layer, x: stream._activated(index, layer, x),
    Add: FloatStream._add,
    Mul: FloatStream._mul,
    Concat: FloatStream._concat,
    Slice: FloatStream._slice,
    MaxPool: FloatStream._max_pool,
    LayerNorm: FloatStream._layer_norm,
    Embedding: FloatStream._embedding,
    ArgMax: FloatStream._arg_max,
    Window: FloatStream._window,
    Attention: FloatStream._attention,
}
