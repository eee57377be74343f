"""The packed model: layout in csrc/stw_blob.c and docs/format.md. ``pack`` writes it, ``unpack``
reads it back.

A blob from outside is opened by the C checks first (stw_blob_open, by way of the engine);
``unpack`` runs after them and adds what only the host needs: scales and provenance, stored as JSON
behind the constants.
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from stepwell.errors import ModelError, SampleError, StepwellError
from stepwell.integer.packing import PACKINGS
from stepwell.layers import BY_NUMBER
from stepwell.layers.base import ACTIVATIONS, Fields, IntLayer, Timing
from stepwell.network import FORMAT, Network
from stepwell.scaler import MISSING, Channels, Scaler
from stepwell.text import printable
from stepwell.windowing import KINDS as MODES
from stepwell.windowing import Mode

MAGIC = b"STW1"
HEADER = struct.Struct("<4sHHIIIHHBBBBHHI4x")
LAYER = struct.Struct("<BB11H4I")
PLACE = 7  # of a descriptor
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


def packed_channels(model: Network) -> np.ndarray | None:
    """stw_model.channels, or None for a model that takes codes only."""
    channels = model.scaler.channels
    if channels is None:
        return None
    records = np.empty(model.n_in, CHANNEL)
    for name in CHANNEL.names:
        records[name] = getattr(channels, name)
    return records


# ---- places in scratch ----


def lives_in_state(model: Network, layer: IntLayer) -> bool:
    """Whether the layer's output is read where its state stands (stepwell.c)."""
    return model.mode.kind != "slide" and layer.in_state


