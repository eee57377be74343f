"""Ranges and second moments of every layer's input, from sample sequences run as a stream through
the float graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stepwell.errors import SampleError, UnknownWord
from stepwell.graph import Graph
from stepwell.integer.formats import C_LIMIT
from stepwell.integer.functions import as_function
from stepwell.integer.rows import Moments
from stepwell.layers.base import Layer
from stepwell.layers.place import HEADROOM, LayerStats
from stepwell.stream import FloatStream

LARGEST_VALUE = 1e30
FLAT = 8.0  # |z| at which sigmoid and tanh are within 0.04 % of their ends
MOSTLY = 0.25  # share of such values that a trained model hardly has
# a state's peak over sequences end to end, against the peak within them: formats have that much
# room
GROWN = 2.0
UNBOUNDED = 1000.0  # beyond that a state grows without end
STATES = ("c", "h", "z")  # what a stream carries on, and the pre-activations that it drives
CHAIN_STEPS = 2048  # of sequences end to end

Progress = Callable[[int, int], None]  # (steps done, steps in all)


@dataclass(frozen=True, eq=False)
class Calibration:
    layers: tuple[LayerStats, ...]
    n_sequences: int
    n_steps: int
    x_peak: float  # largest |x| of the model's input
    x_range: float = 0.0  # largest |x| that shall be held, by the rule
    # largest |x| of every other sequence, and of the rest
    x_halves: tuple[float, float] = (
        0.0,
        0.0,
    )

    @property
    def is_saturated(self) -> bool:
        """Whether the float model works at the ends of its gates, or a cell far beyond its format."""
        return any(
            found.flat > MOSTLY or found.peaks.get("c", 0.0) >= C_LIMIT for found in self.layers
        )


class _Accumulator:
    """Running sums for one layer."""

    def __init__(self, width: int):
        self.count = 0
        # the first vector: sums of differences from it do not cancel
        self.shift: np.ndarray | None = None
        self.total = np.zeros(width)
        self.products = np.zeros((width, width))
        self.peaks: dict[str, float] = {}
        self.flat: list[int] = [0, 0]  # of so many values

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
        return LayerStats(
            Moments(mean + self.shift, covariance), self.peaks, self.flat[0] / max(1, self.flat[1])
        )

    def count_flat(self, z: np.ndarray) -> None:
        self.flat = [self.flat[0] + int((np.abs(z) > FLAT).sum()), self.flat[1] + z.size]


def calibrate(
    graph: Graph,
    sequences: Sequence[np.ndarray],
    progress: Progress | None = None,
    window: int = 0,
    rule: str = "auto",
) -> Calibration:
    """Run ``sequences`` ([T_i, n_in] each, every one from its initial state) through the float
    graph and collect statistics.

    ``window``: cut them into windows of so many steps first, as the model's mode will. ``rule``:
    ``HELP``.
    """
    hold = range_rule(rule)
    sequences = _windows(sequences, window)
    stats = _collected(graph, sequences, progress)
    for layer, found in zip(graph.layers, stats, strict=True):
        if not found.peaks:
            raise SampleError(
                f"no calibration sequence is long enough for layer '{layer.name}' to run once"
            )
        if not _is_usable(found):
            raise SampleError(
                f"layer '{layer.name}' sees values up to {max(found.peaks.values()):.3g}: "
                "normalise the inputs"
            )
    if not window and len(sequences) > 1 and not graph.needs_window:
        stats = _carried(graph, sequences, stats)
    peaks = [float(np.abs(s).max()) for s in sequences]
    x = np.concatenate([np.ravel(s) for s in sequences])
    halves = (max(peaks[::2]), max(peaks[1::2], default=0.0))
    return Calibration(
        tuple(stats), len(sequences), sum(map(len, sequences)), max(peaks), hold(np.abs(x)), halves
    )


def _collected(
    graph: Graph, sequences: Sequence[np.ndarray], progress: Progress | None = None
) -> list[LayerStats]:
    """Statistics of each layer, every sequence run from the initial state. Values may be infinite."""
    sums = [_Accumulator(layer.n_summed) for layer in graph.layers]
    pending: dict[int, np.ndarray] = {}

    def observe(index: int, name: str, values: np.ndarray) -> None:
        sums[index].peak(name, values)
        if name == "z" and _has_ends(graph.layers[index]):
            sums[index].count_flat(values)
        if name == "x":
            pending[index] = values
            if graph.layers[index].n_summed and not graph.layers[index].is_recurrent:
                sums[index].add(values)
        elif name == "h":
            sums[index].add(np.concatenate([pending[index], values], axis=-1))

    n_steps, done = sum(len(s) for s in sequences), 0
    with np.errstate(over="ignore", invalid="ignore"):  # the caller looks
        for group in length_groups(sequences):
            batch = np.stack([sequences[k] for k in group])
            FloatStream(graph, observe).run(batch)
            done += batch.shape[0] * batch.shape[1]
            if progress:
                progress(done, n_steps)
        return [s.stats() for s in sums]


def _is_usable(found: LayerStats) -> bool:
    return bool(
        np.isfinite(found.moments.covariance).all() and max(found.peaks.values()) <= LARGEST_VALUE
    )


def _has_ends(layer: Layer) -> bool:
    """Whether the activation that a recurrent layer's pre-activations meet first is flat far from
    zero.
    """
    return bool(np.abs(as_function(layer.functions[0])(np.array([-16.0, 16.0]))).max() <= 1.0)


def _carried(
    graph: Graph, sequences: Sequence[np.ndarray], stats: list[LayerStats]
) -> list[LayerStats]:
    """The statistics of a stream that is not reset between the sequences, where a state outgrows
    what it reaches within them; else ``stats``. A state that leaves all bounds is left to others.
    """
    carried = _collected(graph, _chains(sequences))
    if not all(_is_usable(found) for found in carried):
        return stats
    grown = [
        {
            n: (s.peaks[n], c.peaks[n])
            for n in STATES
            if n in s.peaks and c.peaks[n] > GROWN * s.peaks[n]
        }
        for s, c in zip(stats, carried, strict=True)
    ]
    growth = max((c / max(s, 1e-30) for pairs in grown for s, c in pairs.values()), default=0.0)
    if not any(grown) or growth > UNBOUNDED:
        return stats
    if any(
        s < C_LIMIT <= c for pairs in grown for s, c in pairs.values()
    ):  # no range holds it: a warning only
        return [replace(s, grown=g) for s, g in zip(stats, grown, strict=True)]
    # what comes before the first state sees the same inputs, but for the seams
    touched = _after_recurrent(graph)
    return [
        replace(
            c, peaks={name: max(peak, s.peaks[name]) for name, peak in c.peaks.items()}, grown=g
        )
        if after
        else s
        for s, c, g, after in zip(stats, carried, grown, touched, strict=True)
    ]


def _after_recurrent(graph: Graph) -> list[bool]:
    """For each layer whether it is recurrent, or reads what a recurrent layer has made."""
    after = [False]  # value 0
    for layer, reads in zip(graph.layers, graph.sources, strict=True):
        after.append(layer.is_recurrent or any(after[value] for value in reads))
    return after[1:]


def _chains(sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The sequences end to end, CHAIN_STEPS or a little more at a time."""
    chains: list[list[np.ndarray]] = [[]]
    for sequence in sequences:
        if sum(map(len, chains[-1])) >= CHAIN_STEPS:
            chains.append([])
        chains[-1].append(sequence)
    return [np.concatenate(chain) for chain in chains]


