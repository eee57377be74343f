"""Layers that exporters write as several nodes: LayerNorm over the features, attention over a fixed
window.

Each node of a pattern turns a ``Partial`` into the next; the last one gives the layer. What leaves
the pattern is refused.

    LayerNorm  mean -> x - mean -> squared -> mean -> + epsilon -> sqrt -> (x - mean) / deviation      (opset < 17)
    attention  scores [.., T, 1] or query @ keys^T -> softmax over T -> weights * values -> sum over T,  or weights @ values
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stepwell.importer.signals import Atom, Axis, Partial, Signal, StateStack, Value, Walk
from stepwell.layers import Attention, Dense, LayerNorm, MaxPool, Window

# ---- LayerNorm ----


def centred(w: Walk, x: Signal, mean: Partial) -> Partial:
    if mean.stage != "mean" or mean.x.value != x.value:
        raise w.refuse("subtracts the mean of something else")
    return Partial("centred", x)


def squared(w: Walk, d: Partial) -> Partial:
    if d.stage != "centred":
        raise w.refuse("squares data outside a LayerNorm")
    return Partial("squared", d.x)


def with_epsilon(w: Walk, v: Partial, epsilon: np.ndarray) -> Value:
    if v.stage != "variance" or epsilon.size != 1:
        w.signal(v)
    return replace(v, number=v.number + float(epsilon.reshape(-1)[0]))


def square_root(w: Walk, v: Value) -> tuple[Partial]:
    if not isinstance(v, Partial) or v.stage != "variance":
        raise w.refuse("a square root of data is not supported, but inside a LayerNorm")
    return (replace(v, stage="deviation"),)


def normalised(w: Walk, d: Partial, deviation: Partial) -> Signal:
    if d.stage != "centred" or deviation.stage != "deviation" or d.x.value != deviation.x.value:
        w.signal(d)
    n = d.x.n_features
    return w.extended(d.x, LayerNorm(w.name, np.ones(n), np.zeros(n), deviation.number))


# ---- reductions ----


def mean(w: Walk, x: Value, axes: Value = None) -> tuple[Value]:
    if isinstance(x, Partial):
        if x.stage == "squared":
            return (Partial("variance", x.x),)
        w.signal(x)
    x = w.signal(x)
    if _reduced(w, x, axes) == [x.feature_axis]:
        return (Partial("mean", x),)
    taps = _whole_time(w, x, axes)
    n = x.n_features
    value = w.added(Window(w.name, n, taps, padding=0), x.value)
    value = w.added(Dense(w.name, np.full((n, taps), 1.0 / taps), np.zeros(n), groups=n), value)
    return (_without_time(w, replace(x, value=value)),)


def maximum(w: Walk, x: Value, axes: Value = None) -> tuple[Signal]:
    x = w.signal(x)
    taps = _whole_time(w, x, axes)
    value = w.added(Window(w.name, x.n_features, taps, padding=0), x.value)
    value = w.added(MaxPool(w.name, x.n_features * taps, taps), value)
    return (_without_time(w, replace(x, value=value)),)


def total(w: Walk, x: Value, axes: Value = None) -> tuple[Signal]:
    """ReduceSum: the end of an attention, or of a mean over time."""
    if isinstance(x, Partial) and x.stage == "weighted":
        return (_attended(w, x, w.attribute("keepdims", 1)),)
    x = w.signal(x)
    steps = _whole_time(w, x, axes)
    (y,) = mean(w, x, axes)
    layer = w.layer_of(y)
    return (w.replaced(y, replace(layer, weight=layer.weight * steps)),)


def global_average(w: Walk, x: Value) -> tuple[Signal]:
    return mean(w, x, np.array([2])) if len(w.signal(x).axes) == 3 else _global_refused(w)


def global_max(w: Walk, x: Value) -> tuple[Signal]:
    return maximum(w, x, np.array([2])) if len(w.signal(x).axes) == 3 else _global_refused(w)


def _global_refused(w: Walk) -> tuple[Signal]:
    raise w.refuse("pools over more than time")


def _reduced(w: Walk, x: Signal, axes: Value) -> list[int]:
    given = w.attribute("axes") if axes is None else w.constant(axes, "axes").reshape(-1).tolist()
    return sorted(x.axis(int(k)) for k in (given if given is not None else range(len(x.axes))))


def _whole_time(w: Walk, x: Signal, axes: Value) -> int:
    """The window's steps, for a reduction over time and nothing else."""
    if x.time_axis < 0 or _reduced(w, x, axes) != [x.time_axis]:
        raise w.refuse(
            "it mixes timesteps with something else: reduce over time (a fixed number of steps) or "
            "over features"
        )
    return fixed_steps(w, x)


