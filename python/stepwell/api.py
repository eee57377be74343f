"""The way from a trained model to the integer model, and from a .stw file back: stepwell.convert
and stepwell.load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stepwell._version import __version__
from stepwell.errors import ImportRefused, ModelError, QuantizeError, SampleError
from stepwell.graph import Graph
from stepwell.integer.precision import Plan, Precision, parse_precision
from stepwell.memory import at_most, check_size
from stepwell.model import Model
from stepwell.quantize.calibrate import Calibration, Progress, calibrate, range_of_8_bits
from stepwell.quantize.folding import fitted
from stepwell.scaler import Scaler, as_scaler
from stepwell.text import printable
from stepwell.windowing import Mode, parse_mode

if TYPE_CHECKING:
    from stepwell.importer import SourceModel
    from stepwell.quantize.fidelity import Ground
    from stepwell.quantize.search import Trial

Source = str | Path | Graph | object  # or a torch module, a Keras model
Samples = np.ndarray | Sequence[np.ndarray] | str | Path


def convert(
    source: Source,
    calib: Samples,
    *,
    name: str | None = None,
    columns: Sequence[str] | None = None,
    progress: Progress | None = None,
    mode: str | Mode = "carry",
    scaler: object = None,
    steps: int | None = None,
    precision: str | Precision | Plan = "w8a16",
    calibration: str = "auto",
    min_sqnr: float | None = None,
    header: bool | None = None,
    max_memory: int | str | None = None,
    outputs: str | Sequence[str] | None = None,
    auto_scale: bool = True,
) -> Model:
    """A trained model as an integer model.

    ``source``: an .onnx, .keras or .h5 file, a torch module, a Keras model, or a Graph. ``calib``:
    sample sequences that look like real input, in the user's units: float [n_seq, T, n_in], one [T,
    n_in], a list of those, a DataFrame, a list of them (one for each sequence), or a path (.npz
    with array "x", .npy, .csv). ``columns`` picks columns by name, ``header`` says whether a csv
    file has one (``stepwell.samples.load_samples``). The names of the columns that are fed become
    ``model.notes["columns"]``: later data is matched by them. ``max_memory``: the most that a file
    may unpack to, bytes or "2G" (default: a quarter of the machine's). ``mode``: how windows are
    treated (``stepwell.windowing.HELP``). ``scaler``: normalisation, clamping, missing samples and
    raw counts (``stepwell.scaler.as_scaler``). ``steps``: the window's length, for torch modules
    that need to know it. ``precision``: bits of weights and activations
    (``stepwell.integer.precision.HELP``). ``calibration``: how the input's range is chosen
    (``stepwell.quantize.calibrate.HELP``). ``auto_scale``: channels that differ in size, or stand
    far from zero, get an offset and a scale each; exact, for they are folded into the weights.
    ``outputs``: names of the source's outputs that the model shall have, side by side in this
    order; None for all but final states. ``min_sqnr``: the least SQNR in dB against the source on
    the calibration data: below it, or where nothing can be measured, QuantizeError is raised.

    ``notes["window"]`` is the length of the windows that the source was trained on, or None.
    ``notes["fidelity"]`` holds what was measured on the calibration data
    (``stepwell.quantize.fidelity``): "sqnr_db" against the source, None where both are equal,
    "answers" that were compared, and for windows "carry_gap" in standard deviations, else None. A
    FidelityWarning tells when one is worse than it should be.

    Raises ImportRefused (a node that cannot be streamed), SampleError (bad calibration data) or
    QuantizeError (no integer model passes the overflow proof); each names the culprit.
    """
    with at_most(max_memory):
        prepared = prepare(
            source,
            calib,
            name,
            columns,
            progress,
            mode,
            scaler,
            steps,
            calibration,
            header,
            outputs,
            auto_scale,
        )
    return prepared.measured(prepared.quantized(parse_precision(precision)), min_sqnr)


def smallest(
    source: Source,
    calib: Samples,
    data: Samples,
    *,
    max_drop: float = 0.5,
    max_flash: int | None = None,
    metric: object = None,
    tried: Callable[[Trial], None] | None = None,
    min_sqnr: float | None = None,
    max_memory: int | str | None = None,
    **options: object,
) -> tuple[Model, list[Trial]]:
    """The smallest integer model whose metric on ``data`` drops by at most ``max_drop`` percent,
    and all precisions tried.

    ``data``: as ``calib``, with targets "y" for the metric; without them the drop is the relative
    RMS error in percent. ``max_flash``: most bytes of constants. ``metric``: a name, a function or
    a ``stepwell.metrics.Metric``. ``tried`` is called after each trial. ``min_sqnr``,
    ``max_memory`` and ``options``: those of ``convert`` but precision. Raises QuantizeError when
    none fits.
    """
    from stepwell.metrics import find_metric
    from stepwell.quantize.search import search
    from stepwell.samples import load_samples

    with at_most(max_memory):
        prepared = prepare(source, calib, **options)
        samples = load_samples(
            data,
            prepared.graph.n_in,
            columns=options.get("columns"),
            may_miss=prepared.scaler.missing != "refuse",
            names=prepared.notes.get("columns"),
            header=options.get("header"),
        )
    wanted = find_metric(metric) if metric else None
    model, trials = search(
        prepared.quantized, prepared.source, samples, max_drop, max_flash, wanted, tried
    )
    return prepared.measured(model, min_sqnr), trials


@dataclass(frozen=True, eq=False)
class Prepared:
    """A source that has been read and calibrated, ready to be quantised in any precision.
    ``source`` is the graph as it was read, ``graph`` the one with the scaler's inputs and outputs
    folded in. ``warnings``: what the calibration data tells.
    """

    source: Graph
    graph: Graph
    calibration: Calibration
    mode: Mode
    scaler: Scaler
    notes: dict[str, object]
    sequences: list[np.ndarray]  # normalised
    rule: str  # for the input's range
    ground: Ground
    warnings: list[str]

    def quantized(self, plan: Plan) -> Model:
        """Raises QuantizeError."""
        from stepwell.quantize import quantize

        calibration, rule = self._calibration_for(plan)
        model = quantize(self.graph, calibration, self.mode, self.scaler, plan)
        notes = (
            self.notes | {"calibration": self.notes["calibration"] | {"rule": rule}} | model.notes
        )
        notes["warnings"] = [*self.warnings, *model.notes["warnings"]]
        return loads(model.replace(notes=notes).blob)  # what load would refuse must not be made

    def measured(self, model: Model, min_sqnr: float | None = None) -> Model:
        """``model`` with notes["fidelity"], and a FidelityWarning where it is poor. QuantizeError
        below ``min_sqnr`` dB.
        """
        from stepwell.quantize import fidelity

        window = self.notes["window"]
        found, answers = fidelity.sqnr_against_source(model, self.graph, self.ground)
        gap = fidelity.carry_gap(self.source, self.ground.seen, window) if window else None
        measured = {"sqnr_db": found, "carry_gap": gap, "answers": answers}
        model = loads(model.replace(notes=model.notes | {"fidelity": measured}).blob)
        if min_sqnr is not None and not answers:
            raise QuantizeError(
                f"{min_sqnr:g} dB are wanted, but nothing was measured: "
                f"{fidelity.unfilled_text(model)}"
            )
        if min_sqnr is not None and found is not None and not found >= min_sqnr:
            raise QuantizeError(
                f"the integer model follows its source at {found:.1f} dB, {min_sqnr:g} are wanted: "
                f"{fidelity.cause(model)}"
            )
        fidelity.warn(model)
        return model

    def _calibration_for(self, plan: Plan) -> tuple[Calibration, str]:
        """With the input's range as the rule and the bits want it, and the rule that was followed."""
        if self.rule != "auto":
            return self.calibration, self.rule
        takes_tokens = any(layer.takes_tokens for layer in self.graph.layers)
        if plan.default.x_bits > 8 or takes_tokens or self.calibration.x_peak == 0:
            return self.calibration, "minmax"
        x_range = range_of_8_bits(self.graph, self.sequences, self.mode.window)
        return replace(self.calibration, x_range=x_range), "outputs"


def prepare(
    source: Source,
    calib: Samples,
    name: str | None = None,
    columns: Sequence[str] | None = None,
    progress: Progress | None = None,
    mode: str | Mode = "carry",
    scaler: object = None,
    steps: int | None = None,
    calibration: str = "auto",
    header: bool | None = None,
    outputs: str | Sequence[str] | None = None,
    auto_scale: bool = True,
) -> Prepared:
    """The first half of ``convert``, with its arguments and errors."""
    from stepwell.quantize import check_window
    from stepwell.quantize.fidelity import Ground, check_growth
    from stepwell.samples import load_samples

    graph, verified, run = _graph_of(source, steps, _width(calib, columns), outputs)
    mode, scaler = parse_mode(mode, graph.readout), as_scaler(scaler)
    check_window(graph, mode, run.window)
    scaler.check(graph.n_in, graph.n_out)
    samples = load_samples(calib, graph.n_in, columns, scaler.missing != "refuse", header=header)
    # in mode carry with what looks ahead: the model may later be compared with windows, whose ends
    # are padded
    fit = fitted(
        graph if mode.kind == "carry" else graph.in_mode(mode),
        scaler,
        samples.sequences,
        auto_scale,
    )
    scaler = fit.scaler
    sequences, seen = (
        _normalised(given, samples.sequences) for given in (scaler, scaler.of_source)
    )
    run = _with_window(run, graph, sequences)
    check_growth(fit.graph, sequences, mode, run.window)
    found = calibrate(fit.graph, sequences, progress, mode.window, calibration)
    notes = {
        "name": printable(name or _name_from(graph.source.file)),
        "tool": f"stepwell {__version__}",
        "source": asdict(graph.source),
        "source_check": verified,
        "calibration": {
            "sequences": found.n_sequences,
            "steps": found.n_steps,
            "x_peak": found.x_peak,
        },
        "readout": graph.readout,
        "window": run.window,
        "import_notes": [*graph.notes, *_window_notes(graph, mode, run.window), *fit.notes],
    }
    if samples.columns:
        notes["columns"] = _names_of_inputs(samples.columns, samples.name)
    if graph.outputs:
        notes["outputs"] = [asdict(output) for output in graph.outputs]
    names = notes.get("columns") or [str(k) for k in range(graph.n_in)]
    warnings = _unscaled(found, samples.sequences, [(names[k], k) for k in fit.suspects])
    ground = Ground(run, samples.sequences, seen, scaler)
    return Prepared(
        graph, fit.graph, found, mode, scaler, notes, sequences, calibration, ground, warnings
    )


def _normalised(scaler: Scaler, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
    return list(sequences) if scaler.is_identity else [scaler.normalise(s) for s in sequences]


def _unscaled(
    found: Calibration, sequences: Sequence[np.ndarray], suspects: list[tuple[str, int]]
) -> list[str]:
    """A warning when the float model is saturated, and channels (name, number) look as if they had
    never been scaled.
    """
    if not found.is_saturated or not suspects:
        return []
    ranges = []
    for name, channel in suspects:
        values = np.concatenate([s[:, channel] for s in sequences])
        ranges.append(f"channel {name} is {np.nanmin(values):.4g} .. {np.nanmax(values):.4g}")
    return [
        f"{', '.join(ranges)}, and drives the float model's gates to their ends: was the model "
        "trained on scaled data? Give its normalisation (scaler=, --scaler)"
    ]


def _with_window(source: SourceModel, graph: Graph, sequences: list[np.ndarray]) -> SourceModel:
    """A torch module answers for sequences of any length: those that it is calibrated on tell its
    window.
    """
    lengths = {len(sequence) for sequence in sequences}
    windows = len(sequences) > 1 and len(lengths) == 1 and graph.readout == "last"
    return (
        replace(source, window=lengths.pop())
        if source.shapeless and not source.window and windows
        else source
    )


def _window_notes(graph: Graph, mode: Mode, window: int | None) -> list[str]:
    if graph.readout != "last" or not window or mode.kind != "carry":
        return []
    return [
        f"the source reads windows of {window} steps from a zero state, the stream remembers "
        f"everything since its reset: --mode tumble:{window} or slide:{window} gives the same "
        "outputs"
    ]


def _names_of_inputs(names: Sequence[str], file: str) -> list[str]:
    """As the model keeps them. SampleError when two inputs have the same name, or one has none."""
    for name in names:
        if not name or names.count(name) > 1:
            what = f"two columns are named {name!r}" if name else "a column has no name"
            raise SampleError(
                f"{file}: {what}, but later data is matched by name: give each a name of its own"
            )
    return list(names)


def _width(calib: Samples, columns: Sequence[object] | None) -> int | None:
    """Inputs of calibration arrays; None for files, which are read later."""
    if columns:
        return len(columns)
    if isinstance(calib, (str, Path)):
        return None
    first = calib if hasattr(calib, "shape") else next(iter(calib), None)
    return int(np.shape(first)[-1]) if np.ndim(first) >= 2 else None


def _graph_of(
    source: Source, steps: int | None, n_in: int | None, outputs: str | Sequence[str] | None
) -> tuple[Graph, dict[str, object], SourceModel]:
    """The float graph, how well it replays its source, and the source.

    Heavy frameworks are imported only when something of theirs is given.
    """
    if isinstance(source, Graph):
        from stepwell.quantize.fidelity import graph_source

        if outputs:
            raise ImportRefused(
                "outputs= chooses outputs of a file, a torch module or a Keras model: a Graph is "
                "taken whole"
            )
        return source, {}, graph_source(source)
    frameworks = {base.__module__.split(".")[0] for base in type(source).__mro__}
    if "keras" in frameworks:
        from stepwell.importer.keras_models import import_keras

        imported = import_keras(source, outputs=outputs)
    elif "torch" in frameworks:
        from stepwell.importer.torch import import_torch

        imported = import_torch(source, steps=steps, n_in=n_in, outputs=outputs)
    elif isinstance(source, (str, Path)):
        from stepwell.importer import import_file

        imported = import_file(source, outputs=outputs)
    else:
        raise ImportRefused(
            "a model is an .onnx file, a torch module, a Keras model or a Graph, not "
            f"{type(source).__name__}"
        )
    return imported.graph, asdict(imported.replay), imported.source


def _name_from(file: str) -> str:
    stem = Path(file).name.split(".")[0]
    return stem or "model"


def load(path: str | Path) -> Model:
    """Read a .stw file. ModelError, naming the file and the reason, when it is damaged, foreign or
    unsafe.
    """
    path = Path(path)
    try:
        check_size(path.stat().st_size, str(path), ModelError)
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return loads(content)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def loads(content: bytes) -> Model:
    """The same from bytes."""
    from stepwell.engine import OpenModel

    if not isinstance(content, (bytes, bytearray, memoryview)):
        raise ModelError(f"a model is bytes, not {type(content).__name__}")
    content = bytes(content)
    OpenModel(content)  # every bound and the overflow proof, in C
    return Model.loads(content)
