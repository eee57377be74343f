"""Values on their way through an ONNX graph, and the float graph that grows behind them.

A *signal* is data: one value of the float graph, and which of the ONNX tensor's axes is which. An
axis is a product of atoms (axes of the model's input, directions, features, unit axes), so that
transposes, reshapes, squeezes and flattenings are followed exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import helper

from stepwell.errors import ImportRefused
from stepwell.layers import Layer, Slice

DIRECT = "give stepwell.convert the torch module or Keras model itself: its weights are read, the graph is not needed"
FEATURES = ("direction", "feature")  # atoms that hold the values of one step, in this order


@dataclass(frozen=True)
class Atom:
    """A piece of an axis: "in0".. for axes of the model's input, "direction", "feature", or "unit"
    (size 1).
    """

    label: str
    size: int


Axis = tuple[Atom, ...]
UNIT: Axis = (Atom("unit", 1),)


@dataclass(frozen=True)
class Signal:
    """Data on its way: ``value`` of the float graph (0 the input).

    ``time``: label of the time axis, once known; ``last``: time has been reduced to the last step;
    ``state``: a recurrent layer's final state, "h" or "c"; ``flipped``: time runs backwards;
    ``padded`` and ``behind``: steps of zeros put in front and after the end, for the next
    convolution.
    """

    axes: tuple[Axis, ...]
    value: int = 0
    time: str = ""
    last: bool = False
    state: str = ""
    flipped: bool = False
    padded: int = 0
    behind: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(prod(atom.size for atom in axis) for axis in self.axes)

    @property
    def labels(self) -> list[tuple[str, ...]]:
        """Labels of each axis, unit atoms left out."""
        return [tuple(atom.label for atom in axis if atom.label != "unit") for axis in self.axes]

    @property
    def n_features(self) -> int:
        return prod(atom.size for axis in self.axes for atom in axis if atom.label in FEATURES)

    def axis(self, index: int) -> int:
        """A non-negative axis number."""
        return index % len(self.axes)

    @property
    def feature_axis(self) -> int:
        """The one axis that holds all features; -1 when they are spread or mixed."""
        found = [k for k, labels in enumerate(self.labels) if set(labels) & set(FEATURES)]
        whole = tuple(label for label in FEATURES if any(label in labels for labels in self.labels))
        return found[0] if len(found) == 1 and self.labels[found[0]] == whole else -1

    @property
    def time_axis(self) -> int:
        """The axis that is time and nothing else; -1 when there is none."""
        return next((k for k, labels in enumerate(self.labels) if labels == (self.time,)), -1)

    def steps(self) -> int:
        """Size of the time axis."""
        return self.shape[self.time_axis]


@dataclass(frozen=True)
class StateStack:
    """Final states of several layers, concatenated along their first axis, as torch's h_n."""

    parts: tuple[Signal, ...]

    def entries(self) -> list[tuple[Signal, int]]:
        """Each entry of the first axis: the part it is in, and its place there."""
        return [(part, k) for part in self.parts for k in range(part.shape[0])]


@dataclass(frozen=True)
class Partial:
    """A step on the way of a pattern that several nodes write: a layer norm, an attention.

    ``stage``: "mean", "centred", "squared", "variance", "deviation" of a layer norm over ``x``;
    "scores", "weights" and "weighted" of an attention, whose scores belong to ``x`` (and ``key``),
    its values to ``y``. ``number``: epsilon, or the scale of the scores.
    """

    stage: str
    x: Signal
    number: float = 0.0
    key: Signal | None = None
    y: Signal | None = None
    axes: tuple[Axis, ...] = ()


Value = np.ndarray | Signal | StateStack | Partial | None


