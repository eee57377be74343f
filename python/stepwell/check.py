"""What quantisation costs: the float graph and the integer model side by side on the user's data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from stepwell.calibrate import Progress, length_groups
from stepwell.errors import ModelError, SampleError
from stepwell.float_stream import run_in_mode
from stepwell.folding import float_side
from stepwell.graph import Graph
from stepwell.info import macs_per_step, ram_bytes, timing
from stepwell.metrics import Metric, usual_metric
from stepwell.mode import Mode
from stepwell.model import Model, RecurrentLayer
from stepwell.reference import Reference
from stepwell.samples import Samples


def find_source(model: Model, model_path: Path, given: str | None) -> Path:
    """The float model to compare with: ``given``, or the file of the recorded name and SHA-256 beside the .stw or here."""
    from stepwell.importer import file_sha256

    if given:
        return Path(given)
    source = model.notes.get("source", {})
    name, digest = Path(source.get("file", "")).name, source.get("sha256", "")
    for folder in (model_path.parent, Path()):
        candidate = folder / name
        if name and candidate.is_file() and file_sha256(candidate) == digest:
            return candidate
    raise ModelError(
        f"{model_path}: the float model it was made from ('{name}') is not beside it: name it with --float FILE"
    )


def is_source(model: Model, path: Path) -> bool | None:
    """Whether the model was made from the very file ``path``, by its SHA-256; None when the model has none."""
    from stepwell.importer import file_sha256

    digest = model.notes.get("source", {}).get("sha256")
    return file_sha256(path) == digest if digest else None


def no_output(model: Model, sequences: Sequence[np.ndarray]) -> str | None:
    """Why there is nothing to compare: every sequence ends before the model's first output. None when one does not."""
    lengths, takes = {len(sequence) for sequence in sequences}, timing(model)["first_output"] + 1
    if max(lengths) >= takes:
        return None
    have = f"{'at most ' if len(lengths) > 1 else ''}{max(lengths)} steps"
    what = "the first output" if model.mode.kind == "carry" else "the window"
    return f"no output: the sequences have {have}, {what} takes {takes}"


def compare(
    model: Model, graph: Graph, samples: Samples, progress: Progress | None = None, metric: Metric | None = None
) -> dict[str, Any]:
    """Run float, reference and engine on every sequence (each from zero state).

    Returns JSON types: SQNR in dB and largest error per output, saturation counts per place, the task's metric when the samples
    have targets, and ``engine_mismatches``: values in which C and reference differ, which is 0 or a defect. ``no_output``: why
    there are no figures, or None.
    """
    graph = float_side(graph, model.scaler)
    if (graph.n_in, graph.n_out) != (model.n_in, model.n_out):
        raise ModelError(
            f"the float model maps {graph.n_in} inputs to {graph.n_out} outputs, the integer model {model.n_in} to {model.n_out}"
        )
    saturation = _SaturationCounter(model)
    in_float: list[np.ndarray] = [np.empty(0)] * len(samples.sequences)
    in_int = list(in_float)
    mismatches = done = 0
    total = sum(len(s) for s in samples.sequences)
    stream = model.stream()
    for group in length_groups(samples.sequences):
        x = np.stack([samples.sequences[k] for k in group])
        saturation.count_inputs(x)
        y_float = run_in_mode(graph, model.mode, x if model.scaler.is_identity else model.scaler.normalise(x))
        y_int = Reference(model, saturation.observe).run(x)
        for k, f, i in zip(group, y_float, y_int, strict=True):
            in_float[k], in_int[k] = f, i
            stream.reset()
            mismatches += int((stream.run(samples.sequences[k]) != i).sum())
            done += len(f)
            if progress:
                progress(done, total)
    f, i = np.concatenate(in_float), np.concatenate(in_int)
    nothing = no_output(model, samples.sequences)
    errors = [None if nothing else float(error) for error in np.abs(f - i).max(axis=0)]
    return {
        "model": model.name,
        "id": f"{model.id:08x}",
        "data": samples.name,
        "sequences": len(samples.sequences),
        "steps": total,
        "no_output": nothing,
        "sqnr_db": sqnr_db(f, i),
        "outputs": [
            {"output": k, "sqnr_db": sqnr_db(f[:, k], i[:, k]), "max_abs_error": error}
            for k, error in enumerate(errors)
        ],
        "saturation": saturation.counts,
        "metric": None if nothing else task_metric(samples.targets, in_float, in_int, metric),
        "engine_mismatches": mismatches,
        "mode": str(model.mode),
    }


def float_outputs(model: Model, graph: Graph, samples: Samples) -> list[np.ndarray]:
    """What the float graph gives for each sequence, in the model's mode and the user's units."""
    graph = float_side(graph, model.scaler)
    outputs: list[np.ndarray] = [np.empty(0)] * len(samples.sequences)
    for group in length_groups(samples.sequences):
        x = np.stack([samples.sequences[k] for k in group])
        y = run_in_mode(graph, model.mode, x if model.scaler.is_identity else model.scaler.normalise(x))
        for k, values in zip(group, y, strict=True):
            outputs[k] = values
    return outputs


