"""The device's program, compiled for this machine under AddressSanitizer and UBSan: bounds before use, in every message."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from stepwell.emit import emit
from stepwell.link import connect, messages
from stepwell.link.frame import Frame, FrameReader, encode
from stepwell.link.messages import PAYLOAD_BYTES, Error, Message

SESSION = 5
S = messages.SESSION.pack(SESSION)


SANITISED = "-g -O1 -fsanitize=address,undefined -fno-sanitize-recover".split()


def host_program(model, folder: Path, *options: str | Path, app: str = "*.c") -> Path:
    """The device's program with ``model`` for this machine, stdin and stdout its UART. ``options``: flags and more sources."""
    emit(model, folder, "app_model")
    own, root = ROOT / "tests" / "c" / "service", ROOT / "firmware"
    sources = [path for path in folder.glob("*.c") if path.name != "main.c"]
    sources += [*(root / "app").glob(app), own / "board.c"]
    includes = [f"-I{path}" for path in (own, folder, root / "app", root)]
    flags = ["-std=gnu99", "-Wall", "-Wextra", "-DBOARD_NAME=host", *includes]
    subprocess.run(["cc", *flags, *sources, *options, "-o", folder / "device"], check=True)
    return folder / "device"


class Device:
    """The program in a process of its own: bytes in, frames out, until ``end``."""

    def __init__(self, program: Path, **environment: str):
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self._process = subprocess.Popen([program], env=os.environ | environment, **pipes)

    def run(self, wire: bytes) -> list[Frame]:
        """Feed all of ``wire``; the frames that came back. Fails the test when a sanitiser has something to say."""
        out, errors = self._process.communicate(wire, timeout=60)
        assert self._process.returncode == 0 and not errors, errors.decode()[:2000]
        reader = FrameReader()
        answers = [frame for frame in reader.feed(out) if frame.type != messages.LOG]
        assert reader.damaged == 0
        return answers


@pytest.fixture(scope="module")
def program(small_model, tmp_path_factory):
    return host_program(small_model, tmp_path_factory.mktemp("service"), *SANITISED)


def ask(program, *requests: tuple[int, bytes]) -> list[Frame]:
    """Answers to the requests, one each; every one has its own seq."""
    wire = b"".join(encode(Frame(type_, seq, payload)) for seq, (type_, payload) in enumerate(requests))
    answers = Device(program).run(wire)
    assert [answer.seq for answer in answers] == list(range(len(requests)))
    return answers


def error_of(frame: Frame) -> int | None:
    return frame.payload[0] if frame.type == messages.ERROR else None


def test_wild_requests(program):
    """Every type with wild lengths, offsets, layers, units and counts, in and out of a session."""
    rng = random.Random(9)
    wire = b""
    for k in range(20000):
        type_ = rng.choice([*Message, rng.randrange(256)])
        head = rng.choice([S, S, S, S, S[:2], rng.randbytes(4)])
        if type_ == Message.RESET:
            head = rng.choice([S, S, S, bytes(4), S[:3]])
        numbers = bytes(rng.choice([0, 0, 1, 2, 3, 5, 11, 12, 30, 127, 128, 255]) for _ in range(rng.randrange(8)))
        payload = (head + numbers + rng.randbytes(rng.choice([0, 0, 0, 2, 4, 12, 100, 244])))[:PAYLOAD_BYTES]
        wire += encode(Frame(type_, k % 256, payload))
    answers = Device(program).run(wire)
    assert len(answers) == 20000
    assert {error_of(frame) for frame in answers} >= {None, *range(Error.TYPE, Error.STATE), Error.NO_UPDATE}


def test_noise(program, small_model):
    """Noise between requests costs at most the request it touches."""
    rng = random.Random(10)
    info = encode(Frame(Message.INFO, 1, b""))
    wire = b"".join(rng.randbytes(rng.randrange(600)) + b"\0" + info for _ in range(300))
    assert len(Device(program).run(wire)) == 300