def fixed_steps(w: Walk, x: Signal) -> int:
    if x.time in w.dynamic_axes:
        raise w.refuse(
            "it reads all steps, and their number is dynamic: export with a fixed number of "
            "timesteps"
        )
    return x.steps()


def _without_time(w: Walk, x: Signal) -> Signal:
    axis = x.time_axis
    keep = w.attribute("keepdims", 1) if w.node.op_type.startswith("Reduce") else 1
    unit: Axis = (Atom("unit", 1),)
    axes = tuple(unit if k == axis else a for k, a in enumerate(x.axes) if keep or k != axis)
    return replace(x, axes=axes, last=True, state="")


# ---- attention ----


def weights_of(w: Walk, scores: Signal) -> Partial:
    """Softmax over time of a score for each step."""
    fixed_steps(w, scores)
    return Partial("weights", scores, 1.0, axes=scores.axes)


def softened(w: Walk, p: Partial) -> Partial:
    """Softmax of query and keys' products over time."""
    axis = p.axes[w.attribute("axis", -1) % len(p.axes)] if p.axes else ()
    if p.stage != "scores" or [atom.label for atom in axis if atom.label != "unit"] != [p.key.time]:
        w.signal(p)
    return replace(p, stage="weights")


def multiplied(w: Walk, p: Partial, other: Value) -> Value:
    """Scores times a number, weights times values, or a part of a LayerNorm times itself."""
    if isinstance(other, Partial) and p.stage == other.stage == "centred":
        return squared(w, p)
    if p.stage == "scores" and isinstance(other, np.ndarray) and other.size == 1:
        return replace(p, number=p.number * float(other.reshape(-1)[0]))
    if p.stage == "weights" and isinstance(other, Signal) and p.key is None:
        return replace(p, stage="weighted", y=other)
    raise w.refuse("multiplies a part of a LayerNorm or of an attention by something else")


def product_over_time(w: Walk, a: Value, b: Value) -> Value:
    """MatMul of data by data: query [.., 1, D] @ keys [.., D, T], or weights [.., 1, T] @ values
    [.., T, V].
    """
    if isinstance(a, Partial) and a.stage == "weights" and isinstance(b, Signal):
        return _attended(w, replace(a, y=b), keep=1)
    if (
        isinstance(a, StateStack)
        or isinstance(b, StateStack)
        or not (isinstance(a, Signal) and isinstance(b, Signal))
    ):
        raise w.refuse("multiplies data by data in a way that is no attention")
    if a.last and b.time_axis == len(b.axes) - 1 and a.n_features == b.n_features:
        fixed_steps(w, b)
        return Partial("scores", a, 1.0, key=b, axes=(*a.axes[:-1], b.axes[-1]))
    if b.last and a.time_axis == len(a.axes) - 2 and a.n_features == b.n_features == b.shape[-2]:
        fixed_steps(w, a)
        return Partial("scores", b, 1.0, key=a, axes=(*a.axes[:-1], b.axes[-1]))
    raise w.refuse(
        "multiplies data by data: attention with one query, the last hidden state [batch, 1, D] @ "
        "[batch, D, T], is supported"
    )


def _attended(w: Walk, p: Partial, keep: int) -> Signal:
    """The attention layer, its result at the last step."""
    y = p.y
    steps = fixed_steps(w, y)
    if p.key is None:
        sources: tuple[int, ...] = (p.x.value, y.value)
        layer = Attention(w.name, "score", steps, 1, y.n_features)
    else:
        sources = (p.x.value, p.key.value, y.value)
        layer = Attention(w.name, "dot", steps, p.key.n_features, y.n_features, scale=p.number)
    unit: Axis = (Atom("unit", 1),)
    axes = tuple(
        unit if k == y.time_axis else a for k, a in enumerate(y.axes) if keep or k != y.time_axis
    )
    return replace(y, axes=axes, value=w.added(layer, *sources), last=True, state="")
