"""What a line does to bytes: told by what arrives, and found by ECHO, byte value by byte value.

Serial drivers, gateways and terminals translate line ends, swallow XON and XOFF, or cut bytes to 7
bits. A frame that holds such a byte never arrives, however often it is sent.
"""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from stepwell.link import messages
from stepwell.link.frame import Frame, decode, encode
from stepwell.link.messages import CRC_BYTES, HEADER_BYTES, MTU, Message

LETTERS = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PLAIN = bytes(range(0x21, 0x7F))  # what every line carries
HARMLESS = PLAIN + bytes(range(0xA1, 0xFF))  # and the upper half, without its controls
LINE_ENDS, FLOW = b"\n\r", b"\x11\x13"
XON = b"\x11\0"  # sets a line going again that 0x13 has stopped
UPPER = set(range(0x80, 0x100))
GROUPS = (bytes(range(0x01, 0x20)), bytes(range(0x20, 0x80)), bytes(range(0x80, 0x100)))
SECONDS = 8.0  # that the search may take
ATTEMPTS = 3  # until a byte counts as lost
SHORT = 64  # bytes of the body of a frame that tests few values
TEXT_LEAST = 12  # bytes

RAW_MODE = "set everything on the line to raw mode: 8 bits, no flow control, no translation"


def info_seqs() -> list[int]:
    """Those seq with which the request INFO holds no byte that a line is known to change."""
    suspects = LINE_ENDS + FLOW + bytes(range(0x80, 0x100))
    wires = (encode(Frame(Message.INFO, seq, b"")) for seq in range(256))
    return [seq for seq, wire in enumerate(wires) if not set(wire) & set(suspects)]


def echo_frame(values: bytes, attempt: int) -> Frame:
    """An ECHO of ``values`` (not 0, at most 200). The bytes around them are LETTERS, and PLAIN ones
    of the CRC.

    Those around its answer are HARMLESS. Another frame for each ``attempt``. COBS's code is PLAIN
    in a short frame.
    """
    rng = random.Random(attempt * 1000 + len(values))
    least = max(SHORT, HEADER_BYTES + len(values) + 4 + CRC_BYTES)
    length = next(n for n in range(least, MTU + 1) if n + 1 in HARMLESS)
    room = length - HEADER_BYTES - len(values) - CRC_BYTES
    while True:
        seq = rng.choice(LETTERS)
        head = values + bytes(rng.choices(LETTERS, k=room - 4))
        asked = zlib.crc32(bytes([Message.ECHO, seq]) + head)
        answered = zlib.crc32(bytes([Message.ECHO | messages.REPLY, seq]) + head)
        for _ in range(200):
            tail = bytes(rng.choices(LETTERS, k=4))
            if _is_made_of(PLAIN, zlib.crc32(tail, asked)) and _is_made_of(
                HARMLESS, zlib.crc32(tail, answered)
            ):
                return Frame(Message.ECHO, seq, head + tail)


def _is_made_of(allowed: bytes, crc: int) -> bool:
    return all(byte in allowed for byte in crc.to_bytes(CRC_BYTES, "little"))


def readable(heard: bytes) -> str | None:
    """The start of ``heard``, escaped and in quotes, when it is text and no noise; else None."""
    if len(heard) < TEXT_LEAST:
        return None
    text = sum(0x20 <= byte < 0x7F or byte in b"\t\r\n" for byte in heard)
    return repr(heard[:80].decode("ascii", "replace")) if text >= 0.9 * len(heard) else None


def what_is_missing(heard: bytes) -> str | None:
    """What bytes that hold no frame lack to be some; None for noise."""
    if len(heard) >= TEXT_LEAST and max(heard) < 0x80:
        return f", but only bytes below 0x80: the line carries 7 bits, so {RAW_MODE}"
    pieces = (
        heard[start:end]
        for start in range(min(len(heard), MTU))
        for end in range(start, start + MTU + 2)
    )
    if 0 not in heard and any(decode(piece) for piece in pieces):
        return f", but frames without 0x00, which ends one: something on the line drops it, so {RAW_MODE}"
    return None


@dataclass(frozen=True)
class Echo:
    """What came of an ECHO. ``heard``: something arrived, which was not the answer."""

    good: bool
    heard: bool
    seconds: float


