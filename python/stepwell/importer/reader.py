"""Loading an ONNX file: nothing in it is trusted before it has been checked."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_tensor, uses_external_data

from stepwell.errors import ImportRefused
from stepwell.graph import Source

SIZE_LIMIT = 1 << 30  # a recurrent model for a microcontroller has kilobytes
OPSETS = range(7, 27)
NARROW = {onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.BFLOAT16: "bfloat16", onnx.TensorProto.DOUBLE: "double"}


def file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def source_of(path: Path, model: onnx.ModelProto) -> Source:
    producer = f"{model.producer_name} {model.producer_version}".strip()
    return Source(path.name, file_sha256(path), producer, _opset(model))


def read_model(path: Path) -> tuple[onnx.ModelProto, list[str]]:
    """The model with all weights inline, and notes for the user. Raises ImportRefused."""
    model = _parse(path)
    if _opset(model) not in OPSETS:
        raise ImportRefused(f"{path}: opset {_opset(model)} is not supported: export with opset_version 11 to 20")
    try:
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
    except Exception as error:
        raise ImportRefused(f"{path}: its local functions cannot be inlined ({error}): export without them") from error
    notes = []
    for tensor in model.graph.initializer:
        _load_external(tensor, path)
        _check_weights(tensor, path)
        if tensor.data_type in NARROW:
            notes.append(f"tensor '{tensor.name}' is {NARROW[tensor.data_type]}: converted")
    return model, notes


def _opset(model: onnx.ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _parse(path: Path) -> onnx.ModelProto:
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise ImportRefused(f"{path}: larger than 1 GB: this is no model for a microcontroller")
        model = onnx.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise ImportRefused(f"{path}: cannot be read: {error.strerror}") from error
    except (DecodeError, ValueError, RuntimeError) as error:
        raise ImportRefused(f"{path}: not an ONNX file, or a truncated one: {error}") from error
    if not model.graph.node or not model.graph.output:
        raise ImportRefused(f"{path}: holds no graph: not an ONNX file, or a truncated one")
    return model


def _load_external(tensor: onnx.TensorProto, path: Path) -> None:
    if not uses_external_data(tensor):
        return
    location = ExternalDataInfo(tensor).location
    folder = path.resolve().parent
    target = (folder / location).resolve()
    if folder not in target.parents:
        raise ImportRefused(f"{path}: tensor '{tensor.name}' points outside the model's folder ('{location}')")
    if not target.is_file():
        raise ImportRefused(
            f"{path}: tensor '{tensor.name}' is in '{location}', which is missing: keep it beside the model"
        )
    try:
        load_external_data_for_tensor(tensor, str(folder))
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
        numpy_helper.to_array(tensor)
    except Exception as error:
        raise ImportRefused(f"{path}: tensor '{tensor.name}' does not fit its file '{location}': {error}") from error


def _check_weights(tensor: onnx.TensorProto, path: Path) -> None:
    if any(size < 0 for size in tensor.dims):
        raise ImportRefused(f"{path}: tensor '{tensor.name}' has shape {list(tensor.dims)}")
    try:
        values = numpy_helper.to_array(tensor)
    except Exception as error:
        raise ImportRefused(f"{path}: tensor '{tensor.name}' is damaged: {error}") from error
    if values.dtype.kind == "f" and not np.isfinite(values.astype(np.float64)).all():
        raise ImportRefused(f"{path}: tensor '{tensor.name}' holds NaN or infinity: the training has diverged")
