"""Convolutions and poolings over time, [batch, channels, time] as ONNX has them: a window of the past and what is done with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stepwell.graph import WIDTH_MAX, Dense, MaxPool, Window
from stepwell.importer.signals import Atom, Signal, Value, Walk


def _over_time(w: Walk, x: Value) -> tuple[Signal, int]:
    """The data, and which of its spatial axes is time; another one (a 1-D convolution written in 2-D) must have size 1."""
    x = w.signal(x)
    if x.last:
        raise w.refuse("it runs over the last step only: put it before the readout")
    if x.feature_axis != 1 or x.state:
        raise w.refuse(f"its input of shape {list(x.shape)} must have axes batch, channels, time")
    if not x.time:
        x = replace(x, time=_time_label(w, x))
    spatial = [k for k in range(2, len(x.axes)) if x.shape[k] != 1 or k == x.time_axis]
    if spatial != [x.time_axis]:
        raise w.refuse(f"runs over axes of sizes {list(x.shape[2:])}: only time can be streamed")
    return x, x.time_axis - 2


def _time_label(w: Walk, x: Signal) -> str:
    labels = [labels[0] for labels in x.labels[2:] if len(labels) == 1]
    if len(labels) != 1:
        raise w.refuse(f"there is no telling which axis of {list(x.shape)} is time")
    return labels[0]


def _numbers(w: Walk, name: str, place: int, default: int) -> int:
    """An attribute's entry for the time axis; the other ones must be the default or 1."""
    given = w.attribute(name)
    if given is None:
        return default
    if any(v not in (1, default) for k, v in enumerate(given) if k != place):
        raise w.refuse(f"{name} {list(given)} runs over more than time")
    return int(given[place])


def _padding(w: Walk, place: int, span: int, stride: int, size: int) -> tuple[int, int]:
    """Zeros before and after the sequence."""
    auto = w.attribute("auto_pad", b"NOTSET").decode()
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        both = max(0, (-(-size // stride) - 1) * stride + span - size)
        if stride != 1:
            raise w.refuse("auto_pad with a stride depends on the sequence's length: pad explicitly")
        left = both // 2 if auto == "SAME_UPPER" else both - both // 2
        return left, both - left
    pads = list(w.attribute("pads", []))
    if auto == "VALID" or not pads:
        return 0, 0
    half = len(pads) // 2
    if any(v for k, v in enumerate(pads) if k not in (place, half + place)):
        raise w.refuse(f"pads {pads} pads more than time")
    return int(pads[place]), int(pads[half + place])


def _windowed(w: Walk, x: Signal, place: int, taps: int, dilation: int) -> Signal:
    """The signal behind a Window; its axes still say how many channels there are."""
    stride = _numbers(w, "strides", place, 1)
    span = (taps - 1) * dilation + 1
    size = x.steps()
    left, right = _padding(w, place, span, stride, size)
    left += x.padded
    if left > span - 1 or right > span - 1:
        raise w.refuse(f"pads {left} and {right} zeros, more than its {span} steps look back")
    if right:
        w.notes.append(f"{w.name}: looks {right} steps ahead: its outputs come {right} steps later than in the source")
    steps = (size - x.padded + left + right - span) // stride + 1
    if steps < 1:
        raise w.refuse(f"needs {span} steps, the sequence has {size}")
    layer = Window(w.name, x.n_features, taps, dilation, stride, left)
    axes = tuple((Atom(x.time, steps),) if k == x.time_axis else a for k, a in enumerate(x.axes))
    return replace(x, axes=axes, value=w.added(layer, x.value), padded=0, ahead=x.ahead or right > 0)


def convolution(w: Walk, x: Value, weights: Value, bias: Value = None) -> tuple[Signal]:
    x, place = _over_time(w, x)
    kernel = w.constant(weights, "W").astype(np.float64)
    groups = w.attribute("group", 1)
    if kernel.ndim != len(x.axes) or kernel.shape[1] * groups != x.n_features:
        raise w.refuse(f"W {list(kernel.shape)} does not fit {x.n_features} channels in {groups} groups")
    taps = kernel.shape[2 + place]
    if kernel[0, 0].size != taps:
        raise w.refuse(f"its kernel {list(kernel.shape[2:])} runs over more than time")
    n_out = len(kernel)
    offset = np.zeros(n_out) if bias is None else w.constant(bias, "B").astype(np.float64)
    x = _windowed(w, x, place, taps, _numbers(w, "dilations", place, 1))
    layer = Dense(w.name, kernel.reshape(n_out, -1), offset, groups=groups)
    return (_channels(x, w.added(layer, x.value), n_out),)


def _channels(x: Signal, value: int, n: int) -> Signal:
    axes = tuple((Atom("feature", n),) if k == x.feature_axis else a for k, a in enumerate(x.axes))
    return replace(x, axes=axes, value=value)


def max_pool(w: Walk, x: Value) -> tuple[Signal]:
    x, n, taps = _pooled(w, x)
    return (replace(x, value=w.added(MaxPool(w.name, n * taps, taps), x.value)),)


def average_pool(w: Walk, x: Value) -> tuple[Signal]:
    x, n, taps = _pooled(w, x)
    mean = Dense(w.name, np.full((n, taps), 1.0 / taps), np.zeros(n), groups=n)
    return (replace(x, value=w.added(mean, x.value)),)


def _pooled(w: Walk, x: Value) -> tuple[Signal, int, int]:
    x, place = _over_time(w, x)
    n = x.n_features
    if any(w.attribute("pads", [])) or w.attribute("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or x.padded:
        raise w.refuse("a pooling with padding is not supported: pool without")
    if w.attribute("ceil_mode", 0):
        raise w.refuse("ceil_mode pools what is left over at the end, which a stream does not know: pool without")
    taps = _numbers(w, "kernel_shape", place, 1)
    return _windowed(w, x, place, taps, _numbers(w, "dilations", place, 1)), n, taps


def pad(w: Walk, x: Value, pads: Value = None, value: Value = None, axes: Value = None) -> tuple[Signal]:
    """Zeros before the sequence, which the next convolution takes for its own padding."""
    x = w.signal(x)
    given = w.attribute("pads") if pads is None else w.constant(pads, "pads").reshape(-1).tolist()
    fill = w.attribute("value", 0.0) if value is None else float(w.constant(value, "the value").reshape(-1)[0])
    where = list(range(len(x.axes))) if axes is None else [x.axis(int(k)) for k in w.constant(axes, "axes").reshape(-1)]
    half = len(given) // 2
    padded = [k for k, n in zip([*where, *where], given, strict=True) if n]
    if not padded:
        return (x,)
    if not x.time and len(set(padded)) == 1 and len(x.labels[padded[0]]) == 1:
        x = replace(x, time=x.labels[padded[0]][0])
    if w.attribute("mode", b"constant") != b"constant" or fill or set(padded) != {x.time_axis} or x.last:
        raise w.refuse("pads something else than zeros in time")
    place = where.index(x.time_axis)
    if given[half + place] or given[place] < 0:
        raise w.refuse("pads after the sequence's end, which a stream does not know: pad on the left (causal)")
    left = int(given[place])
    if left > WIDTH_MAX:
        raise w.refuse(f"pads {left} zeros, {WIDTH_MAX} at most")
    axes_now = tuple((Atom(x.time, x.steps() + left),) if k == x.time_axis else a for k, a in enumerate(x.axes))
    return (replace(x, axes=axes_now, padded=x.padded + left),)