MSE_CANDIDATES = np.linspace(0.02, 1.0, 50)
# of the largest |x|: what is tried for inputs of 8 bits
RANGES = 1.25 * 2.0 ** (-np.arange(21) / 4)
RANGE_STEPS = 4096  # of the sequences, that it is tried on
HELP = (
    "auto (minmax, and for inputs of 8 bits the least error of the outputs), minmax (twice the "
    "largest value), percentile:P (the "
    "rest is clipped), mse (the least error of inputs of 8 bits)"
)


def range_rule(text: str) -> Callable[[np.ndarray], float]:
    """From |x| of all samples to the largest that the input's format holds; UnknownWord for an
    unknown rule.
    """
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
    """The largest |x| that an input of 8 bits should hold: of RANGES, the one whose errors the
    outputs show least.
    """
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
        return sum(
            float(((FloatStream(graph).run(x) - y) ** 2).sum())
            for x, y in zip(rounded, exact, strict=True)
        )

    return float(min(RANGES * max(np.abs(batch).max() for batch in batches), key=error))


def _windows(sequences: Sequence[np.ndarray], window: int) -> list[np.ndarray]:
    """Each sequence cut into windows, what is left over at its end dropped; a shorter one stays
    whole.
    """
    if not window:
        return list(sequences)
    return [
        s[at : at + window]
        for s in sequences
        for at in range(0, max(1, len(s) - window + 1), window)
    ]


def length_groups(sequences: Sequence[np.ndarray], at_most: int = 256) -> Iterator[list[int]]:
    """Indices of sequences of the same length, up to ``at_most`` at a time: they can step side by
    side.
    """
    by_length: dict[int, list[int]] = {}
    for index, sequence in enumerate(sequences):
        by_length.setdefault(len(sequence), []).append(index)
    for group in by_length.values():
        for start in range(0, len(group), at_most):
            yield group[start : start + at_most]
