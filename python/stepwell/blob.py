"""The packed model: layout in csrc/stw_blob.c and docs/format.md. ``pack`` writes it, ``unpack`` reads it back.

A blob from outside is opened by the C checks first (stw_blob_open, by way of the engine); ``unpack`` runs after them and
adds what only the host needs: scales and provenance, stored as JSON behind the constants.
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

import numpy as np

from stepwell.errors import ModelError
from stepwell.functions import PLAIN
from stepwell.model import (
    FORMAT,
    ActivationLayer,
    DenseLayer,
    GruLayer,
    IntLayer,
    LstmLayer,
    Model,
    RecurrentLayer,
    RnnLayer,
    Rows,
)

MAGIC = b"STW1"
KINDS = {"lstm": 1, "dense": 2, "activation": 3, "gru": 4, "rnn": 5}
RECURRENT = {KINDS[layer.kind]: layer for layer in (LstmLayer, GruLayer, RnnLayer)}
HEADER = struct.Struct("<4sHHIIIHHB7x")
LAYER = struct.Struct("<BBHH2xIII")
ID_FROM = 20
ROW = np.dtype([("bias", "<i4"), ("mult", "<i2"), ("kx", "i1"), ("shift", "i1")])


def unit_major(gate_major: np.ndarray, n_gates: int) -> np.ndarray:
    """[G*H, ...] rows in canonical order -> [H, G, ...]: the gates of a unit side by side, as the kernel reads them."""
    return np.ascontiguousarray(gate_major.reshape(n_gates, -1, *gate_major.shape[1:]).swapaxes(0, 1))


def gate_major(unit_major_rows: np.ndarray) -> np.ndarray:
    """The inverse of ``unit_major``."""
    rows = unit_major_rows.swapaxes(0, 1)
    return np.ascontiguousarray(rows.reshape(-1, *rows.shape[2:]))


def packed_rows(layer: IntLayer) -> np.ndarray:
    """The layer's row records in the kernel's order: structured array of ROW."""
    records = np.empty(len(layer.rows), ROW)
    for name in ROW.names:
        records[name] = getattr(layer.rows, name)
    return unit_major(records, len(layer.records)) if isinstance(layer, RecurrentLayer) else records


def packed_weights(layer: IntLayer) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Input and recurrent weights in the kernel's order; None where the layer kind has none."""
    if isinstance(layer, RecurrentLayer):
        n_gates = len(layer.gates)
        return unit_major(layer.w_x, n_gates), unit_major(layer.w_h, n_gates)
    if isinstance(layer, DenseLayer):
        return layer.weight.astype("<i2"), None
    return None, None


def model_id(blob: bytes) -> int:
    return struct.unpack_from("<I", blob, 16)[0]


def pack(model: Model) -> bytes:
    """The model as one byte string. Deterministic: the same model gives the same bytes."""
    first = HEADER.size + LAYER.size * len(model.layers)
    descriptors, arrays, n_bytes = [], [], 0
    for layer in model.layers:
        offsets = []
        for array in (*packed_weights(layer), packed_rows(layer)):
            offsets.append(first + n_bytes if array is not None else 0)
            if array is not None:
                arrays.append(array.tobytes() + bytes(-array.nbytes % 4))
                n_bytes += len(arrays[-1])
        code = PLAIN.index(layer.activation)
        descriptors.append(LAYER.pack(KINDS[layer.kind], code, layer.n_in, layer.n_out, *offsets))
    device = b"".join([*descriptors, *arrays])
    notes = json.dumps(host_notes(model), sort_keys=True, separators=(",", ":")).encode()
    device_bytes = HEADER.size + len(device)
    total_bytes = device_bytes + len(notes) + 4

    def header(identity: int) -> bytes:
        counts = (FORMAT, len(model.layers), total_bytes, device_bytes, identity)
        return HEADER.pack(MAGIC, *counts, model.n_in, model.n_out, model.y_frac)

    identity = zlib.crc32(header(0)[ID_FROM:] + device)
    body = header(identity) + device + notes
    return body + struct.pack("<I", zlib.crc32(body))


