"""Frames on a byte line: ``00 · COBS(type | seq | payload | CRC-32) · 00``. The host's half of
firmware/app/frame.c.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from stepwell.link.messages import CRC_BYTES, HEADER_BYTES, MTU, PAYLOAD_BYTES

BLOCK = 254  # bytes of a COBS block; its code 0xFF implies no zero
_CRC = struct.Struct("<I")
_LONGEST = 2 * MTU  # received bytes without a delimiter that are kept; more is noise


@dataclass(frozen=True)
class Frame:
    type: int
    seq: int
    payload: bytes


def cobs_encode(data: bytes) -> bytes:
    """``data`` without zero bytes: each block is a code (1 + its length) and up to 254 bytes."""
    encoded, start = bytearray(), 0
    while True:
        end = data.find(b"\0", start, start + BLOCK)
        stop = end if end >= 0 else min(len(data), start + BLOCK)
        encoded.append(stop - start + 1)
        encoded += data[start:stop]
        if end < 0 and stop == len(data):
            return bytes(encoded)
        start = stop + 1 if end >= 0 else stop


def cobs_decode(encoded: bytes) -> bytes | None:
    """The inverse; None when a block reaches over the end or a zero stands inside."""
    data, position = bytearray(), 0
    while position < len(encoded):
        code = encoded[position]
        block = encoded[position + 1 : position + code]
        if code == 0 or len(block) != code - 1 or 0 in block:
            return None
        data += block
        position += code
        if code <= BLOCK and position < len(encoded):
            data.append(0)
    return bytes(data)


def _body(frame: Frame) -> bytes:
    return bytes([frame.type, frame.seq]) + frame.payload


def check_bytes(frame: Frame) -> bytes:
    """The CRC-32 that ends the frame."""
    return _CRC.pack(zlib.crc32(_body(frame)))


def encode(frame: Frame) -> bytes:
    """The bytes to send. ValueError when the payload is too long for a frame."""
    if len(frame.payload) > PAYLOAD_BYTES:
        raise ValueError(f"payload of {len(frame.payload)} bytes; a frame carries {PAYLOAD_BYTES}")
    return b"\0" + cobs_encode(_body(frame) + check_bytes(frame)) + b"\0"


def decode(encoded: bytes) -> Frame | None:
    """What stands between two delimiters; None when it is damaged."""
    data = cobs_decode(encoded)
    if data is None or not HEADER_BYTES + CRC_BYTES <= len(data) <= MTU:
        return None
    body, crc = data[:-CRC_BYTES], data[-CRC_BYTES:]
    return (
        Frame(body[0], body[1], body[HEADER_BYTES:]) if _CRC.pack(zlib.crc32(body)) == crc else None
    )


class FrameReader:
    """Frames out of a stream of bytes; ``damaged`` counts what was none."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self.damaged = 0

    def feed(self, received: bytes) -> list[Frame]:
        """The good frames that ``received`` completes."""
        *complete, rest = bytes(self._pending + received).split(b"\0")
        self._pending = bytearray(rest[:_LONGEST])  # cut noise stays damaged: a frame is shorter
        frames = [decode(part) for part in complete if part]
        self.damaged += sum(frame is None for frame in frames)
        return [frame for frame in frames if frame is not None]
