"""Whether a stream of the integer model gives what its source was trained to give.

Two figures, both on the calibration data. ``sqnr_db``: the integer model against the source, run as
it was trained, over whole windows. ``carry_gap``: the float model whose state runs on for ever
against the same model over windows, in standard deviations of the latter.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stepwell.errors import FidelityWarning, QuantizeError
from stepwell.graph import Graph
from stepwell.importer.source import SourceModel
from stepwell.info import macs_per_step
from stepwell.layers import Dense, Recurrent
from stepwell.model import Model
from stepwell.quantize.calibrate import length_groups
from stepwell.scaler import Scaler
from stepwell.stream import FloatStream, run_in_mode
from stepwell.windowing import CARRY, Mode

LEAST_DB = 30.0  # below it a warning
WIDEST_GAP = 0.1  # standard deviations, above it a warning
BUDGET = 2e9  # multiply-accumulates of each measurement
MOST_STEPS = 1 << 15  # of each measurement
MOST_WINDOWS = 1024  # of a measurement of the gap
FEWEST_STEPS = 512
GROWTH_STEPS = 2048  # of the run that shows whether a state grows without bound
GROWTH = 1.5  # of its second half over the first
BEYOND_WINDOWS = 8.0  # times the largest state within windows
EXPLODED = 1e12
RUNAWAY = 100.0  # GROWTH where the source has no window: a user may reset it in time


@dataclass(frozen=True, eq=False)
class Ground:
    """What is measured on: ``raw`` sequences in the user's units, and ``seen``, the same
    normalised.

    Each is [T, n_in]. ``source`` takes what is ``seen``.
    """

    source: SourceModel
    raw: Sequence[np.ndarray]
    seen: Sequence[np.ndarray]
    scaler: Scaler  # the model's: its y_mean and y_std bring the answers into the user's units


def graph_source(graph: Graph) -> SourceModel:
    """A float graph as the source, for graphs that come without one."""

    def run(x: np.ndarray) -> np.ndarray:
        has_end = graph.needs_window or graph.lags[-1] > 0
        stream = FloatStream(graph.in_window(x.shape[1]) if has_end else graph)
        return stream.run(x)[:, -1:] if graph.readout == "last" else stream.outputs(x)

    return SourceModel(run, None)


# ---- integer model against source ----


def sqnr_against_source(model: Model, graph: Graph, ground: Ground) -> tuple[float | None, int]:
    """SQNR in dB of the integer model against the source, of the worst of its named outputs, and of
    how many answers.

    None: equal to the last bit, or no answers as no sequence fills a window. Raises ImportRefused
    when the source cannot be run.
    """
    window = ground.source.window or model.mode.window or None
    pieces = _pieces(model, ground, window)
    if not pieces:
        return None, 0
    theirs, ours = [], []
    for group in length_groups([seen for _, seen in pieces]):
        x = np.stack([pieces[k][1] for k in group])
        answers = source_answers(ground.source, model.mode, ground.scaler, x)
        for answer, k in zip(answers, group, strict=True):
            mine = aligned(graph, model.mode, window, model.stream().run(pieces[k][0]))
            n = min(len(answer), len(mine))
            mine, answer = (mine[-1:], answer[-1:]) if n == 1 else (mine[:n], answer[:n])
            theirs.append(answer)
            ours.append(mine)
    exact = np.concatenate(theirs)
    return worst_sqnr(exact, np.concatenate(ours), model.notes.get("outputs")), len(exact)


def _pieces(
    model: Model, ground: Ground, window: int | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """What both run over, raw and as seen: stretches of a window, or whole sequences where there is
    none.
    """
    pairs = list(zip(ground.raw, ground.seen, strict=True))
    if window:
        length = max(window, model.mode.window)
        pairs = [
            (raw[at : at + length], seen[at : at + length])
            for raw, seen in pairs
            for at in range(0, len(seen) - length + 1, length)
            if np.isfinite(raw[at]).all()  # a held sample lies before the stretch
        ]
    if not pairs:
        return []
    n_steps = max(FEWEST_STEPS, min(MOST_STEPS, BUDGET / macs_per_step(model.replace(mode=CARRY))))
    return [pairs[k] for k in _spread([len(seen) for _, seen in pairs], n_steps)]


def _spread(lengths: Sequence[int], n_steps: float) -> list[int]:
    """Indices spread over all, as many as have ``n_steps`` together."""
    wanted = max(1, int(len(lengths) * min(1.0, n_steps / sum(lengths))))
    return sorted({k * len(lengths) // wanted for k in range(wanted)})


def aligned(graph: Graph, mode: Mode, window: int | None, y: np.ndarray) -> np.ndarray:
    """Of a stream's outputs ``y`` [T, n_out] from a reset, those that the source answers for these
    steps: [n, n_out].
    """
    graph = graph.in_mode(mode)
    if mode.kind == "carry":
        whole = window in (None, len(y))
    else:  # what looks ahead makes several outputs at a window's end, of which the last one stays
        each = mode.kind == "tumble" and mode.stride == 1 and not graph.lags[-1]
        whole = each and mode.window == window == len(y)
    timing = graph.timing[-1]
    return y[timing.first :: timing.every] if graph.readout == "every" and whole else y[-1:]


def source_answers(source: SourceModel, mode: Mode, scaler: Scaler, x: np.ndarray) -> np.ndarray:
    """The source on sequences ``x`` [B, T, n_in] as it sees them, in the user's units: [B, n,
    n_out].

    Of sequences that are longer than its windows, on the last window.
    """
    window = source.window or mode.window
    y = source(x[:, -window:] if window else x)
    y = y if scaler.y_std is None else y * scaler.y_std
    return y if scaler.y_mean is None else y + scaler.y_mean


def worst_sqnr(exact: np.ndarray, found: np.ndarray, outputs: list | None = None) -> float | None:
    """SQNR in dB over all values, of the worst output where several have names. None: no error at
    all.
    """
    from stepwell.metrics import sqnr_db

    edges = np.cumsum([output["size"] for output in outputs or ()])
    parts = zip(np.split(exact, edges, axis=-1), np.split(found, edges, axis=-1), strict=True)
    values = [sqnr_db(a, b) for a, b in parts if a.size]
    return min((value for value in values if value is not None), default=None)


# ---- carried on against windows ----


def carry_gap(graph: Graph, sequences: Sequence[np.ndarray], window: int) -> float | None:
    """RMS(carried - windowed) / std(windowed) of the worst output, over the full windows of
    ``sequences``.

    A sequence shorter than two windows is one of many that the model was trained on: they are run
    end to end. Longer ones start anew. None: no sequence fills a window, or it is not finite.
    """
    sequences = [x for x in sequences if len(x) >= window]
    if graph.needs_window or not sequences:
        return None
    limit = max(4 * window, FEWEST_STEPS, min(MOST_STEPS, BUDGET / _macs(graph)))
    long = [x for x in sequences if len(x) >= 2 * window]
    runs = _first([[x] for x in long] or [list(sequences)], limit)
    carried, windows = [], []
    for run in runs:
        with np.errstate(all="ignore"):
            y = FloatStream(graph.in_mode(CARRY)).run(np.concatenate(run)[None])[0]
        start = 0
        for x in run:
            for end in range(window, len(x) + 1):
                carried.append(y[start + end - 1])
                windows.append(x[end - window : end])
            start += len(x)
    most = int(max(16, min(MOST_WINDOWS, 5 * BUDGET / (window * _macs(graph)))))
    taken = _spread([1] * len(windows), most)
    x = np.stack([windows[k] for k in taken])
    y = run_in_mode(graph, Mode("slide", window, 1), x)[:, -1]
    apart = np.sqrt(np.mean((np.stack([carried[k] for k in taken]) - y) ** 2, axis=0))
    spread = y.std(axis=0)
    if not np.isfinite(apart).all() or not (spread > 0).any():
        return None
    return float((apart[spread > 0] / spread[spread > 0]).max())


def _first(runs: list[list[np.ndarray]], limit: float) -> list[list[np.ndarray]]:
    """The first ``limit`` steps of ``runs``."""
    kept = []
    for run in runs:
        part = []
        for x in run:
            if limit > 0:
                part.append(x[: int(limit)])
                limit -= len(x)
        kept.append(part)
    return [part for part in kept if part]


def _macs(graph: Graph) -> float:
    """Multiply-accumulates of one step of the float graph, about."""
    matrices = [
        layer.w_x.size + layer.w_h.size if layer.is_recurrent else layer.weight.size
        for layer in graph.layers
        if isinstance(layer, (Recurrent, Dense))
    ]
    return max(1.0, float(sum(matrices)))


# ---- a state that grows ----


def check_growth(
    graph: Graph, sequences: Sequence[np.ndarray], mode: Mode, window: int | None
) -> None:
    """Raises QuantizeError when the float state grows without bound as it is carried on."""
    unbounded = [layer for layer in graph.layers if layer.is_recurrent and _may_run_away(layer)]
    if mode.kind != "carry" or graph.needs_window or not (window or unbounded):
        return
    n_steps = int(max(FEWEST_STEPS, min(GROWTH_STEPS, BUDGET / _macs(graph))))
    x = np.concatenate(list(sequences))
    x = np.concatenate([x] * (2 * n_steps // len(x) + 1))[: 2 * n_steps]
    stream = _Peaks(graph)
    first, second = stream.of(x[:n_steps]), stream.of(x[n_steps:])
    within = _within_windows(graph, sequences, window) if window else None
    for key, late in second.items():
        early, index = first.get(key, 0.0), key[0]
        grows = late > RUNAWAY * early
        if within is not None:
            grows = late > GROWTH * early and late > BEYOND_WINDOWS * within.get(key, 0.0)
        if not late < EXPLODED or grows:
            raise QuantizeError(_grown(graph.layers[index].name, key[1], late, n_steps, window))


def _grown(layer: str, what: str, value: float, n_steps: int, window: int | None) -> str:
    reached = f"{value:.3g}" if np.isfinite(value) else "infinity"
    state = "cell state" if what == "c" else "hidden state"
    knob = (
        f"--mode slide:{window}, tumble:{window} or stagger"
        if window
        else "--mode slide:T or tumble:T"
    )
    return (
        f"layer '{layer}': carried on, the float model's {state} grows without bound (it reaches "
        f"{reached} after {2 * n_steps} steps of the calibration data): run it in windows, as it "
        f"was trained ({knob})"
    )


def _may_run_away(layer: Recurrent) -> bool:
    """Whether an activation of the state is without bound."""
    bounded = ("sigmoid", "tanh", "hard_sigmoid", "softsign", "scaled_tanh")
    names = [getattr(function, "name", function) for function in layer.functions]
    if len(names) > 1 and names.pop(0) not in bounded:
        return False  # the quantiser refuses such gates by name
    return any(name not in bounded for name in names)


class _Peaks:
    """The largest |c| and |h| of each recurrent layer, over stretches of one stream."""

    def __init__(self, graph: Graph):
        self._found: dict[tuple[int, str], float] = {}
        self._recurrent = {k for k, layer in enumerate(graph.layers) if layer.is_recurrent}
        self._stream = FloatStream(graph, self._observe)

    def of(self, x: np.ndarray) -> dict[tuple[int, str], float]:
        """``x`` [..., T, n_in] -> {(layer, "c" or "h"): peak}."""
        self._found = {}
        with np.errstate(all="ignore"):
            self._stream.run(x)
        return self._found

    def _observe(self, index: int, name: str, values: np.ndarray) -> None:
        if index in self._recurrent and name in ("c", "h"):
            peak = float(np.abs(values).max())  # NaN stays NaN
            self._found[index, name] = peak if np.isfinite(peak) else np.inf


def _within_windows(
    graph: Graph, sequences: Sequence[np.ndarray], window: int
) -> dict[tuple[int, str], float]:
    windows = [
        x[at : at + window]
        for x in sequences
        for at in range(0, max(1, len(x) - window + 1), window)
    ]
    kept = [windows[k] for k in _spread([1] * len(windows), 256)]
    peaks: dict[tuple[int, str], float] = {}
    for group in length_groups(kept):
        for key, value in _Peaks(graph).of(np.stack([kept[k] for k in group])).items():
            peaks[key] = max(peaks.get(key, 0.0), value)
    return peaks


# ---- what is said ----


def texts(model: Model) -> list[str]:
    """A sentence for each figure of notes["fidelity"] that is worse than it should be, with the
    knob.
    """
    found, said = model.notes.get("fidelity"), []
    if not found:
        return []
    if not found.get("answers", 1):
        said.append(f"fidelity was not measured: {unfilled_text(model)}")
    if found["sqnr_db"] is not None and found["sqnr_db"] < LEAST_DB:
        said.append(
            f"the integer model follows its source at {found['sqnr_db']:.1f} dB only "
            f"({LEAST_DB:.0f} dB is the least "
            f"that is usual): {cause(model)}"
        )
    gap = found["carry_gap"]
    if model.mode.kind == "carry" and gap is not None and gap > WIDEST_GAP:
        said.append(
            f"{gap_text(gap, model.notes['window'])}: --mode "
            f"{windowed_modes(model.notes['window'])}"
        )
    return said


def gap_text(gap: float, window: int) -> str:
    """The gap in words."""
    return f"carried on, the model differs from its windows of {window} steps by {gap:.3g} of its standard deviation"


def unfilled_text(model: Model) -> str:
    """Why there were no answers."""
    window = max(model.notes["window"] or 0, model.mode.window)
    return f"no calibration sequence fills a window of {window} steps, give longer ones"


def windowed_modes(window: int) -> str:
    """The modes that keep a window, as advice."""
    copies = next((k for k in (5, 4, 3, 2) if window % k == 0 and window > k), None)
    cheaper = f"tumble:{window}" + (f" or stagger:{window}/{copies}" if copies else "")
    return f"slide:{window} is exact, {cheaper} costs less"


def cause(model: Model) -> str:
    """The likeliest cause, and what to turn."""
    precision = str(model.notes.get("precision", "w8a16"))
    if precision != "w8a16":
        return f"its precision is {precision}, try --precision w8a16"
    warned = model.notes.get("warnings")
    return (
        warned[0]
        if warned
        else "give calibration data like the real input, and look at stepwell report"
    )


def warn(model: Model) -> None:
    """A FidelityWarning for each sentence of ``texts``."""
    for text in texts(model):
        warnings.warn(text, FidelityWarning, stacklevel=4)
