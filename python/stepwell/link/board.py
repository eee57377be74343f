"""Link: a board that runs a model, behind any byte line. Requests are repeated until answered; a
step happens once.
"""

from __future__ import annotations

import secrets
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TextIO

import numpy as np

from stepwell.codes import check_codes
from stepwell.errors import LinkError, SampleError
from stepwell.integer.packing import PACKINGS
from stepwell.link import messages
from stepwell.link.emulator import Emulator
from stepwell.link.frame import Frame, FrameReader, check_bytes, encode
from stepwell.link.info import Info, read_info, status_words
from stepwell.link.line import XON, Echo, Search, info_seqs, readable, what_is_missing
from stepwell.link.messages import PAYLOAD_BYTES, Error, Message
from stepwell.link.update import Sign, Update, Updated, make_update
from stepwell.model import Model
from stepwell.text import printable

WAIT_FIRST = 0.3  # seconds for an answer when nothing is known about the line yet
WAIT_MOST = 2.0
WAIT_LEAST = 0.1
POLL = 0.02  # seconds that one read may block
FRAME_SECONDS = 1  # that the steps of one frame may take
NOISE_PAUSE = 0.003  # before asking again after a damaged frame
ECHO_WAIT = 0.5  # seconds for the answer to the first ECHO, when a line is searched
QUIET_SECONDS = 0.3  # before it
SETTLE_SECONDS = 3.0  # that this may take
HEARD = 4096  # bytes that are kept of what comes instead of answers
SESSIONS = 2**32

CAUSES = {
    Error.TYPE: "the board does not know this message: its firmware is older than this stepwell; build and flash it again",
    Error.LENGTH: "the board refused the length of the message: firmware and stepwell do not fit; build and flash again",
    Error.SESSION: "the board has restarted since the last reset, or another host has reset it: its state is lost",
    Error.OLD: "the board has done a later request already: does another program use the line? Reset, and begin again",
    Error.GAP: "a request before this one has not reached the board, so steps are missing: reset, and begin again",
    Error.RANGE: "index, offset or count outside the model or the frame",
    Error.ORDER: "messages in the wrong order",
    Error.STATE: "the board refused the snapshot",
    Error.MODEL: "the board cannot run its model",
    Error.NO_UPDATE: "the image on this board takes no update: flash one from `stepwell build --updates`",
    Error.SIZE: "the update is larger than the board's slot",
    Error.VERSION: "the board runs this version or a newer one: give a higher --version",
    Error.SIGNATURE: "the board refused the signature",
    Error.BLOB: "the board refused the model",
    Error.PACKING: "the model is packed for another core",
    Error.ROOM: "the model needs more RAM, inputs or outputs than the board's image has room for",
    Error.FLASH: "the board's flash does not hold what was written: worn out, locked, or too low a supply voltage?",
}


class Port(Protocol):
    """What a line must do; pyserial's ports do."""

    timeout: float | None

    @property
    def in_waiting(self) -> int: ...
    def read(self, size: int = 1) -> bytes: ...
    def write(self, data: bytes) -> int | None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class UpdateStatus:
    """``room``: bytes of the largest update, 0 when the board takes none; ``version``: of the
    running model, 0 the image's own; ``ram_bytes``: room for a model; ``received``: of an update
    that has begun; ``slot``: None for the image's own model.
    """

    room: int
    version: int
    ram_bytes: int
    received: int
    slot: int | None
    packing: str


@dataclass(frozen=True)
class Unit:
    """One recurrent unit's next step, as stw_unit: z (Q4.11), gates (Q0.15), c (Q9.22), h (Q0.15)."""

    z: tuple[int, ...]
    gates: tuple[int, ...]
    c: int
    h: int


@dataclass(frozen=True)
class Bench:
    """One step: ``cost`` in the link's cost unit (None: not counted), ``stack_bytes`` below the
    caller's frame.
    """

    cost: float | None
    stack_bytes: int | None


