"""The way from a trained model to the integer model, and from a .stw file back: stepwell.convert and stepwell.load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from stepwell._version import __version__
from stepwell.calibrate import Progress, calibrate
from stepwell.errors import ModelError
from stepwell.graph import Graph
from stepwell.model import Model

Samples = np.ndarray | Sequence[np.ndarray] | str | Path


def convert(
    source: str | Path | Graph,
    calib: Samples,
    *,
    name: str | None = None,
    columns: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Model:
    """A trained model as an integer model (w8a16).

    ``source``: an .onnx file, or a Graph. ``calib``: sample sequences that look like real input: float [n_seq, T, n_in], one
    [T, n_in], a list of those, or a path (.npz with array "x", .npy, .csv; ``columns`` picks csv columns by name).

    Raises ImportRefused (a node that cannot be streamed), SampleError (bad calibration data) or QuantizeError (no integer
    model passes the overflow proof); each names the culprit.
    """
    from stepwell.quantize import quantize
    from stepwell.samples import load_samples

    if isinstance(source, Graph):
        graph, verified = source, {}
    else:
        from stepwell.importer import import_onnx

        imported = import_onnx(source)
        graph, verified = imported.graph, asdict(imported.replay)
    samples = load_samples(calib, graph.n_in, columns=columns)
    calibration = calibrate(graph, samples.sequences, progress)
    model = quantize(graph, calibration)
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
