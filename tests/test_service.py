"""The device's program, compiled for this machine under AddressSanitizer and UBSan: bounds before
use, in every message.
"""

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
from stepwell.link.frame import Frame, FrameReader, check_bytes, encode
from stepwell.link.messages import PAYLOAD_BYTES, Error, Message

SESSION = 5
S = messages.SESSION.pack(SESSION)


SANITISED = "-g -O1 -fsanitize=address,undefined -fno-sanitize-recover".split()


def host_program(model, folder: Path, *options: str | Path, app: str = "*.c") -> Path:
    """The device's program with ``model`` for this machine, stdin and stdout its UART. ``options``:
    flags and more sources.
    """
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
        """Feed all of ``wire``; the frames that came back. Fails the test when a sanitiser has
        something to say.
        """
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
    wire = b"".join(
        encode(Frame(type_, seq, payload)) for seq, (type_, payload) in enumerate(requests)
    )
    answers = Device(program).run(wire)
    assert [answer.seq for answer in answers] == list(range(len(requests)))
    return answers


def error_of(frame: Frame) -> int | None:
    return frame.payload[0] if frame.type == messages.ERROR else None


def test_wild_requests(program):
    """Every type with wild lengths, offsets, layers, units and counts, in and out of a session and
    of its order.
    """
    rng = random.Random(9)
    in_session = (Message.STEP, *range(Message.GET_STATE, Message.BENCH + 1))
    wire, number = b"", 256 * SESSION  # of the request whose turn it is
    for _ in range(20000):
        type_ = rng.choice([*Message, rng.randrange(256)])
        stray = rng.choice([0] * 12 + [1, 2, 128, 254, 255])
        if type_ == Message.RESET:
            number = (number // 256 + rng.choice([1, 5])) * 256 + rng.randrange(256)
        own = messages.SESSION.pack(number // 256)
        head = rng.choice([own] * 4 + [S[:2], bytes(4), rng.randbytes(4)])
        numbers = bytes(
            rng.choice([0, 0, 1, 2, 3, 5, 11, 12, 30, 127, 128, 255])
            for _ in range(rng.randrange(8))
        )
        payload = (head + numbers + rng.randbytes(rng.choice([0, 0, 0, 2, 4, 12, 100, 244])))[
            :PAYLOAD_BYTES
        ]
        if type_ == Message.RESET:
            payload = rng.choice([own] * 3 + [bytes(4), S, payload])
        wire += encode(Frame(type_, (number + stray) % 256, payload))
        number += stray == 0 and (type_ not in in_session or head == own)
    answers = Device(program).run(wire)
    assert len(answers) == 20000
    expected = {None, *range(Error.TYPE, Error.STATE), Error.NO_UPDATE, Error.OLD, Error.GAP}
    assert {error_of(frame) for frame in answers} >= expected


def test_noise(program, small_model):
    """Noise between requests costs at most the request it touches."""
    rng = random.Random(10)
    info = encode(Frame(Message.INFO, 1, b""))
    wire = b"".join(rng.randbytes(rng.randrange(600)) + b"\0" + info for _ in range(300))
    assert len(Device(program).run(wire)) == 300


def test_each_refusal(program, small_model):
    x = bytes(2 * small_model.n_in)
    chunk, probe, n = (
        messages.CHUNK.pack,
        messages.PROBE_REQUEST.pack,
        small_model.info()["snapshot_bytes"],
    )
    step = messages.STEP_REQUEST.pack
    cases = [
        (Message.STEP, step(SESSION, 1) + x, Error.SESSION),
        (
            Message.STEP,
            step(0, 1) + x,
            Error.SESSION,
        ),  # no session has begun, and none has the nonce 0
        (Message.RESET, bytes(4), Error.RANGE),
        (Message.RESET, S, None),
        (Message.STEP, step(SESSION, 1) + x, None),
        (Message.STEP, step(SESSION, 2) + x, Error.LENGTH),
        (Message.STEP, step(SESSION, 0), Error.RANGE),
        (
            Message.STEP,
            step(SESSION, 31) + 31 * x,
            Error.RANGE,
        ),  # the question fits a frame, the answer would not
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
        (Message.BENCH, S, None),  # a request that was refused had its turn, too
        (Message.STEP, step(SESSION + 1, 1) + x, Error.SESSION),
        (Message.BENCH, S, Error.GAP),  # and one of another session had none
        (Message.RESET, S, Error.OLD),
        (Message.RESET, messages.SESSION.pack(SESSION - 1), Error.OLD),
        (Message.RESET, messages.SESSION.pack(SESSION + 2**31), Error.OLD),
        (Message.RESET, messages.SESSION.pack(SESSION + 2**31 - 1), None),
        (Message.RESET, messages.SESSION.pack(SESSION - 2), None),  # above it, modulo 2^32
    ]
    answers = ask(program, *((type_, payload) for type_, payload, _ in cases))
    assert [error_of(answer) for answer in answers] == [error for _, _, error in cases]


def step_frame(seq: int, x_q: np.ndarray, session: int = SESSION) -> Frame:
    """One step, as int16 codes [n_in]."""
    return Frame(
        Message.STEP, seq, messages.STEP_REQUEST.pack(session, 1) + x_q.astype("<i2").tobytes()
    )


def outputs(answers: list[Frame]) -> list[list[int]]:
    return [
        np.frombuffer(a.payload, "<i4", offset=messages.STEP_REPLY.size).tolist() for a in answers
    ]


def counts(program, frames: list[Frame]) -> tuple[list[Frame], tuple[int, ...]]:
    """Answers to the frames, and STAT after them: good and damaged frames, steps, repeats."""
    *answers, stat = Device(program).run(
        b"".join(map(encode, [*frames, Frame(Message.STAT, 99, b"")]))
    )
    return answers, messages.STAT_REPLY.unpack(stat.payload)


def test_repeated_request_is_answered_and_not_done_again(program, small_model):
    x_q = np.arange(3 * small_model.n_in).reshape(3, -1) * 700
    steps = [step_frame(201 + k, row) for k, row in enumerate(x_q)]
    frames = [Frame(Message.RESET, 200, S), *(step for step in steps for _ in range(3))]
    (_, *answers), stat = counts(program, frames)
    y_q = small_model.stream().run_q(x_q)
    assert outputs(answers) == np.repeat(y_q, 3, axis=0).tolist()
    assert stat == (11, 0, 3, 6)


def test_answer_is_kept_while_others_are_given(program, small_model):
    """Between a step whose answer was lost and its repetition: requests that change nothing, and
    old ones.
    """
    x_q = np.arange(2 * small_model.n_in).reshape(2, -1) * 700
    reset, first, second = Frame(Message.RESET, 7, S), step_frame(8, x_q[0]), step_frame(9, x_q[1])
    others = [
        Frame(Message.INFO, 40, b""),
        first,
        reset,
        Frame(99, 9, b""),
        Frame(Message.ECHO, 9, b"abc"),
    ]
    answers, stat = counts(program, [reset, first, second, *others, second])
    assert answers[-1] == answers[2] and outputs([answers[-1]]) == [
        small_model.stream().run_q(x_q)[1].tolist()
    ]
    assert [error_of(answer) for answer in answers[3:8]] == [
        None,
        Error.OLD,
        Error.OLD,
        Error.TYPE,
        None,
    ]
    assert answers[7].payload == b"abc" and stat[2:] == (2, 1)


@pytest.mark.parametrize("late", [1, 2, 3, 100, 200, 255, 256, 257, 300, 512])
def test_step_that_comes_late_is_refused(late, program, small_model):
    """Frame k once more behind frame k + ``late``: nothing is done, and the run goes on as if it
    had not come.
    """
    n = late + 40
    x_q = np.random.default_rng(late).integers(-20000, 20000, (n, small_model.n_in))
    numbers = [256 * SESSION + 250 + k for k in range(n)]  # session and seq count on together
    steps = [
        step_frame(number % 256, row, number // 256)
        for number, row in zip(numbers, x_q, strict=True)
    ]
    frames, again = [Frame(Message.RESET, 249, S)], []
    for k, step in enumerate(steps):
        frames.append(step)
        if k >= late:
            again.append(len(frames))
            frames.append(steps[k - late])
    answers, stat = counts(program, frames)
    assert stat[2:] == (n, 0)
    refused = [answers.pop(at) for at in reversed(again)]
    assert len(refused) == 40  # by seq alone nobody knows whether it is far behind or far ahead
    assert {error_of(answer) for answer in refused} <= {Error.OLD, Error.GAP, Error.SESSION}
    assert outputs(answers[1:]) == small_model.stream().run_q(x_q).tolist()


def test_step_of_the_future_is_refused(program, small_model):
    """One is missing before it; then the missing one comes, and all is well."""
    x_q = np.arange(3 * small_model.n_in).reshape(3, -1) * 700
    first, second, third = (step_frame(11 + k, row) for k, row in enumerate(x_q))
    answers, stat = counts(
        program, [Frame(Message.RESET, 10, S), first, third, step_frame(138, x_q[2]), second, third]
    )
    assert [error_of(answer) for answer in answers] == [
        None,
        None,
        Error.GAP,
        Error.GAP,
        None,
        None,
    ]
    assert (
        outputs([answers[1], *answers[4:]]) == small_model.stream().run_q(x_q).tolist()
        and stat[2] == 3
    )


def test_a_refusal_names_its_request(program, small_model):
    """When it was out of turn: the refusal of an old one is not taken for that of the request with
    the same seq.
    """
    old = step_frame(3, np.zeros(small_model.n_in), 77)
    (answer,), _ = counts(program, [old])
    assert answer.payload == messages.ERROR_REPLY.pack(
        Error.SESSION, 0, Message.STEP
    ) + check_bytes(old)


@pytest.mark.parametrize(
    "kind",
    [Message.RESET, Message.SET_STATE, Message.PROBE_INPUT, Message.BENCH, Message.GET_STATE],
)
def test_whatever_belongs_to_a_session_is_done_in_turn(kind, program, small_model):
    """A late frame of each kind leaves the state and the outputs as they are."""
    x_q = np.arange(4 * small_model.n_in).reshape(4, -1) * 900
    state = small_model.stream().save()
    payload = {
        Message.RESET: S,
        Message.SET_STATE: messages.CHUNK.pack(SESSION, 0) + state,
        Message.PROBE_INPUT: messages.CHUNK.pack(SESSION, 0) + bytes(2 * small_model.n_in),
        Message.BENCH: S,
        Message.GET_STATE: messages.CHUNK.pack(SESSION, 0),
    }[kind]
    late = Frame(kind, 10 if kind == Message.RESET else 11, payload)
    frames = [Frame(Message.RESET, 10, S)] * (kind != Message.RESET) + [late]
    first = late.seq + 1
    steps = [step_frame(first + k, row) for k, row in enumerate(x_q)]
    answers, stat = counts(program, [*frames, steps[0], late, steps[1], late, *steps[2:]])
    late_answers = [answers[len(frames) + 1], answers[len(frames) + 3]]
    assert [error_of(answer) for answer in late_answers] == [Error.OLD] * 2 and stat[2] == 4
    done = [answer for answer in answers if answer.type == Message.STEP | messages.REPLY]
    assert outputs(done) == small_model.stream().run_q(x_q).tolist()


@pytest.mark.skipif(os.name != "posix", reason="needs a pty")
def test_over_a_serial_port(program, small_model):
    """A pty is as near to /dev/ttyACM0 as it gets without a board: the path of real hardware,
    pyserial included.
    """
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
