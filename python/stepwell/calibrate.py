"""Ranges and second moments of every layer's input, from sample sequences run as a stream through the float graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stepwell.errors import SampleError, UnknownWord
from stepwell.float_stream import FloatStream
from stepwell.graph import Dense, Graph, Layer, Recurrent

LARGEST_VALUE = 1e30

Progress = Callable[[int, int], None]  # (steps done, steps in all)


@dataclass(frozen=True, eq=False)
class Moments:
    """Statistics of the vector a layer multiplies with its weights: x, or [x; h] for a recurrent layer.

    ``mean`` [K], ``covariance`` [K, K].
    """

    mean: np.ndarray
    covariance: np.ndarray

    @property
    def energy(self) -> np.ndarray:
        """E[a_j^2], [K]."""
        return np.diag(self.covariance) + self.mean**2

    def part(self, columns: slice) -> Moments:
        """The statistics of some of the columns."""
        return Moments(self.mean[columns], self.covariance[columns, columns])


@dataclass(frozen=True, eq=False)
class LayerStats:
    """``peaks``: largest magnitude seen of x and, by layer kind, of h, z, c (recurrent) or y (dense: after the activation)."""

    moments: Moments
    peaks: dict[str, float]


@dataclass(frozen=True, eq=False)
class Calibration:
    layers: tuple[LayerStats, ...]
    n_sequences: int
    n_steps: int
    x_peak: float  # largest |x| of the model's input
    x_range: float = 0.0  # largest |x| that shall be held, by the rule
    x_halves: tuple[float, float] = (0.0, 0.0)  # largest |x| of every other sequence, and of the rest


class _Accumulator:
    """Running sums for one layer."""

    def __init__(self, width: int):
        self.count = 0
        self.shift: np.ndarray | None = None  # the first vector: sums of differences from it do not cancel
        self.total = np.zeros(width)
        self.products = np.zeros((width, width))
        self.peaks: dict[str, float] = {}

    def peak(self, name: str, values: np.ndarray) -> None:
        self.peaks[name] = max(self.peaks.get(name, 0.0), float(np.abs(values).max()))

    def add(self, a: np.ndarray) -> None:
        """``a`` [..., K]"""
        a = a.reshape(-1, a.shape[-1])
        self.shift = a[0].copy() if self.shift is None else self.shift
        a = a - self.shift
        self.count += len(a)
        self.total += a.sum(axis=0)
        self.products += a.T @ a

    def stats(self) -> LayerStats:
        if not self.count:
            return LayerStats(Moments(np.zeros(0), np.zeros((0, 0))), self.peaks)
        mean = self.total / self.count
        covariance = self.products / self.count - np.outer(mean, mean)
        return LayerStats(Moments(mean + self.shift, covariance), self.peaks)


def calibrate(
    graph: Graph,
    sequences: Sequence[np.ndarray],
    progress: Progress | None = None,
    window: int = 0,
    rule: str = "auto",
) -> Calibration:
    """Run ``sequences`` ([T_i, n_in] each, every one from its initial state) through the float graph and collect statistics.

    ``window``: cut them into windows of so many steps first, as the model's mode will. ``rule``: ``HELP``.
    """
    hold = range_rule(rule)
    sequences = _windows(sequences, window)
    sums = [_Accumulator(_moments_width(layer)) for layer in graph.layers]
    pending: dict[int, np.ndarray] = {}

    def observe(index: int, name: str, values: np.ndarray) -> None:
        sums[index].peak(name, values)
        if name == "x":
            pending[index] = values
            if isinstance(graph.layers[index], Dense):
                sums[index].add(values)
        elif name == "h":
            sums[index].add(np.concatenate([pending[index], values], axis=-1))

    n_steps = sum(len(s) for s in sequences)
    done = 0
    with np.errstate(over="ignore", invalid="ignore"):  # values that are too large are refused below, with their layer
        for group in length_groups(sequences):
            batch = np.stack([sequences[k] for k in group])
            FloatStream(graph, observe).run(batch)
            done += batch.shape[0] * batch.shape[1]
            if progress:
                progress(done, n_steps)
        stats = tuple(s.stats() for s in sums)
    for layer, found in zip(graph.layers, stats, strict=True):
        if not found.peaks:
            raise SampleError(f"no calibration sequence is long enough for layer '{layer.name}' to run once")
        if not np.isfinite(found.moments.covariance).all() or max(found.peaks.values()) > LARGEST_VALUE:
            raise SampleError(
                f"layer '{layer.name}' sees values up to {max(found.peaks.values()):.3g}: normalise the inputs"
            )
    peaks = [float(np.abs(s).max()) for s in sequences]
    x = np.concatenate([np.ravel(s) for s in sequences])
    halves = (max(peaks[::2]), max(peaks[1::2], default=0.0))
    return Calibration(stats, len(sequences), n_steps, max(peaks), hold(np.abs(x)), halves)


HEADROOM = 2.0  # the calibrated maximum fills half of what a format holds
MSE_CANDIDATES = np.linspace(0.02, 1.0, 50)
RANGES = 1.25 * 2.0 ** (-np.arange(21) / 4)  # of the largest |x|: what is tried for inputs of 8 bits
RANGE_STEPS = 4096  # of the sequences, that it is tried on
HELP = (
    "auto (minmax, and for inputs of 8 bits the least error of the outputs), minmax (twice the largest value), percentile:P (the "
    "rest is clipped), mse (the least error of inputs of 8 bits)"
)


def range_rule(text: str) -> Callable[[np.ndarray], float]:
    """From |x| of all samples to the largest that the input's format holds; UnknownWord for an unknown rule."""
    if text in ("auto", "minmax"):
        return lambda x: HEADROOM * float(x.max())
    if text == "mse":
        return _least_error
    name, _, number = text.partition(":")
    try:
        percent = float(number)
    except ValueError:
        percent = -1.0
    if name != "percentile" or not 50 <= percent <= 100:
        raise UnknownWord(f"calibration '{text}' is not one of {HELP}, P from 50 to 100")
    return lambda x: float(np.percentile(x, percent)) or float(x.max())


