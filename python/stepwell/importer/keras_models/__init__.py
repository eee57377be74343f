"""Keras 3 model -> float graph, from its layers' settings and weights, proven by running both.

``walk`` follows the calls from the inputs to the output and gives each to its handler:
``recurrent`` for the cells, ``windows`` for what looks back over the sequence, ``plain`` for all
that works step by step; ``activations`` maps functions, ``fuse`` tidies what they made, ``check``
runs Keras and the stream and compares. ``values`` is what they all speak of.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stepwell.errors import ImportRefused
from stepwell.graph import Graph, Source
from stepwell.importer.keras_models.check import answers, replay
from stepwell.importer.keras_models.fuse import fused
from stepwell.importer.keras_models.versions import as_saved
from stepwell.importer.keras_models.walk import Walked, data_names, walk
from stepwell.importer.outputs import Names, advised, as_names, outputs_of
from stepwell.importer.reader import file_sha256
from stepwell.memory import check_packed
from stepwell.text import printable

if TYPE_CHECKING:
    from stepwell.importer.imported import Imported

__all__ = ["import_keras", "import_keras_file"]


def import_keras(model, verify: bool = True, *, outputs: Names = None) -> Imported:
    """Read a built Keras 3 model: Sequential or Functional, one input [batch, T, n_in] (or tokens
    [batch, T]).

    ``outputs``: names of the outputs that the stream shall have, side by side in this order: the
    keys of a dict, else the names of the layers that make them; None: all but states of layers with
    return_state.

    Raises ImportRefused, naming the layer and what to do, when something in it cannot be streamed
    or is not understood, or when the stream differs from Keras by more than 1e-5 of the output's
    range.
    """
    from stepwell.importer.imported import Imported
    from stepwell.importer.source import SourceModel

    keras, wanted = _keras(), as_names(outputs)
    _check_model(keras, model)
    try:
        walked, graph = _graph(model, wanted, _source(keras, model))
        proof = replay(model, walked, graph) if verify else None
        return Imported(
            graph, proof, SourceModel(partial(answers, model, walked), model.inputs[0].shape[1])
        )
    except ImportRefused as error:
        names = wanted or data_names(model)
        raise advised(
            error, names, lambda name: _graph(model, (name,), Source())
        ) from error.__cause__
    except Exception as error:  # a model can hold anything that is Python
        raise ImportRefused(
            f"model '{printable(model.name)}' cannot be read: {type(error).__name__}: "
            f"{str(error)[:300]}"
        ) from error


def _graph(model, wanted: tuple[str, ...], source: Source) -> tuple[Walked, Graph]:
    walked = walk(model, wanted)
    layers, sources = fused(walked.layers, walked.sources, walked.output.index)
    readout = "every" if walked.output.timed else "last"
    return walked, Graph(
        layers, readout, source, tuple(walked.notes), sources, outputs_of(walked.heads)
    )


def import_keras_file(path: Path, verify: bool = True, *, outputs: Names = None) -> Imported:
    """The same from a file that Keras saved; nothing in it is run that Keras calls unsafe."""
    keras = _keras()
    if not path.is_file():
        raise ImportRefused(f"{path}: no such file")
    check_packed(path)
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras raises many kinds, and a file can hold anything
        raise ImportRefused(f"{path}: Keras cannot load it: {str(error)[:300]}") from error
    notes = as_saved(model, path)
    imported = import_keras(model, verify, outputs=outputs)
    source = replace(imported.graph.source, file=path.name, sha256=file_sha256(path))
    return replace(
        imported,
        graph=replace(imported.graph, source=source, notes=(*notes, *imported.graph.notes)),
    )


BACKENDS = ("torch", "jax")  # in place of TensorFlow, where that is not installed


def _keras():
    _choose_backend()
    try:
        import keras
    except ImportError as error:
        raise ImportRefused(
            f"Keras models need Keras 3 and one of its backends ({error}): pip install "
            f'"stepwell[keras]", or set KERAS_BACKEND to '
            "a backend that is installed"
        ) from error
    if not hasattr(keras, "KerasTensor"):
        raise ImportRefused(f"keras {keras.__version__} is too old: pip install 'keras>=3'")
    return keras


def _choose_backend() -> None:
    """Before Keras' first import: a backend that is there, where TensorFlow is not and the user has
    chosen none.
    """
    if (
        "keras" in sys.modules
        or os.environ.get("KERAS_BACKEND")
        or _configured() not in ("", "tensorflow")
    ):
        return
    found = [name for name in ("tensorflow", *BACKENDS) if importlib.util.find_spec(name)]
    if found and found[0] != "tensorflow":
        os.environ["KERAS_BACKEND"] = found[0]


def _configured() -> str:
    """The backend in Keras' own file of settings; "tensorflow" is no choice: Keras writes it there
    by itself.
    """
    try:
        folder = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
        return str(json.loads((Path(folder) / "keras.json").read_text()).get("backend", ""))
    except (OSError, ValueError, AttributeError, RuntimeError):
        return ""


def _check_model(keras, model) -> None:
    if not isinstance(model, keras.Model):
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        raise ImportRefused(
            f"expected a keras.Model of Keras 3, not a {kind}: load it with keras.saving.load_model"
        )
    if isinstance(model, keras.Sequential) and not model.built:
        raise ImportRefused(
            f"model '{printable(model.name)}' is not built: begin it with keras.Input((T, n_in)), "
            "or call it on data"
        )
    if not getattr(getattr(model, "_functional", None) or model, "_nodes_by_depth", None):
        raise ImportRefused(
            f"model '{printable(model.name)}' is neither Sequential nor Functional: its call() is "
            "Python code; rebuild it as keras.Model(inputs, outputs) from the same layers"
        )
    if len(model.inputs) != 1:
        raise ImportRefused(
            f"model '{printable(model.name)}' has {len(model.inputs)} inputs, a stream has one: "
            "build a keras.Model with one of them, or with one that is divided into them"
        )


def _source(keras, model) -> Source:
    weights = hashlib.sha256()
    for array in model.get_weights():
        weights.update(np.ascontiguousarray(array).tobytes())
    return Source(str(model.name), weights.hexdigest(), f"keras {keras.__version__}")
