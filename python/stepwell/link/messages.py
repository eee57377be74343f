"""The message table: the one place for numbers that host and device must agree on.

``firmware/app/messages.h`` is written from here (``python -m stepwell.link.messages FILE``) and a
test compares the two. All integers are little endian. A frame before COBS is ``type u8 | seq u8 |
payload | CRC-32``; a reply carries the request's seq and type | REPLY. Messages that need the model
begin with ``session u32``.

A host counts its requests: seq, and at seq 0 behind 255 the session, too. RESET sets the count to
its own nonce and seq. The board does a request of a session only when it is the next one, so no
frame that comes late is ever done.
"""

from __future__ import annotations

import struct
import sys
from enum import IntEnum
from pathlib import Path

PROTOCOL = 3
MTU = 254  # frame bytes before COBS: fits one COBS block
HEADER_BYTES = 2  # type, seq
CRC_BYTES = 4
PAYLOAD_BYTES = MTU - HEADER_BYTES - CRC_BYTES
REPLY = 0x80


class Message(IntEnum):
    """Request -> reply (S = session u32; a request that is not the next one is refused with
    SESSION, OLD or GAP).
    """

    INFO = 1  # -> INFO_REPLY, board name
    RESET = 2  # session u32: not 0, above the last one modulo 2^32. h = c = 0 -> nothing
    # S, n u8, x int16 [n][n_in] -> n u8, cost u32 (ticks inside stw_step), y int32 [n][n_out]
    STEP = 3
    # S, offset u16 -> bytes of the snapshot from there on; offset 0 takes a new snapshot
    GET_STATE = 4
    SET_STATE = 5  # S, offset u16, bytes -> nothing; the last byte loads the snapshot
    PROBE_INPUT = 6  # S, offset u16, x int16 [...]: a layer's input for PROBE, by pieces -> nothing
    PROBE = 7  # S, layer u8, first u16, n u8 -> UNIT [n]
    BENCH = 8  # S -> cost u32 (ticks), stack u32 (bytes) of one stw_step; the state stays as it was
    MEM = 9  # -> MEM_REPLY
    # bytes -> the same bytes; a letter, as it tests lines where control characters are lost
    ECHO = 0x45
    STAT = 11  # -> STAT_REPLY
    BLOB_STATUS = 12  # -> BLOB_STATUS_REPLY
    # MANIFEST: a new model comes -> received u32; not 0 when this very update is under way
    BLOB_BEGIN = 13
    # offset u32 (a multiple of UPDATE_UNIT), bytes of blob and signature -> nothing
    BLOB_WRITE = 14
    BLOB_COMMIT = 15  # -> nothing: the new model runs, in no session yet


LOG = 0xFE  # device -> host, unasked: text
# device -> host instead of a reply: ERROR_REPLY; for a request out of turn its CRC-32, too
ERROR = 0xFF


class Error(IntEnum):
    """Cause of an ERROR reply."""

    TYPE = 1  # no such message
    LENGTH = 2  # payload shorter or longer than the message needs
    SESSION = 3  # the board has restarted, or another host has reset it
    RANGE = 4  # index, offset or count outside the model or the frame
    ORDER = 5  # PROBE without PROBE_INPUT before it
    STATE = 6  # stw_load refused the snapshot; status says why
    MODEL = 7  # stw_init refused the model; status says why
    NO_UPDATE = 8  # the board takes no update
    SIZE = 9  # blob and signature are larger than a slot
    VERSION = 10  # not above the running model's
    SIGNATURE = 11  # board_verify_signature refused it
    BLOB = 12  # stw_blob_open refused it; status says why
    PACKING = 13  # packed for another core
    ROOM = 14  # more RAM, inputs or outputs than the image has
    FLASH = 15  # erased or written bytes do not read as they should
    OLD = 16  # the request's turn is over: it came before, or a RESET of an older session
    GAP = 17  # a request before this one has not come


# protocol, mtu, n_in, n_out, y_frac, model status, tick_hz, cpu_hz, engine version, model id, ram
# bytes, snapshot bytes, bytes of the largest update (0: takes none), version of the running model
# (0: the image's own)
INFO_REPLY = struct.Struct("<BBHHBbIIIIIIII")
STEP_REQUEST = struct.Struct("<IB")
STEP_REPLY = struct.Struct("<BI")
SESSION = struct.Struct("<I")
CHUNK = struct.Struct("<IH")
PROBE_REQUEST = struct.Struct("<IBHB")
UNIT = struct.Struct("<4h4hih")  # z, gates, c, h
BENCH_REPLY = struct.Struct("<II")
MEM_REPLY = struct.Struct("<IIII")  # deepest stack use, stack size, .data + .bss, stream RAM
STAT_REPLY = struct.Struct("<IIII")  # good frames, damaged frames, steps, repeated requests
ERROR_REPLY = struct.Struct("<BbB")  # code, stw_status, type of the request
MANIFEST = struct.Struct("<IIII16x")  # blob bytes, model id, version, signature bytes
OFFSET = struct.Struct("<I")
# room and version as in INFO, RAM bytes for a model, received, slot, packing
BLOB_STATUS_REPLY = struct.Struct("<IIIIBB")
UPDATE_UNIT = 32  # flash is written in multiples of this, each once
NO_SLOT = 255  # the image's own model runs

# what one frame carries of one step
MOST_IN = (PAYLOAD_BYTES - STEP_REQUEST.size) // 2
MOST_OUT = (PAYLOAD_BYTES - STEP_REPLY.size) // 4
MOST_SNAPSHOT = 0xFFFF  # bytes: CHUNK's offset has 16 bits


def c_header() -> str:
    """The same numbers for the device."""
    constants = {
        "PROTOCOL": PROTOCOL,
        "MTU": MTU,
        "HEADER_BYTES": HEADER_BYTES,
        "CRC_BYTES": CRC_BYTES,
        "REPLY": REPLY,
    }
    messages = {f"TYPE_{m.name}": m.value for m in Message} | {"TYPE_LOG": LOG, "TYPE_ERROR": ERROR}
    errors = {f"ERROR_{e.name}": e.value for e in Error}
    sizes = {
        "INFO_BYTES": INFO_REPLY.size,
        "UNIT_BYTES": UNIT.size,
        "MANIFEST_BYTES": MANIFEST.size,
    }
    sizes |= {
        "UPDATE_UNIT": UPDATE_UNIT,
        "NO_SLOT": NO_SLOT,
        "MOST_IN": MOST_IN,
        "MOST_OUT": MOST_OUT,
    }
    lines = [
        f"#define LINK_{name} {value}u"
        for name, value in (constants | messages | errors | sizes).items()
    ]
    top = "/* messages.h - written by python -m stepwell.link.messages; the table is python/stepwell/link/messages.py. */"
    guard = ["#ifndef LINK_MESSAGES_H", "#define LINK_MESSAGES_H", ""]
    return "\n".join([top, *guard, *lines, "", "#endif /* LINK_MESSAGES_H */", ""])


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(c_header())