def test_each_refusal(program, small_model):
    x = bytes(2 * small_model.n_in)
    chunk, probe, n = messages.CHUNK.pack, messages.PROBE_REQUEST.pack, small_model.info()["snapshot_bytes"]
    step = messages.STEP_REQUEST.pack
    cases = [
        (Message.STEP, step(SESSION, 1) + x, Error.SESSION),
        (Message.STEP, step(0, 1) + x, Error.SESSION),  # no session has begun, and none has the nonce 0
        (Message.RESET, bytes(4), Error.RANGE),
        (Message.RESET, S, None),
        (Message.STEP, step(SESSION, 1) + x, None),
        (Message.STEP, step(SESSION + 1, 1) + x, Error.SESSION),
        (Message.STEP, step(SESSION, 2) + x, Error.LENGTH),
        (Message.STEP, step(SESSION, 0), Error.RANGE),
        (Message.STEP, step(SESSION, 31) + 31 * x, Error.RANGE),  # the question fits a frame, the answer would not
        (Message.STEP, step(SESSION, 30) + 30 * x, None),
        (Message.STEP, step(SESSION, 1) + 2 * x, Error.LENGTH),
        (Message.STEP, S, Error.LENGTH),
        (Message.GET_STATE, chunk(SESSION, n), Error.RANGE),
        (Message.GET_STATE, chunk(SESSION, 4), Error.ORDER),
        (Message.SET_STATE, chunk(SESSION, 0) + bytes(n), Error.STATE),
        (Message.SET_STATE, chunk(SESSION, 1) + bytes(n), Error.RANGE),
        (Message.SET_STATE, chunk(SESSION, 0xFFFF) + bytes(4), Error.RANGE),
        (Message.PROBE, probe(SESSION, 0, 0, 1), Error.ORDER),
        (Message.PROBE_INPUT, chunk(SESSION, 1) + x, Error.ORDER),
        (Message.PROBE_INPUT, chunk(SESSION, 0) + x[:-1], Error.LENGTH),
        (Message.PROBE_INPUT, chunk(SESSION, 0x7FFF) + x, Error.RANGE),
        (Message.PROBE_INPUT, chunk(SESSION, 0) + x[:-2], None),
        (Message.PROBE, probe(SESSION, 0, 0, 1), Error.RANGE),
        (Message.PROBE_INPUT, chunk(SESSION, small_model.n_in - 1) + x[:2], None),
        (Message.PROBE, probe(SESSION, 0, 0, 3), None),
        (Message.PROBE, probe(SESSION, 0, 1, 3), Error.RANGE),
        (Message.PROBE, probe(SESSION, 1, 0, 1), Error.RANGE),
        (Message.PROBE, probe(SESSION, 9, 0, 1), Error.RANGE),
        (99, b"", Error.TYPE),
        (Message.INFO, b"x", Error.LENGTH),
    ]
    answers = ask(program, *((type_, payload) for type_, payload, _ in cases))
    assert [error_of(answer) for answer in answers] == [error for _, _, error in cases]


def test_repeated_request_is_answered_and_not_done_again(program, small_model):
    x_q = np.arange(3 * small_model.n_in, dtype="<i2").reshape(3, -1) * 700
    requests = [
        encode(Frame(Message.STEP, seq, messages.STEP_REQUEST.pack(SESSION, 1) + row.tobytes()))
        for seq, row in enumerate(x_q)
    ]
    wire = encode(Frame(Message.RESET, 200, S)) + b"".join(request * 3 for request in requests)
    _, *answers = Device(program).run(wire + encode(Frame(Message.STAT, 201, b"")))
    *steps, stat = answers
    y_q = [np.frombuffer(a.payload, "<i4", offset=messages.STEP_REPLY.size) for a in steps]
    expected = np.repeat(small_model.stream().run_q(x_q), 3, axis=0)
    assert np.array_equal(y_q, expected)
    assert messages.STAT_REPLY.unpack(stat.payload) == (11, 0, 3, 6)


@pytest.mark.skipif(os.name != "posix", reason="needs a pty")
def test_over_a_serial_port(program, small_model):
    """A pty is as near to /dev/ttyACM0 as it gets without a board: the path of real hardware, pyserial included."""
    import tty

    board_end, host_end = os.openpty()
    tty.setraw(host_end)
    device = subprocess.Popen([program], stdin=board_end, stdout=board_end)
    try:
        with connect(os.ttyname(host_end), model=small_model) as link:
            link.reset()
            x_q = np.arange(50 * small_model.n_in).reshape(50, -1).astype(np.int16) * 300
            assert np.array_equal(link.step(x_q), small_model.stream().run_q(x_q))
            assert (link.info().board, link.cost_unit, link.stat().steps) == ("host", "cycles", 50)
    finally:
        device.kill()
        device.wait()
        os.close(host_end)
        os.close(board_end)
