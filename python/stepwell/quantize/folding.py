"""Offsets and scales of the input's channels, folded into the layers that read them; units of the
outputs likewise.

A graph that reads x, folded with ``mean`` and ``std`` [n_in], reads (x - mean) / std and gives the
same outputs. So a normalisation inside the model, and a size of its own for each channel, move into
the model's scaler (``fitted``), where a code keeps all its bits. ``float_side`` does the same to a
source that is read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import floor, log10

import numpy as np

from stepwell.errors import SampleError
from stepwell.graph import Graph
from stepwell.layers import ArgMax, Concat, Dense, Layer, MaxPool, Recurrent, Slice, Window
from stepwell.quantize.calibrate import LARGEST_VALUE
from stepwell.scaler import Scaler

# largest peak of a channel against the smallest: above it channels get a scale of their own
UNEVEN_CHANNELS = 4.0
FAR_FROM_ZERO = 4.0  # a mean in standard deviations: above it, an offset
CREST = 32.0  # a scaled channel has an RMS of 1, and no peak beyond this
USUAL = 99.0  # percent of the values: the others may be spikes
SPIKE = 4.0  # beyond so many usual peaks a value counts no more than that
CONSTANT = 1e-9  # a deviation below this part of the peak is rounding
DIGITS = 3  # of a scale
LARGE = 10.0  # no value of a scaled channel is beyond this
SHARE = 8.0  # a channel that drives a layer by less than this part of the largest is not named
NAMED = 3  # channels in a warning

Array = np.ndarray


# ---- which layers read which channels ----


@dataclass(frozen=True, eq=False)
class Reach:
    """How the input's channels travel to the first layers that mix or bend them.

    ``columns``: for each value of the graph and each of its columns the channel that it carries as
    it is, -1 for none. ``fixed`` [n_in]: a layer without weights of its own reads the channel,
    which so keeps its scale. ``padded`` [n_in]: zeros are put before the channel, which so keeps
    its zero. ``weight`` [n_in]: the largest weight that reads it.
    """

    columns: tuple[Array, ...]
    fixed: Array
    padded: Array
    weight: Array


def reach_of(graph: Graph) -> Reach:
    n = graph.n_in
    columns = [np.arange(n)]
    fixed, padded, weight = np.zeros(n, bool), np.zeros(n, bool), np.zeros(n)

    def mark(flags: Array, carried: Array) -> None:
        flags[carried[carried >= 0]] = True

    for layer, reads in zip(graph.layers, graph.sources, strict=True):
        sources = [columns[value] for value in reads]
        passed = _passed(layer, sources)
        if passed is None and isinstance(layer, (Dense, Recurrent)):
            carried = sources[0] >= 0
            np.maximum.at(weight, sources[0][carried], _largest_by_column(layer)[carried])
        elif passed is None:
            for carried in sources:
                mark(fixed, carried)
        elif isinstance(layer, Window) and (layer.padding != 0 or layer.ahead):
            mark(padded, passed)
        columns.append(np.full(layer.n_out, -1) if passed is None else passed)
    mark(fixed, columns[-1])
    return Reach(tuple(columns), fixed, padded, weight)


def _passed(layer: Layer, sources: list[Array]) -> Array | None:
    """The channel in each column of a layer that only moves values; None for all others."""
    if isinstance(layer, Slice):
        return sources[0][layer.start : layer.start + layer.n_out]
    if isinstance(layer, Concat):
        return np.concatenate(sources)
    if isinstance(layer, Window):
        return np.repeat(sources[0], layer.taps)
    if isinstance(layer, MaxPool):
        runs = sources[0].reshape(layer.n_out, layer.taps)
        return runs[:, 0] if np.all(runs == runs[:, :1]) else None
    return None


def _largest_by_column(layer: Dense | Recurrent) -> Array:
    if layer.is_recurrent:
        return np.abs(layer.w_x).max(axis=0)
    return (
        np.abs(layer.weight.reshape(layer.groups, -1, layer.weight.shape[1]))
        .max(axis=1)
        .reshape(-1)
    )


# ---- folding ----


def fold_inputs(graph: Graph, mean: Array, std: Array) -> Graph:
    """The graph that reads (x - mean) / std, [n_in] each. A channel that ``reach_of`` calls fixed
    must have 0 and 1, a padded one mean 0.
    """
    columns = reach_of(graph).columns
    layers = []
    for layer, reads in zip(graph.layers, graph.sources, strict=True):
        carried = columns[reads[0]]
        if isinstance(layer, (Dense, Recurrent)) and np.any(carried >= 0):
            scale, offset = (
                np.where(carried >= 0, part[carried], rest)
                for part, rest in ((std, 1.0), (mean, 0.0))
            )
            layer = _reading(layer, scale, offset)
        layers.append(layer)
    return replace(graph, layers=tuple(layers))


def _reading(layer: Dense | Recurrent, scale: Array, offset: Array) -> Layer:
    """The layer that makes of v what it made of scale * v + offset, [n_in] each."""
    if layer.is_recurrent:
        return replace(layer, w_x=layer.w_x * scale, bias=layer.bias + layer.w_x @ offset)
    rows = layer.n_out // layer.groups
    by_row = np.repeat(scale.reshape(layer.groups, -1), rows, axis=0)
    return replace(layer, weight=layer.weight * by_row, bias=layer.bias + layer.product(offset))


def without_leading_affine(graph: Graph) -> tuple[Graph, Array, Array]:
    """The graph without the scaling of each channel by itself that all else reads through, and that
    as (mean, std), [n_in].

    The signs of negative factors, and channels with a factor of 0, are left in a layer.
    """
    rest, factor, bias = graph, np.ones(graph.n_in), np.zeros(graph.n_in)
    while _starts_with_affine(rest):
        first = rest.layers[0]
        factor, bias = factor * first.weight[:, 0], bias * first.weight[:, 0] + first.bias
        sources = tuple(tuple(value - 1 for value in reads) for reads in rest.sources[1:])
        rest = replace(rest, layers=rest.layers[1:], sources=sources)
    used = factor != 0
    divisor = np.where(used, factor, 1.0)
    with np.errstate(over="ignore"):
        mean, std = np.where(used, -bias / divisor, 0.0), 1 / np.abs(divisor)
    if rest is graph or not (np.isfinite(mean).all() and np.isfinite(std).all()):
        return graph, np.zeros(graph.n_in), np.ones(graph.n_in)
    if not np.all(factor > 0):
        signs = Dense(
            "signs", np.sign(factor)[:, None], np.where(used, 0.0, bias), groups=graph.n_in
        )
        sources = ((0,), *(tuple(value + 1 for value in reads) for reads in rest.sources))
        rest = replace(rest, layers=(signs, *rest.layers), sources=sources)
    return rest, mean + 0.0, std


def _starts_with_affine(graph: Graph) -> bool:
    first = graph.layers[0]
    alone = sum(reads.count(0) for reads in graph.sources) == 1 and len(graph.layers) > 1
    is_affine = (
        isinstance(first, Dense)
        and first.activation == "none"
        and first.groups == first.n_in == first.n_out
    )
    return alone and is_affine


def fold_outputs(graph: Graph, scaler: Scaler) -> Graph:
    """The graph with y * y_std + y_mean as its output, in its last dense layer or in one more.
    Raises SampleError.
    """
    if scaler.y_mean is None and scaler.y_std is None:
        return graph
    n, last = graph.n_out, graph.layers[-1]
    std = np.broadcast_to(1.0 if scaler.y_std is None else scaler.y_std, (n,)).astype(np.float64)
    mean = np.broadcast_to(0.0 if scaler.y_mean is None else scaler.y_mean, (n,)).astype(np.float64)
    if isinstance(last, ArgMax) or getattr(last, "activation", "") == "softmax":
        raise SampleError("scaler: y_mean and y_std make no sense for classes: leave them out")
    if isinstance(last, Dense) and last.activation == "none":
        folded = replace(last, weight=last.weight * std[:, None], bias=last.bias * std + mean)
        return replace(graph, layers=(*graph.layers[:-1], folded))
    scale = Dense("output scale", std[:, None], mean, groups=n)
    return replace(
        graph, layers=(*graph.layers, scale), sources=(*graph.sources, (len(graph.layers),))
    )


def float_side(graph: Graph, scaler: Scaler) -> Graph:
    """What a model with ``scaler`` computes, of the graph of its source: it takes
    ``scaler.normalise(x)`` and gives outputs in the user's units. Its layers are those of the
    model, in order.

    The source itself takes ``scaler.of_source.normalise(x)``.
    """
    graph = fold_outputs(graph, scaler)
    if scaler.source_std is None or graph.n_in != len(scaler.source_std):
        return graph
    graph, mean, std = without_leading_affine(graph)
    folded_mean, folded_std = scaler.folded
    return fold_inputs(graph, (folded_mean - mean) / std, folded_std / std)


# ---- what channels of calibration data need ----


@dataclass(frozen=True, eq=False)
class Fitted:
    """``graph`` reads what ``scaler`` gives; ``notes`` tell the user why. ``suspects``: the
    channels that look as if they had never been scaled, should the float model turn out to be
    saturated.
    """

    graph: Graph
    scaler: Scaler
    notes: tuple[str, ...]
    suspects: tuple[int, ...]


def fitted(
    graph: Graph, scaler: Scaler, sequences: Sequence[Array], auto_scale: bool = True
) -> Fitted:
    """The graph folded for calibration data in the user's units, and the scaler that belongs to it.
    Raises SampleError.

    A leading scaling of each channel becomes part of the scaler. With ``auto_scale``, where
    channels differ in size or stand far from zero, each gets an offset and a scale of its own.
    """
    graph, mean, std = without_leading_affine(fold_outputs(graph, scaler))
    notes = []
    if np.any(mean != 0) or np.any(std != 1):
        notes.append("the scaling of each channel at the model's start has become its input scaler")
        scaler = scaler.then(mean, std)
    reach, x = reach_of(graph), np.concatenate([scaler.normalise(s) for s in sequences])
    own = own_scales(x, reach) if auto_scale else None
    if own:
        mean, std, why = own
        graph, scaler = fold_inputs(graph, mean, std), scaler.then(mean, std)
        notes.append(
            f"{why}: each has got an offset and a scale of its own, folded into the weights "
            "(--no-auto-scale leaves it out)"
        )
    return Fitted(graph, scaler, tuple(notes), suspects(x, reach))


def suspects(x: Array, reach: Reach) -> tuple[int, ...]:
    """Channels of ``x`` [N, n_in] that are large, those first that drive the layers behind them
    most.
    """
    peak = np.abs(x).max(axis=0)
    drive = peak * reach.weight if reach.weight.any() else peak
    order = np.argsort(-drive, kind="stable")
    return tuple(int(k) for k in order if peak[k] > LARGE and drive[k] * SHARE > drive.max())[
        :NAMED
    ]


def own_scales(x: Array, reach: Reach) -> tuple[Array, Array, str] | None:
    """(mean, std) of each channel of ``x`` [N, n_in] and why; None where one scale serves all."""
    free = ~reach.fixed
    if not np.abs(x).max() <= LARGEST_VALUE:
        return None  # calibrate refuses it
    peak = _usual_peak(x)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    alive = deviation > CONSTANT * peak
    far = alive & free & ~reach.padded & (np.abs(mean) > FAR_FROM_ZERO * deviation)
    uneven = alive.any() and peak.max() > UNEVEN_CHANNELS * peak[alive].min()
    if not (far.any() or uneven) or not free.any():
        return None
    mean = np.where(free & ~reach.padded, mean, 0.0)
    size = _size(x - mean)
    # a channel that keeps its scale sets that of the others
    common = size[reach.fixed].max(initial=0.0) or 1.0
    std = np.where(alive, size, 0.0) / common
    usual = np.median((std * reach.weight)[alive & free]) if np.any(alive & free) else 0.0
    by_weight = usual / np.where(reach.weight > 0, reach.weight, np.inf)
    for channel in np.flatnonzero(~alive):  # its weights tell in which unit it is
        std[channel] = max(by_weight[channel], size[channel] / common) or 1.0
    if not reach.fixed.any():
        std = np.where(alive & (by_weight > 0), by_weight, std)
    std = np.array([float(f"{s:.{DIGITS}g}") for s in std])
    mean = np.array(
        [round(m, DIGITS - 1 - floor(log10(s * common))) for m, s in zip(mean, std, strict=True)]
    )
    std, mean = np.where(free, std, 1.0), np.where(free, mean, 0.0)
    small = peak[alive].min()
    why = (
        f"channels differ in size (peaks {small:.3g} .. {peak.max():.3g})"
        if uneven
        else "channels stand far from zero"
    )
    return mean, std, why


def _usual_peak(x: Array) -> Array:
    """The largest of each channel, but for spikes."""
    usual, largest = np.percentile(np.abs(x), USUAL, axis=0, method="lower"), np.abs(x).max(axis=0)
    return np.where(usual > 0, usual, largest)


def _size(x: Array) -> Array:
    """RMS of each channel but for spikes, or a part of its peak where that is far out."""
    near = np.minimum(np.abs(x), SPIKE * _usual_peak(x))
    return np.maximum(np.sqrt((near**2).mean(axis=0)), np.abs(x).max(axis=0) / CREST)
