"""Every .stw file is hostile: truncated, bit-flipped, or forged with valid checksums."""

import struct
import zlib

import numpy as np
import pytest
import stepwell
from hypothesis import given, settings
from hypothesis import strategies as st
from stepwell import blob
from stepwell.blob import HEADER, ID_FROM, LAYER
from stepwell.integer.packing import ROW


def test_round_trip(model, tmp_path):
    model.save(tmp_path / "m.stw")
    again = stepwell.load(tmp_path / "m.stw")
    assert again.blob == model.blob
    assert again.notes == model.notes


def test_saving_is_deterministic(graph):
    x = np.random.default_rng(0).normal(size=(8, 20, graph.n_in))
    assert stepwell.convert(graph, x).blob == stepwell.convert(graph, x).blob


def test_every_flipped_bit_is_refused(small_model):
    content = small_model.blob
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(stepwell.ModelError):
            stepwell.loads(bytes(damaged))


def test_every_truncation_is_refused(small_model):
    for length in range(len(small_model.blob)):
        with pytest.raises(stepwell.ModelError):
            stepwell.loads(small_model.blob[:length])


def test_reasons_are_given(small_model, tmp_path):
    path = tmp_path / "m.stw"
    path.write_bytes(b"hello, I am no model")
    with pytest.raises(stepwell.ModelError, match=r"m\.stw: not a stepwell model"):
        stepwell.load(path)
    path.write_bytes(small_model.blob[:-9])
    with pytest.raises(stepwell.ModelError, match="damaged"):
        stepwell.load(path)
    with pytest.raises(stepwell.ModelError, match=r"absent\.stw: cannot be read"):
        stepwell.load(tmp_path / "absent.stw")


def forged(content: bytes) -> bytes:
    """``content`` with both checksums made right again."""
    device_bytes = struct.unpack_from("<I", content, 12)[0]
    body = bytearray(content[:-4])
    if ID_FROM <= device_bytes <= len(body):
        struct.pack_into("<I", body, 16, zlib.crc32(body[ID_FROM:device_bytes]))
    struct.pack_into("<I", body, 8, len(body) + 4)
    return bytes(body) + struct.pack("<I", zlib.crc32(body))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_forged_blobs_are_refused_or_run(small_model, data):
    """Whatever passes the checks must run without a fault and equal the reference: the proof holds
    for hostile weights too.
    """
    content = bytearray(small_model.blob)
    device_bytes = struct.unpack_from("<I", content, 12)[0]
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(6, device_bytes - 1))
        content[at] = data.draw(st.integers(0, 255))
    try:
        model = stepwell.loads(forged(bytes(content)))
    except stepwell.ModelError:
        return
    x_q = np.random.default_rng(0).integers(-32768, 32768, (5, model.n_in)).astype(np.int16)
    assert np.array_equal(model.stream().run_q(x_q), model.reference().run_q(x_q))


def layer_offset(content: bytes, layer: int, field: str) -> int:
    values = LAYER.unpack_from(content, HEADER.size + LAYER.size * layer)
    return values[{"w": 13, "r": 14, "rows": 15, "extra": 16}[field]]


@pytest.mark.parametrize("field", ["w", "r", "rows"])
@pytest.mark.parametrize("offset", [0, 4, 2, 0xFFFFFFFC, 0x7FFFFFFF])
def test_offsets_out_of_bounds(small_model, field, offset):
    content = bytearray(small_model.blob)
    place = HEADER.size + {"w": 24, "r": 28, "rows": 32}[field]
    struct.pack_into("<I", content, place, offset)
    with pytest.raises(stepwell.ModelError, match="leave the blob"):
        stepwell.loads(forged(bytes(content)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shift", 0),
        ("shift", 47),
        ("mult", 0),
        ("mult", -1),
        ("kx", 16),
        ("kx", -16),
        ("kx", 15),
        ("bias", 2**31 - 1),
    ],
)
def test_rows_that_could_overflow(small_model, name, value):
    content = bytearray(small_model.blob)
    at = layer_offset(content, 0, "rows") + ROW.fields[name][1]
    struct.pack_into(
        {"bias": "<i", "mult": "<h", "kx": "<b", "shift": "<b"}[name], content, at, value
    )
    with pytest.raises(stepwell.ModelError, match="overflow"):
        stepwell.loads(forged(bytes(content)))


def test_weight_of_minus_128_is_refused(small_model):
    content = bytearray(small_model.blob)
    content[layer_offset(content, 0, "w")] = 0x80
    with pytest.raises(stepwell.ModelError, match="overflow"):
        stepwell.loads(forged(bytes(content)))


@pytest.mark.parametrize(
    ("at", "value"),
    [(6, 0), (6, 3), (20, 0), (20, 5), (22, 7), (24, 31), (25, 1), (33, 4), (38, 1)],
)
def test_headers_that_make_no_sense(small_model, at, value):
    content = bytearray(small_model.blob)
    content[at] = value
    with pytest.raises(stepwell.ModelError):
        stepwell.loads(forged(bytes(content)))


def test_stripped_blob_keeps_its_id_and_opens_in_c(small_model):
    from stepwell.engine import OpenModel

    device_bytes = struct.unpack_from("<I", small_model.blob, 12)[0]
    stripped = forged(small_model.blob[:device_bytes] + bytes(4))
    assert blob.model_id(stripped) == small_model.id
    assert OpenModel(stripped).model.n_in == small_model.n_in
    with pytest.raises(stepwell.ModelError, match="no usable host notes"):
        stepwell.loads(stripped)


@pytest.mark.parametrize(
    "notes",
    [
        {"name": 5},
        {"precision": 8},
        {"source": "abc"},
        {"source": {"file": "m.onnx"}},
        {"source": {"file": None, "sha256": "", "producer": ""}},
        {"repaired_rows": 3},
        {"warnings": [1]},
    ],
)
def test_notes_are_hostile_too(small_model, notes):
    with pytest.raises(stepwell.ModelError, match="no usable host notes"):
        stepwell.loads(small_model.replace(notes=notes).blob)


@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-320, 10**400, "1", None])
def test_scales_are_hostile_too(small_model, scale):
    with pytest.raises(stepwell.ModelError, match="no usable host notes"):
        stepwell.loads(small_model.replace(x_scale=scale).blob)


def test_loading_keeps_the_very_bytes(small_model):
    """A blob that is sound but not as we would write it keeps its id: boards and snapshots go by
    that.
    """
    device_bytes = struct.unpack_from("<I", small_model.blob, 12)[0]
    content = bytearray(small_model.blob)
    struct.pack_into("<I", content, 12, device_bytes + 4)
    content[device_bytes:device_bytes] = bytes(4)
    model = stepwell.loads(forged(bytes(content)))
    assert model.blob == forged(bytes(content)) and model.id != small_model.id


def test_format_number_is_the_one_of_the_header():
    from stepwell.network import FORMAT
    from stepwell.sources import csrc

    assert f"#define STW_MODEL_FORMAT {FORMAT} " in (csrc() / "stepwell.h").read_text()
