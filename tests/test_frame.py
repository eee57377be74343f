"""The frame codec: C and Python against each other, PyPI cobs and zlib, and against damage."""

from __future__ import annotations

import itertools
import struct
import subprocess
import zlib

import pytest
from cffi import FFI
from cobs import cobs
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from stepwell.link import messages
from stepwell.link.frame import Frame, FrameReader, cobs_decode, cobs_encode, decode, encode
from stepwell.link.messages import MTU, PAYLOAD_BYTES

DECLARATIONS = f"""
typedef struct frame_reader {{ uint8_t data[{MTU}]; uint8_t n, left, zero, started, bad; }} frame_reader;
int frame_read(frame_reader *r, uint8_t byte);
void frame_send(uint8_t *frame, size_t n, void (*put)(uint8_t byte));
"""

payloads = st.one_of(
    st.binary(max_size=PAYLOAD_BYTES),
    st.binary(min_size=PAYLOAD_BYTES - 3, max_size=PAYLOAD_BYTES),
    st.lists(st.sampled_from([0, 1, 255]), max_size=PAYLOAD_BYTES).map(bytes),
)
frames = st.builds(Frame, st.integers(0, 255), st.integers(0, 255), payloads)


GOOD, DAMAGED = 1, 2  # frame_event


class CCodec:
    """firmware/app/frame.c, compiled for this machine."""

    def __init__(self, library):
        self._ffi = FFI()
        self._ffi.cdef(DECLARATIONS)
        self._lib = self._ffi.dlopen(str(library))
        self.reader = self._ffi.new("frame_reader *")

    def encode(self, frame: Frame) -> bytes:
        body = bytes([frame.type, frame.seq]) + frame.payload
        buffer = self._ffi.new("uint8_t[]", body + bytes(4))
        sent = bytearray()
        put = self._ffi.callback("void(uint8_t)", sent.append)
        self._lib.frame_send(buffer, len(body), put)
        return bytes(sent)

    def events(self, received: bytes) -> list[int]:
        """What frame_read says of the bytes, FRAME_NONE left out."""
        return [event for byte in received if (event := self._lib.frame_read(self.reader, byte))]

    def feed(self, received: bytes) -> list[Frame]:
        good = []
        for byte in received:
            if self._lib.frame_read(self.reader, byte) == 1:
                data = bytes(self._ffi.buffer(self.reader.data))[: self.reader.n - 4]
                good.append(Frame(data[0], data[1], data[2:]))
        return good


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("frame") / "frame.so"
    includes = [f"-I{ROOT / 'firmware' / 'app'}", f"-I{ROOT / 'csrc'}"]
    flags = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-shared", "-fPIC"]
    sources = [str(ROOT / "firmware" / "app" / "frame.c"), str(ROOT / "csrc" / "stw_crc.c")]
    subprocess.run(["cc", *flags, *includes, *sources, "-o", str(path)], check=True)
    return path


@pytest.fixture
def codec(library) -> CCodec:
    return CCodec(library)


def test_header_is_generated_from_the_table():
    assert (ROOT / "firmware" / "app" / "messages.h").read_text() == messages.c_header(), (
        "run python -m stepwell.link.messages firmware/app/messages.h"
    )


@given(st.binary(max_size=1200))
def test_cobs_is_cobs(data):
    assert cobs_encode(data) == cobs.encode(data)
    assert cobs_decode(cobs.encode(data)) == data


@given(st.binary(max_size=300))
def test_cobs_decoder_accepts_what_cobs_accepts(noise):
    try:
        expected = cobs.decode(noise)
    except cobs.DecodeError:
        expected = None
    assert cobs_decode(noise) == expected


@settings(max_examples=200)
@given(frame=frames)
def test_both_encoders_and_both_decoders_agree(library, frame):
    codec = CCodec(library)
    body = bytes([frame.type, frame.seq]) + frame.payload
    wire = b"\0" + cobs.encode(body + struct.pack("<I", zlib.crc32(body))) + b"\0"
    assert encode(frame) == codec.encode(frame) == wire
    assert codec.feed(wire) == FrameReader().feed(wire) == [frame]


@settings(max_examples=100)
@given(frame=frames, noise=st.binary(max_size=700), cuts=st.lists(st.integers(0, 1500), max_size=4))
def test_resynchronises_after_any_noise(library, frame, noise, cuts):
    """Frames behind noise arrive, however the bytes are cut up; the noise itself is not taken for a
    frame.
    """
    codec, reader = CCodec(library), FrameReader()
    wire = noise + encode(frame) * 2
    edges = [0, *sorted(min(cut, len(wire)) for cut in cuts), len(wire)]
    pieces = [wire[a:b] for a, b in itertools.pairwise(edges)]
    assert [f for piece in pieces for f in codec.feed(piece)][-2:] == [frame, frame]
    assert [f for piece in pieces for f in reader.feed(piece)][-2:] == [frame, frame]


@pytest.mark.parametrize("payload", [b"", bytes(20), bytes(range(100)), b"\xff" * PAYLOAD_BYTES])
def test_no_single_bit_flip_passes(codec, payload):
    frame = Frame(3, 7, payload)
    wire = encode(frame)
    reader = FrameReader()
    for bit in range(8 * len(wire)):
        damaged = bytearray(wire)
        damaged[bit // 8] ^= 1 << bit % 8
        for got in (codec.feed(bytes(damaged) + b"\0"), reader.feed(bytes(damaged) + b"\0")):
            assert got in ([], [frame])  # a flip in a delimiter may leave the frame whole


@pytest.mark.parametrize("length", [0, 1, 2, 3, MTU - 5, MTU - 4, MTU - 3, MTU - 2])
def test_length_of_a_frame_has_limits(length, codec):
    """Bytes before a CRC that is right: type and seq at least, MTU with the CRC at most. Nothing is
    read beyond them.
    """
    body = bytes(range(1, 1 + length)) if length < 250 else b"\5" * length
    encoded = cobs.encode(body + struct.pack("<I", zlib.crc32(body)))
    good = 2 <= length <= MTU - 4
    expected = Frame(body[0], body[1], body[2:]) if good else None
    assert decode(encoded) == expected
    assert FrameReader().feed(encoded + b"\0") == [expected] * good
    assert codec.events(encoded + b"\0") == [GOOD if good else DAMAGED]


@pytest.mark.parametrize("length", range(6))
def test_frames_that_are_too_short_are_damaged(length, codec):
    """All the bytes of a frame there are, 0 to 5 with the CRC among them: none is taken, each
    counts as damaged.
    """
    for content in (
        bytes(length),
        b"\xff" * length,
        struct.pack("<I", zlib.crc32(b"")) + b"\1\2"[:length],
    ):
        encoded = cobs.encode(content[:length])
        reader = FrameReader()
        assert decode(encoded) is None
        assert reader.feed(b"\0" + encoded + b"\0") == [] and reader.damaged == 1
        assert codec.events(encoded + b"\0") == [DAMAGED]


def test_too_long_frames_are_refused(codec):
    with pytest.raises(ValueError, match="a frame carries 248"):
        encode(Frame(1, 1, bytes(PAYLOAD_BYTES + 1)))
    body = bytes(400)
    wire = b"\0" + cobs.encode(body + struct.pack("<I", zlib.crc32(body))) + b"\0"
    assert codec.feed(wire) == FrameReader().feed(wire) == []
    assert codec.feed(encode(Frame(1, 2, b"x"))) == [Frame(1, 2, b"x")]
    assert decode(b"") is None
