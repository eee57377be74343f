"""The packed model: layout in csrc/stw_blob.c and docs/format.md. ``pack`` writes it, ``unpack`` reads it back.

A blob from outside is opened by the C checks first (stw_blob_open, by way of the engine); ``unpack`` runs after them and
adds what only the host needs: scales and provenance, stored as JSON behind the constants.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from stepwell.errors import ModelError, SampleError, StepwellError
from stepwell.functions import PLAIN
from stepwell.graph import ATTENTIONS, Timing
from stepwell.mode import KINDS as MODES
from stepwell.mode import Mode
from stepwell.model import (
    FORMAT,
    ActivationLayer,
    AddLayer,
    ArgMaxLayer,
    AttentionLayer,
    Cell,
    ConcatLayer,
    DenseLayer,
    EmbeddingLayer,
    GruBeforeLayer,
    GruLayer,
    IntLayer,
    LayerNormLayer,
    LstmLayer,
    MaxPoolLayer,
    Model,
    MulLayer,
    RecurrentLayer,
    RnnLayer,
    Rows,
    SliceLayer,
    WindowLayer,
)
from stepwell.packing import (
    PACKINGS,
    ROW,
    from_nibbles,
    gate_major,
    packed_rows,
    packed_weights,
    packing_of,
)
from stepwell.scaler import MISSING, Channels, Scaler
from stepwell.text import printable

MAGIC = b"STW1"
KIND_NAMES = (
    *("lstm", "dense", "activation", "gru", "rnn", "gru_before", "window", "add", "mul", "concat", "slice", "max_pool"),
    *("layer_norm", "embedding", "arg_max", "attention"),
)
KINDS = {kind: number for number, kind in enumerate(KIND_NAMES, start=1)}  # STW_LSTM ..
ACTIVATIONS = (*PLAIN, "table")  # STW_NONE .. STW_TABLE
RECURRENT = {KINDS[layer.kind]: layer for layer in (LstmLayer, GruLayer, GruBeforeLayer, RnnLayer)}
HEADER = struct.Struct("<4sHHIIIHHBBBBHHI4x")
LAYER = struct.Struct("<BB11H4I")
ID_FROM = 20
CHANNEL = np.dtype(
    [
        ("low", "<i4"),
        ("high", "<i4"),
        ("offset", "<i4"),
        ("mult", "<i4"),
        ("bias", "<i4"),
        ("shift", "<i2"),
        ("fill", "<i2"),
    ]
)
TABLE_ENTRIES = 513
PADS_LOWEST = 1 << 15  # in the third parameter of a window
EXTRA_HEADER = 8
PARTS = ("gate", "candidate", "output", "peephole", "start", "projection")  # STW_PART_GATE, ..: bits 0, 1, ..


def packed_extra(layer: IntLayer) -> np.ndarray | None:
    """stw_layer.extra, int16: a table, an epsilon, a cell's variants; None for nothing."""
    if isinstance(layer, RecurrentLayer):
        return _packed_cell(layer.cell)
    if isinstance(layer, LayerNormLayer):
        return np.frombuffer(struct.pack("<Q", layer.epsilon), "<i2")
    table = getattr(layer, "table", None) if layer.activation == "table" else None
    return None if table is None else table.astype("<i2")


def _packed_cell(cell: Cell) -> np.ndarray | None:
    start = None if cell.h0 is None else np.concatenate([cell.h0, cell.c0.astype("<i4").view("<i2")])
    arrays = {**{name: getattr(cell, name) for name in PARTS if name != "start"}, "start": start}
    parts = sum(1 << bit for bit, name in enumerate(PARTS) if arrays[name] is not None)
    flags = cell.coupled + 2 * cell.reverse + 4 * cell.final
    formats = [cell.g_frac, cell.a_frac, cell.h_frac]
    if (parts, flags, cell.clip, formats) == (0, 0, 32767, [15, 15, 15 if cell.h_bits == 16 else 7]):
        return None
    header = np.array([parts, flags, cell.clip, *formats, cell.peephole_frac, 0], "<i2")
    return np.concatenate([header, *(arrays[n].reshape(-1).astype("<i2") for n in PARTS if arrays[n] is not None)])


