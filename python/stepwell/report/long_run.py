"""A stream that is never reset: does the error grow, do gates close for good, do cells climb or
stand still?
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from stepwell.graph import Graph
from stepwell.layers.recurrent import CELL_NAME
from stepwell.model import Model
from stepwell.quantize.calibrate import Progress
from stepwell.reference import Reference
from stepwell.report.places import (
    C_LIMIT,
    GATE,
    HIDDEN,
    Array,
    float_observer,
    form,
    integer_observer,
)
from stepwell.samples import Samples
from stepwell.stream import FloatStream, run_in_mode

BLOCKS = 100  # pieces into which the run is cut
GROWS = 1.5  # error of the last quarter against the second
CLIMBS = 4.0  # a cell's peak against that within the sequences
FLAT = 5.0  # |z| beyond which sigmoid and tanh are within 1 % of their ends
MOVES = 2.0  # codes by which a float hidden state moves that should be seen in the integers


class _Watch:
    """What one side does, in real values. ``flat``: percent of each gate's values beyond FLAT,
    block by block; ``peak``: of each cell; ``low`` and ``high`` of each hidden state over the
    second half.
    """

    def __init__(self, model: Model, in_codes: bool):
        self._model, self._in_codes = model, in_codes
        self.is_late = False
        self.flat: dict[tuple[int, str], list[float]] = defaultdict(list)
        self.peak: dict[int, Array] = {}
        self.low: dict[int, Array] = {}
        self.high: dict[int, Array] = {}

    def see(self, index: int, place: str, values: Array) -> None:
        scale = form(self._model.layers[index], place)[0] if self._in_codes else 1.0
        if place.startswith(GATE):
            self.flat[index, place].append(100 * float(np.mean(np.abs(values) * scale > FLAT)))
        elif place == CELL_NAME:
            self._extend(self.peak, index, np.abs(values).max(axis=0) * scale, np.maximum)
        elif place == HIDDEN and self.is_late:
            self._extend(self.low, index, values.min(axis=0) * scale, np.minimum)
            self._extend(self.high, index, values.max(axis=0) * scale, np.maximum)

    @staticmethod
    def _extend(kept: dict[int, Array], index: int, values: Array, extreme: np.ufunc) -> None:
        kept[index] = extreme(kept[index], values) if index in kept else values


def long_run(
    model: Model,
    graph: Graph,
    samples: Samples,
    steps: int,
    curves: dict[str, Any],
    progress: Progress | None = None,
) -> dict[str, Any] | None:
    """``steps`` steps made of the sequences, end to end. None for sliding windows: every output
    starts anew.

    The four quarters have the same input: what is worse in the last than in the second is the
    state's doing.
    """
    if model.mode.kind == "slide":
        return None
    x = _repeated(_repeated(np.concatenate(list(samples.sequences)), -(-steps // 4)), steps)
    floats, integers = _Watch(model, False), _Watch(model, True)
    edges = np.linspace(0, steps, BLOCKS + 1).astype(int)
    blocks = _errors(model, graph, x, edges, floats, integers, progress)
    rms, largest = np.array([(np.sqrt(np.mean(block**2)), block.max()) for block in blocks]).T
    curves["long_run"] = edges[1:], rms, largest
    names = {
        key: f"{model.layers[key[0]].name}: {key[1].removeprefix(GATE)}" for key in integers.flat
    }
    curves["flat"] = {name: (integers.flat[key], floats.flat[key]) for key, name in names.items()}
    quarter = len(rms) // 4
    early, late = float(np.mean(rms[quarter : 2 * quarter])), float(np.mean(rms[-quarter:]))
    return {
        "steps": steps,
        "rms_error_early": early,
        "rms_error_late": late,
        "largest_error": float(largest.max()),
        "grows": late > GROWS * max(early, 2.0**-model.y_frac),
        "climbing": _climbing(model, floats.peak, _peaks(model, graph, samples)),
        "stuck": _stuck(model, floats, integers),
        "flat_gates": [
            {"layer": model.layers[key[0]].name, "place": key[1]}
            | {
                "integer_percent": float(np.mean(integers.flat[key])),
                "float_percent": float(np.mean(floats.flat[key])),
            }
            | {"late_percent": float(np.mean(integers.flat[key][-quarter:]))}
            for key in integers.flat
        ],
    }


def _repeated(x: Array, steps: int) -> Array:
    return np.tile(x, (-(-steps // len(x)), 1))[:steps]


def _errors(
    model: Model,
    graph: Graph,
    x: Array,
    edges: Array,
    floats: _Watch,
    integers: _Watch,
    progress: Progress | None,
) -> Iterator[Array]:
    """Largest |float - integer| of the outputs at each step, block by block."""
    normal = x if model.scaler.is_identity else model.scaler.normalise(x)
    if (
        model.mode.kind != "carry"
    ):  # its layers start anew within the run: only the outputs are compared
        error = np.abs(run_in_mode(graph, model.mode, normal) - model.stream().run(x)).max(axis=-1)
        yield from (error[a:b] for a, b in pairwise(edges))
        return
    exact = FloatStream(graph, float_observer(model, floats.see))
    integer = Reference(model, integer_observer(model, integers.see))
    for a, b in pairwise(edges):
        floats.is_late = integers.is_late = 2 * a >= len(x)
        yield np.abs(exact.run(normal[a:b]) - integer.run(x[a:b])).max(axis=-1)
        if progress:
            progress(int(b), len(x))


def _peaks(model: Model, graph: Graph, samples: Samples) -> dict[int, Array]:
    """Of each cell within the sequences, every one from its start."""
    watch = _Watch(model, False)
    if model.mode.kind == "carry":
        for x in samples.sequences:
            normal = x if model.scaler.is_identity else model.scaler.normalise(x)
            FloatStream(graph, float_observer(model, watch.see)).run(normal)
    return watch.peak


def _climbing(
    model: Model, peak: dict[int, Array], within: dict[int, Array]
) -> list[dict[str, Any]]:
    """Cells that climb far beyond what they reach within the sequences, or to the end of their
    format.
    """
    return [
        {
            "layer": model.layers[index].name,
            "unit": int(unit),
            "within_sequences": float(within[index][unit]),
            "long_run": float(peaks[unit]),
            "saturates": bool(peaks[unit] >= C_LIMIT),
        }
        for index, peaks in peak.items()
        for unit in np.flatnonzero(
            (peaks > np.maximum(1.0, CLIMBS * within[index])) | (peaks >= C_LIMIT)
        )
    ]


def _stuck(model: Model, floats: _Watch, integers: _Watch) -> list[dict[str, Any]]:
    """Units whose hidden state stands still in the second half while the float one moves."""
    found = []
    for index, low in integers.low.items():
        layer = model.layers[index]
        moves = floats.high[index] - floats.low[index]
        for unit in np.flatnonzero((integers.high[index] == low) & (moves > MOVES * layer.y_scale)):
            found.append(
                {"layer": layer.name, "unit": int(unit), "float_moves": float(moves[unit])}
            )
    return found
