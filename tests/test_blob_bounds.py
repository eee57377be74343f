"""Every check of stw_blob_open at its exact bound, and the refusals of the stream calls, by the C
functions themselves.

The proof of C (row_is_safe) and the proof of Python (stepwell.integer.proof) accept exactly the
same models: thousands of random ones, every row exactly at its bound or one above it.
"""

import itertools
import re
import struct
import zlib

import numpy as np
import pytest
import stepwell
from conftest import ROOT
from shapes import random_dense, random_gru, random_lstm, random_rnn, random_sequences
from stepwell._engine import ffi, lib
from stepwell.blob import HEADER, LAYER, overlap, pack, places
from stepwell.engine import OpenModel
from stepwell.errors import StepwellError
from stepwell.graph import Graph
from stepwell.integer.fixed import Rows
from stepwell.integer.formats import TABLE_ENTRIES
from stepwell.integer.packing import ROW
from stepwell.integer.proof import INT32_MAX, RESULT_MAX, bounds, failing_rows
from stepwell.layers import (
    ActivationLayer,
    DenseLayer,
    GruLayer,
    LayerNormLayer,
    LstmLayer,
    RecurrentLayer,
    RnnLayer,
    Timing,
    WindowLayer,
)
from stepwell.layers.recurrent import CELL_HEADER
from stepwell.model import Model
from stepwell.reference import Reference
from stepwell.windowing import KINDS as MODES
from stepwell.windowing import Mode
from test_blob import forged, layer_offset

GOLDEN = ROOT / "tests" / "golden"
N_LAYERS, DEVICE_BYTES, ID, N_IN, N_OUT = 6, 12, 16, 20, 22  # offsets of header fields
RECURRENT = [LstmLayer, GruLayer, RnnLayer]