def parameters(layer: IntLayer, packing: str = "plain") -> tuple[int, int, int]:
    """stw_layer.p"""
    if isinstance(layer, RecurrentLayer):
        packed = PACKINGS.index(packing_of(layer, packing))
        return layer.n_units, layer.weight_bits + 256 * packed, layer.cell.h_bits
    if isinstance(layer, DenseLayer):
        return layer.groups, layer.n_out // layer.groups, layer.weight.shape[1]
    if isinstance(layer, WindowLayer):
        return layer.taps, layer.dilation, layer.ahead + PADS_LOWEST * layer.lowest
    if isinstance(layer, SliceLayer):
        return layer.start, 0, 0
    if isinstance(layer, MaxPoolLayer):
        return layer.taps, 0, 0
    if isinstance(layer, LayerNormLayer):
        return layer.exponent, 0, 0
    if isinstance(layer, EmbeddingLayer):
        return *layer.table.shape, 0
    if isinstance(layer, AttentionLayer):
        return layer.steps, ATTENTIONS.index(layer.form), layer.key_width
    return 0, 0, 0


def packed_channels(model: Model) -> np.ndarray | None:
    """stw_model.channels, or None for a model that takes codes only."""
    channels = model.scaler.channels
    if channels is None:
        return None
    records = np.empty(model.n_in, CHANNEL)
    for name in CHANNEL.names:
        records[name] = getattr(channels, name)
    return records


# ---- places in scratch ----


def lives_in_state(model: Model, layer: IntLayer) -> bool:
    """Whether the layer's output is read where its state stands (stepwell.c)."""
    undilated = isinstance(layer, WindowLayer) and layer.dilation == 1
    return model.mode.kind != "slide" and (isinstance(layer, RecurrentLayer) or undilated)


def places(model: Model) -> list[int]:
    """Where each layer's output stands in scratch, in int16 values, even: the first gap between the outputs that are still read.

    In slide mode every output stands there for all steps of the window, so that places count in windows.
    """
    last_use = {value: index for index, reads in enumerate(model.sources) for value in reads}
    found: list[int] = []
    taken: list[tuple[int, int, int]] = []  # start, end, index of the last layer that reads it
    for index, layer in enumerate(model.layers):
        size = _scratch(model, layer)
        taken = [t for t in taken if t[2] >= index]
        place = 0
        for start, end, _ in sorted(taken):
            if place + size <= start:
                break
            place = max(place, end)
        found.append(place)
        until = index if lives_in_state(model, layer) else last_use.get(index + 1, index)
        if size and until > index:
            taken.append((place, place + size, until))
    if found and max(found) > 65534:
        raise ModelError("the model's layers need more than 128 kB of scratch: no microcontroller has that")
    return found


