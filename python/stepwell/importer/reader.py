"""Loading an ONNX file: nothing in it is trusted before it has been checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message
from onnx import numpy_helper

from stepwell.errors import ImportRefused
from stepwell.graph import Source, replaced_note
from stepwell.importer.functions import inlined
from stepwell.importer.outputs import unique_names
from stepwell.memory import check_size
from stepwell.text import printable

SIZE_LIMIT = 1 << 30  # a recurrent model for a microcontroller has kilobytes
OPSETS = range(7, 27)
NARROW = {
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.DOUBLE: "double",
}


def file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def source_of(path: Path, model: onnx.ModelProto) -> Source:
    producer = f"{model.producer_name} {model.producer_version}".strip()
    return Source(path.name, file_sha256(path), producer, _opset(model))


def read_model(path: Path) -> tuple[onnx.ModelProto, list[str]]:
    """The model with all weights inline, and notes for the user. Raises ImportRefused."""
    model = _parse(path)
    notes = _with_printable_names(model)
    if _opset(model) not in OPSETS:
        raise ImportRefused(
            f"{path}: opset {_opset(model)} is not supported: export with opset_version 11 to 20"
        )
    model = inlined(model, path)
    tensors = [
        *model.graph.initializer,
        *(a.t for node in model.graph.node for a in node.attribute if a.HasField("t")),
    ]
    check_size(_external_bytes(tensors, path), f"{path}: its weights in other files", ImportRefused)
    for tensor in tensors:
        _load_external(tensor, path)
    for tensor in model.graph.initializer:
        to_array(tensor)
    kinds = sorted({NARROW[tensor.data_type] for tensor in tensors if tensor.data_type in NARROW})
    if kinds:
        notes.append(
            f"weights are {', '.join(kinds)}: converted to float64, compared with the source in "
            "float32"
        )
    return model, notes


def _opset(model: onnx.ModelProto) -> int:
    return next(
        (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0
    )


def _parse(path: Path) -> onnx.ModelProto:
    try:
        check_size(path.stat().st_size, str(path), ImportRefused)
        if path.stat().st_size > SIZE_LIMIT:
            raise ImportRefused(f"{path}: larger than 1 GB: this is no model for a microcontroller")
        model = onnx.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise ImportRefused(f"{path}: cannot be read: {error.strerror}") from error
    except (DecodeError, ValueError, RuntimeError) as error:
        raise ImportRefused(f"{path}: not an ONNX file, or a truncated one: {error}") from error
    if not model.graph.node or not model.graph.output:
        raise ImportRefused(f"{path}: holds no graph: not an ONNX file, or a truncated one")
    if not all(
        isinstance(text, str) for text in _texts(model)
    ):  # protobuf gives bytes for what is not UTF-8
        raise ImportRefused(
            f"{path}: holds names that are not text: the file is damaged, copy or export it again"
        )
    return model


# ---- names ----

NAMES = frozenset(
    "name domain op_type overload input output ref_attr_name producer_name producer_version".split()
)


def _named_fields(message: Message) -> Iterator[tuple[Message, str, list[str]]]:
    """All names of a model, its functions and the bodies of its loops: the message, the field and
    the field's names.
    """
    for field, value in message.ListFields():
        if isinstance(value, (str, bytes)):
            if field.name in NAMES:
                yield message, field.name, [value]
        elif field.type == field.TYPE_STRING:
            if field.name in NAMES:
                yield message, field.name, list(value)
        elif field.type == field.TYPE_MESSAGE:
            for part in [value] if isinstance(value, Message) else value:
                yield from _named_fields(part)


def _texts(model: onnx.ModelProto) -> Iterator[str | bytes]:
    for _, _, names in _named_fields(model):
        yield from names


def _with_printable_names(model: onnx.ModelProto) -> list[str]:
    """Replace what cannot be printed in all names, the same name by the same; a note where there
    was such a name.
    """
    fields = [(message, field, names) for message, field, names in _named_fields(model)]
    taken = {name for _, _, names in fields for name in names}
    odd = sorted(name for name in taken if printable(name) != name)
    changed = dict(zip(odd, unique_names(odd, taken), strict=True))
    for message, field, names in fields:
        if changed.keys().isdisjoint(names):
            continue
        renamed = [changed.get(name, name) for name in names]
        if isinstance(getattr(message, field), str):
            setattr(message, field, renamed[0])
        else:
            getattr(message, field)[:] = renamed
    return replaced_note("name", list(changed.items()))


def _external_bytes(tensors: Sequence[onnx.TensorProto], path: Path) -> int:
    """What the tensors take that lie in other files. Several may claim the same bytes."""
    total = 0
    for tensor in tensors:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {str(entry.key): str(entry.value) for entry in tensor.external_data}
        with suppress(OSError, ValueError):  # _load_external says what is wrong
            size = (path.resolve().parent / entries.get("location", "")).stat().st_size
            total += max(0, int(entries.get("length", size - int(entries.get("offset", 0)))))
    return total


def _load_external(tensor: onnx.TensorProto, path: Path) -> None:
    """Bring an external tensor's bytes into the message; nothing outside the model's folder is
    read. Raises ImportRefused.
    """
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return
    entries = {str(entry.key): str(entry.value) for entry in tensor.external_data}
    location = entries.get("location", "")
    named = printable(location)
    where = f"{path}: tensor '{tensor.name}'"
    folder = path.resolve().parent
    try:
        target = (folder / location).resolve()
        if folder not in target.parents:
            raise ImportRefused(
                f"{where} points outside the model's folder ('{named}'): put both files into one "
                "folder"
            )
        if not target.is_file():
            raise ImportRefused(
                f"{where} is in '{named}', which is missing: keep it beside the model"
            )
        tensor.raw_data = _range_of(target, entries)
    except (OSError, ValueError) as error:
        raise ImportRefused(
            f"{where} does not fit its file '{named}': {error}: copy both files again"
        ) from error
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.DEFAULT
    try:
        numpy_helper.to_array(tensor)
    except Exception as error:
        raise ImportRefused(
            f"{where} does not fit its file '{named}': {error}: copy both files again"
        ) from error


def _range_of(file: Path, entries: dict[str, str]) -> bytes:
    """The bytes from ``offset``, ``length`` of them. ValueError when the file does not have them."""
    size = file.stat().st_size
    offset = int(entries.get("offset", 0))
    length = int(entries.get("length", size - offset))
    if offset < 0 or length < 0 or offset + length > size:
        raise ValueError(f"{length} bytes from {offset} on are needed, it has {size}")
    if length > SIZE_LIMIT:
        raise ValueError("larger than 1 GB")
    with open(file, "rb") as content:
        content.seek(offset)
        return content.read(length)


def to_array(tensor: onnx.TensorProto) -> np.ndarray:
    """A tensor's values, half precision widened to float32. Raises ImportRefused, naming it, for
    damage, NaN and infinity.
    """
    if any(size < 0 for size in tensor.dims):
        raise ImportRefused(
            f"tensor '{tensor.name}' has shape {list(tensor.dims)}: export the model again"
        )
    try:
        values = numpy_helper.to_array(tensor)
        if tensor.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16):
            values = values.astype(np.float32)
    except Exception as error:
        raise ImportRefused(
            f"tensor '{tensor.name}' is damaged: {error}: copy or export the model again"
        ) from error
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ImportRefused(
            f"tensor '{tensor.name}' holds NaN or infinity: the training has diverged"
        )
    return values


def in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with every float16, bfloat16 and double as float32, so that no rounding hides
    a mistake in a replay.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.tensor_type.elem_type in NARROW:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    tensors = list(copy.graph.initializer)
    for node in copy.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                tensors.append(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in NARROW:
                attribute.i = onnx.TensorProto.FLOAT
    for tensor in tensors:
        if tensor.data_type in NARROW:
            tensor.CopyFrom(
                numpy_helper.from_array(to_array(tensor).astype(np.float32), tensor.name)
            )
    return copy