@dataclass
class Walk:
    """The state of a walk: values by name, and the layers made so far with the values they read."""

    model: onnx.ModelProto
    values: dict[str, Value] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    # graph inputs that are neither data nor state
    stray_inputs: set[str] = field(default_factory=set)
    node: onnx.NodeProto | None = None
    folded_values: float = 0  # made by computing constants, so far
    # labels of input axes whose size is not fixed
    dynamic_axes: set[str] = field(default_factory=set)
    layers: list[Layer] = field(default_factory=list)
    sources: list[tuple[int, ...]] = field(default_factory=list)

    def refuse(self, reason: str) -> ImportRefused:
        """The error for the node at hand."""
        node = self.node
        assert node is not None
        name = (
            f"node '{node.name}'"
            if node.name
            else f"the node that makes '{next(iter(node.output), '')}'"
        )
        return ImportRefused(f"{name} ({node.op_type}): {reason}")

    @property
    def name(self) -> str:
        """What layers made from the node at hand are called."""
        return self.node.name or next(iter(self.node.output), "") or self.node.op_type.lower()

    @property
    def opset(self) -> int:
        return next(
            entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")
        )

    def attribute(self, name: str, default: Any = None) -> Any:
        for attribute in self.node.attribute:
            if attribute.name == name:
                return helper.get_attribute_value(attribute)
        return default

    def inputs(self) -> list[Value]:
        found = []
        for name in self.node.input:
            if name in self.stray_inputs:
                raise self.refuse(
                    f"it reads '{name}', an input of the graph that is neither the data nor an "
                    "initial state: store weights in the file"
                )
            if name and name not in self.values:
                raise self.refuse(
                    f"its input '{name}' does not exist or is made later: the graph has a cycle "
                    "or is not sorted"
                )
            found.append(self.values[name] if name else None)
        return found

    def constant(self, value: Value, what: str) -> np.ndarray:
        if not isinstance(value, np.ndarray):
            raise self.refuse(f"{what} must be a constant: store it as an initializer")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise self.refuse(f"{what} holds NaN or infinity: the training has diverged")
        return value

    def signal(self, x: Value) -> Signal:
        if isinstance(x, Partial):
            raise self.refuse(
                "is inside something that looks like a layer norm or an attention and is neither: "
                "attention over a fixed window "
                "(softmax over time, then a weighted sum over time) and LayerNorm over the "
                "features are supported"
            )
        if not isinstance(x, Signal):
            raise self.refuse(
                "final states of several layers are mixed here: read the output or the last "
                "layer's state"
            )
        return x

    # ---- the float graph ----

    def layer_of(self, x: Signal) -> Layer | None:
        """The layer that makes a signal; None for the model's input."""
        return self.layers[x.value - 1] if x.value else None

    def added(self, layer: Layer, *sources: int) -> int:
        """The value that a new layer makes of other values."""
        self.layers.append(layer)
        self.sources.append(sources)
        return len(self.layers)

    def replaced(self, x: Signal, layer: Layer) -> Signal:
        """``x`` as another layer with the same sources makes it; the first one goes if nobody else
        reads it.
        """
        return replace(x, value=self.added(layer, *self.sources[x.value - 1]))

    def extended(self, x: Signal, layer: Layer) -> Signal:
        """A layer behind a signal whose features are one axis: they become the layer's outputs."""
        axes = list(x.axes)
        axes[x.feature_axis] = (Atom("feature", layer.n_out),)
        return replace(x, axes=tuple(axes), value=self.added(layer, x.value), state="")

    def sliced(self, x: Signal, start: int, n: int, axis: Axis) -> Signal:
        """Some of a signal's features, as the axis ``axis`` in place of its features' axis."""
        axes = list(x.axes)
        axes[x.feature_axis] = axis
        layer = Slice(self.name, x.n_features, start, n)
        return replace(x, axes=tuple(axes), value=self.added(layer, x.value), state="")


def live_layers(w: Walk, output: int) -> tuple[tuple[Layer, ...], tuple[tuple[int, ...], ...]]:
    """The layers that value ``output`` needs, and their sources, numbered anew; the last one makes
    it.
    """
    needed: set[int] = set()
    todo = [output]
    while todo:
        value = todo.pop()
        if value and value not in needed:
            needed.add(value)
            todo.extend(w.sources[value - 1])
    order = sorted(needed)
    number = {0: 0} | {value: k for k, value in enumerate(order, start=1)}
    layers = tuple(w.layers[value - 1] for value in order)
    return layers, tuple(tuple(number[s] for s in w.sources[value - 1]) for value in order)


def upstream_layers(w: Walk, value: int) -> Iterator[Layer]:
    """The layers that a value comes from, nearest first."""
    layers, _ = live_layers(w, value)
    yield from reversed(layers)