def _scratch(model: Model, layer: IntLayer, steps: int = 1) -> int:
    """int16 values that the layer needs from its place on for ``steps`` outputs, even."""
    writes_output = layer is model.layers[-1] and layer.kind in ("dense", "activation", "add", "mul", "arg_max")
    if writes_output or (isinstance(layer, WindowLayer) and lives_in_state(model, layer)):
        return 0
    spare = 0
    if isinstance(layer, GruBeforeLayer) or (isinstance(layer, LstmLayer) and layer.cell.projection is not None):
        spare = layer.n_units
    elif isinstance(layer, AttentionLayer):
        spare = 2 * layer.steps
    return -(-layer.n_out * steps // 2) * 2 + spare + spare % 2


def overlap(model: Model, found: list[int]) -> str:
    """Which layers' ``found`` places break the rule of docs/numerics.md, "Places in scratch"; empty when none does."""
    last_use = {value: index for index, reads in enumerate(model.sources) for value in reads}
    steps = model.mode.window if model.mode.kind == "slide" else 1
    starts = np.array(found, np.int64) * steps
    ends = starts + [_scratch(model, layer, steps) for layer in model.layers]
    for index, layer in enumerate(model.layers):
        if lives_in_state(model, layer):
            continue
        start, end, until = starts[index], starts[index] + layer.n_out * steps, last_use.get(index + 1, index)
        later = slice(index + 1, until + 1)
        others = np.flatnonzero((starts[later] < end) & (start < ends[later]) & (starts[later] < ends[later]))
        if len(others):
            other = index + 1 + int(others[0])
            return (
                f"layer {other} '{model.layers[other].name}' writes over the output of layer {index} '{layer.name}', "
                f"which layer {until} '{model.layers[until].name}' still reads: "
                "their places in scratch overlap; convert the source anew"
            )
    return ""


# ---- the blob ----


def model_id(blob: bytes) -> int:
    return struct.unpack_from("<I", blob, 16)[0]


def pack(model: Model, packing: str = "plain", with_notes: bool = True) -> bytes:
    """The model as one byte string. Deterministic: the same model gives the same bytes.

    ``packing``: of the recurrent rows, for devices; the host loads plain models with notes (scales, names) only.
    """
    if all(packing_of(layer, packing) == "plain" for layer in model.layers):
        packing = "plain"
    first = HEADER.size + LAYER.size * len(model.layers)
    descriptors: list[bytes] = []
    arrays: list[bytes] = []

    def placed(array: np.ndarray | None) -> int:
        """The offset at which the array will stand; 0 for none."""
        if array is None:
            return 0
        offset = first + sum(map(len, arrays))
        arrays.append(array.tobytes() + bytes(-array.nbytes % 4))
        return offset

    scratch = places(model)
    for index, layer in enumerate(model.layers):
        offsets = [
            placed(a) for a in (*packed_weights(layer, packing), packed_rows(layer, packing), packed_extra(layer))
        ]
        sources = (*model.sources[index], 0, 0)[:3]
        timing = model.timing[index]
        shape = (
            layer.n_in,
            layer.n_out,
            *sources,
            scratch[index],
            timing.first,
            timing.every,
            *parameters(layer, packing),
        )
        descriptors.append(LAYER.pack(KINDS[layer.kind], ACTIVATIONS.index(layer.activation), *shape, *offsets))
    channels = placed(packed_channels(model))
    device = b"".join([*descriptors, *arrays])
    notes = json.dumps(host_notes(model), sort_keys=True, separators=(",", ":")).encode() if with_notes else b""
    device_bytes = HEADER.size + len(device)
    total_bytes = device_bytes + len(notes) + 4
    mode = (MODES.index(model.mode.kind), MISSING.index(model.scaler.missing), PACKINGS.index(packing))
    mode += (model.mode.window, model.mode.stride)

    def header(identity: int) -> bytes:
        counts = (FORMAT, len(model.layers), total_bytes, device_bytes, identity)
        return HEADER.pack(MAGIC, *counts, model.n_in, model.n_out, model.y_frac, *mode, channels)

    # the same model in another packing keeps its id: its bits and its snapshots are the same
    identity = zlib.crc32(header(0)[ID_FROM:] + device) if packing == "plain" else model.id
    body = header(identity) + device + notes
    return body + struct.pack("<I", zlib.crc32(body))


def host_notes(model: Model) -> dict[str, Any]:
    layers = [{"name": layer.name, "x_scale": layer.x_scale, "y_scale": layer.y_scale} for layer in model.layers]
    return {"x_scale": model.x_scale, "layers": layers, "scaler": model.scaler.to_json(), "notes": model.notes}


def unpack(blob: bytes) -> Model:
    """Rebuild the model from a blob that stw_blob_open has accepted.

    Raises ModelError when the host's part (scales, names) is missing or does not fit the constants.
    """
    magic, _, n_layers, total, device, _, n_in, n_out, y_frac, mode, missing, packing, window, stride, channels = (
        HEADER.unpack_from(blob)
    )
    assert magic == MAGIC
    if packing != PACKINGS.index("plain"):
        raise ModelError(f"the model is packed ({PACKINGS[packing]}) for a device: load the original .stw file")
    host = _host_part(blob[device : total - 4], n_layers)
    try:
        unpacked = [_unpack_layer(blob, i, host["layers"][i]) for i in range(n_layers)]
        scaler = Scaler.from_json(
            host["scaler"] | {"missing": MISSING[missing]}, _unpack_channels(blob, channels, n_in)
        )
        scaler.check(n_in, n_out)
        x_scale = _positive(host["x_scale"])
        _check_widths(host["notes"], n_in, n_out)
    except (
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        RecursionError,
        ArithmeticError,
        AttributeError,
        SampleError,
    ) as error:
        raise ModelError(f"the model has no usable host notes ({error!r}): convert it again") from error
    layers, sources, timing = (tuple(part) for part in zip(*unpacked, strict=True))
    return Model(layers, x_scale, y_frac, host["notes"], sources, timing, Mode(MODES[mode], window, stride), scaler)


def fault_of(blob: bytes) -> str:
    """Why stw_blob_open refused the shape of a blob whose sums are right, in words; empty where this cannot tell."""
    try:
        model = unpack(blob)
        found = [_Fields(blob, index).place for index in range(len(model.layers))]
        return model.mode.never(model.timing[-1], model.lags[-1]) or overlap(model, found)
    except (StepwellError, ValueError, LookupError, TypeError, ArithmeticError, AttributeError, struct.error):
        return ""


def _unpack_channels(blob: bytes, offset: int, n_in: int) -> Channels | None:
    if not offset:
        return None
    records = np.frombuffer(blob, CHANNEL, n_in, offset)
    return Channels(*(records[name].astype(np.int64) for name in CHANNEL.names))


def _positive(value: Any) -> float:
    if not isinstance(value, (int, float)) or not 1e-30 < float(value) < 1e30:
        raise ValueError(f"scale {value} is not usable")
    return float(value)


NUMBER = (int, float)
# types of the notes that stepwell reads; those that may be missing end with "?", others are kept and never read
NOTES = {
    "name?": str,
    "precision?": str,
    "tool?": str,
    "readout?": str,
    "source?": {"file": str, "sha256": str, "producer": str},
    "source_check?": {"oracle?": str, "error?": (*NUMBER, type(None))},
    "calibration?": {"sequences?": int, "steps?": int, "x_peak?": NUMBER, "rule?": str},
    "import_notes?": [str],
    "repaired_rows?": [str],
    "warnings?": [str],
    "functions?": {},
    "fine_tuned?": bool,
    "window?": (int, type(None)),
    "columns?": [str],
    "outputs?": [{"name": str, "size": int}],
    "fidelity?": {
        "sqnr_db": (*NUMBER, type(None)),
        "carry_gap": (*NUMBER, type(None)),
        "answers?": int,
    },
}
HOST = {
    "x_scale": NUMBER,
    "layers": [{"name": str, "x_scale": NUMBER, "y_scale": NUMBER}],
    "scaler": {},
    "notes": NOTES,
}
MATCHED = ("columns",)  # notes that are compared with the user's data: they stay as they are


def _host_part(content: bytes, n_layers: int) -> dict[str, Any]:
    """The JSON behind the constants: fields of the types that stepwell writes, text that can be printed.

    ModelError, naming the field, when one has another type. Unknown fields stay.
    """
    try:
        host = json.loads(content)
        _check_type(host, HOST, "")
        if len(host["layers"]) < n_layers:
            raise TypeError(f"layers has {len(host['layers'])} entries for {n_layers} layers")
        return host | {name: _shown(host[name]) for name in ("layers", "notes")}
    except TypeError as error:
        raise ModelError(f"the model has no usable host notes: {error}: convert the model again") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"the model has no usable host notes ({error!r}): it was stripped for a device; load the original .stw file"
        ) from error