@dataclass(frozen=True)
class Memory:
    """Bytes: deepest use of the stack since the start, its size, .data + .bss (with the stream's
    RAM), the stream's RAM.
    """

    stack_used: int
    stack_size: int
    static_bytes: int
    ram_bytes: int


@dataclass(frozen=True)
class Stat:
    """Counters of the board since its start."""

    frames: int
    damaged: int
    steps: int
    repeats: int


class Refused(LinkError):
    """The board's answer is an ERROR of ``code``: it has done nothing."""

    def __init__(self, text: str, code: int):
        super().__init__(text)
        self.code = code


def wrong_model(url: str, runs: int, expected: int) -> LinkError:
    return LinkError(
        f"{url}: board runs model {runs:08x}, test expects {expected:08x}: build and flash the "
        "image of this model, or send it with stepwell update"
    )


class Link:
    """A connection to a board. Every method raises LinkError when the board is silent, refuses, or
    lost its state.

    ``patience``: seconds of asking until the board counts as silent. ``log``: a text file for the
    board's messages. ``emulator`` belongs to the link and ends with it. ``cycles``: the board's
    ticks may be called cycles when they run at CPU speed, which is true of hardware alone.
    """

    def __init__(
        self,
        port: Port,
        url: str,
        *,
        baud: int = 115200,
        patience: float = 6.0,
        log: TextIO | None = None,
        emulator: Emulator | None = None,
        cycles: bool = False,
    ):
        self.url = url
        self.retries = 0  # requests that were sent again
        self.cost_ticks = 0  # of all steps so far
        self.cost_steps = 0
        self._port, self._emulator, self._log, self._cycles = port, emulator, log, cycles
        if (
            port.timeout != POLL
        ):  # setting it configures the port anew, over the network with rfc2217
            port.timeout = POLL
        self._patience = patience
        self._reader = FrameReader()
        # the first request is INFO, and any line carries it
        self._seq = secrets.choice(info_seqs()) - 1
        # the number of the last session and, with seq, of the last request; 0: none was begun
        self._session = 0
        self._in_session = False
        self._last = Frame(0, 0, b"")  # answer in the session
        # the first message that the board answered; LOG when it said something unasked
        self._talked: str | None = None
        self._echoed = False  # a request of our own came back
        self._heard = bytearray()  # since the last good frame
        self._wire_seconds = 2 * messages.MTU * 10 / baud if emulator is None else 0.0
        self._slowest: dict[int, float] = {}  # message -> longest time until its answer
        self._info: Info | None = None

    # ---- life ----

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the line and end the emulator, if there is one."""
        self._port.close()
        if self._emulator:
            self._emulator.close()

    def connect(self, model: Model | None = None) -> Info:
        """Find the board and check that it speaks this protocol and, when given, runs ``model``."""
        info = self.info()
        if model is not None and info.model_id != model.id:
            raise wrong_model(self.url, info.model_id, model.id)
        return info

    # ---- messages ----

    def info(self) -> Info:
        """Ask the board who it is. LinkError when it speaks another protocol or says what cannot
        be.
        """
        self._info = read_info(self._request(Message.INFO), self.url)
        return self._info

    def reset(self) -> None:
        """h = 0, c = 0, and a new session: the board refuses steps of older ones, and of none after
        it restarts.
        """
        first = self._session + 1 if self._session else secrets.randbelow(SESSIONS)
        for third in range(
            3
        ):  # of the circle of numbers: one of them is above that of another host's session
            session = (first + third * (SESSIONS // 3)) % SESSIONS or 1
            try:
                self._request(Message.RESET, messages.SESSION.pack(session))
            except Refused as refused:
                if refused.code != Error.OLD or third == 2:
                    raise
            else:
                self._session, self._in_session = session, True
                return

    def step(
        self, x_q: np.ndarray, progress: Callable[[int], object] = lambda steps: None
    ) -> np.ndarray:
        """Timesteps on codes: int16 [n, n_in] -> int32 [n, n_out], as many at a time as a frame
        carries.

        ``progress`` is called with the number of steps done. Call ``reset`` first.
        """
        info = self._known()
        x_q = self._codes(x_q, info.n_in)
        y_q = np.empty((len(x_q), info.n_out), np.int32)
        done = 0
        while done < len(x_q):
            part = x_q[done : done + self._steps_in_time(info)]
            y_q[done : done + len(part)] = self._step_batch(part, info)
            done += len(part)
            progress(done)
        return y_q

    def _steps_in_time(self, info: Info) -> int:
        """Of the next frame: one as long as nothing is known of their cost, and so few that the
        board answers in time.
        """
        if not self.cost_steps:
            return 1
        in_time = FRAME_SECONDS * info.tick_hz * self.cost_steps // max(1, self.cost_ticks)
        return max(1, min(self.steps_in_a_frame(), in_time))

    def steps_in_a_frame(self) -> int:
        info = self._known()
        asked = (PAYLOAD_BYTES - messages.STEP_REQUEST.size) // (2 * info.n_in)
        return min(asked, (PAYLOAD_BYTES - messages.STEP_REPLY.size) // (4 * info.n_out))

    def _step_batch(self, x_q: np.ndarray, info: Info) -> np.ndarray:
        codes = x_q.astype("<i2").tobytes()
        expected = len(x_q) * self.cost_ticks / max(1, self.cost_steps) / info.tick_hz
        payload = self._ask(
            Message.STEP, messages.STEP_REQUEST, len(x_q), data=codes, expected=expected
        )
        self._expect(payload, messages.STEP_REPLY.size + 4 * len(x_q) * info.n_out, Message.STEP)
        n, cost = messages.STEP_REPLY.unpack_from(payload)
        if n != len(x_q):
            raise LinkError(f"{self.url}: STEP of {len(x_q)} timesteps answered with {n}")
        self.cost_ticks += cost
        self.cost_steps += len(x_q)
        return np.frombuffer(payload, "<i4", offset=messages.STEP_REPLY.size).reshape(
            len(x_q), info.n_out
        )

    def get_state(self) -> bytes:
        """The snapshot that stw_save makes; ``engine.Stream.load`` takes it."""
        snapshot, total = b"", self._known().snapshot_bytes
        while len(snapshot) < total:
            piece = self._ask(Message.GET_STATE, messages.CHUNK, len(snapshot))
            self._expect(piece, min(PAYLOAD_BYTES, total - len(snapshot)), Message.GET_STATE)
            snapshot += piece
        return snapshot

    def set_state(self, snapshot: bytes) -> None:
        """Load a snapshot. LinkError when it is damaged or of another model; then the state is
        unchanged.
        """
        total = self._known().snapshot_bytes
        if len(snapshot) != total:  # the board takes it when its last byte comes
            raise LinkError(
                f"{self.url}: a snapshot of the board's model has {total} bytes, this one "
                f"{len(snapshot)}"
            )
        self._send_pieces(Message.SET_STATE, bytes(snapshot), 1)

    def probe(
        self, layer: int, x_q: np.ndarray, first: int = 0, n: int | None = None
    ) -> list[Unit]:
        """What units ``first`` .. of a recurrent layer would do next for the layer's input ``x_q``
        (int16); the state stays.
        """
        codes = self._codes([x_q], np.size(x_q))
        self._send_pieces(Message.PROBE_INPUT, codes.astype("<i2").tobytes(), 2)
        units: list[Unit] = []
        most = PAYLOAD_BYTES // messages.UNIT.size
        wanted = 1 if n is None else n
        while len(units) < wanted:
            count = min(most, wanted - len(units))
            payload = self._ask(
                Message.PROBE, messages.PROBE_REQUEST, layer, first + len(units), count
            )
            self._expect(payload, count * messages.UNIT.size, Message.PROBE)
            units += [Unit(v[:4], v[4:8], v[8], v[9]) for v in messages.UNIT.iter_unpack(payload)]
        return units

    def bench(self) -> Bench:
        """Cost and stack of one step, measured by the board; the state stays as it was."""
        payload = self._ask(Message.BENCH, messages.SESSION)
        self._expect(payload, messages.BENCH_REPLY.size, Message.BENCH)
        ticks, stack = messages.BENCH_REPLY.unpack(payload)
        return Bench(self._cost(ticks), stack)

    def mem(self) -> Memory:
        """Stack high-water mark and RAM."""
        payload = self._request(Message.MEM)
        self._expect(payload, messages.MEM_REPLY.size, Message.MEM)
        return Memory(*messages.MEM_REPLY.unpack(payload))

    def echo(self, data: bytes) -> bytes:
        """The board sends ``data`` (at most PAYLOAD_BYTES) back."""
        return self._request(Message.ECHO, bytes(data))

    def stat(self) -> Stat:
        """Counters of the board since its start."""
        payload = self._request(Message.STAT)
        self._expect(payload, messages.STAT_REPLY.size, Message.STAT)
        return Stat(*messages.STAT_REPLY.unpack(payload))

    # ---- field updates ----

    def update_status(self) -> UpdateStatus:
        """What the board says about updates."""
        payload = self._request(Message.BLOB_STATUS)
        self._expect(payload, messages.BLOB_STATUS_REPLY.size, Message.BLOB_STATUS)
        room, version, ram, received, slot, packing = messages.BLOB_STATUS_REPLY.unpack(payload)
        if packing >= len(PACKINGS):
            raise LinkError(
                f"{self.url}: the board wants packing {packing}, which this stepwell does not know"
            )
        return UpdateStatus(
            room,
            version,
            ram,
            received,
            None if slot == messages.NO_SLOT else slot,
            PACKINGS[packing],
        )

    def update(
        self,
        model: Model,
        version: int | None = None,
        sign: Sign | None = None,
        progress: Callable[[int, int], object] = lambda done, total: None,
    ) -> Updated:
        """Make the board run ``model``; its state starts anew, so call ``reset`` before the next
        ``step``.

        ``version``: higher than that of the running model (default: by one). ``sign``: see
        stepwell.link.update.make_update. ``progress(done, total)`` counts bytes. Until the last
        message is answered the old model runs, also after a power cut; an update that was
        interrupted goes on where it was when the same one is sent again and the board was not
        reset. Raises LinkError when the board takes no update or refuses this one.
        """
        started, retries = time.monotonic(), self.retries
        info, status = self.info(), self.update_status()
        if not info.update_bytes:
            raise LinkError(f"{self.url}: {info.board}: {CAUSES[Error.NO_UPDATE]}")
        known = info.model_id == model.id and version in (None, info.version)
        wanted = info.version + (not known) if version is None else version
        sent = resumed_at = 0
        if not known:
            if wanted <= info.version:  # the board would refuse it without its own number
                higher = f"give --version {info.version + 1} or more"
                raise LinkError(f"{self.url}: the board runs version {info.version}: {higher}")
            update = make_update(model, wanted, status.packing, sign)
            sent = len(update.body)
            if sent > info.update_bytes:
                raise LinkError(
                    f"{self.url}: the update has {sent} bytes, a slot of {info.board} "
                    f"{info.update_bytes}"
                )
            resumed_at = self._send_update(update, progress)
            self._commit(model, wanted)
        seconds = round(time.monotonic() - started, 3)
        identity = f"{model.id:08x}"
        retries = self.retries - retries
        return Updated(
            info.board, self.url, model.name, identity, wanted, sent, resumed_at, retries, seconds
        )

    def _commit(self, model: Model, version: int) -> None:
        """A board that restarts after its last write and before its answer runs the new model all
        the same.
        """
        try:
            self._request(Message.BLOB_COMMIT)
        except LinkError:
            info = self.info()
            if (info.model_id, info.version) != (model.id, version):
                raise
        self._in_session = False
        self.connect(model)

    def _send_update(self, update: Update, progress: Callable[[int, int], object]) -> int:
        """All of it but the commit; the byte at which it went on."""
        payload = self._request(Message.BLOB_BEGIN, update.manifest)
        self._expect(payload, messages.OFFSET.size, Message.BLOB_BEGIN)
        (received,) = messages.OFFSET.unpack(payload)
        if received > len(update.body):
            raise LinkError(
                f"{self.url}: the board has {received} bytes of an update of {len(update.body)}"
            )
        first = received // messages.UPDATE_UNIT * messages.UPDATE_UNIT
        most = (PAYLOAD_BYTES - messages.OFFSET.size) // messages.UPDATE_UNIT * messages.UPDATE_UNIT
        for start in range(first, len(update.body), most):
            piece = update.body[start : start + most]
            self._request(Message.BLOB_WRITE, messages.OFFSET.pack(start) + piece)
            progress(start + len(piece), len(update.body))
        return first

    @property
    def damaged(self) -> int:
        """Frames that arrived here damaged."""
        return self._reader.damaged

    # ---- cost ----

    @property
    def cost_unit(self) -> str | None:
        """ "instructions" (emulator, exact), "cycles" (simavr, rp2040js, hardware), "ticks" of the
        board's timer otherwise.
        """
        if self._emulator:
            return self._emulator.unit
        info = self._known()
        return "cycles" if self._cycles and info.tick_hz == info.cpu_hz else "ticks"

    @property
    def cost_per_step(self) -> float | None:
        """Mean over all steps so far, in ``cost_unit``."""
        if not self.cost_steps:
            return None
        ticks = self.cost_ticks / (self._emulator.ticks_per_unit if self._emulator else 1)
        return round(ticks / self.cost_steps, 1)

    def _cost(self, ticks: int) -> float:
        return round(ticks / self._emulator.ticks_per_unit) if self._emulator else ticks

    # ---- requests ----

    def _known(self) -> Info:
        return self._info or self.info()

    def _codes(self, x_q: np.ndarray, n_in: int) -> np.ndarray:
        """int16 [n, n_in]; LinkError for any other shape and anything but integers of 16 bits."""
        try:
            codes = check_codes(x_q, n_in)
        except SampleError as error:
            raise LinkError(f"{self.url}: {error}") from error
        if codes.ndim != 2:
            raise LinkError(
                f"{self.url}: input codes have shape {list(codes.shape)}, the board takes [n, "
                f"{n_in}]"
            )
        return codes

    def _send_pieces(self, message: Message, data: bytes, unit_bytes: int) -> None:
        """``data`` in messages that begin with session and offset, counted in units of
        ``unit_bytes``.
        """
        most = (PAYLOAD_BYTES - messages.CHUNK.size) // unit_bytes * unit_bytes
        for start in range(0, len(data), most):
            self._ask(message, messages.CHUNK, start // unit_bytes, data=data[start : start + most])

    def _expect(self, payload: bytes, n_bytes: int, message: Message) -> None:
        if len(payload) != n_bytes:
            raise LinkError(
                f"{self.url}: {message.name} answered with {len(payload)} bytes, expected {n_bytes}"
            )

    def _ask(
        self,
        message: Message,
        head: struct.Struct,
        *fields: int,
        data: bytes = b"",
        expected: float = 0.0,
    ) -> bytes:
        """A request of the session: ``head`` packs its number and ``fields``. ``expected``: as
        below.
        """
        if not self._in_session:
            raise LinkError(
                f"{self.url}: {message.name} needs a session: call reset first (an update, or a "
                "request that got no answer, ends one)"
            )
        self._count()
        payload = self._exchange(message, head.pack(self._session, *fields) + data, expected)
        self._last = Frame(message | messages.REPLY, self._seq, payload)
        return payload

    def _request(self, message: Message, payload: bytes = b"") -> bytes:
        """A request of no session; the answer's payload."""
        self._count()
        return self._exchange(message, payload)

    def _count(self) -> None:
        """The number of the next request, as the board counts."""
        self._seq = (self._seq + 1) % 256
        if self._seq == 0 and self._session:
            self._session = (self._session + 1) % SESSIONS

    def _exchange(self, message: Message, payload: bytes, expected: float = 0.0) -> bytes:
        """The answer's payload. Without an answer the session ends, as nobody knows what the board
        has done.

        ``expected``: seconds that the board is at work; it is not disturbed earlier.
        """
        in_session, self._in_session = self._in_session, False
        try:
            reply = self._repeat(message, Frame(message, self._seq, payload), expected)
        except Refused:
            self._in_session = in_session
            raise
        self._in_session = in_session
        return reply

    def _repeat(self, message: Message, request: Frame, expected: float) -> bytes:
        """Send ``request`` until it is answered."""
        wire = encode(request)
        wait = self._first_wait(message) + expected
        damaged_before = self._reader.damaged
        first = started = time.monotonic()
        while True:
            self._write(wire)
            reply = self._await(message, request, min(started + wait, first + self._patience))
            now = time.monotonic()
            if reply is not None:
                self._slowest[message] = max(self._slowest.get(message, 0.0), now - started)
                return reply
            if now >= first + self._patience:
                raise LinkError(self._silence(message, self._reader.damaged - damaged_before))
            if now >= started + wait:
                wait = min(2 * wait, WAIT_MOST)
            else:
                time.sleep(NOISE_PAUSE)
            started = time.monotonic()
            self.retries += 1

    def _first_wait(self, message: Message) -> float:
        known = self._slowest.get(message)
        wait = WAIT_FIRST if known is None else 4 * known
        return min(max(wait, WAIT_LEAST) + self._wire_seconds, WAIT_MOST)

    def _silence(self, message: Message, n_damaged: int) -> str:
        """Why there is no answer, as far as the line tells."""
        name = f"{self.url}: no answer to {message.name} within {self._patience:g} s"
        if self._emulator and not self._emulator.alive():
            return f"{name}: the emulator has ended: {self._emulator.last_words()}"
        if text := readable(self._heard):
            return (
                f"{name}, but readable text: {text}: another firmware runs on the board, or "
                "another program prints on this line. Flash the image that `stepwell build` wrote"
            )
        if self._echoed and not self._talked:
            return f"{name}, but the request itself came back: are RX and TX joined, or is this a line with a local echo alone?"
        if not (self._talked or self._heard or n_damaged):
            return (
                f"{name}: is the board powered, flashed with a stepwell image, and on this port? "
                "A line that does not carry 0x00 is silent, too"
            )
        heard = bytes(self._heard)
        self._settle()
        return self._searched(
            Search(self._ask_echo, ECHO_WAIT).run(), message, name, heard, n_damaged
        )

    def _searched(
        self, search: Search, message: Message, name: str, heard: bytes, n_damaged: int
    ) -> str:
        """The same when ``search`` has tried the line. ``name``: the beginning; ``heard``: before
        the search.
        """
        some = (
            f"{n_damaged} damaged frames" if n_damaged else f"{len(heard)} bytes that are no frame"
        )
        damaged = f", but {some}: wrong baud rate, noise, or another program on the line?"
        if not search.alive and self._talked:
            end = damaged if n_damaged else ": has it crashed, lost power, or been unplugged?"
            spoke = "said LOG" if self._talked == "LOG" else f"answered {self._talked}"
            return f"{name}, nor to ECHO, though the board {spoke} before{end}"
        if not search.alive:
            return f"{name}{what_is_missing(heard) or damaged}"
        other = self._talked if self._talked not in (None, "LOG", message.name) else "ECHO"
        found = f"{self.url}: the board answers {other} but not {message.name}"
        if search.lost or search.some:
            return f"{found}: {search}"
        if search.cut:
            return f"{found}: frames of {search.cut} bytes and more are lost (found by ECHO): does a buffer on the line overrun?"
        if n_damaged:
            return f"{name}{damaged}"
        return f"{found}, though ECHO returns every byte value: does the board need more than {self._patience:g} s for it?"

    def _ask_echo(self, frame: Frame, seconds: float) -> Echo:
        """Send ``frame``, an ECHO, once."""
        started, damaged = time.monotonic(), self._reader.damaged
        expected = Frame(frame.type | messages.REPLY, frame.seq, frame.payload)
        self._write(encode(frame))
        while (passed := time.monotonic() - started) < seconds:
            if expected in self._receive():
                return Echo(True, False, passed)
        self._write(XON)
        return Echo(False, self._reader.damaged > damaged, seconds)

    def _settle(self) -> None:
        """Set the line going, and wait until the answers to all repeated requests have come."""
        self._write(XON)
        last = started = time.monotonic()
        while last < started + SETTLE_SECONDS and time.monotonic() < last + QUIET_SECONDS:
            if self._read():
                last = time.monotonic()

    def _await(self, message: Message, request: Frame, deadline: float) -> bytes | None:
        """The payload of the answer to ``request``; None when it does not come or comes damaged."""
        damaged = self._reader.damaged
        while time.monotonic() < deadline:
            for frame in self._receive():
                if frame.seq == self._seq and frame.type == message | messages.REPLY:
                    self._has_talked(message)
                    return frame.payload
                if frame.seq == self._seq and frame.type == messages.ERROR:
                    self._refusal(message, request, frame.payload)
                elif self._contradicts(frame):
                    raise LinkError(
                        f"{self.url}: two different answers to one request: the line brings old "
                        "ones again"
                    )
            if self._reader.damaged > damaged:
                return None  # most likely the answer: ask again at once
        return None

    def _contradicts(self, frame: Frame) -> bool:
        """Another answer to the last request of the session, which was taken: one of the two is 256
        requests old.
        """
        last = self._last
        same = (frame.type, frame.seq, len(frame.payload)) == (
            last.type,
            last.seq,
            len(last.payload),
        )
        return same and frame.payload != last.payload

    def _refusal(self, message: Message, request: Frame, payload: bytes) -> None:
        """Raises Refused when an ERROR is the answer to ``request``, and not to an older one that
        came again.
        """
        if len(payload) < messages.ERROR_REPLY.size:
            raise Refused(f"{self.url}: {message.name} refused without a reason", 0)
        code, status, type_ = messages.ERROR_REPLY.unpack_from(payload)
        crc = payload[messages.ERROR_REPLY.size :]
        if type_ != message or (crc and crc != check_bytes(request)):
            return
        self._has_talked(message)
        cause = CAUSES.get(code, f"error code {code}")
        raise Refused(
            f"{self.url}: {message.name}: {cause}"
            + (f": {status_words(status)}" if status else ""),
            code,
        )

    def _has_talked(self, message: Message) -> None:
        if self._talked in (None, "LOG"):
            self._talked = message.name

    def _receive(self) -> list[Frame]:
        """The good frames that have arrived; those unasked go to the log."""
        received = self._read()
        frames = self._reader.feed(received)
        self._heard = (self._heard + received)[:HEARD]
        for frame in frames:
            if frame.type < messages.REPLY:
                self._echoed = True
            elif frame.type == messages.LOG:
                self._talked = self._talked or "LOG"
                self._note(frame.payload)
            self._heard.clear()
        return frames

    def _read(self) -> bytes:
        try:
            # socket:// reports 0 or 1 byte waiting
            return self._port.read(max(1, self._port.in_waiting))
        except OSError as error:  # serial.SerialException is one
            raise self._broken(error) from error

    def _write(self, wire: bytes) -> None:
        try:
            self._port.write(wire)
        except OSError as error:
            raise self._broken(error) from error

    def _broken(self, error: OSError) -> LinkError:
        if self._emulator:
            self._emulator.wait(1)
            return LinkError(
                f"{self.url}: the emulator has ended: {self._emulator.last_words() or error}"
            )
        return LinkError(f"{self.url}: the line broke: {error}")

    def _note(self, text: bytes) -> None:
        if self._log:
            self._log.write(f"{self.url}: {printable(text.decode('utf-8', 'replace'))}\n")
            self._log.flush()
