"""What quantisation costs: the float graph and the integer model side by side on the user's data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stepwell.errors import ImportRefused, ModelError, SampleError
from stepwell.graph import Graph
from stepwell.importer.source import SourceModel
from stepwell.info import macs_per_step, ram_bytes, timing
from stepwell.metrics import Metric, sqnr_db, usual_metric
from stepwell.model import Model
from stepwell.quantize import in_mode
from stepwell.quantize.calibrate import Progress, length_groups
from stepwell.quantize.fidelity import aligned, source_answers
from stepwell.quantize.folding import float_side
from stepwell.reference import Reference
from stepwell.samples import Samples
from stepwell.stream import run_in_mode
from stepwell.text import printable
from stepwell.windowing import Mode

if TYPE_CHECKING:
    from stepwell.importer import Imported


def find_source(model: Model, model_path: Path, given: str | None) -> Path:
    """The float model to compare with: ``given``, or the file of the recorded name and SHA-256
    beside the .stw or here.
    """
    from stepwell.importer import file_sha256

    if given:
        return Path(given)
    source = model.notes.get("source", {})
    name, digest = Path(source.get("file", "")).name, source.get("sha256", "")
    for folder in (model_path.parent, Path()):
        for candidate in _files_called(name, folder):
            if file_sha256(candidate) == digest:
                return candidate
    raise ModelError(
        f"{model_path}: the float model it was made from ('{name}') is not beside it: name it "
        "with --float FILE"
    )


def _files_called(name: str, folder: Path) -> Iterator[Path]:
    """Files of a folder whose name is this one, once it can be printed."""
    if name and (folder / name).is_file():
        yield folder / name
    elif "\\" in name:
        yield from (
            path for path in folder.iterdir() if printable(path.name) == name and path.is_file()
        )


def reimported(model: Model, path: Path) -> Imported:
    """The source of a model, or another file to compare it with, with the outputs that the model
    was made of; without a replay.
    """
    from stepwell.importer import import_file
    from stepwell.importer.outputs import UnknownOutput

    names = [output["name"] for output in model.notes.get("outputs", [])]
    try:
        return import_file(path, verify=False, outputs=names)
    except UnknownOutput:
        if len(names) > 1 or is_source(model, path):
            raise
        return import_file(path, verify=False)  # another model, whose one output has another name


def is_source(model: Model, path: Path) -> bool | None:
    """Whether the model was made from the very file ``path``, by its SHA-256; None when the model
    has none.
    """
    from stepwell.importer import file_sha256

    digest = model.notes.get("source", {}).get("sha256")
    return file_sha256(path) == digest if digest else None


def no_output(model: Model, sequences: Sequence[np.ndarray]) -> str | None:
    """Why there is nothing to compare: every sequence ends before the model's first output. None
    when one does not.
    """
    lengths, takes = {len(sequence) for sequence in sequences}, timing(model)["first_output"] + 1
    if max(lengths) >= takes:
        return None
    have = f"{'at most ' if len(lengths) > 1 else ''}{max(lengths)} steps"
    what = "the first output" if model.mode.kind == "carry" else "the window"
    return f"no output: the sequences have {have}, {what} takes {takes}"


def compare(
    model: Model,
    graph: Graph,
    samples: Samples,
    progress: Progress | None = None,
    metric: Metric | None = None,
    source: SourceModel | None = None,
) -> dict[str, Any]:
    """Run float, reference and engine on every sequence (each from zero state), and ``source`` as
    it was trained.

    Returns JSON types: SQNR in dB and largest error per output, saturation counts per place, the
    task's metric when the samples have targets, and ``engine_mismatches``: values in which C and
    reference differ, which is 0 or a defect. ``no_output``: why there are no figures, or None.
    "source": float stream and integer model against the source, None without one or without
    figures; its "why_not" tells why it was not compared.
    """
    graph = float_side(graph, model.scaler)
    if (graph.n_in, graph.n_out) != (model.n_in, model.n_out):
        raise ModelError(
            f"the float model maps {graph.n_in} inputs to {graph.n_out} outputs, the integer model "
            f"{model.n_in} to {model.n_out}"
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
        y_float = run_in_mode(
            graph, model.mode, x if model.scaler.is_identity else model.scaler.normalise(x)
        )
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
    in_source, why_not = (
        _source_outputs(model, samples, source) if source and not nothing else (None, None)
    )
    against = (
        _against_source(model, graph, source, in_source, in_float, in_int) if in_source else None
    )
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
        "source": {"why_not": why_not} if why_not else against,
        "metric": None
        if nothing
        else task_metric(samples.targets, in_float, in_int, metric, in_source),
        "engine_mismatches": mismatches,
        "mode": str(model.mode),
    }


def _source_outputs(
    model: Model, samples: Samples, source: SourceModel
) -> tuple[list[np.ndarray] | None, str | None]:
    """The source's answers [n, n_out] for each sequence, or why there are none."""
    shortest = min(len(sequence) for sequence in samples.sequences)
    if source.window and shortest < source.window:
        return None, f"a sequence has {shortest} steps, the source takes windows of {source.window}"
    outputs: list[np.ndarray] = [np.empty(0)] * len(samples.sequences)
    try:
        for group in length_groups(samples.sequences):
            x = np.stack([samples.sequences[k] for k in group])
            x = x if model.scaler.is_identity else model.scaler.of_source.normalise(x)
            for k, y in zip(
                group, source_answers(source, model.mode, model.scaler, x), strict=True
            ):
                outputs[k] = y
    except ImportRefused as error:
        return None, str(error)
    return outputs, None