def _check_type(value: Any, expected: Any, place: str) -> None:
    """TypeError, naming ``place``, where ``value`` is not of the shape ``expected``: types, [shape] or {field: shape}."""
    types = expected if isinstance(expected, (type, tuple)) else type(expected)
    if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
        raise TypeError(f"{place or 'the JSON'} is {_short(value)} and should be {_type_name(types)}")
    if isinstance(expected, list):
        for index, item in enumerate(value):
            _check_type(item, expected[0], f"{place}[{index}]")
    elif isinstance(expected, dict):
        for field, shape in expected.items():
            name, where = field.removesuffix("?"), f"{place}.{field}".strip(".?")
            if name in value:
                is_empty = field.endswith("?") and isinstance(shape, dict) and value[name] == {}
                _check_type(value[name], {} if is_empty else shape, where)
            elif name == field:
                raise TypeError(f"{where} is missing")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _type_name(types: type | tuple[type, ...]) -> str:
    names = {str: "text", dict: "an object", list: "a list", bool: "true or false", type(None): "null"}
    every = types if isinstance(types, tuple) else (types,)
    return " or ".join(dict.fromkeys(names.get(kind, "a number") for kind in every))


def _shown(value: Any) -> Any:
    """``value`` with every text in it printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_shown(item) for item in value]
    if isinstance(value, dict):
        return {printable(key): item if key in MATCHED else _shown(item) for key, item in value.items()}
    return value


def _check_widths(notes: dict[str, Any], n_in: int, n_out: int) -> None:
    """TypeError when the names of inputs or outputs do not make up the model's."""
    columns, outputs = notes.get("columns", []), notes.get("outputs", [])
    if columns and not (all(columns) and len(set(columns)) == len(columns) == n_in):
        raise TypeError(f"notes.columns does not name the {n_in} inputs")
    sizes = [output["size"] for output in outputs]
    if sizes and (min(sizes) < 1 or sum(sizes) != n_out):
        raise TypeError(f"notes.outputs has {_short(sizes)} values, which do not make up {n_out}")