def compare_modes(
    model: Model,
    graph: Graph,
    samples: Samples,
    modes: Sequence[Mode],
    progress: Progress | None = None,
    metric: Metric | None = None,
) -> list[dict[str, Any]]:
    """SQNR, task metric and cost of the same weights in each mode, at the steps at which the mode makes outputs.

    The float side runs in the same mode: what a mode costs in accuracy is the change of the float metric from one to the other.
    """
    found = []
    for mode in modes:
        other = model.replace(mode=mode)
        result = compare(other, graph, samples, progress, metric)
        costs = {
            "macs_per_step": macs_per_step(other),
            "ram_bytes": sum(ram_bytes(other)[k] for k in ("state", "scratch")),
        }
        figures = {name: result[name] for name in ("no_output", "sqnr_db", "metric")}
        found.append({"mode": str(mode), **figures, **costs, **timing(other)})
    return found


def sqnr_db(exact: np.ndarray, approximate: np.ndarray) -> float | None:
    """10 log10(signal power / error power); None when the error is zero."""
    error = float(np.sum((exact - approximate) ** 2))
    signal = max(float(np.sum(exact**2)), 1e-300)  # a silent output that is wrong is very bad, not exact
    return float(10 * np.log10(signal / error)) if error > 0 else None


def task_metric(
    targets: Sequence | None, in_float: list, in_int: list, wanted: Metric | None = None
) -> dict[str, Any] | None:
    """The task's metric of both, at the last step unless there is a target for each step; None without targets."""
    if targets is None:
        if wanted:
            raise SampleError(f"{wanted.name} needs targets: an array 'y' in the .npz file")
        return None
    if len(targets) != len(in_float):
        raise SampleError(f"{len(targets)} targets for {len(in_float)} sequences: give one target a sequence")
    first = np.asarray(targets[0])
    every_step = first.ndim >= 1 and len(first) == len(in_float[0]) > 1 and first.size != in_float[0].shape[1]
    metric = wanted or usual_metric(first, in_float[0].shape[1])
    outputs = [y if every_step else y[-1] for y in in_float], [y if every_step else y[-1] for y in in_int]
    with_float, with_int = (_scored(metric, targets, list(y)) for y in outputs)
    change = 100 * (with_int - with_float) / abs(with_float) if with_float else None
    return {
        "name": metric.name,
        "at": "every step" if every_step else "last step",
        "float": with_float,
        "integer": with_int,
        "change_percent": change,
        "drop_percent": metric.drop_percent(with_float, with_int),
    }


def _scored(metric: Metric, targets: Sequence, outputs: list[np.ndarray]) -> float:
    try:
        return float(metric.score(targets, outputs))
    except SampleError:
        raise
    except Exception as error:  # it may be the user's code
        raise SampleError(f"metric {metric.name}: {type(error).__name__}: {error}") from error


# ---- memory ----

HISTORIES = 8  # sequences that are run with another one before them
FORGOTTEN = 0.01  # of the outputs' range


def warm_up(model: Model, sequences: Sequence[np.ndarray]) -> dict[str, Any] | None:
    """How many steps after a reset the output still shows that the past is missing.

    Up to 8 sequences run twice, from a reset and with another sequence before them, until the outputs differ by less than 1 % of
    their range for good. ``steps``: the most that one of them took; None when one did not come together within its
    ``of`` steps. None altogether for models whose mode resets them, without outputs, and with fewer than two sequences.
    """
    if model.mode.kind != "carry" or len(sequences) < 2 or no_output(model, sequences):
        return None
    pairs = list(pairwise(sequences))[:HISTORIES]
    fresh = [model.stream().run(x) for _, x in pairs]
    going_on = [model.stream().run(np.concatenate([past, x]))[len(past) :] for past, x in pairs]
    span = float(np.ptp(np.concatenate([*fresh, *going_on]), axis=0).max())
    steps: int | None = 0
    for a, b in zip(fresh, going_on, strict=True):
        apart = np.flatnonzero(np.abs(a - b).max(axis=-1) > FORGOTTEN * span)
        if len(apart) and apart[-1] == len(a) - 1:
            steps = None
            break
        steps = max(steps, int(apart[-1]) + 1 if len(apart) else 0)
    return {"steps": steps, "of": max(len(x) for _, x in pairs), "sequences": len(pairs)}


class _SaturationCounter:
    """Counts values at the rails, by layer and place, of ``values`` seen in all."""

    def __init__(self, model: Model):
        self._model = model
        self.counts: dict[str, dict[str, int]] = {}

    def count_inputs(self, x: np.ndarray) -> None:
        codes = self._model.scaler.normalise(x) / self._model.x_scale
        self._add("input", (codes > 32767.5) | (codes < -32768.5))

    def observe(self, index: int, name: str, values: np.ndarray) -> None:
        layer = self._model.layers[index]
        place = f"layer {index} {layer.name}"
        if isinstance(layer, RecurrentLayer) and name == "z":
            for gate, z in zip(layer.records, np.split(values, len(layer.records), axis=-1), strict=True):
                self._add(f"{place}: z of gate {gate}", (z == 32767) | (z == -32768))
        elif name == "c_wide":
            self._add(f"{place}: cell c", np.abs(values + 0.5) > 2**31)
        elif name == "v" and index < len(self._model.layers) - 1:
            self._add(f"{place}: output", np.abs(values + 0.5) > 2**15)

    def _add(self, place: str, at_rail: np.ndarray) -> None:
        count = self.counts.setdefault(place, {"saturated": 0, "values": 0})
        count["saturated"] += int(at_rail.sum())
        count["values"] += at_rail.size
