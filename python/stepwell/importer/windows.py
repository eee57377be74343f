"""Convolutions and poolings over time, [batch, channels, time] as ONNX has them: a window of the
past and what is done with it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stepwell.importer.pooling import mean_over, pads
from stepwell.importer.signals import Atom, Signal, Value, Walk
from stepwell.layers import Dense, MaxPool, Window
from stepwell.layers.base import WIDTH_MAX


def _over_time(w: Walk, x: Value) -> tuple[Signal, int]:
    """The data, and which of its spatial axes is time; another one (a 1-D convolution written in
    2-D) must have size 1.
    """
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


def _padded(w: Walk, place: int, window: Window, x: Signal, size: int) -> Window:
    """The window with what the node puts before and after the sequence; ``size``: its steps."""
    auto = w.attribute("auto_pad", b"NOTSET").decode()
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        window = replace(window, same=auto[5:].lower())
        if window.stride == 1:
            return replace(window.over(window.span), same="")  # whatever the length
        if x.time in w.dynamic_axes:
            return window
        window = window.over(size)
        return window if window.padding or window.ahead else replace(window, same="")
    pads = list(w.attribute("pads", []))
    if auto == "VALID" or not pads:
        return replace(window, padding=0)
    half = len(pads) // 2
    if any(v for k, v in enumerate(pads) if k not in (place, half + place)):
        raise w.refuse(f"pads {pads} pads more than time")
    before, after = int(pads[place]), int(pads[half + place])
    _check_padding(w, window, before, after)
    return replace(window, padding=before, ahead=after)


def _check_padding(w: Walk, window: Window, before: int, after: int) -> None:
    if not (0 <= before < window.span and 0 <= after < window.span):
        raise w.refuse(
            f"pads {before} and {after} zeros, more than its {window.span} steps look back"
        )


def _window(
    w: Walk, x: Signal, place: int, taps: int, pools: bool = False
) -> tuple[Window, Signal]:
    """What the node looks at, and the signal with the time axis that comes of it."""
    window = Window(
        w.name,
        x.n_features,
        taps,
        _numbers(w, "dilations", place, 1),
        _numbers(w, "strides", place, 1),
    )
    if window.fault():
        raise w.refuse(window.fault())
    size = x.steps() - x.padded - x.behind
    window = _padded(w, place, window, x, size)
    if x.padded or x.behind:
        if window.same or (pools and (window.padding or window.ahead)):
            raise w.refuse("its padding follows zeros that were padded before: pad once")
        before, after = window.padding + x.padded, window.ahead + x.behind
        _check_padding(w, window, before, after)
        window = replace(window, padding=before, ahead=after)
    if window.ahead or window.same:
        ahead = window.ahead or "some"
        w.notes.append(
            f"{w.name}: looks {ahead} steps ahead: in mode carry its outputs come {ahead} steps "
            "later than in the source"
        )
    steps = window.over(size).runs(size)
    if steps < 1:
        raise w.refuse(f"needs {window.span} steps, the sequence has {size}")
    axes = tuple((Atom(x.time, steps),) if k == x.time_axis else a for k, a in enumerate(x.axes))
    return window, replace(x, axes=axes, padded=0, behind=0)


def convolution(w: Walk, x: Value, weights: Value, bias: Value = None) -> tuple[Signal]:
    x, place = _over_time(w, x)
    kernel = w.constant(weights, "W").astype(np.float64)
    groups = w.attribute("group", 1)
    if kernel.ndim != len(x.axes) or kernel.shape[1] * groups != x.n_features:
        raise w.refuse(
            f"W {list(kernel.shape)} does not fit {x.n_features} channels in {groups} groups"
        )
    taps = kernel.shape[2 + place]
    if kernel[0, 0].size != taps:
        raise w.refuse(f"its kernel {list(kernel.shape[2:])} runs over more than time")
    n_out = len(kernel)
    offset = np.zeros(n_out) if bias is None else w.constant(bias, "B").astype(np.float64)
    window, x = _window(w, x, place, taps)
    layer = Dense(w.name, kernel.reshape(n_out, -1), offset, groups=groups)
    return (_channels(x, w.added(layer, w.added(window, x.value)), n_out),)


def _channels(x: Signal, value: int, n: int) -> Signal:
    axes = tuple((Atom("feature", n),) if k == x.feature_axis else a for k, a in enumerate(x.axes))
    return replace(x, axes=axes, value=value)


def max_pool(w: Walk, x: Value) -> tuple[Signal]:
    """What the node itself pads is minus infinity, what was padded before are zeros."""
    before = w.signal(x)
    window, x = _pooled(w, before)
    if not (before.padded or before.behind):
        least = window.span if window.dilation > 1 else 1
        window = replace(window, lowest=pads(window), least=least)
    return (
        replace(
            x, value=w.added(MaxPool(w.name, window.n_out, window.taps), w.added(window, x.value))
        ),
    )


def average_pool(w: Walk, x: Value) -> tuple[Signal]:
    before = w.signal(x)
    window, x = _pooled(w, before)
    counts = bool(w.attribute("count_include_pad", 0) or before.padded or before.behind)
    try:
        return (replace(x, value=mean_over(w.added, w.name, x.value, window, counts)),)
    except ValueError as reason:
        raise w.refuse(
            f"{reason}, and leaves them out of the mean: set count_include_pad, or pad less"
        ) from None


def _pooled(w: Walk, x: Signal) -> tuple[Window, Signal]:
    x, place = _over_time(w, x)
    if w.attribute("ceil_mode", 0):
        raise w.refuse(
            "ceil_mode pools what is left over at the end, which a stream does not know: pool "
            "without"
        )
    return _window(w, x, place, _numbers(w, "kernel_shape", place, 1), pools=True)


def pad(
    w: Walk, x: Value, pads: Value = None, value: Value = None, axes: Value = None
) -> tuple[Signal]:
    """Zeros before and after the sequence, which the next convolution takes for its own padding."""
    x = w.signal(x)
    given = w.attribute("pads") if pads is None else w.constant(pads, "pads").reshape(-1).tolist()
    fill = (
        w.attribute("value", 0.0)
        if value is None
        else float(w.constant(value, "the value").reshape(-1)[0])
    )
    where = (
        list(range(len(x.axes)))
        if axes is None
        else [x.axis(int(k)) for k in w.constant(axes, "axes").reshape(-1)]
    )
    half = len(given) // 2
    padded = [k for k, n in zip([*where, *where], given, strict=True) if n]
    if not padded:
        return (x,)
    if not x.time and len(set(padded)) == 1 and len(x.labels[padded[0]]) == 1:
        x = replace(x, time=x.labels[padded[0]][0])
    if (
        w.attribute("mode", b"constant") != b"constant"
        or fill
        or set(padded) != {x.time_axis}
        or x.last
    ):
        raise w.refuse("pads something else than zeros in time")
    place = where.index(x.time_axis)
    left, right = int(given[place]), int(given[half + place])
    if left < 0 or right < 0:
        raise w.refuse("cuts timesteps off, which a stream cannot: pad by less")
    if max(left, right) > WIDTH_MAX:
        raise w.refuse(f"pads {max(left, right)} zeros, {WIDTH_MAX} at most")
    steps = x.steps() + left + right
    axes_now = tuple(
        (Atom(x.time, steps),) if k == x.time_axis else a for k, a in enumerate(x.axes)
    )
    return (replace(x, axes=axes_now, padded=x.padded + left, behind=x.behind + right),)