class _Fields:
    """One layer's descriptor and arrays, as a constructor needs them."""

    def __init__(self, blob: bytes, index: int):
        self._blob = blob
        numbers = LAYER.unpack_from(blob, HEADER.size + LAYER.size * index)
        self.kind, act, self.n_in, self.n_out, *rest = numbers
        self.activation = ACTIVATIONS[act]
        self.sources, self.place, self.timing, self.p = tuple(rest[:3]), rest[3], Timing(*rest[4:6]), tuple(rest[6:9])
        self._w, self._r, self._rows, self._extra = rest[9:]

    def _array(self, dtype: Any, offset: int, *shape: int) -> np.ndarray:
        return np.frombuffer(self._blob, dtype, int(np.prod(shape)), offset).reshape(shape)

    def weights(self, *shape: int) -> np.ndarray:
        return self._array("<i2", self._w, *shape).astype(np.int16)

    def bytes_of(self, which: str, *shape: int) -> np.ndarray:
        return self._array(np.int8, self._w if which == "w" else self._r, *shape)

    def records(self, n: int) -> np.ndarray:
        return self._array(ROW, self._rows, n)

    def rows(self, n: int) -> Rows:
        return _rows(self.records(n))

    def extra(self, start: int, n: int) -> np.ndarray:
        return self._array("<i2", self._extra + 2 * start, n).astype(np.int16)

    @property
    def has_extra(self) -> bool:
        return self._extra != 0

    @property
    def table(self) -> np.ndarray | None:
        return self.extra(0, TABLE_ENTRIES) if self.activation == "table" else None


def _unpack_layer(blob: bytes, index: int, host: dict[str, Any]) -> tuple[IntLayer, tuple[int, ...], Timing]:
    f = _Fields(blob, index)
    name, x_scale, y_scale = host["name"], _positive(host["x_scale"]), _positive(host["y_scale"])
    layer = _unpack_recurrent(f, name, x_scale) if f.kind in RECURRENT else UNPACK[f.kind](f, name, x_scale, y_scale)
    return layer, f.sources[: len(layer.widths)], f.timing


def _unpack_recurrent(f: _Fields, name: str, x_scale: float) -> RecurrentLayer:
    recurrent = RECURRENT[f.kind]
    n_units, n_gates, n_records = f.p[0], len(recurrent.gates), len(recurrent.records)
    bits = f.p[1]
    cell = _unpack_cell(f, n_units) if f.has_extra else Cell(h_frac=15 if f.p[2] == 16 else 7)
    cell = replace(cell, h_bits=f.p[2])
    shapes = {"w": (n_units, n_gates, f.n_in), "r": (n_units, n_gates, f.n_out)}
    w_x, w_h = (gate_major(_weights(f, field, shape, bits)) for field, shape in shapes.items())
    n = n_records * n_units
    records = f.records(n + (f.n_out if cell.projection is not None else 0))
    records = np.concatenate([gate_major(records[:n].reshape(n_units, n_records)), records[n:]])
    return recurrent(name, w_x, w_h, _rows(records), x_scale, cell, bits)