@dataclass
class Search:
    """The byte values that do not pass. ``ask(frame, seconds)`` sends a request and waits for its
    answer.

    ``alive``: ECHO is answered at all. ``lost``: a value that does not pass -> did something else
    come back? ``some``: of these, too. ``cut``: payload bytes of the shortest frame that was lost
    though each half of its values passes, 0 for none.
    """

    ask: Callable[[Frame, float], Echo]
    first_wait: float
    alive: bool = False
    lost: dict[int, bool] = field(default_factory=dict)
    some: list[int] = field(default_factory=list)
    cut: int = 0
    _wait: float = 0.0
    _attempts: int = 0

    def run(self) -> Search:
        deadline = time.monotonic() + SECONDS
        self._wait = self.first_wait
        found = next((echo for echo in self._tries(b"") if echo.good), None)
        self.alive = found is not None
        if found is None:
            return self
        self._wait = max(self.first_wait / 4, 4 * found.seconds)
        suspects = LINE_ENDS + FLOW
        groups = [bytes([value]) for value in suspects]
        groups += [bytes(value for value in group if value not in suspects) for group in GROUPS]
        failed = self._failed(groups)
        while failed and time.monotonic() < deadline:
            group, _ = failed.pop()
            half = len(group) // 2
            parts = self._failed([group[:half], group[half:]])
            failed += parts
            if not parts and not any(value in self.lost for value in group):
                self.cut = min(self.cut or MTU, len(echo_frame(group, 0).payload))
        rest = {
            value: heard for group, heard in failed for value in group
        }  # no time left to tell which
        if self.lost.keys() | rest.keys() >= UPPER:
            self.lost |= {value: heard for value, heard in rest.items() if value in UPPER}
        self.some = sorted(rest.keys() - self.lost.keys())
        return self

    def _failed(self, groups: list[bytes]) -> list[tuple[bytes, bool]]:
        """Those groups of several values that fail, and whether something came back. A single value
        goes to ``lost``.
        """
        failed = []
        for group in groups:
            heard = False
            for echo in self._tries(group):
                heard = heard or echo.heard
                if echo.good:
                    break
                if len(group) > 1:
                    failed.append((group, heard))
                    break
            else:
                self.lost[group[0]] = heard
        return failed

    def _tries(self, values: bytes) -> Iterable[Echo]:
        for _ in range(ATTEMPTS):
            self._attempts += 1
            frame = echo_frame(values, self._attempts)
            yield self.ask(frame, self._wait * max(1.0, len(frame.payload) / SHORT))

    def __str__(self) -> str:
        """The bytes that do not pass, which way, why, and what to do."""
        ways = {
            way: [v for v in sorted(self.lost) if self.lost[v] == back]
            for back, way in enumerate(("to", "from"))
        }
        clauses = [
            f"{named(values)} not pass {way} the board" for way, values in ways.items() if values
        ]
        clauses += [f"some of {ranges(self.some)} do not pass"] if self.some else []
        return f"{' and '.join(clauses)} (found by ECHO): {_why(set(self.lost))}{RAW_MODE}"


def named(values: list[int]) -> str:
    """Values in order, as "byte 0x0d does" or "bytes 0x0d, 0x80 to 0xff do"."""
    return f"byte {ranges(values)} does" if len(values) == 1 else f"bytes {ranges(values)} do"


def ranges(values: list[int]) -> str:
    """Values in order, as "0x0d, 0x11, 0x80 to 0xff"."""
    found: list[list[int]] = []
    for value in values:
        if found and value == found[-1][-1] + 1:
            found[-1].append(value)
        else:
            found.append([value])
    words = []
    for run in found:
        words += (
            [f"0x{run[0]:02x} to 0x{run[-1]:02x}"]
            if len(run) > 2
            else [f"0x{value:02x}" for value in run]
        )
    return ", ".join(words)


def _why(lost: set[int]) -> str:
    causes = []
    if lost & set(LINE_ENDS):
        causes.append("a terminal driver or a gateway translates line ends")
    if lost & set(FLOW):
        causes.append("software flow control (XON/XOFF) takes bytes away")
    if lost == UPPER:
        causes.append("the line carries 7 bits")
    return f"{' and '.join(causes)}, so " if causes else ""
