"""A trained model's file -> float graph, proven by running both. ONNX here; ``torch`` and
``keras_models`` read live models.

``reader`` loads a file as hostile input, ``walk`` follows the data from input to output and
collects the layers, ``replay`` runs the source as a whole sequence and the graph as a stream and
compares.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stepwell.errors import ImportRefused
from stepwell.graph import Graph
from stepwell.importer.imported import Imported
from stepwell.importer.outputs import Names, advised, as_names
from stepwell.importer.reader import file_sha256, read_model, source_of
from stepwell.importer.replay import Replay, replay
from stepwell.importer.source import OnnxRun, SourceModel
from stepwell.importer.walk import walk

if TYPE_CHECKING:
    import onnx

__all__ = ["Imported", "Replay", "SourceModel", "file_sha256", "import_file", "import_onnx"]


def import_file(path: str | Path, verify: bool = True, *, outputs: Names = None) -> Imported:
    """Read an .onnx file, or a Keras model saved as .keras or .h5 (which needs Keras). Arguments
    and errors of ``import_onnx``.
    """
    suffix = Path(path).suffix.lower()
    if suffix in (".keras", ".h5"):
        from stepwell.importer.keras_models import import_keras_file

        return import_keras_file(Path(path), verify, outputs=outputs)
    if suffix in (".pt", ".pth", ".ckpt", ".safetensors"):
        raise ImportRefused(
            f"{path}: holds weights, but no layers: build the module in Python, load them into "
            "it, and call stepwell.convert(module.eval(), calib).save('model.stw')"
        )
    return import_onnx(path, verify, outputs=outputs)


def import_onnx(path: str | Path, verify: bool = True, *, outputs: Names = None) -> Imported:
    """Read an ONNX file.

    ``outputs``: names of the graph's outputs that the stream shall have, side by side in this
    order; None: all but final states.

    Raises ImportRefused, naming the node, its operator and the reason, when something in it cannot
    be streamed or is not understood, or when the stream differs from the source by more than 1e-5
    of the output's range.
    """
    path, wanted = Path(path), as_names(outputs)
    onnx_model, notes = read_model(path)

    try:
        walked = walk(onnx_model, wanted)
        notes = (*notes, *walked.notes)
        source = source_of(path, onnx_model)
        graph = Graph(walked.layers, walked.readout, source, notes, walked.sources, walked.named)
        run = OnnxRun(onnx_model, walked)
        proof = replay(onnx_model, walked, graph) if verify else None
        return Imported(graph, proof, SourceModel(run, run.window))
    except ImportRefused as error:
        names = wanted or tuple(output.name for output in onnx_model.graph.output)
        raise advised(error, names, lambda name: _converts(onnx_model, name)) from error.__cause__


def _converts(model: onnx.ModelProto, name: str) -> bool:
    """Whether an output is data, and converts without the others. Raises ImportRefused."""
    walked = walk(model, (name,))
    Graph(walked.layers, walked.readout, sources=walked.sources)
    return name not in walked.states
