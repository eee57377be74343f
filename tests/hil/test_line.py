"""Lines that change bytes or bring frames twice: the device's program on this machine, behind a
relay that does it.
"""

from __future__ import annotations

import random
import socket
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from stepwell.errors import LinkError
from stepwell.link import Link, urls
from stepwell.link.frame import encode
from stepwell.link.line import PLAIN, echo_frame, info_seqs, named
from stepwell.link.messages import Message
from test_service import host_program

Change = Callable[[bytes], bytes]


def as_it_is(data: bytes) -> bytes:
    return data


class Relay:
    """A TCP port for one client after the other. ``board``: a program's stdin and stdout, or a TCP
    port.

    ``up`` changes what a client sends, ``down`` what it gets.
    """

    def __init__(self, board: list | int, up: Change = as_it_is, down: Change = as_it_is):
        self.up, self.down = up, down
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"socket://127.0.0.1:{self._server.getsockname()[1]}"
        self._board = board
        self._process = None
        if not isinstance(board, int):
            self._process = subprocess.Popen(
                board, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
            )
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._serve(client)

    def _serve(self, client: socket.socket) -> None:
        if self._process:
            read, write = (lambda: self._process.stdout.read(4096)), self._process.stdin.write
            self._start(read, client.sendall, self.down)
            self._pump(lambda: client.recv(4096), write, self.up)
            return
        with socket.create_connection(("127.0.0.1", self._board)) as board:
            self._start(lambda: board.recv(4096), client.sendall, self.down)
            self._pump(lambda: client.recv(4096), board.sendall, self.up)
            board.shutdown(socket.SHUT_RDWR)  # a thread still waits for what it says

    def _start(self, *pump) -> None:
        threading.Thread(target=self._pump, args=pump, daemon=True).start()

    @staticmethod
    def _pump(read: Callable[[], bytes], write: Callable[[bytes], object], change: Change) -> None:
        try:
            while data := read():
                write(change(data))
        except (OSError, ValueError):
            pass

    def close(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
        self._server.close()


@pytest.fixture(scope="module")
def program(small_model, tmp_path_factory):
    return host_program(small_model, tmp_path_factory.mktemp("line"))


@pytest.fixture
def link_over(program):
    """A function: a link of little patience over a line that changes bytes."""
    opened = []

    def over(up: Change = as_it_is, down: Change = as_it_is, command=None) -> Link:
        relay = Relay(command or [program], up, down)
        link = Link(urls._open(relay.url, 115200), relay.url, patience=0.6)
        opened.extend((link, relay))
        return link

    yield over
    for thing in opened:
        thing.close()


def run(link: Link, model, lengths: tuple[int, ...] = (400,)) -> int:
    """Sequences of codes with every byte value, as run_hil streams them: outputs and states are
    equal. The steps.
    """
    rng, stream = np.random.default_rng(7), model.stream()
    link.connect(model)
    for n in lengths:
        x_q = rng.integers(-32768, 32768, (n, model.n_in)).astype(np.int16)
        link.reset()
        stream.reset()
        assert (
            np.array_equal(link.step(x_q), stream.run_q(x_q)) and link.get_state() == stream.save()
        )
    return sum(lengths)


def dropping(values: bytes) -> Change:
    return lambda data: bytes(byte for byte in data if byte not in values)


def replacing(old: bytes, new: bytes) -> Change:
    return lambda data: data.replace(old, new)


def seven_bits(data: bytes) -> bytes:
    return bytes(byte & 0x7F for byte in data)


LINES = {
    "CR to LF on the way to the board": (
        (replacing(b"\r", b"\n"), as_it_is),
        "byte 0x0d does not pass to the board",
    ),
    "LF to CR LF on the way to the board": (
        (replacing(b"\n", b"\r\n"), as_it_is),
        "byte 0x0a does not pass to the board",
    ),
    "LF to CR LF on the way back": (
        (as_it_is, replacing(b"\n", b"\r\n")),
        "byte 0x0a does not pass from the board",
    ),
    "CR dropped on the way back": (
        (as_it_is, dropping(b"\r")),
        "byte 0x0d does not pass from the board",
    ),
    "XON and XOFF swallowed": (
        (dropping(b"\x11\x13"),) * 2,
        "bytes 0x11, 0x13 do not pass to the board",
    ),
    "line ends and flow control": (
        (lambda data: dropping(b"\x11\x13")(data.replace(b"\r", b"\n")), as_it_is),
        "bytes 0x0d, 0x11, 0x13 do not pass to the board",
    ),
    "a terminal's control characters": (
        (dropping(b"\x03\x1a\x7f"), as_it_is),
        "bytes 0x03, 0x1a, 0x7f do not pass to",
    ),
    "telnet": (
        (as_it_is, replacing(b"\xff", b"\xff\xff")),
        "byte 0xff does not pass from the board",
    ),
    "both ways": (
        (dropping(b"\x11"), replacing(b"\n", b"\r\n")),
        "byte 0x11 does not pass to the board and byte 0x0a does not pass from the board",
    ),
    "7 bits to the board": ((seven_bits, as_it_is), "bytes 0x80 to 0xff do not pass to the board"),
}


CAUSES = {
    "LF to CR LF on the way back": "a terminal driver or a gateway translates line ends, so",
    "XON and XOFF swallowed": "software flow control (XON/XOFF) takes bytes away, so",
    "7 bits to the board": "the line carries 7 bits, so",
}


@pytest.mark.parametrize("line", LINES)
def test_bytes_that_do_not_pass_are_named(line, link_over, small_model, monkeypatch):
    """Also where the search has no time to the end, as that for the upper 128 values."""
    monkeypatch.setattr("stepwell.link.line.SECONDS", 3.0 if "7 bits" in line else 30.0)
    (up, down), words = LINES[line]
    with pytest.raises(LinkError, match=r"found by ECHO") as failed:
        run(link_over(up, down), small_model)
    text = str(failed.value)
    assert (
        words in text
        and CAUSES.get(line, "") in text
        and "powered" not in text
        and "raw mode" in text
    )
    assert (
        "the board answers INFO but not " in text or "the board answers ECHO but not INFO" in text
    )


@pytest.mark.parametrize(
    ("up", "down", "words"),
    [
        (
            seven_bits,
            seven_bits,
            "no answer to INFO within 0.6 s, but only bytes below 0x80: the line carries 7 bits",
        ),
        (
            as_it_is,
            dropping(b"\0"),
            "no answer to INFO within 0.6 s, but frames without 0x00, which ends one: something on "
            "the line drops it",
        ),
        (
            dropping(b"\0"),
            dropping(b"\0"),
            "but frames without 0x00|A line that does not carry 0x00 is silent",
        ),
    ],
)
def test_lines_that_carry_no_frame(up, down, words, link_over):
    with pytest.raises(LinkError, match=words):
        link_over(up, down).connect()


def test_frames_that_are_too_long_for_a_buffer(link_over, small_model):
    """A gateway that forgets what is behind 100 bytes without a pause."""

    def forget(data: bytes) -> bytes:
        return data if len(data) <= 100 else data[:100] + b"\0"

    with pytest.raises(
        LinkError, match=r"answers INFO but not STEP: frames of \d+ bytes and more are lost"
    ):
        run(link_over(forget), small_model)


def test_text_of_another_firmware_is_shown(link_over):
    speak = r'while :; do printf "temp=23.4 \033[31mhum=40\r\n"; sleep 0.02; done'
    with pytest.raises(LinkError) as failed:
        link_over(command=["sh", "-c", speak]).connect()
    text = str(failed.value)
    assert (
        "no answer to INFO within 0.6 s, but readable text" in text
        and "temp=23.4 \\x1b[31mhum=40\\r\\n" in text
    )
    assert (
        "powered" not in text
        and "\x1b" not in text
        and "another firmware runs on the board" in text
    )


def test_a_line_that_only_echoes(link_over):
    with pytest.raises(LinkError, match="the request itself came back: are RX and TX joined"):
        link_over(command=["cat"]).connect()


def test_a_board_that_dies_in_between(link_over, small_model):
    """It has answered before: the question is not whether it is powered."""
    link = link_over(command=None)
    link.connect(small_model)
    alive = [True]
    link._write, write = (lambda wire: write(wire) if alive[0] else None), link._write
    link.reset()
    alive[0] = False
    with pytest.raises(
        LinkError,
        match=r"no answer to STEP within 0.6 s, nor to ECHO, though the board answered INFO",
    ) as failed:
        link.step(np.zeros((1, small_model.n_in), np.int16))
    assert "powered" not in str(failed.value)
    with pytest.raises(LinkError, match="STEP needs a session: call reset first"):
        link.step(np.zeros((1, small_model.n_in), np.int16))
    alive[0] = True


class Replays:
    """Passes whole frames on, and behind some of them an older one again, of any age. ``count``:
    how often.
    """

    def __init__(self, seed: int, rate: float):
        self._rng, self._rate, self._seen, self._rest, self.count = (
            random.Random(seed),
            rate,
            [],
            b"",
            0,
        )

    def __call__(self, data: bytes) -> bytes:
        *frames, self._rest = (self._rest + data).split(b"\0")
        out = b""
        for frame in filter(None, frames):
            self._seen.append(frame)
            out += b"\0" + frame + b"\0"
            if self._rng.random() < self._rate:
                age = self._rng.choice(
                    [2, 2, 3, 5, 256, 257, self._rng.randrange(1, 1 + len(self._seen))]
                )
                out += self._seen[-min(age, len(self._seen))] + b"\0"
                self.count += 1
        return out


@pytest.mark.parametrize("seed", range(3))
def test_old_frames_that_come_again_do_nothing(seed, link_over, small_model):
    """More than 256 requests in several sessions, each byte of the state compared: hil finds no
    difference.
    """
    up = Replays(seed, 0.4)
    link = link_over(up)
    link.steps_in_a_frame = lambda: 3
    steps = run(link, small_model, (700, 40, 1, 2000, 30))
    assert link.stat().steps == steps and up.count > 200


def test_answers_that_come_again_do_nothing(link_over, small_model):
    down = Replays(5, 0.0)
    down._rng.choice = lambda ages: 2  # the one before
    down._rate = 0.5
    run(link_over(down=down), small_model, (3000,))
    assert down.count > 20


def test_many_retries_of_one_request_step_once(link_over, small_model):
    """The line holds each answer back until the request has come five times."""
    held = [0]

    def hold(data: bytes) -> bytes:
        out = b""
        for frame in filter(None, data.split(b"\0")):
            held[0] += 1
            out += b"\0" + frame + b"\0" if held[0] % 5 == 0 else b""
        return out

    link = link_over(down=hold)
    link._patience = 30
    link._first_wait = lambda message: 0.02
    link.connect(small_model)
    link.reset()
    x_q = np.random.default_rng(3).integers(-20000, 20000, (60, small_model.n_in)).astype(np.int16)
    link.steps_in_a_frame = lambda: 5
    assert np.array_equal(link.step(x_q), small_model.stream().run_q(x_q))
    assert link.stat().steps == 60 and link.retries > 40


def test_another_host_takes_over(program, small_model):
    """A board that is at work and is not reset: whatever number the next host begins with, it gets
    a session.
    """
    relay = Relay([program])
    port = urls._open(relay.url, 115200)
    try:
        for _ in range(12):
            link = Link(port, relay.url)
            link.connect(small_model)
            link.reset()
            x_q = np.ones((3, small_model.n_in), np.int16)
            assert np.array_equal(link.step(x_q), small_model.stream().run_q(x_q))
    finally:
        port.close()
        relay.close()


def test_probing_frames_are_made_of_what_passes():
    for attempt in range(20):
        for values in (b"", b"\r", bytes(range(0x80, 0x100))):
            frame = echo_frame(values, attempt)
            others = (
                encode(frame).strip(b"\0").replace(values, b"")
                if values
                else encode(frame).strip(b"\0")
            )
            assert frame.type == Message.ECHO and values in frame.payload
            assert set(others) <= set(PLAIN) | (
                set(range(0xA1, 0xFF)) if len(values) > 9 else set()
            )
    assert len(info_seqs()) >= 3
    assert (
        named([13]) == "byte 0x0d does"
        and named([1, 2, 4, 5, 6]) == "bytes 0x01, 0x02, 0x04 to 0x06 do"
    )
