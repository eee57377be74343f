"""The way from a trained model to the integer model, and from a .stw file back: stepwell.convert and stepwell.load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from stepwell._version import __version__
from stepwell.calibrate import Progress, calibrate
from stepwell.errors import ImportRefused, ModelError
from stepwell.graph import Graph
from stepwell.mode import Mode, parse_mode
from stepwell.model import Model
from stepwell.precision import Plan, Precision, parse_precision
from stepwell.scaler import as_scaler, fold_outputs

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
) -> Model:
    """A trained model as an integer model.

    ``source``: an .onnx, .keras or .h5 file, a torch module, a Keras model, or a Graph. ``calib``: sample sequences that look
    like real input, in the user's units: float [n_seq, T, n_in], one [T, n_in], a list of those, or a path (.npz with array "x",
    .npy, .csv; ``columns`` picks csv columns by name). ``mode``: how windows are treated (``stepwell.mode.HELP``). ``scaler``:
    normalisation, clamping, missing samples and raw counts (``stepwell.scaler.as_scaler``). ``steps``: the window's length,
    for torch modules that need to know it. ``precision``: bits of weights and activations (``stepwell.precision.HELP``).

    Raises ImportRefused (a node that cannot be streamed), SampleError (bad calibration data) or QuantizeError (no integer
    model passes the overflow proof); each names the culprit.
    """
    from stepwell.quantize import check_window, quantize
    from stepwell.samples import load_samples

    graph, verified = _graph_of(source, steps, _width(calib))
    mode, scaler = parse_mode(mode, graph.readout), as_scaler(scaler)
    check_window(graph, mode)
    scaler.check(graph.n_in, graph.n_out)
    graph = fold_outputs(graph, scaler)
    samples = load_samples(calib, graph.n_in, columns=columns, may_miss=scaler.missing != "refuse")
    sequences = samples.sequences if scaler.is_identity else [scaler.normalise(s) for s in samples.sequences]
    calibration = calibrate(graph, sequences, progress, mode.window)
    model = quantize(graph, calibration, mode, scaler, parse_precision(precision))
    notes = {
        "name": name or _name_from(graph.source.file),
        "tool": f"stepwell {__version__}",
        "source": asdict(graph.source),
        "source_check": verified,
        "calibration": {
            "sequences": calibration.n_sequences,
            "steps": calibration.n_steps,
            "x_peak": calibration.x_peak,
        },
        "readout": graph.readout,
        "import_notes": list(graph.notes),
    }
    return loads(model.replace(notes=notes | model.notes).blob)  # what load would refuse must not be made


def _width(calib: Samples) -> int | None:
    """Inputs of calibration arrays; None for files, which are read later."""
    if isinstance(calib, (str, Path)):
        return None
    first = calib if isinstance(calib, np.ndarray) else next(iter(calib), None)
    return int(np.shape(first)[-1]) if np.ndim(first) >= 2 else None


def _graph_of(source: Source, steps: int | None, n_in: int | None) -> tuple[Graph, dict[str, object]]:
    """The float graph and how well it replays its source. Heavy frameworks are imported only when something of theirs is given."""
    if isinstance(source, Graph):
        return source, {}
    frameworks = {base.__module__.split(".")[0] for base in type(source).__mro__}
    if "keras" in frameworks:
        from stepwell.importer.keras_models import import_keras

        imported = import_keras(source)
    elif "torch" in frameworks:
        from stepwell.importer.torch import import_torch

        imported = import_torch(source, steps=steps, n_in=n_in)
    elif isinstance(source, (str, Path)):
        from stepwell.importer import import_file

        imported = import_file(source)
    else:
        raise ImportRefused(
            f"a model is an .onnx file, a torch module, a Keras model or a Graph, not {type(source).__name__}"
        )
    return imported.graph, asdict(imported.replay)


def _name_from(file: str) -> str:
    stem = Path(file).name.split(".")[0]
    return stem or "model"


def load(path: str | Path) -> Model:
    """Read a .stw file. ModelError, naming the file and the reason, when it is damaged, foreign or unsafe."""
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return loads(content)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def loads(content: bytes) -> Model:
    """The same from bytes."""
    from stepwell import blob
    from stepwell.engine import OpenModel

    if not isinstance(content, (bytes, bytearray, memoryview)):
        raise ModelError(f"a model is bytes, not {type(content).__name__}")
    content = bytes(content)
    OpenModel(content)  # every bound and the overflow proof, in C
    model = blob.unpack(content)
    model.__dict__["blob"] = content  # the very bytes, and with them the id, that were checked
    return model