def _weights(f: _Fields, field: str, shape: tuple[int, int, int], bits: int) -> np.ndarray:
    if bits == 8:
        return f.bytes_of(field, *shape)
    return from_nibbles(f.bytes_of(field, *shape[:2], (shape[2] + 1) // 2), shape[2])


def _unpack_cell(f: _Fields, n_units: int) -> Cell:
    parts, flags, clip, g_frac, a_frac, h_frac, peephole_frac, _ = (int(v) for v in f.extra(0, EXTRA_HEADER))
    lengths = (TABLE_ENTRIES,) * 3 + (3 * n_units, f.n_out + 2 * n_units, f.n_out * n_units)
    arrays: dict[str, np.ndarray] = {}
    at = EXTRA_HEADER
    for bit, (name, length) in enumerate(zip(PARTS, lengths, strict=True)):
        if parts >> bit & 1:
            arrays[name] = f.extra(at, length)
            at += length
    if "peephole" in arrays:
        arrays["peephole"] = arrays["peephole"].reshape(3, n_units)
    if "projection" in arrays:
        arrays["projection"] = arrays["projection"].reshape(f.n_out, n_units)
    if "start" in arrays:
        start = arrays.pop("start")
        arrays |= {"h0": start[: f.n_out], "c0": start[f.n_out :].astype("<i2").view("<i4").astype(np.int32)}
    bits = {"coupled": bool(flags & 1), "reverse": bool(flags & 2), "final": bool(flags & 4)}
    formats = {"g_frac": g_frac, "a_frac": a_frac, "h_frac": h_frac, "peephole_frac": peephole_frac}
    return Cell(**arrays, clip=clip, **bits, **formats)


def _unpack_attention(f: _Fields, name: str, x: float, y: float) -> AttentionLayer:
    steps, form, width = f.p
    weight = f.weights(width) if ATTENTIONS[form] == "additive" else None
    return AttentionLayer(name, ATTENTIONS[form], steps, width, f.n_out, weight, f.rows(1), x, y)


def _unpack_norm(f: _Fields, name: str, x: float, y: float) -> LayerNormLayer:
    epsilon = struct.unpack("<Q", f.extra(0, 4).astype("<i2").tobytes())[0]
    return LayerNormLayer(name, f.weights(f.n_in), f.rows(f.n_in), epsilon, f.p[0], x, y)


UNPACK: dict[int, Callable[[_Fields, str, float, float], IntLayer]] = {
    KINDS["dense"]: lambda f, name, x, y: DenseLayer(
        name, f.weights(f.n_out, f.p[2]), f.rows(f.n_out), f.activation, x, y, f.p[0], f.table
    ),
    KINDS["activation"]: lambda f, name, x, y: ActivationLayer(name, f.n_in, f.rows(1), f.activation, x, y, f.table),
    KINDS["add"]: lambda f, name, x, y: AddLayer(name, f.n_in, f.weights(2), f.rows(1), f.activation, x, y, f.table),
    KINDS["mul"]: lambda f, name, x, y: MulLayer(name, f.n_in, f.rows(1), f.activation, x, y, f.table),
    KINDS["concat"]: lambda f, name, x, y: ConcatLayer(name, (f.n_in, f.n_out - f.n_in), f.rows(2), x, y),
    KINDS["slice"]: lambda f, name, x, y: SliceLayer(name, f.n_in, f.p[0], f.n_out, x, y),
    KINDS["max_pool"]: lambda f, name, x, y: MaxPoolLayer(name, f.n_in, f.p[0], x, y),
    KINDS["layer_norm"]: _unpack_norm,
    KINDS["embedding"]: lambda f, name, x, y: EmbeddingLayer(name, f.weights(f.p[0], f.p[1]), f.n_in, x, y),
    KINDS["arg_max"]: lambda f, name, x, y: ArgMaxLayer(name, f.n_in, x, y),
    KINDS["window"]: lambda f, name, x, y: WindowLayer(
        name, f.n_in, f.p[0], f.p[1], x, y, f.p[2] % PADS_LOWEST, f.p[2] >= PADS_LOWEST
    ),
    KINDS["attention"]: _unpack_attention,
}


def _rows(records: np.ndarray) -> Rows:
    return Rows(
        bias=records["bias"].astype(np.int32),
        mult=records["mult"].astype(np.int16),
        kx=records["kx"].astype(np.int8),
        shift=records["shift"].astype(np.int8),
    )
