"""What the handlers speak of: values in the graph that stand for Keras tensors, and the calls that
make them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from stepwell.layers import Layer
from stepwell.text import printable


class Refusal(Exception):
    """Why a handler cannot take a layer; whoever called it adds the layer's name."""


@dataclass(frozen=True, eq=False)
class Value:
    """A Keras tensor: [batch, T, *inner] where ``timed``, else [batch, *inner], what holds when the
    sequence has ended.

    ``index``: of the graph's value. ``steps``: T, None where it is dynamic. ``waits``: the name of
    a layer that means something only together with the next one: "ZeroPadding1D" (``padded`` zeros
    in front, ``behind`` after the end), "Flatten" of a whole sequence (``order``: for each value in
    Keras' order its place in the graph's), "Softmax" over time (still the scores), "Weighted"
    (``scores`` times it).
    """

    index: int
    inner: tuple[int, ...]
    timed: bool = True
    steps: int | None = None
    waits: str = ""
    padded: int = 0
    behind: int = 0
    order: np.ndarray | None = None
    scores: int = 0

    @property
    def size(self) -> int:
        return prod(self.inner)

    @property
    def rank(self) -> int:
        """Of the Keras tensor, the batch included."""
        return 1 + self.timed + len(self.inner)

    @property
    def width(self) -> int:
        """Features, where they are all that there is at a step."""
        if not self.inner:
            raise Refusal(
                "it reads [batch, T] without features: put keras.layers.Reshape((T, 1)) in front"
            )
        if self.size != self.inner[-1]:
            raise Refusal(
                f"it reads values of shape {list(self.inner)} at a step: flatten them first"
            )
        return self.inner[-1]

    def ended(self) -> Value:
        """What it is when the sequence has ended."""
        return replace(self, timed=False, steps=None)


@dataclass
class Builder:
    """The graph as it grows."""

    layers: list[Layer] = field(default_factory=list)
    sources: list[tuple[int, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def put(self, layer: Layer, *reads: int) -> int:
        """Append a layer that reads these values; returns the value that it makes."""
        self.layers.append(layer)
        self.sources.append(reads)
        return len(self.layers)


@dataclass(frozen=True)
class Call:
    """One call of a Keras layer or operation: the values it reads and the shapes of the tensors it
    makes, batch first.

    ``run(layer, inputs, shapes)`` applies a layer within the layer, and gives the values that it
    makes.
    """

    builder: Builder
    layer: object
    inputs: tuple[Value, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    run: Callable[..., list[Value | None]]
    args: tuple = ()
    kwargs: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        return printable(self.layer.name)

    @property
    def x(self) -> Value:
        """The one input."""
        if len(self.inputs) != 1:
            raise Refusal(f"it reads {len(self.inputs)} tensors where one is understood")
        return self.inputs[0]

    @property
    def sequence(self) -> Value:
        """The one input, which must be [batch, T, features]."""
        if not self.x.timed:
            raise Refusal(
                "it needs a sequence, but the layers before it end one (return_sequences=False?)"
            )
        return replace(self.x, inner=(self.x.width,))

    def put(self, layer: Layer, *reads: int) -> int:
        return self.builder.put(layer, *reads)

    def note(self, sentence: str) -> None:
        self.builder.notes.append(f"layer '{self.name}': {sentence}")


Handler = Callable[[Call], Value | list[Value | None]]


def numbers(weight) -> np.ndarray:
    """A Keras variable or tensor as float64."""
    import keras

    return np.asarray(keras.ops.convert_to_numpy(weight), dtype=np.float64)


def numbers_or(weight, shape: int | tuple[int, ...], value: float = 0.0) -> np.ndarray:
    """The same, with a constant where the layer does without."""
    return np.full(shape, value) if weight is None else numbers(weight)


def is_last_axis(axis: int | list[int] | tuple[int, ...], x: Value) -> bool:
    """Whether an axis, or a list of one, is that of the features."""
    axes = list(axis) if isinstance(axis, list | tuple) else [axis]
    return len(axes) == 1 and axes[0] % x.rank == x.rank - 1