def host_notes(model: Model) -> dict[str, Any]:
    layers = [{"name": layer.name, "x_scale": layer.x_scale, "y_scale": layer.y_scale} for layer in model.layers]
    return {"x_scale": model.x_scale, "layers": layers, "notes": model.notes}


def unpack(blob: bytes) -> Model:
    """Rebuild the model from a blob that stw_blob_open has accepted.

    Raises ModelError when the host's part (scales, names) is missing or does not fit the constants.
    """
    magic, _, n_layers, total_bytes, device_bytes, _, _, _, y_frac = HEADER.unpack_from(blob)
    assert magic == MAGIC
    try:
        host = json.loads(blob[device_bytes : total_bytes - 4])
        layers = tuple(_unpack_layer(blob, i, host["layers"][i]) for i in range(n_layers))
        x_scale = _positive(host["x_scale"])
        notes = _checked_notes(host["notes"])
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, ArithmeticError, AttributeError) as error:
        raise ModelError(
            f"the model has no usable host notes ({error!r}): it was stripped for a device; load the original .stw file"
        ) from error
    return Model(layers=layers, x_scale=x_scale, y_frac=y_frac, notes=notes)


def _positive(value: Any) -> float:
    if not isinstance(value, (int, float)) or not 1e-30 < float(value) < 1e30:
        raise ValueError(f"scale {value} is not usable")
    return float(value)


NOTE_TYPES: dict[str, type] = {
    "name": str,
    "tool": str,
    "readout": str,
    "source": dict,
    "source_check": dict,
    "calibration": dict,
    "import_notes": list,
    "repaired_rows": list,
    "warnings": list,
}
SOURCE_TEXTS = ("file", "sha256", "producer")


def _checked_notes(notes: Any) -> dict[str, Any]:
    """Notes as the quantiser writes them: known types, text that can be printed. ValueError otherwise."""
    for name, kind in NOTE_TYPES.items():
        if not isinstance(notes.get(name, kind()), kind):
            raise ValueError(f"note '{name}' is no {kind.__name__}")
    for lines in (notes.get(name, []) for name in ("import_notes", "repaired_rows", "warnings")):
        for line in lines:
            _printable(line)
    _printable(notes.get("name", ""))
    source = notes.get("source", {})
    for text in [source[name] for name in SOURCE_TEXTS] if source else []:
        _printable(text)
    return dict(notes)


def _printable(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError("a name or note cannot be printed")
    return value


def _unpack_layer(blob: bytes, index: int, host: dict[str, Any]) -> IntLayer:
    kind, act, n_in, n_out, w, r, rows = LAYER.unpack_from(blob, HEADER.size + LAYER.size * index)
    name, x_scale, y_scale = _printable(host["name"]), _positive(host["x_scale"]), _positive(host["y_scale"])
    activation = PLAIN[act]

    def array(dtype: Any, offset: int, *shape: int) -> np.ndarray:
        return np.frombuffer(blob, dtype, int(np.prod(shape)), offset).reshape(shape)

    if kind in RECURRENT:
        recurrent = RECURRENT[kind]
        w_x = gate_major(array(np.int8, w, n_out, len(recurrent.gates), n_in))
        w_h = gate_major(array(np.int8, r, n_out, len(recurrent.gates), n_out))
        records = gate_major(array(ROW, rows, n_out, len(recurrent.records)))
        return recurrent(name, w_x, w_h, _rows(records), x_scale)
    if kind == KINDS["dense"]:
        weight = array("<i2", w, n_out, n_in).astype(np.int16)
        return DenseLayer(name, weight, _rows(array(ROW, rows, n_out)), activation, x_scale, y_scale)
    return ActivationLayer(name, n_in, _rows(array(ROW, rows, 1)), activation, x_scale, y_scale)


def _rows(records: np.ndarray) -> Rows:
    return Rows(
        bias=records["bias"].astype(np.int32),
        mult=records["mult"].astype(np.int16),
        kx=records["kx"].astype(np.int8),
        shift=records["shift"].astype(np.int8),
    )