def _against_source(
    model: Model, graph: Graph, source: SourceModel, in_source: list, in_float: list, in_int: list
) -> dict[str, Any]:
    """SQNR of float stream and integer model against the source, at the steps for which the source
    answers.
    """
    window = source.window or model.mode.window or None
    rows: list[list[np.ndarray]] = [[], [], []]
    for exact, stream, integer in zip(in_source, in_float, in_int, strict=True):
        found = [exact, *(aligned(graph, model.mode, window, y) for y in (stream, integer))]
        n = min(map(len, found))
        for kept, y in zip(rows, found, strict=True):
            kept.append(y[-1:] if n == 1 else y[:n])
    exact, stream, integer = (np.concatenate(kept) for kept in rows)

    def each(y: np.ndarray) -> list[float | None]:
        return [sqnr_db(exact[:, k], y[:, k]) for k in range(exact.shape[1])]

    return {
        "why_not": None,
        "window": window,
        "answers": len(exact),
        "float_sqnr_db": sqnr_db(exact, stream),
        "sqnr_db": sqnr_db(exact, integer),
        "float_outputs": each(stream),
        "outputs": each(integer),
    }


def float_outputs(model: Model, graph: Graph, samples: Samples) -> list[np.ndarray]:
    """What the float graph gives for each sequence, in the model's mode and the user's units."""
    graph = float_side(graph, model.scaler)
    outputs: list[np.ndarray] = [np.empty(0)] * len(samples.sequences)
    for group in length_groups(samples.sequences):
        x = np.stack([samples.sequences[k] for k in group])
        y = run_in_mode(
            graph, model.mode, x if model.scaler.is_identity else model.scaler.normalise(x)
        )
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
    """SQNR, task metric and cost of the same weights in each mode, at the steps at which the mode
    makes outputs.

    The float side runs in the same mode: what a mode costs in accuracy is the change of the float
    metric from one to the other.
    """
    found = []
    for mode in modes:
        other = in_mode(model, float_side(graph, model.scaler), mode)
        result = compare(other, graph, samples, progress, metric)
        costs = {
            "macs_per_step": macs_per_step(other),
            "ram_bytes": sum(ram_bytes(other)[k] for k in ("state", "scratch")),
        }
        figures = {name: result[name] for name in ("no_output", "sqnr_db", "metric")}
        found.append({"mode": str(mode), **figures, **costs, **timing(other)})
    return found


def task_metric(
    targets: Sequence | None,
    in_float: list,
    in_int: list,
    wanted: Metric | None = None,
    in_source: list | None = None,
) -> dict[str, Any] | None:
    """The task's metric of all, at the last step unless there is a target for each step; None
    without targets.

    "source" is None where the source does not answer at these steps.
    """
    if targets is None:
        if wanted:
            raise SampleError(f"{wanted.name} needs targets: an array 'y' in the .npz file")
        return None
    if len(targets) != len(in_float):
        raise SampleError(
            f"{len(targets)} targets for {len(in_float)} sequences: give one target a sequence"
        )
    first = np.asarray(targets[0])
    every_step = (
        first.ndim >= 1
        and len(first) == len(in_float[0]) > 1
        and first.size != in_float[0].shape[1]
    )
    metric = wanted or usual_metric(first, in_float[0].shape[1])

    def scored(found: list) -> float:
        return _scored(metric, targets, [y if every_step else y[-1] for y in found])

    answers_all = in_source and all(
        len(a) == len(b) for a, b in zip(in_source, in_float, strict=True)
    )
    with_source = scored(in_source) if in_source and (answers_all or not every_step) else None
    with_float, with_int = scored(in_float), scored(in_int)
    change = 100 * (with_int - with_float) / abs(with_float) if with_float else None
    return {
        "name": metric.name,
        "at": "every step" if every_step else "last step",
        "source": with_source,
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

    Up to 8 sequences run twice, from a reset and with another sequence before them, until the
    outputs differ by less than 1 % of their range for good. ``steps``: the most that one of them
    took; None when one did not come together within its ``of`` steps. None altogether for models
    whose mode resets them, without outputs, and with fewer than two sequences.
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
        if layer.is_recurrent and name == "z":
            for gate, z in zip(
                layer.records, np.split(values, len(layer.records), axis=-1), strict=True
            ):
                self._add(f"{place}: z of gate {gate}", (z == 32767) | (z == -32768))
        elif name == "c_wide":
            self._add(f"{place}: cell c", np.abs(values + 0.5) > 2**31)
        elif name == "v" and index < len(self._model.layers) - 1:
            self._add(f"{place}: output", np.abs(values + 0.5) > 2**15)

    def _add(self, place: str, at_rail: np.ndarray) -> None:
        count = self.counts.setdefault(place, {"saturated": 0, "values": 0})
        count["saturated"] += int(at_rail.sum())
        count["values"] += at_rail.size
