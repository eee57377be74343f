"""Fewer layers for the same values: activations and scales go into the layer before, what no output
needs goes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from stepwell.layers import Activation, Add, Dense, Layer, Mul

Sources = list[tuple[int, ...]]


def fused(
    layers: list[Layer], sources: Sources, output: int
) -> tuple[tuple[Layer, ...], tuple[tuple[int, ...], ...]]:
    """The layers that ``output`` needs, in order, which makes its layer the last one."""
    layers, sources = list(layers), list(sources)
    alias = list(range(len(layers) + 1))  # where a value is to be found
    readers = Counter(value for reads in sources for value in reads)
    for index, layer in enumerate(layers):
        sources[index] = tuple(alias[value] for value in sources[index])
        before = sources[index][0]
        if before and len(sources[index]) == 1 and readers[before] == 1 and before != output:
            joined = _joined(layers[before - 1], layer)
            if joined:
                layers[before - 1], alias[index + 1] = joined, before
                readers[before] = readers[index + 1]
    return _needed(layers, sources, alias[output])


def _joined(before: Layer, layer: Layer) -> Layer | None:
    """One layer for two, or None."""
    if getattr(before, "activation", None) != "none":
        return None
    if isinstance(layer, Activation) and isinstance(before, Dense | Add | Mul):
        return replace(before, activation=layer.activation)
    if (
        isinstance(layer, Dense)
        and isinstance(before, Dense)
        and layer.groups == layer.n_in == layer.n_out
    ):
        scale = layer.weight[:, 0]
        bias = scale * before.bias + layer.bias
        return replace(
            before, weight=scale[:, None] * before.weight, bias=bias, activation=layer.activation
        )
    return None


def ancestors(sources: Sources, values: list[int]) -> set[int]:
    """All values that these are made of, themselves included."""
    found, todo = set(), list(values)
    while todo:
        value = todo.pop()
        if value not in found:
            found.add(value)
            todo.extend(sources[value - 1] if value else ())
    return found


def _needed(
    layers: list[Layer], sources: Sources, output: int
) -> tuple[tuple[Layer, ...], tuple[tuple[int, ...], ...]]:
    kept = sorted(ancestors(sources, [output]) - {0})
    place = {0: 0} | {value: k + 1 for k, value in enumerate(kept)}
    return tuple(layers[v - 1] for v in kept), tuple(
        tuple(place[r] for r in sources[v - 1]) for v in kept
    )