def aligned(content: bytes):
    memory = ffi.new("int32_t[]", len(content) // 4 + 2)
    ffi.memmove(memory, content, len(content))
    return memory


def opened(content: bytes, max_layers: int = 8) -> int:
    """The status of stw_blob_open; a refusal must leave the model as it was."""
    memory, model, layers = (
        aligned(content),
        ffi.new("stw_model *"),
        ffi.new("stw_layer[]", max_layers),
    )
    ffi.memmove(model, b"\xa5" * ffi.sizeof("stw_model"), ffi.sizeof("stw_model"))
    status = lib.stw_blob_open(model, layers, max_layers, memory, len(content))
    if status != lib.STW_OK:
        assert bytes(ffi.buffer(model)) == b"\xa5" * ffi.sizeof("stw_model")
    return status


def rows(n: int, bias=0, mult=16384, kx=0, shift=30) -> Rows:
    def column(value, dtype):
        return np.broadcast_to(np.asarray(value, dtype), (n,)).copy()

    return Rows(
        column(bias, np.int32), column(mult, np.int16), column(kx, np.int8), column(shift, np.int8)
    )


def recurrent(
    kind, w_x: np.ndarray, w_h: np.ndarray, records: Rows | None = None, bits: int = 8
) -> RecurrentLayer:
    n_records = len(kind.records) * w_h.shape[1]
    records = rows(n_records) if records is None else records
    return kind("r", w_x.astype(np.int8), w_h.astype(np.int8), records, 1.0, weight_bits=bits)


def of_ones(kind, n_in: int, n_out: int, records: Rows | None = None) -> RecurrentLayer:
    n = len(kind.gates) * n_out
    return recurrent(kind, np.ones((n, n_in)), np.ones((n, n_out)), records)


def dense(weight: np.ndarray, activation: str = "none", records: Rows | None = None) -> DenseLayer:
    weight = np.asarray(weight, np.int16)
    return DenseLayer(
        "d", weight, rows(len(weight)) if records is None else records, activation, 1.0, 1.0
    )


def activation_layer(
    n: int, activation: str = "relu", records: Rows | None = None
) -> ActivationLayer:
    return ActivationLayer(
        "a", n, rows(1, shift=14) if records is None else records, activation, 1.0, 1.0
    )


def packed(*layers, y_frac: int = 10) -> bytes:
    return pack(Model(layers, 1.0, y_frac))


def patched(content: bytes, at: int, form: str, value: int) -> bytes:
    changed = bytearray(content)
    struct.pack_into(form, changed, at, value)
    return forged(bytes(changed))


def descriptor(layer: int, field: str) -> int:
    places = {"kind": 0, "act": 1, "n_in": 2, "n_out": 4, "w": 24, "r": 28, "rows": 32, "extra": 36}
    return HEADER.size + LAYER.size * layer + places[field]


def row_at(content: bytes, layer: int, row: int, name: str) -> int:
    return layer_offset(content, layer, "rows") + ROW.itemsize * row + ROW.fields[name][1]


# Arrays that leave the blob


def array_bytes(layer) -> dict[str, int]:
    """Bytes of each array of a layer, as docs/format.md has them."""
    if isinstance(layer, RecurrentLayer):
        unit = {LstmLayer: (4, 4), GruLayer: (3, 4), RnnLayer: (1, 1)}[type(layer)]
        return {
            "w": unit[0] * layer.n_out * layer.n_in,
            "r": unit[0] * layer.n_out * layer.n_out,
            "rows": 8 * unit[1] * layer.n_out,
        }
    if isinstance(layer, DenseLayer):
        return {"w": 2 * layer.n_out * layer.n_in, "rows": 8 * layer.n_out}
    return {"rows": 8}


def moved_to_the_end(
    content: bytes, field: str, n_bytes: int, short: int = 0, shift: int = 0
) -> bytes:
    """The array of layer 0 copied behind all others, ``shift`` bytes after an aligned offset;
    device_bytes ``short`` of its end.
    """
    device = bytearray(content[: struct.unpack_from("<I", content, DEVICE_BYTES)[0]])
    start = layer_offset(content, 0, field)
    device += bytes(-len(device) % 4 + shift)
    struct.pack_into("<I", device, descriptor(0, field), len(device))
    device += content[start : start + n_bytes]
    struct.pack_into("<I", device, DEVICE_BYTES, len(device) - short)
    return forged(bytes(device) + bytes(4))


ARRAYS = [
    (layer, field)
    for layer in (
        of_ones(LstmLayer, 3, 5),
        of_ones(GruLayer, 3, 5),
        of_ones(RnnLayer, 3, 5),
        dense(np.ones((3, 5))),
        dense(np.ones((1, 1))),
        activation_layer(4),
    )
    for field in array_bytes(layer)
]


@pytest.mark.parametrize(
    ("layer", "field"), ARRAYS, ids=lambda v: v if isinstance(v, str) else v.kind
)
def test_arrays_end_where_the_constants_end(layer, field):
    content, n_bytes = packed(layer), array_bytes(layer)[field]
    assert opened(moved_to_the_end(content, field, n_bytes)) == lib.STW_OK
    for short in range(1, min(5, n_bytes + 1)):
        assert opened(moved_to_the_end(content, field, n_bytes, short=short)) == lib.STW_E_SHAPE, (
            short
        )


@pytest.mark.parametrize(
    ("layer", "field"), ARRAYS, ids=lambda v: v if isinstance(v, str) else v.kind
)
def test_arrays_are_aligned_and_begin_after_the_layers(layer, field):
    content, n_bytes = packed(layer), array_bytes(layer)[field]
    for shift in range(8):
        expected = lib.STW_E_SHAPE if shift % 4 else lib.STW_OK
        assert opened(moved_to_the_end(content, field, n_bytes, shift=shift)) == expected, shift
    first = HEADER.size + LAYER.size
    if field != "rows":  # rows made of weights would not pass the proof
        assert opened(patched(content, descriptor(0, field), "<I", first)) == lib.STW_OK
    end = struct.unpack_from("<I", content, DEVICE_BYTES)[0]
    for offset in (0, 4, first - 4, end, end + 4, 0x7FFFFFFC, 0x80000000, 0xFFFFFFFC):
        assert opened(patched(content, descriptor(0, field), "<I", offset)) == lib.STW_E_SHAPE, (
            offset
        )


def test_layer_table_leaves_the_constants():
    content = packed(dense(np.ones((1, 1))))
    table = patched(
        patched(content, descriptor(0, "kind"), "<B", 99),
        DEVICE_BYTES,
        "<I",
        HEADER.size + LAYER.size - 1,
    )
    assert opened(table) == lib.STW_E_SHAPE, "refused before the layer of kind 99 is read"
    assert opened(patched(content, N_LAYERS, "<H", 2)) != lib.STW_OK


# Header, checksums, space


def test_header_lengths():
    content = packed(of_ones(RnnLayer, 2, 1))
    body = len(content) - 4
    for device_bytes in (0, 19, 20, 39, body + 1, body + 4, 0xFFFFFFFF):
        assert opened(patched(content, DEVICE_BYTES, "<I", device_bytes)) == lib.STW_E_SHAPE, (
            device_bytes
        )
    assert opened(patched(content, DEVICE_BYTES, "<I", body)) == lib.STW_OK, "without notes"
    for n_bytes in range(44):
        short = bytearray(content[: max(16, n_bytes - 4)] + bytes(4))[:n_bytes]
        if n_bytes >= 16:
            struct.pack_into("<II", short, 8, n_bytes, n_bytes - 4)
            struct.pack_into("<I", short, n_bytes - 4, zlib.crc32(short[: n_bytes - 4]))
        assert opened(bytes(short)) == lib.STW_E_FORMAT, n_bytes
    assert opened(content + bytes(4)) == lib.STW_E_CHECKSUM
    other = bytearray(content)
    struct.pack_into("<I", other, 8, len(content) + 4)
    struct.pack_into("<I", other, body, zlib.crc32(other[:body]))
    assert opened(bytes(other)) == lib.STW_E_CHECKSUM, "total_bytes of another file"
    for at in (
        body - 1,
        body,
        body + 3,
    ):  # the notes' last byte and the checksum itself: no constants
        damaged = bytearray(content)
        damaged[at] ^= 1
        assert opened(bytes(damaged)) == lib.STW_E_CHECKSUM


@pytest.mark.parametrize(
    ("at", "form", "value", "status"),
    [(0, "<B", 0, "FORMAT"), (4, "<H", 1, "FORMAT"), (4, "<H", 3, "FORMAT"), (4, "<H", 0, "FORMAT")]
    + [
        (24, "<B", 31, "FORMAT"),
        (26, "<B", 3, "FORMAT"),
        *((at, "<B", 1, "FORMAT") for at in (27, *range(36, 40))),
    ]
    + [
        (25, "<B", mode, "SHAPE") for mode in (1, 2, 3, 4, 255)
    ]  # modes of a window of no steps, and no mode
    + [
        (28, "<H", 1, "SHAPE"),
        (30, "<H", 0, "SHAPE"),
        (30, "<H", 2, "SHAPE"),
        (32, "<I", 4, "SHAPE"),
    ]
    + [
        (N_LAYERS, "<H", 0, "SHAPE"),
        (N_LAYERS, "<H", 9, "SPACE"),
        (N_IN, "<H", 0, "SHAPE"),
        (N_IN, "<H", 3, "SHAPE"),
    ]
    + [
        (N_OUT, "<H", 2, "SHAPE"),
        (40, "<B", 0, "LAYER"),
        (40, "<B", 17, "LAYER"),
        (41, "<B", 6, "LAYER"),
    ],
)
def test_header_fields(at, form, value, status):
    content = packed(dense(np.ones((1, 2))), y_frac=30)
    assert opened(content) == lib.STW_OK
    assert opened(patched(content, at, form, value)) == getattr(lib, f"STW_E_{status}")


def test_a_model_of_no_layers():
    content = packed(dense(np.ones((2, 2))))
    assert opened(content) == lib.STW_OK
    assert opened(patched(content, N_LAYERS, "<H", 0)) == lib.STW_E_SHAPE, (
        "n_in = n_out alone makes no model"
    )


def test_unknown_kind_is_named_before_its_arrays():
    content = packed(dense(np.ones((1, 2))))
    for kind in (0, 17, 255):
        unknown = patched(content, descriptor(0, "kind"), "<B", kind)
        assert opened(patched(unknown, descriptor(0, "rows"), "<I", 0)) == lib.STW_E_LAYER


def test_wrong_id_under_a_right_checksum():
    content = bytearray(packed(of_ones(LstmLayer, 2, 2)))
    for bit in range(32):
        wrong = content.copy()
        wrong[ID + bit // 8] ^= 1 << bit % 8
        struct.pack_into("<I", wrong, len(wrong) - 4, zlib.crc32(wrong[:-4]))
        assert opened(bytes(wrong)) == lib.STW_E_CHECKSUM
    wrong = content.copy()
    wrong[layer_offset(content, 0, "w")] ^= 2
    struct.pack_into("<I", wrong, len(wrong) - 4, zlib.crc32(wrong[:-4]))
    assert opened(bytes(wrong)) == lib.STW_E_CHECKSUM, "constants changed, id as it was"


def test_misaligned_blob_and_null_pointers():
    content = packed(of_ones(RnnLayer, 1, 1))
    model, layers = ffi.new("stw_model *"), ffi.new("stw_layer[1]")
    memory = ffi.new("int32_t[]", len(content) // 4 + 3)
    for shift in range(8):
        place = ffi.cast("char *", memory) + shift
        ffi.memmove(place, content, len(content))
        expected = lib.STW_E_ALIGN if shift % 4 else lib.STW_OK
        assert lib.stw_blob_open(model, layers, 1, place, len(content)) == expected
    place = aligned(content)
    assert lib.stw_blob_open(ffi.NULL, layers, 1, place, len(content)) == lib.STW_E_ARG
    assert lib.stw_blob_open(model, ffi.NULL, 1, place, len(content)) == lib.STW_E_ARG
    assert lib.stw_blob_open(model, layers, 1, ffi.NULL, len(content)) == lib.STW_E_ARG


def test_room_for_the_layers():
    content = packed(*[of_ones(RnnLayer, 2, 2)] * 3)
    assert opened(content, max_layers=3) == lib.STW_OK
    assert opened(content, max_layers=2) == lib.STW_E_SPACE


# The overflow proof


def sound(layer) -> bool:
    return len(failing_rows(*layer.weight_sums(), layer.rows)) == 0


def test_bound_of_the_input_sum():
    """(1): 65535 units of weight pass, 65536 do not. kx = -1 halves the sum, so that (2) does not
    hide (1).
    """
    for kind in RECURRENT:
        for total, expected in ((65535, lib.STW_OK), (65536, lib.STW_E_OVERFLOW)):
            for sign in (1, -1):
                w_x = np.zeros((len(kind.gates), 517))
                w_x[0, :516], w_x[0, 516] = 127, total - 516 * 127
                w_x[:, ::2] *= sign
                layer = recurrent(
                    kind, w_x, 0 * np.ones((len(kind.gates), 1)), rows(len(kind.records))
                )
                layer.rows.kx[0] = -1
                assert sound(layer) == (expected == lib.STW_OK)
                assert opened(packed(layer)) == expected, (kind, total)
    for weight, expected in (
        ([-32768, 0], True),
        ([-32768, -32767], True),
        ([-32768, -32768], False),
    ):
        assert opened(packed(dense([weight]))) == (lib.STW_OK if expected else lib.STW_E_OVERFLOW)


# bias at which an RNN of one unit, w_x = [5], w_h = [3], meets a bound exactly. h: 3 * 32768
@pytest.mark.parametrize(
    ("kx", "mult", "shift", "bias"),
    [
        (0, 16384, 30, INT32_MAX - (5 * 32768 + 16384) - 98304),  # (2), with its 2^14
        (1, 16384, 30, INT32_MAX - 2 * (5 * 32768 + 16384) - 98304),
        (12, 16384, 30, INT32_MAX - 4096 * (5 * 32768 + 16384) - 98304),
        (-1, 16384, 30, INT32_MAX - (5 * 16384 + 8192 + 1) - 98304),  # a right shift rounds up
        (-14, 16384, 30, INT32_MAX - (5 * 2 + 1 + 1) - 98304),
        (-15, 16384, 30, INT32_MAX - (5 + 0 + 1) - 98304),
        # (3): the largest B with B * mult < (2^31 - 2^16 + 1) * 2^shift
        (0, 2, 1, RESULT_MAX - (5 * 32768 + 16384) - 98304),
        (0, 3, 1, (2 * (RESULT_MAX + 1) - 1) // 3 - (5 * 32768 + 16384) - 98304),
        (0, 32767, 14, ((RESULT_MAX + 1) * 2**14 - 1) // 32767 - (5 * 32768 + 16384) - 98304),
        (-15, 32767, 1, ((RESULT_MAX + 1) * 2 - 1) // 32767 - 6 - 98304),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_rows_at_the_bound_by_hand(kx, mult, shift, bias, sign):
    for above in (0, 1):
        record = rows(1, sign * (bias + above), mult, kx, shift)
        layer = recurrent(RnnLayer, np.array([[-5]]), np.array([[3]]), record)
        assert sound(layer) == (above == 0)
        assert opened(packed(layer)) == (lib.STW_E_OVERFLOW if above else lib.STW_OK)


@pytest.mark.parametrize(
    ("name", "accepted", "refused"),
    [
        ("shift", [1, 2, 45, 46], [0, -1, -128, 47, 64, 127]),
        ("mult", [1, 2, 16383, 32767], [0, -1, -32768]),
        ("kx", [-15, -14, 0, 14, 15], [-16, -128, 16, 127]),
    ],
)
def test_ranges_of_a_record(name, accepted, refused):
    zeros = np.zeros((1, 1))
    for value in accepted + refused:
        layer = recurrent(RnnLayer, zeros, zeros, rows(1, **({"mult": 1} | {name: value})))
        expected = lib.STW_OK if value in accepted else lib.STW_E_OVERFLOW
        assert opened(packed(layer)) == expected, value
    lowest = recurrent(RnnLayer, zeros, zeros, rows(1, bias=-(2**31), mult=1))
    assert opened(packed(lowest)) == lib.STW_E_OVERFLOW


@pytest.mark.parametrize("kind", RECURRENT)
def test_minus_128_is_refused_everywhere(kind):
    layer = of_ones(kind, 3, 2, rows(2 * len(kind.records), mult=1, shift=46))
    content = packed(layer)
    assert opened(content) == lib.STW_OK
    for field in "wr":
        start = layer_offset(content, 0, field)
        for at in range(start, start + array_bytes(layer)[field]):
            assert opened(patched(content, at, "<b", -127)) == lib.STW_OK
            assert opened(patched(content, at, "<b", -128)) == lib.STW_E_OVERFLOW, (
                field,
                at - start,
            )


@pytest.mark.parametrize("n_in", [1, 2, 3])
@pytest.mark.parametrize("kind", RECURRENT)
def test_minus_8_is_refused_everywhere(kind, n_in):
    """Of weights of 4 bits; what fills up the last byte of a row is not looked at."""
    n = len(kind.gates) * 2
    layer = recurrent(
        kind,
        np.ones((n, n_in)),
        np.ones((n, 2)),
        rows(2 * len(kind.records), mult=1, shift=46),
        bits=4,
    )
    content = packed(layer)
    assert opened(content) == lib.STW_OK
    for field, columns in (("w", n_in), ("r", 2)):
        start, row_bytes = layer_offset(content, 0, field), (columns + 1) // 2
        for row, column in np.ndindex(n, 2 * row_bytes):
            at, half = start + row * row_bytes + column // 2, 4 * (column % 2)
            byte = content[at] & ~(15 << half) & 255
            used = column < columns
            assert opened(patched(content, at, "<B", byte | 9 << half)) == lib.STW_OK  # -7
            refused = lib.STW_E_OVERFLOW if used else lib.STW_OK
            assert opened(patched(content, at, "<B", byte | 8 << half)) == refused, (
                field,
                row,
                column,
            )


@pytest.mark.parametrize("kind", RECURRENT)
def test_bits_of_weights_and_hidden_states(kind):
    content = packed(of_ones(kind, 3, 2, rows(2 * len(kind.records), mult=1, shift=46)))
    bits = HEADER.size + 20  # parameters 1 and 2 of layer 0
    for value in (0, 1, 3, 5, 7, 9, 16, 255):
        assert opened(patched(content, bits, "<H", value)) == lib.STW_E_SHAPE
    for value in (0, 4, 7, 9, 15, 17, 32):
        assert opened(patched(content, bits + 2, "<H", value)) == lib.STW_E_SHAPE
    assert opened(patched(content, bits + 2, "<H", 8)) == lib.STW_OK


def random_layer(rng: np.random.Generator, kind: str, n_in: int, n_out: int):
    """Random weights, mult, kx and shift, kx small enough to leave room for a bias. No bias yet."""
    limit = int(rng.choice([1, 10, 127]))
    classes = {cls.kind: cls for cls in RECURRENT}
    if kind == "activation":
        mult, shift = rng.integers(1, 32768), rng.integers(1, 47)
        return activation_layer(
            n_in, str(rng.choice(["none", "relu", "tanh", "sigmoid"])), rows(1, 0, mult, 0, shift)
        )
    n_records = n_out if kind == "dense" else len(classes[kind].records) * n_out
    kx = np.zeros(n_records, np.int64)
    if kind != "dense":
        n_joined = 2 * n_out if kind == "gru" else n_records
        kx[:n_joined] = rng.integers(-15, 16, n_joined)
    # a shift below 15 makes room for bound (3), one above for bound (2)
    shift = np.where(
        rng.random(n_records) < 0.5, rng.integers(1, 15, n_records), rng.integers(15, 47, n_records)
    )
    records = rows(n_records, 0, rng.integers(1, 32768, n_records), kx, shift)
    if kind == "dense":
        name = str(rng.choice(["none", "relu", "tanh", "sigmoid", "softmax"]))
        layer = dense(rng.integers(-80 * limit, 80 * limit + 1, (n_out, n_in)), name, records)
    else:
        n_gates, bits = len(classes[kind].gates), int(rng.choice([8, 4]))
        limit = min(limit, 2 ** (bits - 1) - 1)
        w_x = rng.integers(-limit, limit + 1, (n_gates * n_out, n_in))
        w_h = rng.integers(-limit, limit + 1, (n_gates * n_out, n_out))
        layer = recurrent(classes[kind], w_x, w_h, records, bits)
    for _ in range(64):
        failing = failing_rows(*layer.weight_sums(), layer.rows)
        wide = layer.rows.kx[failing] > -15 if kind != "dense" else np.zeros(len(failing), bool)
        low = layer.rows.kx[failing] > 0
        layer.rows.kx[failing[wide & low]] -= 1
        layer.rows.shift[failing[~(wide & low)]] += 1
    return layer


def to_the_bound(rng: np.random.Generator, layer, above: int) -> None:
    """Bias that brings every row exactly to the nearer of (2) and (3), and one row ``above`` it."""
    total = bounds(*layer.weight_sums(), layer.rows)[1]
    one = int(rng.integers(len(total)))
    for r, room in enumerate(map(int, total)):
        mult, shift = int(layer.rows.mult[r]), int(layer.rows.shift[r])
        largest = min(INT32_MAX, (((RESULT_MAX + 1) << shift) - 1) // mult)
        bias = min(largest - room + (above if r == one else 0), INT32_MAX)
        layer.rows.bias[r] = bias if rng.random() < 0.5 else -bias


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn", "dense", "activation"])
def test_c_accepts_what_the_proof_accepts(kind):
    rng = np.random.default_rng(list(kind.encode()))
    seen = {True: 0, False: 0}
    for _ in range(800 if kind != "activation" else 200):
        n_in, n_out = (int(n) for n in rng.integers(1, 5, 2))
        layers = [random_layer(rng, kind, n_in, n_out)]
        if (
            kind != "dense" and rng.random() < 0.3
        ):  # the bound may be met in the first or the last layer
            layers.append(dense(rng.integers(-9, 10, (2, layers[0].n_out))))
        elif rng.random() < 0.3:
            layers.insert(0, of_ones(RnnLayer, 1, n_in))
        if kind != "activation":
            chosen = next(layer for layer in reversed(layers) if layer.kind == kind)
            to_the_bound(rng, chosen, above=int(rng.choice([0, 1, 2, -1, 3000])))
        expected = all(sound(layer) for layer in layers)
        seen[expected] += 1
        assert opened(packed(*layers)) == (lib.STW_OK if expected else lib.STW_E_OVERFLOW)
    assert seen[True] > 100 and (seen[False] > 100 or kind == "activation")


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn", "dense"])
def test_c_accepts_what_the_proof_accepts_without_aim(kind):
    """Rows as they come: any bias, mult, kx and shift, which fail (1), (2) and (3) alone and
    together.
    """
    rng = np.random.default_rng(list(kind.encode()))
    classes = {cls.kind: cls for cls in RECURRENT}
    seen = {True: 0, False: 0}
    for _ in range(300):
        n_in = int(rng.choice([1, 3, 900]))
        size = int(rng.choice([1, 20, 127]))
        n_records = 1 if kind == "dense" else len(classes[kind].records)
        records = rows(
            n_records,
            rng.integers(-(2**31) + 1, 2**31, n_records) >> rng.integers(0, 31, n_records),
            rng.integers(1, 32768, n_records),
            np.zeros(n_records)
            if kind == "dense"
            else rng.integers(-15, 16, n_records) // int(rng.choice([1, 4])),
            rng.integers(1, 47, n_records),
        )
        if kind == "dense":
            layer = dense(rng.integers(-80 * size, 80 * size + 1, (1, n_in)), "none", records)
        else:
            n_gates = len(classes[kind].gates)
            records.kx[2:] *= kind != "gru"
            w_x, w_h = (
                rng.integers(-size, size + 1, (n_gates, n_in)),
                rng.integers(-size, size + 1, (n_gates, 1)),
            )
            layer = recurrent(classes[kind], w_x, w_h, records)
        seen[sound(layer)] += 1
        assert opened(packed(layer)) == (lib.STW_OK if sound(layer) else lib.STW_E_OVERFLOW)
    assert min(seen.values()) > 20


# Layers that mean nothing


@pytest.mark.parametrize("kx", [1, -1, 15, -15])
def test_only_joined_rows_have_a_scale_of_their_own(kx):
    def status(layer, row: int) -> int:
        content = packed(layer)
        return opened(patched(content, row_at(content, 0, row, "kx"), "<b", kx))

    for row in range(3):
        assert status(dense(np.zeros((3, 2))), row) == lib.STW_E_OVERFLOW
    assert status(activation_layer(3), 0) == lib.STW_E_OVERFLOW
    for kind in RECURRENT:
        n = len(kind.records)
        layer = recurrent(
            kind, np.zeros((2 * len(kind.gates), 1)), np.zeros((2 * len(kind.gates), 2))
        )
        for row in range(2 * n):
            free = kind is not GruLayer or row % 4 < 2
            assert status(layer, row) == (lib.STW_OK if free else lib.STW_E_OVERFLOW), (kind, row)


def test_activation_has_no_bias():
    for bias in (1, -1, 2**20):
        assert opened(packed(activation_layer(3, records=rows(1, bias=bias)))) == lib.STW_E_OVERFLOW
        assert opened(packed(dense(np.ones((1, 3)), records=rows(1, bias=bias)))) == lib.STW_OK


def test_shapes_that_do_not_fit():
    content = packed(of_ones(RnnLayer, 2, 3), activation_layer(3))
    assert opened(content) == lib.STW_OK
    for width in (2, 4):
        narrower = patched(content, descriptor(1, "n_out"), "<H", width)
        assert opened(patched(narrower, N_OUT, "<H", width)) == lib.STW_E_SHAPE, (
            "an activation of another width"
        )
        other = patched(content, descriptor(1, "n_in"), "<H", width)
        assert opened(other) == lib.STW_E_SHAPE
        both = patched(patched(other, descriptor(1, "n_out"), "<H", width), N_OUT, "<H", width)
        assert opened(both) == lib.STW_E_SHAPE, (
            "an activation that does not fit the layer before it"
        )
    assert opened(patched(content, N_OUT, "<H", 2)) == lib.STW_E_SHAPE
    assert opened(patched(content, N_IN, "<H", 3)) == lib.STW_E_SHAPE
    last = packed(of_ones(RnnLayer, 2, 3), dense(np.ones((1, 3))))
    assert (
        opened(patched(patched(last, descriptor(1, "n_out"), "<H", 0), N_OUT, "<H", 0))
        == lib.STW_E_SHAPE
    )
    first = packed(dense(np.ones((1, 3))))
    assert (
        opened(patched(patched(first, descriptor(0, "n_in"), "<H", 0), N_IN, "<H", 0))
        == lib.STW_E_SHAPE
    )


@pytest.mark.parametrize("activation", range(6))
def test_activations_of_each_kind(activation):
    def last(*layers) -> int:
        content = packed(*layers)
        return opened(patched(content, descriptor(len(layers) - 1, "act"), "<B", activation))

    elementwise, softmax = activation <= 3, activation == 4
    for kind in RECURRENT:
        assert last(of_ones(kind, 2, 2)) == (lib.STW_OK if activation == 0 else lib.STW_E_LAYER)
    assert last(activation_layer(2)) == (lib.STW_OK if elementwise else lib.STW_E_LAYER)
    assert last(dense(np.ones((2, 2)))) == (
        lib.STW_OK if elementwise or softmax else lib.STW_E_LAYER
    )


def test_softmax_is_last_and_has_512_rows_at_most():
    assert (
        opened(packed(dense(np.ones((2, 2)), "softmax"), dense(np.ones((2, 2))))) == lib.STW_E_LAYER
    )
    assert (
        opened(packed(dense(np.ones((2, 2)), "relu"), dense(np.ones((2, 2)), "softmax")))
        == lib.STW_OK
    )
    assert opened(packed(dense(np.ones((512, 1)), "softmax"))) == lib.STW_OK
    assert opened(packed(dense(np.ones((513, 1)), "softmax"))) == lib.STW_E_LAYER
    assert opened(packed(dense(np.ones((513, 1)), "sigmoid"))) == lib.STW_OK


@pytest.mark.parametrize(
    "name", ["table_in_a_dense", "table_alone_at_the_end", "lstm_tables", "gru_before_tables"]
)
def test_no_entry_of_a_table_is_minus_32768(name):
    """At no place of it, and in none of a cell's tables."""
    content = (GOLDEN / f"{name}.stw").read_bytes()
    model = stepwell.loads(content)
    assert opened(content) == lib.STW_OK
    n_tables = 0
    for index, layer in enumerate(model.layers):
        parts = (
            [layer.cell.gate, layer.cell.candidate, layer.cell.output]
            if isinstance(layer, RecurrentLayer)
            else []
        )
        tables = len([part for part in parts if part is not None]) + (layer.activation == "table")
        header = 2 * CELL_HEADER if parts else 0
        for k in range(tables):
            start = layer_offset(content, index, "extra") + header + 2 * TABLE_ENTRIES * k
            for entry in (0, 1, 255, 256, 511, 512):
                at = start + 2 * entry
                assert opened(patched(content, at, "<h", -32767)) == lib.STW_OK
                assert opened(patched(content, at, "<h", -32768)) == lib.STW_E_OVERFLOW, (
                    index,
                    k,
                    entry,
                )
            n_tables += 1
    assert n_tables > 0


def windows(*timing: Timing) -> bytes:
    """Windows in a chain, of one tap each."""
    layers = tuple(WindowLayer(f"w{k}", 1, 1, 1, 1.0, 1.0) for k in range(len(timing)))
    return pack(Model(layers, 1.0, 10, timing=timing))


def test_a_window_runs_when_its_source_does():
    """every is a multiple of the source's, and first so many of them later; the last layer's alone
    would allow more.
    """
    for every in range(1, 13):
        expected = lib.STW_OK if every % 2 == 0 and 12 % every == 0 else lib.STW_E_SHAPE
        assert opened(windows(Timing(0, 2), Timing(0, every), Timing(0, 12))) == expected, every
    for first in range(8):
        expected = lib.STW_OK if first >= 3 and first % 2 == 1 else lib.STW_E_SHAPE
        assert opened(windows(Timing(3, 2), Timing(first, 2), Timing(9, 2))) == expected, first
    assert opened(windows(Timing(0, 2), Timing(0, 0), Timing(0, 2))) == lib.STW_E_SHAPE


def norm(epsilon: int, gamma: int = 16384, bias: int = 0, **row: int) -> LayerNormLayer:
    records = rows(2, [bias, 0], **row)
    return LayerNormLayer("n", np.array([gamma, 1], np.int16), records, epsilon, 0, 1.0, 1.0)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_weight_of_a_layer_norm(sign):
    """|gamma| = 2^15 times a code of 2^15 is 2^30; the bias may fill the rest of 31 bits."""
    room = INT32_MAX - 2**30 - 2**14
    for above in (0, 1):
        layer = norm(1, -32768, sign * (room + above))
        assert sound(layer) == (above == 0)
        assert opened(packed(layer)) == (lib.STW_E_OVERFLOW if above else lib.STW_OK)
    model = Model((norm(1, -32768, sign * room),), 1.0, 10)
    x_q = np.array([[-32768, 32767], [32767, -32768], [0, 1], [5, 5]], np.int16)
    assert np.array_equal(model.stream().run_q(x_q), model.reference().run_q(x_q))


@pytest.mark.parametrize("e", [2, 4, 10, 20])
def test_a_layer_norm_whose_sum_is_a_power_of_four(e):
    """w = 2^30 is the one value whose root r is 2^16: a root of 16 bits, 2^16 - 1, would round the
    other way.
    """
    # the deviations are d and -d, and q_0 = d * r / 2^shift is half an integer
    d = 2 ** (e // 2 - 1) * 121
    shift, epsilon = 16 + e // 2, 2 ** (30 + e) - 2 * d * d
    model = Model((norm(epsilon, 2, mult=1, shift=1),), 1.0, 10)
    x_q = np.array([[d - d // 2, -(d // 2)]], np.int16)
    right, wrong = (d * r + 2 ** (shift - 1) >> shift for r in (2**16, 2**16 - 1))
    y = model.stream().run_q(x_q)
    assert np.array_equal(y, model.reference().run_q(x_q)) and y[0, 0] == right != wrong


# Windows that meet no output, places in scratch


def fields(content: bytes, mode: int, window: int, stride: int) -> bytes:
    changed = bytearray(content)
    struct.pack_into("<B", changed, 25, mode)
    struct.pack_into("<HH", changed, 28, window, stride)
    return forged(bytes(changed))


@pytest.mark.parametrize(
    "name", ["strided_conv_and_residual", "valid_conv_max_pool", "window_at_the_end"]
)
def test_windows_that_never_meet_an_output_are_refused(name):
    """By C and Python alike; what opens gives outputs, those of the reference."""
    content = (GOLDEN / f"{name}.stw").read_bytes()
    right, seen = stepwell.loads(content), {True: 0, False: 0}
    timing = right.timing[-1]
    for mode, window, stride in itertools.product(range(4), range(13), range(13)):
        try:
            model = right.replace(mode=Mode(MODES[mode], window, stride))
            never, changed = model.mode.never(timing), model.blob
        except StepwellError:  # no mode at all
            never, changed = None, fields(content, mode, window, stride)
        assert opened(changed) == (lib.STW_OK if never == "" else lib.STW_E_SHAPE), (
            mode,
            window,
            stride,
        )
        if never:
            with pytest.raises(stepwell.ModelError, match=re.escape(never)):
                stepwell.loads(changed)
            seen[False] += 1
        elif never == "":
            model = stepwell.loads(changed)
            x_q, stream = codes(3 * max(window, timing.first + 1), model.n_in), model.stream()
            assert np.array_equal(stream.run_q(x_q), model.reference().run_q(x_q))
            stream.reset()
            fresh = [stream.step_q(row) is not None and stream.fresh for row in x_q]
            assert any(fresh) and not any(fresh[: model.info()["timing"]["first_output"]])
            seen[True] += 1
    assert min(seen.values()) > 5 or timing == Timing()


SHARING = [
    "residual",
    "attention_additive",
    "gate",
    "bidirectional",
    "attention_over_both",
    "gru_before_tables",
]
SHARING += [
    "strided_conv_and_residual",
    "strided_conv_and_residual_slide_9_2",
    "attention_scores_given",
]


@pytest.mark.parametrize("name", SHARING)
def test_places_that_overlap_are_refused(name):
    """Any places: C and Python refuse the same ones, and what opens gives the reference's outputs."""
    content = (GOLDEN / f"{name}.stw").read_bytes()
    right, rng = stepwell.loads(content), np.random.default_rng(list(name.encode()))
    x_q, seen = codes(12, right.n_in), {True: 0, False: 0}
    expected = right.reference().run_q(x_q)
    for _ in range(150):
        found, changed = places(right), bytearray(content)
        for index in rng.permutation(len(found))[: int(rng.integers(1, 4))]:
            found[index] = int(rng.integers(0, 24)) * 2
        for index, place in enumerate(found):
            struct.pack_into("<H", changed, HEADER.size + LAYER.size * index + 12, place)
        changed, fault = forged(bytes(changed)), overlap(right, found)
        assert opened(changed, 16) == (lib.STW_E_SHAPE if fault else lib.STW_OK), (found, fault)
        seen[not fault] += 1
        if fault:
            with pytest.raises(stepwell.ModelError, match=re.escape(fault)):
                stepwell.loads(changed)
        else:
            assert np.array_equal(stepwell.loads(changed).stream().run_q(x_q), expected), found
    assert min(seen.values()) > 10


# Streams: memory, snapshots, probes


class Bound:
    """A stream made by stw_init_shared, by hand."""

    def __init__(self, model: Model):
        self.open = OpenModel(model.blob)
        self.model = self.open.model
        self.state_bytes, self.scratch_bytes = (
            lib.stw_state_bytes(self.model),
            lib.stw_scratch_bytes(self.model),
        )
        self.state = ffi.new("int32_t[]", self.state_bytes // 4 + 2)
        self.scratch = ffi.new("int32_t[]", self.scratch_bytes // 4 + 2)
        self.stream = ffi.new("stw_stream *")
        assert self.init() == lib.STW_OK

    def init(
        self, state_shift=0, scratch_shift=0, state_short=0, scratch_short=0, stream=None
    ) -> int:
        state, scratch = (
            ffi.cast("char *", self.state) + state_shift,
            ffi.cast("char *", self.scratch) + scratch_shift,
        )
        n_state, n_scratch = self.state_bytes - state_short, self.scratch_bytes - scratch_short
        return lib.stw_init_shared(
            stream or self.stream, self.model, state, n_state, scratch, n_scratch
        )

    def step(self, x_q: np.ndarray) -> list[int]:
        y = ffi.new("int32_t[]", self.model.n_out)
        assert lib.stw_step(self.stream, ffi.new("int16_t[]", x_q.tolist()), y) == lib.STW_OK
        return list(y)


def converted(*layers) -> Model:
    graph = Graph(layers)
    return stepwell.convert(graph, random_sequences(np.random.default_rng(3), 8, 20, graph.n_in))


@pytest.fixture(scope="module")
def stack() -> Model:
    rng = np.random.default_rng(11)
    kinds = (
        random_gru(rng, 3, 5),
        random_lstm(rng, 5, 4),
        random_rnn(rng, 4, 3),
        random_gru(rng, 3, 6),
    )
    return converted(*kinds, random_lstm(rng, 6, 3), random_dense(rng, 3, 2))


def codes(n: int, n_in: int) -> np.ndarray:
    return np.random.default_rng(5).integers(-9000, 9000, (n, n_in)).astype(np.int16)


def test_areas_of_a_shared_stream(stack):
    bound = Bound(stack)
    for shift in (1, 2, 3):
        stream = ffi.new("stw_stream *")
        assert bound.init(state_shift=shift, stream=stream) == lib.STW_E_ALIGN
        assert bound.init(scratch_shift=shift, stream=stream) == lib.STW_E_ALIGN
        assert stream.model == ffi.NULL, "an error leaves the stream as it was"
    assert bound.init(state_short=1) == lib.STW_E_SPACE
    assert bound.init(scratch_short=1) == lib.STW_E_SPACE
    assert bound.init(state_shift=4, scratch_shift=4) == lib.STW_OK
    sizes = bound.state_bytes, bound.scratch_bytes
    shared = lib.stw_init_shared
    assert (
        shared(ffi.NULL, bound.model, bound.state, sizes[0], bound.scratch, sizes[1])
        == lib.STW_E_ARG
    )
    assert (
        shared(bound.stream, ffi.NULL, bound.state, sizes[0], bound.scratch, sizes[1])
        == lib.STW_E_ARG
    )
    assert (
        shared(bound.stream, bound.model, ffi.NULL, sizes[0], bound.scratch, sizes[1])
        == lib.STW_E_ARG
    )
    assert (
        shared(bound.stream, bound.model, bound.state, sizes[0], ffi.NULL, sizes[1])
        == lib.STW_E_ARG
    )


def test_one_area_of_a_stream(stack):
    bound = Bound(stack)
    n_bytes = lib.stw_ram_bytes(bound.model)
    assert n_bytes == bound.state_bytes + bound.scratch_bytes
    ram, stream = ffi.new("int32_t[]", n_bytes // 4 + 2), ffi.new("stw_stream *")
    for shift in (1, 2, 3):
        assert (
            lib.stw_init(stream, bound.model, ffi.cast("char *", ram) + shift, n_bytes)
            == lib.STW_E_ALIGN
        )
    for short in (
        0,
        1,
        bound.state_bytes - 1,
        bound.state_bytes,
        bound.state_bytes + 1,
        n_bytes - 1,
    ):
        assert lib.stw_init(stream, bound.model, ram, short) == lib.STW_E_SPACE, short
    assert stream.model == ffi.NULL
    assert lib.stw_init(stream, bound.model, ram, n_bytes) == lib.STW_OK


def test_a_model_without_state_needs_no_state():
    model = Model((dense(np.ones((2, 3)), records=rows(2, shift=14)),), 1.0, 0)
    c_model, stream = OpenModel(model.blob), ffi.new("stw_stream *")
    assert (lib.stw_state_bytes(c_model.model), lib.stw_scratch_bytes(c_model.model)) == (0, 0)
    assert lib.stw_init_shared(stream, c_model.model, ffi.NULL, 0, ffi.NULL, 0) == lib.STW_OK


def test_snapshot_of_a_model_of_the_same_shape(small_model):
    layers = (
        random_lstm(np.random.default_rng(91), 2, 3),
        random_dense(np.random.default_rng(92), 3, 2),
    )
    other = converted(*layers)
    assert (
        len(other.stream().save()) == len(small_model.stream().save())
        and other.id != small_model.id
    )
    mine, theirs = small_model.stream(), other.stream()
    mine.run_q(codes(5, 2))
    theirs.run_q(codes(9, 2))
    digest, snapshot = mine.digest(), theirs.save()
    with pytest.raises(stepwell.ModelError, match="another model"):
        mine.load(snapshot)
    bound = Bound(small_model)
    assert lib.stw_load(bound.stream, snapshot, len(snapshot)) == lib.STW_E_MISMATCH
    assert mine.digest() == digest


def resealed(snapshot: bytes) -> bytes:
    return snapshot[:-4] + struct.pack("<I", zlib.crc32(snapshot[:-4]))


def test_save_and_load_by_hand(stack):
    bound, expected = Bound(stack), stack.stream()
    x_q = codes(7, stack.n_in)
    for x in x_q:
        bound.step(x)
    expected.run_q(x_q)
    size = lib.stw_snapshot_bytes(bound.model)
    buffer = ffi.new("uint8_t[]", list(bytes([0xA5]) * (size + 4)))
    for short in (0, 1, 8, size - 4, size - 1):
        assert lib.stw_save(bound.stream, buffer, short) == lib.STW_E_SPACE
    assert bytes(ffi.buffer(buffer)) == bytes([0xA5]) * (size + 4), "a refusal writes nothing"
    assert lib.stw_save(ffi.NULL, buffer, size) == lib.STW_E_ARG
    assert lib.stw_save(bound.stream, ffi.NULL, size) == lib.STW_E_ARG
    assert lib.stw_save(bound.stream, buffer, size) == lib.STW_OK
    snapshot = bytes(ffi.buffer(buffer))[:size]
    assert snapshot == expected.save()
    assert bytes(ffi.buffer(buffer))[size:] == bytes([0xA5]) * 4

    def load(content: bytes) -> int:
        fresh = Bound(stack)
        before = lib.stw_digest(fresh.stream)
        status = lib.stw_load(fresh.stream, content, len(content))
        assert (lib.stw_digest(fresh.stream) == before) == (status != lib.STW_OK)
        return status

    assert load(snapshot) == lib.STW_OK
    assert load(resealed(b"X" + snapshot[1:])) == lib.STW_E_FORMAT
    assert load(resealed(snapshot[:4] + bytes(4) + snapshot[8:])) == lib.STW_E_MISMATCH
    assert load(snapshot[:-1] + bytes([snapshot[-1] ^ 1])) == lib.STW_E_CHECKSUM
    assert load(resealed(snapshot[:-4] + bytes(8))) == lib.STW_E_MISMATCH, "sound, of another size"
    assert load(resealed(snapshot[:8] + bytes(4))) == lib.STW_E_MISMATCH
    assert load(snapshot + b"\0") == lib.STW_E_FORMAT, "unsound, of another size"
    for length in range(12):
        assert load(snapshot[:length]) == lib.STW_E_FORMAT
    for length in range(4, 8):
        assert load(resealed(snapshot[:length] + bytes(4))) == lib.STW_E_FORMAT, (
            "sound, but too short to name a model"
        )
    n_cells, n_hidden = 5 + 4 + 6 + 3, 5 + 4 + 3 + 6 + 3
    assert size == 12 + 4 * n_cells + 2 * n_hidden
    for u in range(n_hidden):
        for value in (-32768, 32767):  # the proof holds for every int16
            changed = bytearray(snapshot)
            struct.pack_into("<h", changed, 8 + 4 * n_cells + 2 * u, value)
            assert load(resealed(bytes(changed))) == lib.STW_OK, (u, value)
    rails = bytearray(snapshot)
    struct.pack_into("<2i", rails, 8, -(2**31), 2**31 - 1)
    assert load(resealed(bytes(rails))) == lib.STW_OK, "a cell may have any value"
    assert lib.stw_load(ffi.NULL, snapshot, size) == lib.STW_E_ARG
    assert lib.stw_load(bound.stream, ffi.NULL, size) == lib.STW_E_ARG


def test_probe_outside_the_model(stack):
    bound, out = Bound(stack), ffi.new("stw_unit *")
    x = ffi.new("int16_t[8]")
    for layer, n_out in enumerate([5, 4, 3, 6, 3]):
        assert lib.stw_probe(bound.stream, layer, x, n_out - 1, out) == lib.STW_OK
        ffi.memmove(out, b"\xa5" * ffi.sizeof("stw_unit"), ffi.sizeof("stw_unit"))
        for unit in (n_out, n_out + 1, 2**32, 2**64 - 1):
            assert lib.stw_probe(bound.stream, layer, x, unit, out) == lib.STW_E_ARG
    for layer in (5, 6, 7, 2**64 - 1):  # 5 is the dense layer, 6 the number of layers
        assert lib.stw_probe(bound.stream, layer, x, 0, out) == lib.STW_E_ARG
    assert lib.stw_probe(ffi.NULL, 0, x, 0, out) == lib.STW_E_ARG
    assert lib.stw_probe(bound.stream, 0, ffi.NULL, 0, out) == lib.STW_E_ARG
    assert bytes(ffi.buffer(out)) == b"\xa5" * ffi.sizeof("stw_unit")
    assert lib.stw_probe(bound.stream, 0, x, 0, ffi.NULL) == lib.STW_E_ARG


def test_probe_behind_the_last_layer():
    """The layer that follows in memory belongs to no model."""
    bound, out = (
        Bound(Model((of_ones(RnnLayer, 2, 2), of_ones(RnnLayer, 2, 2)), 1.0, 15)),
        ffi.new("stw_unit *"),
    )
    x = ffi.new("int16_t[2]")
    assert lib.stw_probe(bound.stream, 1, x, 0, out) == lib.STW_OK
    bound.model.n_layers = 1
    assert lib.stw_probe(bound.stream, 0, x, 0, out) == lib.STW_OK
    assert lib.stw_probe(bound.stream, 1, x, 0, out) == lib.STW_E_ARG


def test_probe_of_every_layer_of_a_stack(stack):
    seen = {}
    reference = Reference(
        stack, lambda index, name, values: seen.update({(index, name): values[-1]})
    )
    bound = Bound(stack)
    x_q = codes(9, stack.n_in)
    for x in x_q[:8]:
        assert bound.step(x) == reference.step_q(x).tolist()
    reference.step_q(x_q[8])
    digest = lib.stw_digest(bound.stream)
    for index, layer in enumerate(stack.layers[:5]):
        x = ffi.new("int16_t[]", seen[index, "x"].tolist())
        n_records, n_gates = len(layer.records), 0 if layer.kind == "rnn" else len(layer.gates)
        for unit in range(layer.n_out):
            out = ffi.new("stw_unit *")
            assert lib.stw_probe(bound.stream, index, x, unit, out) == lib.STW_OK
            assert list(out.z)[:n_records] == seen[index, "z"][unit :: layer.n_out].tolist()
            if n_gates:
                assert list(out.gate)[:n_gates] == seen[index, "gates"][:, unit].tolist()
            assert out.c == (seen[index, "c"][unit] if layer.has_cell else 0)
            assert out.h == seen[index, "h_new"][unit]
    assert lib.stw_digest(bound.stream) == digest