def _least_error(x: np.ndarray) -> float:
    """The range whose 127 levels of each sign have the least squared error on the samples."""
    errors = []
    for top in MSE_CANDIDATES * x.max():
        step = max(top / 127, 1e-300)
        errors.append(float(((x - np.minimum(np.floor(x / step + 0.5), 127) * step) ** 2).sum()))
    return float(MSE_CANDIDATES[int(np.argmin(errors))] * x.max())


def range_of_8_bits(graph: Graph, sequences: Sequence[np.ndarray], window: int = 0) -> float:
    """The largest |x| that an input of 8 bits should hold: of RANGES, the one whose errors the outputs show least."""
    some, left = [], RANGE_STEPS
    for sequence in _windows(sequences, window):
        if left > 0:
            some.append(sequence[:left])
            left -= len(sequence)
    batches = [np.stack([some[k] for k in group]) for group in length_groups(some)]
    exact = [FloatStream(graph).run(batch) for batch in batches]

    def error(top: float) -> float:
        step = top / 127
        rounded = [np.clip(np.floor(batch / step + 0.5), -127, 127) * step for batch in batches]
        return sum(float(((FloatStream(graph).run(x) - y) ** 2).sum()) for x, y in zip(rounded, exact, strict=True))

    return float(min(RANGES * max(np.abs(batch).max() for batch in batches), key=error))


def _moments_width(layer: Layer) -> int:
    """Length of the vector that the layer multiplies with its weights; 0 where it has none to round."""
    if isinstance(layer, Recurrent):
        return layer.n_in + layer.n_out
    return layer.n_in if isinstance(layer, Dense) else 0


def _windows(sequences: Sequence[np.ndarray], window: int) -> list[np.ndarray]:
    """Each sequence cut into windows, what is left over at its end dropped; a shorter one stays whole."""
    if not window:
        return list(sequences)
    return [s[at : at + window] for s in sequences for at in range(0, max(1, len(s) - window + 1), window)]


def length_groups(sequences: Sequence[np.ndarray], at_most: int = 256) -> Iterator[list[int]]:
    """Indices of sequences of the same length, up to ``at_most`` at a time: they can step side by side."""
    by_length: dict[int, list[int]] = {}
    for index, sequence in enumerate(sequences):
        by_length.setdefault(len(sequence), []).append(index)
    for group in by_length.values():
        for start in range(0, len(group), at_most):
            yield group[start : start + at_most]
