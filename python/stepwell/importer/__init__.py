"""A trained model's file -> float graph, proven by running both. ONNX here; ``torch`` and ``keras_models`` read live models.

``reader`` loads a file as hostile input, ``walk`` follows the data from input to output and collects the layers, ``replay`` runs
the source as a whole sequence and the graph as a stream and compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stepwell.errors import ImportRefused
from stepwell.graph import Graph
from stepwell.importer.reader import file_sha256, read_model, source_of
from stepwell.importer.replay import Replay, replay
from stepwell.importer.source import OnnxRun, SourceModel
from stepwell.importer.walk import walk

__all__ = ["Imported", "Replay", "SourceModel", "file_sha256", "import_file", "import_onnx"]


@dataclass(frozen=True)
class Imported:
    """The graph, how well it replays its source (None when not asked for), and the source itself."""

    graph: Graph
    replay: Replay | None
    source: SourceModel


def import_file(path: str | Path, verify: bool = True) -> Imported:
    """Read an .onnx file, or a Keras model saved as .keras or .h5 (which needs Keras). Raises ImportRefused as ``import_onnx``."""
    suffix = Path(path).suffix.lower()
    if suffix in (".keras", ".h5"):
        from stepwell.importer.keras_models import import_keras_file

        return import_keras_file(Path(path), verify)
    if suffix in (".pt", ".pth", ".ckpt", ".safetensors"):
        raise ImportRefused(
            f"{path}: holds weights, but no layers: build the module in Python, load them into it, and call "
            "stepwell.convert(module.eval(), calib).save('model.stw')"
        )
    return import_onnx(path, verify)


def import_onnx(path: str | Path, verify: bool = True) -> Imported:
    """Read an ONNX file.

    Raises ImportRefused, naming the node, its operator and the reason, when something in it cannot be streamed or is not
    understood, or when the stream differs from the source by more than 1e-5 of the output's range.
    """
    path = Path(path)
    onnx_model, notes = read_model(path)
    walked = walk(onnx_model)
    notes = (*notes, *walked.notes)
    graph = Graph(walked.layers, walked.readout, source_of(path, onnx_model), notes, walked.sources)
    run = OnnxRun(onnx_model, walked, graph.n_out)
    proof = replay(onnx_model, walked, graph) if verify else None
    return Imported(graph, proof, SourceModel(run, run.window))
