"""Nodes that only rearrange: transposes, reshapes, slices. Axes are cut between atoms only."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from stepwell.importer.layers import embedding
from stepwell.importer.signals import (
    DIRECT,
    FEATURES,
    UNIT,
    Atom,
    Axis,
    Partial,
    Signal,
    StateStack,
    Value,
    Walk,
)
from stepwell.layers import Concat, Recurrent, Slice


def same(w: Walk, x: Value, *rest: Value) -> tuple[Value]:
    return (x,)


def dropout(w: Walk, x: Value, ratio: Value = None, training: Value = None) -> tuple[Value]:
    if training is not None and np.any(w.constant(training, "training_mode")):
        raise w.refuse("it is in training mode: export with model.eval()")
    return (x,)


def transpose(w: Walk, x: Value) -> tuple[Value]:
    if isinstance(x, Partial):
        order = w.attribute("perm") or list(range(len(x.axes)))[::-1]
        return (replace(x, axes=tuple(x.axes[k] for k in order)),)
    x = w.signal(x)
    order = w.attribute("perm") or list(range(len(x.axes)))[::-1]
    return (replace(x, axes=tuple(x.axes[k] for k in order)),)


def _axes_given(w: Walk, given: Value) -> list[int] | None:
    """Axes as an attribute (opset < 13) or as an input."""
    if given is not None:
        return [int(k) for k in w.constant(given, "axes").reshape(-1)]
    axes = w.attribute("axes")
    return None if axes is None else list(axes)


def squeeze(w: Walk, x: Value, given: Value = None) -> tuple[Value]:
    if not isinstance(x, Partial):
        x = w.signal(x)
    axes = _axes_given(w, given)
    sizes = [prod(atom.size for atom in axis) for axis in x.axes]
    drop = (
        {k % len(sizes) for k in axes}
        if axes is not None
        else {k for k, size in enumerate(sizes) if size == 1}
    )
    if any(sizes[k] != 1 for k in drop):
        raise w.refuse(f"squeezes an axis of shape {sizes} that is not 1")
    kept = [axis for k, axis in enumerate(x.axes) if k not in drop]
    if (
        isinstance(x, Signal)
        and x.n_features == 1
        and kept
        and not any(_is_feature(axis) for axis in kept)
    ):
        return (replace(x, axes=tuple(kept)),)
    return (replace(x, axes=tuple(kept)),)


def _is_feature(axis: Axis) -> bool:
    return any(atom.label in FEATURES for atom in axis)


def unsqueeze(w: Walk, x: Value, given: Value = None) -> tuple[Value]:
    if not isinstance(x, Partial):
        x = w.signal(x)
    new = _axes_given(w, given) or []
    rank = len(x.axes) + len(new)
    places = {k % rank for k in new}
    if len(places) != len(new):
        raise w.refuse(f"adds one axis twice: {new}")
    old = iter(x.axes)
    return (replace(x, axes=tuple(UNIT if k in places else next(old) for k in range(rank))),)


def expand(w: Walk, x: Value, shape: Value) -> tuple[Value]:
    sizes = [int(v) for v in w.constant(shape, "the shape").reshape(-1)]
    if isinstance(x, Partial):
        return (x,)
    x = w.signal(x)
    if len(sizes) != len(x.axes) or any(
        n not in (1, m) for n, m in zip(sizes, x.shape, strict=True)
    ):
        raise w.refuse(f"repeats data: {list(x.shape)} becomes {sizes}")
    return (x,)


def reshape(w: Walk, x: Value, target: Value) -> tuple[Signal]:
    x = w.signal(x)
    sizes = [int(v) for v in w.constant(target, "the shape").reshape(-1)]
    sizes = [x.shape[k] if size == 0 and k < len(x.axes) else size for k, size in enumerate(sizes)]
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = prod(x.shape) // max(1, prod(size for size in sizes if size != -1))
    return (regrouped(w, x, sizes),)


def flatten(w: Walk, x: Value) -> tuple[Signal]:
    x = w.signal(x)
    axis = w.attribute("axis", 1)
    axis = axis if axis >= 0 else len(x.axes) + axis
    return (regrouped(w, x, [prod(x.shape[:axis]), prod(x.shape[axis:])]),)


def regrouped(w: Walk, x: Signal, sizes: list[int]) -> Signal:
    """Axes are cut between atoms only; unit atoms may appear and vanish anywhere."""
    atoms = [atom for axis in x.axes for atom in axis if atom.size != 1]
    keep = {
        atom.label: atom
        for axis in x.axes
        for atom in axis
        if atom.size == 1 and atom.label != "unit"
    }
    axes: list[Axis] = []
    for size in sizes:
        axis: list[Atom] = []
        while prod(atom.size for atom in axis) < size and atoms:
            axis.append(atoms.pop(0))
        if prod(atom.size for atom in axis) != size:
            raise w.refuse(
                f"reshapes {list(x.shape)} to {sizes}, which mixes or cuts time, batch and "
                "features: do it after the model"
            )
        axes.append(tuple(axis) or UNIT)
    if atoms:
        raise w.refuse(f"reshapes {list(x.shape)} to {sizes}, which does not hold all values")
    return replace(x, axes=_named_units(axes, keep))


def _named_units(axes: list[Axis], keep: dict[str, Atom]) -> tuple[Axis, ...]:
    """A feature axis of one value is still the features: it is the last axis."""
    if "feature" in keep and axes and axes[-1] == UNIT:
        axes[-1] = (keep["feature"],)
    return tuple(axes)


# ---- parts ----


def gather(w: Walk, x: Value, indices: Value) -> tuple[Signal]:
    if isinstance(x, np.ndarray) and isinstance(indices, Signal):
        return embedding(w, x, indices)
    index = w.constant(indices, "the index")
    if isinstance(x, StateStack):
        return (_from_stack(w, x, index),)
    x = w.signal(x)
    axis = x.axis(w.attribute("axis", 0))
    if (
        index.size > 1
        and axis == x.time_axis
        and np.array_equal(index.reshape(-1), np.arange(x.steps())[::-1])
    ):
        return (_turned(x),)
    if index.size != 1 or index.ndim > 1:
        raise w.refuse(
            "picks several entries of the data, which is not supported: take the last step, or "
            "every one"
        )
    position = int(index.reshape(-1)[0])
    picked = _picked(w, x, axis, position, position + 1 or x.shape[axis])
    axes = picked.axes if index.ndim else tuple(a for k, a in enumerate(picked.axes) if k != axis)
    return (replace(picked, axes=axes),)


def cut(
    w: Walk,
    x: Value,
    starts: Value = None,
    ends: Value = None,
    axes: Value = None,
    steps: Value = None,
) -> tuple[Signal]:
    """Slice"""

    def numbers(value: Value, name: str) -> list[int] | None:
        if value is not None:
            return [int(v) for v in w.constant(value, name).reshape(-1)]
        return list(w.attribute(name)) if w.attribute(name) is not None else None

    first, end, along, by = (
        numbers(v, n)
        for v, n in ((starts, "starts"), (ends, "ends"), (axes, "axes"), (steps, "steps"))
    )
    along = along if along is not None else list(range(len(first)))
    if isinstance(x, StateStack):
        if by is not None and by != [1]:
            raise w.refuse("strides over layers' final states")
        index = np.arange(len(x.entries()))[first[0] : end[0]]
        if along != [0] or len(index) != 1:
            raise w.refuse("takes several layers' final states")
        return (_from_stack(w, x, index),)
    x = w.signal(x)
    if (
        by == [-1]
        and x.axis(along[0]) == x.time_axis
        and len(range(x.steps())[first[0] : end[0] : -1]) == x.steps()
    ):
        return (_turned(x),)
    if by is not None and any(step != 1 for step in by):
        raise w.refuse(
            "strides cannot be streamed: take every step, or stride in a convolution or a pooling"
        )
    for start, stop, axis in zip(first, end, along, strict=True):
        x = _picked(w, x, x.axis(axis), start, stop)
    return (x,)


def _turned(x: Signal) -> Signal:
    return replace(x, flipped=not x.flipped)


def reverse_sequence(w: Walk, x: Value, lengths: Value) -> tuple[Signal]:
    x = w.signal(x)
    time = w.attribute("time_axis", 0)
    if not x.time and len(x.labels[time]) == 1:
        x = replace(x, time=x.labels[time][0])
    if time != x.time_axis or np.any(w.constant(lengths, "sequence_lens") != x.steps()):
        raise w.refuse("reverses a part of the sequence")
    return (_turned(x),)


def _picked(w: Walk, x: Signal, axis: int, start: int, stop: int) -> Signal:
    """``x`` with the range start:stop of one axis: all of it, the last step of time, or some of the
    features.
    """
    size = x.shape[axis]
    wanted = range(size)[start:stop]
    if len(wanted) == size:
        return x
    labels = x.labels[axis]
    if labels == (x.time,) and x.value:
        return _last_step(w, x, axis, wanted)
    if labels == ("direction",):
        return _one_direction(w, x, axis, wanted)
    if axis == x.feature_axis and len(wanted):
        if x.value == 0:
            raise w.refuse(
                f"takes a part ({wanted.start}:{wanted.stop} of {size}) of the input's features: "
                "do it before the model"
            )
        return w.sliced(x, wanted.start, len(wanted), (Atom("feature", len(wanted)),))
    what = "time before any recurrent layer" if not x.value else "the batch"
    raise w.refuse(
        f"takes a part ({wanted.start}:{wanted.stop} of {size}) of {what}: do it before or after "
        "the model"
    )


def _last_step(w: Walk, x: Signal, axis: int, wanted: range) -> Signal:
    size = x.shape[axis]
    layer = w.layer_of(x)
    end_of_way_back = [size - 1] if x.flipped else [0]
    if isinstance(layer, Recurrent) and layer.reverse and list(wanted) == end_of_way_back:
        x = w.replaced(x, replace(layer, final=True))
    elif list(wanted) != [0 if x.flipped else size - 1]:
        raise w.refuse(
            f"takes steps {wanted.start}:{wanted.stop} of {size}: only the last step, or every "
            "one, can be read from a stream (an exporter that copied a layer for each step, as "
            f"for TimeDistributed: {DIRECT})"
        )
    return replace(x, axes=(*x.axes[:axis], UNIT, *x.axes[axis + 1 :]), last=True, flipped=False)


def _one_direction(w: Walk, x: Signal, axis: int, wanted: range) -> Signal:
    """The features of one direction, which stand side by side."""
    if len(wanted) != 1:
        raise w.refuse("takes several directions")
    n = x.n_features // x.shape[axis]
    place = next(k for k, labels in enumerate(x.labels) if "feature" in labels)
    axes = list(x.axes)
    axes[axis] = UNIT
    axes[place] = (Atom("feature", n),)
    if isinstance(w.layer_of(x), Concat):  # as it was before both directions were put side by side
        value = w.sources[x.value - 1][wanted.start]
    else:
        value = w.added(Slice(w.name, x.n_features, wanted.start * n, n), x.value)
    return replace(x, axes=tuple(axes), value=value)


def _from_stack(w: Walk, stack: StateStack, index: np.ndarray) -> Signal:
    if w.node.op_type == "Gather" and w.attribute("axis", 0) != 0:
        raise w.refuse("mixes the final states of several layers")
    part, place = stack.entries()[int(index.reshape(-1)[0])]
    picked = _picked(w, part, 0, place, place + 1)
    return picked if index.ndim else replace(picked, axes=picked.axes[1:])


def split(w: Walk, x: Value, sizes: Value = None) -> tuple[Signal, ...]:
    x = w.signal(x)
    axis = x.axis(w.attribute("axis", 0))
    total, n = x.shape[axis], len(w.node.output)
    given = (
        w.attribute("split") if sizes is None else w.constant(sizes, "split").reshape(-1).tolist()
    )
    lengths = (
        given
        if given is not None
        else [min(-(-total // n), total - k * -(-total // n)) for k in range(n)]
    )
    ends = np.cumsum(lengths).tolist()
    if not ends or ends[-1] != total or min(lengths) < 1:
        raise w.refuse(f"splits {total} into {list(lengths)}")
    return tuple(
        _picked(w, x, axis, int(end - length), int(end))
        for end, length in zip(ends, lengths, strict=True)
    )