def places(model: Network) -> list[int]:
    """Where each layer's output stands in scratch, in int16 values, even: the first gap between the
    outputs that are still read.

    In slide mode every output stands there for all steps of the window, so that places count in
    windows.
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
        raise ModelError(
            "the model's layers need more than 128 kB of scratch: no microcontroller has that"
        )
    return found


def _scratch(model: Network, layer: IntLayer, steps: int = 1) -> int:
    """int16 values that the layer needs from its place on for ``steps`` outputs, even."""
    is_output = layer is model.layers[-1] and layer.writes_output
    if is_output or (lives_in_state(model, layer) and not layer.is_recurrent):
        return 0
    return -(-layer.n_out * steps // 2) * 2 + layer.spare + layer.spare % 2


def overlap(model: Network, found: list[int]) -> str:
    """Which layers' ``found`` places break the rule of docs/numerics.md, "Places in scratch"; empty
    when none does.
    """
    last_use = {value: index for index, reads in enumerate(model.sources) for value in reads}
    steps = model.mode.window if model.mode.kind == "slide" else 1
    starts = np.array(found, np.int64) * steps
    ends = starts + [_scratch(model, layer, steps) for layer in model.layers]
    for index, layer in enumerate(model.layers):
        if lives_in_state(model, layer):
            continue
        start, end, until = (
            starts[index],
            starts[index] + layer.n_out * steps,
            last_use.get(index + 1, index),
        )
        later = slice(index + 1, until + 1)
        others = np.flatnonzero(
            (starts[later] < end) & (start < ends[later]) & (starts[later] < ends[later])
        )
        if len(others):
            other = index + 1 + int(others[0])
            return (
                f"layer {other} '{model.layers[other].name}' writes over the output of layer "
                f"{index} '{layer.name}', "
                f"which layer {until} '{model.layers[until].name}' still reads: "
                "their places in scratch overlap; convert the source anew"
            )
    return ""


# ---- the blob ----


def model_id(blob: bytes) -> int:
    return struct.unpack_from("<I", blob, 16)[0]


def pack(model: Network, packing: str = "plain", with_notes: bool = True) -> bytes:
    """The model as one byte string. Deterministic: the same model gives the same bytes.

    ``packing``: of the recurrent rows, for devices; the host loads plain models with notes (scales,
    names) only.
    """
    layers = model.packed(packing)
    if all(layer.packing == "plain" for layer in layers):
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
        offsets = [placed(array) for array in layers[index].arrays]
        sources = (*model.sources[index], 0, 0)[:3]
        timing = model.timing[index]
        shape = (
            layer.n_in,
            layer.n_out,
            *sources,
            scratch[index],
            timing.first,
            timing.every,
            *layers[index].p,
        )
        descriptors.append(
            LAYER.pack(layer.number, ACTIVATIONS.index(layer.activation), *shape, *offsets)
        )
    channels = placed(packed_channels(model))
    device = b"".join([*descriptors, *arrays])
    notes = (
        json.dumps(host_notes(model), sort_keys=True, separators=(",", ":")).encode()
        if with_notes
        else b""
    )
    device_bytes = HEADER.size + len(device)
    total_bytes = device_bytes + len(notes) + 4
    mode = (
        MODES.index(model.mode.kind),
        MISSING.index(model.scaler.missing),
        PACKINGS.index(packing),
    )
    mode += (model.mode.window, model.mode.stride)

    def header(identity: int) -> bytes:
        counts = (FORMAT, len(model.layers), total_bytes, device_bytes, identity)
        return HEADER.pack(MAGIC, *counts, model.n_in, model.n_out, model.y_frac, *mode, channels)

    # the same model in another packing keeps its id: its bits and its snapshots are the same
    identity = (
        zlib.crc32(header(0)[ID_FROM:] + device) if packing == "plain" else model_id(blob_of(model))
    )
    body = header(identity) + device + notes
    return body + struct.pack("<I", zlib.crc32(body))


_blobs: WeakKeyDictionary[Network, bytes] = WeakKeyDictionary()


def remember(model: Network, blob: bytes) -> None:
    """``blob_of(model)`` gives these bytes, and with them their id."""
    _blobs[model] = blob


def blob_of(model: Network) -> bytes:
    """``pack(model)``, made once for each model."""
    if model not in _blobs:
        _blobs[model] = pack(model)
    return _blobs[model]


def host_notes(model: Network) -> dict[str, Any]:
    layers = [
        {"name": layer.name, "x_scale": layer.x_scale, "y_scale": layer.y_scale}
        for layer in model.layers
    ]
    return {
        "x_scale": model.x_scale,
        "layers": layers,
        "scaler": model.scaler.to_json(),
        "notes": model.notes,
    }


def unpack(blob: bytes) -> Network:
    """Rebuild the model from a blob that stw_blob_open has accepted.

    Raises ModelError when the host's part (scales, names) is missing or does not fit the constants.
    """
    (
        magic,
        _,
        n_layers,
        total,
        device,
        _,
        n_in,
        n_out,
        y_frac,
        mode,
        missing,
        packing,
        window,
        stride,
        channels,
    ) = HEADER.unpack_from(blob)
    assert magic == MAGIC
    if packing != PACKINGS.index("plain"):
        raise ModelError(
            f"the model is packed ({PACKINGS[packing]}) for a device: load the original .stw file"
        )
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
        raise ModelError(
            f"the model has no usable host notes ({error!r}): convert it again"
        ) from error
    layers, sources, timing = (tuple(part) for part in zip(*unpacked, strict=True))
    return Network(
        layers,
        x_scale,
        y_frac,
        host["notes"],
        sources,
        timing,
        Mode(MODES[mode], window, stride),
        scaler,
    )


def fault_of(blob: bytes) -> str:
    """Why stw_blob_open refused the shape of a blob whose sums are right, in words; empty where
    this cannot tell.
    """
    try:
        model = unpack(blob)
        found = [_descriptor(blob, index)[PLACE] for index in range(len(model.layers))]
        return model.mode.never(model.timing[-1], model.lags[-1]) or overlap(model, found)
    except (
        StepwellError,
        ValueError,
        LookupError,
        TypeError,
        ArithmeticError,
        AttributeError,
        struct.error,
    ):
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
# types of the notes that stepwell reads; those that may be missing end with "?", others are kept
# and never read
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
    """The JSON behind the constants: fields of the types that stepwell writes, text that can be
    printed.

    ModelError, naming the field, when one has another type. Unknown fields stay.
    """
    try:
        host = json.loads(content)
        _check_type(host, HOST, "")
        if len(host["layers"]) < n_layers:
            raise TypeError(f"layers has {len(host['layers'])} entries for {n_layers} layers")
        return host | {name: _shown(host[name]) for name in ("layers", "notes")}
    except TypeError as error:
        raise ModelError(
            f"the model has no usable host notes: {error}: convert the model again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"the model has no usable host notes ({error!r}): it was stripped for a device; load "
            "the original .stw file"
        ) from error


def _check_type(value: Any, expected: Any, place: str) -> None:
    """TypeError, naming ``place``, where ``value`` is not of the shape ``expected``: types, [shape]
    or {field: shape}.
    """
    types = expected if isinstance(expected, (type, tuple)) else type(expected)
    if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
        raise TypeError(
            f"{place or 'the JSON'} is {_short(value)} and should be {_type_name(types)}"
        )
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
    names = {
        str: "text",
        dict: "an object",
        list: "a list",
        bool: "true or false",
        type(None): "null",
    }
    every = types if isinstance(types, tuple) else (types,)
    return " or ".join(dict.fromkeys(names.get(kind, "a number") for kind in every))


def _shown(value: Any) -> Any:
    """``value`` with every text in it printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_shown(item) for item in value]
    if isinstance(value, dict):
        return {
            printable(key): item if key in MATCHED else _shown(item) for key, item in value.items()
        }
    return value


def _check_widths(notes: dict[str, Any], n_in: int, n_out: int) -> None:
    """TypeError when the names of inputs or outputs do not make up the model's."""
    columns, outputs = notes.get("columns", []), notes.get("outputs", [])
    if columns and not (all(columns) and len(set(columns)) == len(columns) == n_in):
        raise TypeError(f"notes.columns does not name the {n_in} inputs")
    sizes = [output["size"] for output in outputs]
    if sizes and (min(sizes) < 1 or sum(sizes) != n_out):
        raise TypeError(f"notes.outputs has {_short(sizes)} values, which do not make up {n_out}")


def _descriptor(blob: bytes, index: int) -> tuple[int, ...]:
    return LAYER.unpack_from(blob, HEADER.size + LAYER.size * index)


def _unpack_layer(
    blob: bytes, index: int, host: dict[str, Any]
) -> tuple[IntLayer, tuple[int, ...], Timing]:
    kind, act, n_in, n_out, *rest = _descriptor(blob, index)
    sources, timing, p, offsets = rest[:3], Timing(*rest[4:6]), tuple(rest[6:9]), tuple(rest[9:])
    scales = _positive(host["x_scale"]), _positive(host["y_scale"])
    fields = Fields(blob, (n_in, n_out), ACTIVATIONS[act], p, offsets, scales, host["name"])
    layer = BY_NUMBER[kind].unpacked(fields)
    return layer, tuple(sources[: len(layer.widths)]), timing
