"""Layers over a stretch of steps, float or integer, and the float graph as a stream.

Calibration observes the float graph here. It is the float side of every comparison, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from stepwell.graph import Graph
from stepwell.layers.base import IntLayer, Layer, Timing, Turn
from stepwell.windowing import Mode, run_windows

Array = np.ndarray
Observer = Callable[[int, str, Array], None]  # (layer, quantity, values [..., steps, width])


class LayerStream:
    """What the layers keep from one stretch of steps to the next.

    ``sources``: for each layer the values it reads. ``timing``: the steps at which it runs.
    ``observe``: sees each layer's inputs "x" ("x0", "x1", .. of several sources), its output "y",
    and what the layer itself lets see.
    """

    def __init__(
        self,
        layers: Sequence[Layer] | Sequence[IntLayer],
        sources: Sequence[tuple[int, ...]],
        timing: Sequence[Timing],
        observe: Observer | None = None,
    ):
        self._layers, self._sources, self._timing = layers, sources, timing
        self._observer = observe
        self.reset()

    def reset(self) -> None:
        """No step seen, the initial state in every layer."""
        self.steps = 0
        self.state: dict[int, tuple[Any, ...]] = {}

    def run(self, x: Array, ends: bool = False) -> Array:
        """[..., steps, n_in] -> [..., runs, n_out]; ``ends``: a window ends with these steps."""
        values = [x]
        for index, layer in enumerate(self._layers):
            inputs = [values[value] for value in self._sources[index]]
            turn = self._turn(index, ends)
            for name, a in zip(_names(len(inputs)), inputs, strict=True):
                turn.observe(name, a)
            values.append(layer.run(turn, *inputs))
            turn.observe("y", values[-1])
            self.state[index] = turn.state
        self.steps += x.shape[-2]
        return values[-1]

    def _turn(self, index: int, ends: bool) -> Turn:
        is_last = index == len(self._layers) - 1
        turn = Turn(self.state.get(index), due=self._due(index), ends=ends, is_last=is_last)
        if self._observer:
            turn.observe = partial(self._observe, index)
        return turn

    def _observe(self, index: int, name: str, values: Array) -> None:
        if values.size:
            self._observer(index, name, values)

    def _due(self, index: int) -> Callable[[int], bool]:
        own, first_source = self._timing[index], self._sources[index][0]
        source = self._timing[first_source - 1] if first_source else Timing()
        before = source.runs(self.steps)
        return lambda k: own.at(source.first + (before + k) * source.every)


def _names(n_sources: int) -> list[str]:
    return ["x"] if n_sources == 1 else [f"x{k}" for k in range(n_sources)]


# ---- the float graph ----


def run_in_mode(graph: Graph, mode: Mode, x: Array) -> Array:
    """The float graph over whole sequences in a mode: ``x`` [..., T, n_in], normalised -> [..., T,
    n_out].
    """
    graph = graph.in_mode(mode)
    if mode.kind == "carry":
        return FloatStream(graph).run(x)

    def from_reset(window: Array, held: Array) -> Array:
        stream = FloatStream(graph)
        stream._held = held
        return stream.run(window)

    return run_windows(mode, from_reset, x, 0, 0, np.zeros((*x.shape[:-2], graph.n_out)))


class FloatStream:
    """The float graph as a stream of one or more parallel sequences; leading dimensions of ``x``
    are sequences.

    A graph of windows (``Graph.window``) runs over one of them: with its last step comes all that
    the layers make of the zeros after its end, and the next one needs a reset.

    ``observe(layer_index, name, values)`` is called for every quantity a calibration needs, values
    [..., steps, width]: "x" (the layer's input; "x0", "x1", .. where it reads several), and for a
    recurrent layer "h" (the hidden state that enters each step), "z" (pre-activations), "c" (the
    new cell state; for a GRU or RNN its new h) and "y" (its output), for the others "v" (before the
    activation) where there is one, and "y".
    """

    def __init__(self, graph: Graph, observe: Observer | None = None):
        self.graph = graph
        if observe and any(layer.lowest for layer in graph.layers):
            observe = _without_lowest(observe)
        self._layers = LayerStream(graph.layers, graph.sources, graph.timing, observe)
        self._held: Array | None = None

    def reset(self) -> None:
        self._layers.reset()
        self._held = None

    @property
    def steps(self) -> int:
        """Steps since the reset."""
        return self._layers.steps

    def step(self, x: Array) -> Array:
        """One timestep: ``x`` [..., n_in] -> [..., n_out]."""
        return self.run(np.asarray(x, dtype=np.float64)[..., None, :])[..., 0, :]

    def run(self, x: Array) -> Array:
        """A whole sequence: ``x`` [..., T, n_in] -> [..., T, n_out]; state carries on from earlier
        calls.

        Where the graph has strides or a warm-up, steps without a new output repeat the last one
        (zeros before the first). A layer that reads backwards takes this call's steps for its
        window.
        """
        return self._run(x)[0]

    def outputs(self, x: Array) -> Array:
        """As ``run``, but all that the last layer makes and nothing else: [..., n, n_out]."""
        return self._run(x)[1]

    def _run(self, x: Array) -> tuple[Array, Array]:
        """What ``run`` and ``outputs`` give."""
        before, window = self.steps, self.graph.window
        end = before + x.shape[-2]
        if 0 < window < end:
            raise ValueError(f"{end} steps of a window of {window}: reset first")
        ends = 0 < window == end
        made = self._layers.run(np.asarray(x, dtype=np.float64), ends)
        if self._held is None:
            self._held = np.zeros((*made.shape[:-2], made.shape[-1]))
        y = at_steps(self._held, made, self.graph.timing[-1], before, end, ends)
        if y.shape[-2]:
            self._held = y[..., -1, :]
        return y, made


def at_steps(held: Array, made: Array, timing: Timing, before: int, end: int, ends: bool) -> Array:
    """The output at each of the steps ``before`` .. ``end``, held where none is new.

    ``held`` [..., n_out]: the one before them. ``made`` [..., runs, n_out]: what the last layer
    made in them, if it runs as ``timing`` tells. ``ends``: a window ends with them, and with its
    last step comes all that follows.
    """
    runs = [timing.runs(step + 1) - timing.runs(before) for step in range(before, end)]
    if ends and runs:
        runs[-1] = made.shape[-2]
    return np.concatenate([held[..., None, :], made], axis=-2)[..., runs, :]


def _without_lowest(observe: Observer) -> Observer:
    """What stands for minus infinity is no value to calibrate on."""

    def masked(index: int, name: str, values: Array) -> None:
        observe(index, name, np.where(np.isneginf(values), 0.0, values))

    return masked
