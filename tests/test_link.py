"""Link against boards that misbehave: fake peers over socket pairs, answering by their own rules."""

from __future__ import annotations

import io
import os
import random
import re
import select
import socket
import threading
import time

import numpy as np
import pytest
import serial
from stepwell.boards import load_board
from stepwell.errors import LinkError, WrongUse
from stepwell.link import HostLink, Link, connect, messages, urls
from stepwell.link.emulators import EMULATORS
from stepwell.link.frame import Frame, FrameReader, encode
from stepwell.link.info import read_info
from stepwell.link.messages import Error, Message

N_IN, N_OUT, MODEL_ID = 3, 2, 0x1A2B3C4D


class SocketPort:
    """One end of a socket pair with the methods of a serial port."""

    def __init__(self, end: socket.socket):
        self._end, self.timeout = end, 1.0

    @property
    def in_waiting(self) -> int:
        return len(select.select([self._end], [], [], 0)[0])

    def read(self, size: int = 1) -> bytes:
        if not select.select([self._end], [], [], self.timeout)[0]:
            return b""
        data = self._end.recv(size)
        if not data:
            raise OSError("closed")
        return data

    def write(self, data: bytes) -> int:
        self._end.sendall(data)
        return len(data)

    def close(self) -> None:
        self._end.close()


class Peer(threading.Thread):
    """A board that answers as it should; subclasses spoil that. ``requests`` holds every frame that
    arrived.
    """

    protocol, status = messages.PROTOCOL, 0
    step_ticks = 10

    def __init__(self):
        super().__init__(daemon=True)
        ours, self.theirs = socket.socketpair()
        self.port, self.requests = SocketPort(ours), []
        self.start()

    def run(self) -> None:
        reader = FrameReader()
        try:
            while data := self.theirs.recv(4096):
                for frame in reader.feed(data):
                    self.requests.append(frame)
                    self.on_frame(frame)
        except OSError:
            pass

    def steps_asked(self) -> list[int]:
        return [
            messages.STEP_REQUEST.unpack_from(f.payload)[1]
            for f in self.requests
            if f.type == Message.STEP
        ]

    def send(self, frame: Frame) -> None:
        self.theirs.sendall(encode(frame))

    def reply(self, request: Frame, payload: bytes) -> None:
        self.send(Frame(request.type | messages.REPLY, request.seq, payload))

    def refuse(self, request: Frame, error: int, status: int = 0) -> None:
        self.send(
            Frame(
                messages.ERROR, request.seq, messages.ERROR_REPLY.pack(error, status, request.type)
            )
        )

    def on_frame(self, frame: Frame) -> None:
        self.reply(frame, self.answer(frame))

    def answer(self, frame: Frame) -> bytes:
        if frame.type == Message.INFO:
            sizes = (16_000_000, 16_000_000, 0x100, MODEL_ID, 100, 30, 0, 0)
            head = messages.INFO_REPLY.pack(
                self.protocol, messages.MTU, N_IN, N_OUT, 15, self.status, *sizes
            )
            return head + b"fake"
        if frame.type == Message.STEP:
            _, n = messages.STEP_REQUEST.unpack_from(frame.payload)
            return (
                messages.STEP_REPLY.pack(n, self.step_ticks * n)
                + np.arange(n * N_OUT, dtype="<i4").tobytes()
            )
        return b""


def link_to(peer: Peer, **options) -> Link:
    return Link(peer.port, "fake:", **({"patience": 1.0} | options))


def test_steps_arrive_in_order_and_costs_add_up():
    peer = Peer()
    with link_to(peer) as link:
        link.reset()
        batch = link.steps_in_a_frame()
        y = link.step(np.zeros((2 * batch + 2, N_IN), np.int16))
    assert peer.steps_asked() == [1, batch, batch, 1]
    assert y.shape == (2 * batch + 2, N_OUT) and y[batch + 2].tolist() == [2, 3]
    assert (link.cost_steps, link.cost_ticks, link.cost_per_step, link.retries) == (
        2 * batch + 2,
        10 * (2 * batch + 2),
        10,
        0,
    )


class Slow(Peer):
    step_ticks = 16_000_000 // 4


def test_a_slow_model_gets_few_steps_a_frame():
    peer = Slow()
    with link_to(peer) as link:
        link.reset()
        assert link.steps_in_a_frame() > 10
        link.step(np.zeros((11, N_IN), np.int16))
    assert peer.steps_asked() == [1, 4, 4, 2]


class Silent(Peer):
    def on_frame(self, frame: Frame) -> None:
        pass


def test_silent_board_is_said_so_in_time():
    started = time.monotonic()
    with pytest.raises(
        LinkError, match=r"no answer to INFO within 0.5 s: is the board powered, flashed"
    ):
        link_to(Silent(), patience=0.5).connect()
    assert time.monotonic() - started < 2


class Noisy(Peer):
    def on_frame(self, frame: Frame) -> None:
        self.theirs.sendall(bytes(range(1, 200)) + b"\0")


def test_noise_is_said_so():
    peer = Noisy()
    with pytest.raises(LinkError, match=r"damaged frames: wrong baud rate, noise"):
        link_to(peer, patience=0.5).connect()
    assert len(peer.requests) < 200  # it does not flood the line


class OtherProtocol(Peer):
    protocol = 9


def test_other_protocol():
    words = "speaks protocol 9, this stepwell 3: build and flash again, or install the stepwell that its firmware"
    with pytest.raises(LinkError, match=words):
        link_to(OtherProtocol()).connect()


class OldFirmware(Peer):
    protocol = 2


def test_old_firmware_is_told_what_to_do():
    words = (
        "protocol 2, .* `stepwell build --board fake MODEL.stw`, then `stepwell flash --board fake`"
    )
    with pytest.raises(LinkError, match=words):
        link_to(OldFirmware()).connect()


class BrokenModel(Peer):
    status = -7


def test_model_that_the_board_cannot_run():
    with pytest.raises(LinkError, match=r"cannot run its model: layer kind unknown.*stw_status -7"):
        link_to(BrokenModel()).connect()


def test_other_model(small_model):
    with pytest.raises(
        LinkError, match=f"board runs model 1a2b3c4d, test expects {small_model.id:08x}"
    ):
        link_to(Peer()).connect(small_model)


class LosesReplies(Peer):
    """Every second answer is lost; steps count once for each request, as the firmware does it."""

    def __init__(self):
        self.steps, self.last = 0, None
        super().__init__()

    def on_frame(self, frame: Frame) -> None:
        if frame != self.last and frame.type == Message.STEP:
            self.steps += messages.STEP_REQUEST.unpack_from(frame.payload)[1]
        self.last = frame
        if len(self.requests) % 2 == 0:
            self.reply(frame, self.answer(frame))


def test_lost_reply_repeats_the_very_same_request():
    peer = LosesReplies()
    with link_to(peer, patience=5) as link:
        link.info()
        link.reset()
        link.step(np.ones((3, N_IN), np.int16))
    assert peer.steps == 3 and link.retries == 4
    assert peer.requests[::2] == peer.requests[1::2]


class Stammers(Peer):
    """Answers arrive late, twice, and behind damaged ones."""

    def on_frame(self, frame: Frame) -> None:
        answer = encode(Frame(frame.type | messages.REPLY, frame.seq, self.answer(frame)))
        old = encode(Frame(frame.type | messages.REPLY, (frame.seq - 1) % 256, b"old"))
        self.theirs.sendall(old + answer[:5] + b"\0" + answer + answer)


def test_late_double_and_cut_answers_do_no_harm():
    with link_to(Stammers()) as link:
        link.connect()
        link.reset()
        link.step(np.zeros((1, N_IN), np.int16))
        assert link.step(np.zeros((4, N_IN), np.int16)).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


class Restarted(Peer):
    def on_frame(self, frame: Frame) -> None:
        if frame.type == Message.STEP:
            self.refuse(frame, Error.SESSION)
        else:
            super().on_frame(frame)


def test_restart_in_between_is_no_silent_wrong_answer():
    with link_to(Restarted()) as link:
        link.reset()
        with pytest.raises(LinkError, match="STEP: the board has restarted since the last reset"):
            link.step(np.zeros((1, N_IN), np.int16))


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (Error.TYPE, 0, "does not know this message"),
        (Error.STATE, -5, "refused the snapshot: checksum mismatch"),
        (Error.MODEL, -2, "cannot run its model: ram or buffer too small"),
        (77, 0, "error code 77"),
    ],
)
def test_every_refusal_has_a_cause(error, status, words):
    class Refuses(Peer):
        def on_frame(self, frame: Frame) -> None:
            self.refuse(frame, error, status)

    with pytest.raises(LinkError, match=words):
        link_to(Refuses()).mem()


def test_answers_of_a_wrong_size():
    with pytest.raises(LinkError, match="MEM answered with 0 bytes, expected 16"):
        link_to(Peer()).mem()


def test_wrong_shape_never_reaches_the_board():
    peer = Peer()
    with pytest.raises(
        LinkError, match=r"expected int16 codes of shape \[..., 3\], got int16 \[2, 4\]"
    ):
        link_to(peer).step(np.zeros((2, 4), np.int16))
    for codes in ([[1, 2, 40000]], [[0.5, 1, 2]], [[np.nan, 1, 2]]):
        with pytest.raises(LinkError, match="expected int16 codes"):
            link_to(peer).step(np.array(codes))
        with pytest.raises(LinkError, match="expected int16 codes"):
            link_to(peer).probe(0, np.array(codes[0]))
    with pytest.raises(
        LinkError, match="a snapshot of the board's model has 30 bytes, this one 29"
    ):
        link_to(peer).set_state(bytes(29))
    assert {f.type for f in peer.requests} == {Message.INFO}


class Nonsense(Peer):
    """Sound frames with numbers that cannot be."""

    def answer(self, frame: Frame) -> bytes:
        if frame.type == Message.BLOB_STATUS:
            return messages.BLOB_STATUS_REPLY.pack(0, 0, 0, 0, messages.NO_SLOT, 7)
        head = messages.INFO_REPLY.pack(messages.PROTOCOL, messages.MTU, 0, 200, 15, 0, *[0] * 8)
        return head + b"fake"


def test_nonsense_is_named():
    link = link_to(Nonsense())
    with pytest.raises(LinkError, match="INFO makes no sense: a model with 0 inputs, 200 outputs"):
        link.info()
    with pytest.raises(LinkError, match="packing 7, which this stepwell does not know"):
        link.update_status()


HEAD = {
    "protocol": messages.PROTOCOL,
    "mtu": messages.MTU,
    "n_in": N_IN,
    "n_out": N_OUT,
    "y_frac": 15,
    "status": 0,
}
HEAD |= {
    "tick_hz": 16_000_000,
    "cpu_hz": 16_000_000,
    "engine": 0x100,
    "id": MODEL_ID,
    "ram_bytes": 100,
}
HEAD |= {"snapshot_bytes": 30, "update_bytes": 0, "version": 0}


def info_of(name: bytes = b"fake", **changed: int) -> bytes:
    return messages.INFO_REPLY.pack(*(HEAD | changed).values()) + name


class SaysInfo(Peer):
    def __init__(self, payload: bytes):
        self.payload = payload
        super().__init__()

    def answer(self, frame: Frame) -> bytes:
        return self.payload if frame.type == Message.INFO else super().answer(frame)


HOSTILE = {
    "mtu": (0, 8, 255),
    "n_in": (0, messages.MOST_IN + 1, 65535),
    "n_out": (0, messages.MOST_OUT + 1, 65535),
    "y_frac": (32, 255),
    "tick_hz": (0,),
    "cpu_hz": (0,),
    "ram_bytes": (0, 2**31, 2**32 - 1),
    "snapshot_bytes": (0, 65536, 2**32 - 1),
    "update_bytes": (2**31, 2**32 - 1),
    "version": (2**32 - 1,),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in HOSTILE.items() for value in values]
)
def test_info_that_cannot_be_names_the_field(name, value):
    with pytest.raises(LinkError, match=rf"INFO makes no sense: .*\b{name}\b"):
        link_to(SaysInfo(info_of(**{name: value}))).connect()


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b"\xff\xfe",
        b"micro\nbit",
        b"\x1b[31mred",
        b"a\0b",
        b"x" * 200,
        "a\u00a0b".encode(),
        "\u202egnol".encode(),
    ],
)
def test_board_names_that_are_no_names(name):
    with pytest.raises(LinkError, match=r"INFO .*board name") as refused:
        link_to(SaysInfo(info_of(name))).connect()
    assert str(refused.value).isprintable() and len(str(refused.value)) < 400


@pytest.mark.parametrize("length", range(messages.INFO_REPLY.size + 1))
def test_info_that_is_cut_short(length):
    with pytest.raises(
        LinkError, match=r"INFO is (cut short|without a board name)|speaks protocol unknown"
    ):
        read_info(info_of()[:length], "fake:")


def test_board_of_a_users_own_may_have_any_readable_name():
    with link_to(SaysInfo(info_of("Prüfstand 3 😀".encode()))) as link:
        assert link.connect().board == "Prüfstand 3 😀"


def test_random_infos_are_believed_or_refused_in_words():
    """Bytes of every kind; what is believed can be worked with."""
    rng = random.Random(11)
    believed = 0
    for _ in range(20000):
        payload = bytearray(info_of())
        for _ in range(rng.choice([0, 1, 1, 2, 5, 40])):
            payload[rng.randrange(len(payload))] = rng.choice(
                [0, 1, 127, 128, 255, rng.randrange(256)]
            )
        payload = bytes(payload)[: rng.choice([99, 99, 99, rng.randrange(60)])] + rng.randbytes(
            rng.choice([0, 0, 0, 3, 200])
        )
        try:
            info = read_info(payload, "fake:")
        except LinkError as error:
            assert str(error).isprintable()
            continue
        believed += 1
        assert (
            info.tick_hz > 0
            and 0 < info.snapshot_bytes <= messages.MOST_SNAPSHOT
            and info.board.isprintable()
        )
        assert 1 <= info.n_in <= messages.MOST_IN and 1 <= info.n_out <= messages.MOST_OUT
    assert 200 < believed < 19000


@pytest.mark.parametrize(
    "extreme", [{}, {"tick_hz": 1, "cpu_hz": 1}, {"tick_hz": 2**32 - 1, "snapshot_bytes": 65535}]
)
def test_info_at_the_edge_of_what_can_be_works(extreme):
    with link_to(SaysInfo(info_of(**extreme)), patience=0.3) as link:
        link.connect()
        link.reset()
        assert len(link.step(np.zeros((3, N_IN), np.int16))) == 3
        with pytest.raises(LinkError, match="GET_STATE answered with 0 bytes"):
            link.get_state()


class OldRefusal(Peer):
    """Before each answer comes an error that was meant for the request before."""

    def on_frame(self, frame: Frame) -> None:
        cause = messages.ERROR_REPLY.pack(Error.SESSION, 0, frame.type)
        self.send(Frame(messages.ERROR, (frame.seq - 1) % 256, cause))
        super().on_frame(frame)


def test_refusal_of_an_older_request_is_not_taken():
    link = link_to(OldRefusal())
    link.reset()
    assert len(link.step(np.zeros((2, N_IN), np.int16))) == 2


class OldRefusalOfTheSameSeq(Peer):
    """Before each answer comes an error that was meant for a request of the same seq, 256 requests
    ago.
    """

    def on_frame(self, frame: Frame) -> None:
        cause = messages.ERROR_REPLY.pack(Error.SESSION, 0, frame.type)
        self.send(Frame(messages.ERROR, frame.seq, cause + b"\1\2\3\4"))
        super().on_frame(frame)


def test_refusal_of_a_request_with_another_crc_is_not_taken():
    link = link_to(OldRefusalOfTheSameSeq())
    link.reset()
    assert len(link.step(np.zeros((2, N_IN), np.int16))) == 2


class Counts(Peer):
    """Does what the firmware does with session and seq. ``next``: both as one number; ``steps``:
    done so far.
    """

    next = steps = 0

    def on_frame(self, frame: Frame) -> None:
        session = int.from_bytes(frame.payload[:4], "little")
        if frame.type == Message.RESET:
            if self.next and not 0 < (session - self.next // 256) % 2**32 < 2**31:
                self.refuse(frame, Error.OLD)
                return
            self.next = 256 * session + frame.seq
        elif frame.type == Message.STEP and 256 * session + frame.seq != self.next:
            self.refuse(frame, Error.GAP)
            return
        self.steps += frame.type == Message.STEP
        self.next += frame.seq == self.next % 256
        super().on_frame(frame)


def test_requests_are_numbered_on_and_on():
    """Seq alone comes round every 256 requests, with messages of no session among them; seq and
    session never do.
    """
    peer = Counts()
    with link_to(peer) as link:
        for _ in range(3):
            link.reset()
            for k in range(300):
                link.step(np.zeros((1, N_IN), np.int16))
                if k % 7 == 0:
                    link.echo(b"")
    steps = [(f.payload[:4], f.seq) for f in peer.requests if f.type == Message.STEP]
    assert peer.steps == 900 and len(set(steps)) == 900 and link.retries == 0


@pytest.mark.parametrize("session", [1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2, 2**32 - 1])
@pytest.mark.parametrize("first", [0, 1, 2**31 - 1, 2**32 - 1])
def test_reset_of_a_board_that_another_host_has_left(session, first, monkeypatch):
    monkeypatch.setattr("secrets.randbelow", lambda n: first)
    peer = Counts()
    peer.next = 256 * session + 77
    with link_to(peer) as link:
        link.reset()
        link.step(np.zeros((1, N_IN), np.int16))
    assert peer.steps == 1


class Forgets(Peer):
    """The board does not get one request at all."""

    lost = 0

    def on_frame(self, frame: Frame) -> None:
        if frame.type == Message.STEP and not self.lost:
            self.lost = frame.seq
        if frame.seq != self.lost:
            super().on_frame(frame)


def test_a_request_without_an_answer_ends_the_session():
    """Nobody knows whether the board has done it: to go on would be a guess."""
    link = link_to(Forgets(), patience=0.3)
    link.connect()
    link.reset()
    with pytest.raises(LinkError, match="STEP") as silent:
        link.step(np.zeros((1, N_IN), np.int16))
    assert "powered" not in str(silent.value)
    with pytest.raises(LinkError, match="STEP needs a session: call reset first"):
        link.step(np.zeros((1, N_IN), np.int16))
    link.reset()
    assert len(link.step(np.zeros((1, N_IN), np.int16))) == 1


class OldAnswer(Peer):
    """One answer is that of 256 requests ago; the right one comes behind it."""

    def on_frame(self, frame: Frame) -> None:
        if frame.type == Message.STEP and len(self.steps_asked()) == 2:
            payload = bytearray(self.answer(frame))
            payload[-1] ^= 1
            self.reply(frame, bytes(payload))
        super().on_frame(frame)


def test_an_old_answer_that_was_taken_is_found_out():
    link = link_to(OldAnswer())
    link.reset()
    with pytest.raises(
        LinkError, match="two different answers to one request: the line brings old ones again"
    ):
        for _ in range(3):
            link.step(np.zeros((1, N_IN), np.int16))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Error.OLD, "has done a later request already"),
        (Error.GAP, "steps are missing: reset, and begin again"),
    ],
)
def test_a_step_out_of_turn_is_said_in_words(error, words):
    class OutOfTurn(Restarted):
        def on_frame(self, frame: Frame) -> None:
            self.refuse(frame, error) if frame.type == Message.STEP else Peer.on_frame(self, frame)

    link = link_to(OutOfTurn())
    link.reset()
    with pytest.raises(LinkError, match=words):
        link.step(np.zeros((1, N_IN), np.int16))


class HangsUp(Peer):
    def on_frame(self, frame: Frame) -> None:
        self.theirs.close()


def test_line_that_breaks():
    with pytest.raises(LinkError, match="fake:: the line broke"):
        link_to(HangsUp()).info()


class Talks(Peer):
    def on_frame(self, frame: Frame) -> None:
        self.send(Frame(messages.LOG, 0, b"hello"))
        super().on_frame(frame)


def test_log_frames_go_to_the_log():
    log = io.StringIO()
    link_to(Talks(), log=log).info()
    assert log.getvalue() == "fake:: hello\n"


class TalksWildly(Peer):
    def on_frame(self, frame: Frame) -> None:
        self.send(Frame(messages.LOG, 0, b"\x1b[31mred\nfake:: all is well\xff"))
        super().on_frame(frame)


def test_words_of_the_board_cannot_fake_a_line_of_the_log():
    log = io.StringIO()
    link_to(TalksWildly(), log=log).info()
    assert log.getvalue() == "fake:: \\x1b[31mred\\nfake:: all is well\ufffd\n"


def test_ports_that_cannot_be_opened(small_model):
    with pytest.raises(
        LinkError, match=r"^/dev/no-such-port: cannot be opened: No such file or directory$"
    ):
        connect("/dev/no-such-port")
    with pytest.raises(LinkError, match="needs an image to run: give --image, or a model"):
        connect("sim:microbit")
    with pytest.raises(LinkError, match="no image nowhere"):
        connect("sim:microbit", image="nowhere.elf")
    with pytest.raises(LinkError, match="host: is the engine of this process: it needs a model"):
        connect("host:")
    with pytest.raises(LinkError, match="0 is no baud rate"):
        connect("host:", model=small_model, baud=0)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo terminal")
def test_a_device_has_one_user():
    master, slave = os.openpty()
    name = os.ttyname(slave)
    try:
        first = urls._open(name, 115200)
        with pytest.raises(
            LinkError, match=f"^{name}: cannot be opened: another program has locked it$"
        ):
            urls._open(name, 115200)
        first.close()
        urls._open(name, 115200, no_reset=True).close()
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("socket://localhost", "socket://localhost names no port: write socket://HOST:PORT"),
        ("socket://:4000", "socket://:4000 names no host: write socket://HOST:PORT"),
        ("rfc2217://", "rfc2217:// names no host and no port: write rfc2217://HOST:PORT"),
        (
            "socket://bench:70000",
            "socket://bench:70000: Port out of range 0-65535: write socket://HOST:PORT",
        ),
        ("microbit", "microbit is no port: did you mean qemu:microbit, sim:microbit?"),
        ("board:rp-pico", "board:rp-pico is no port: did you mean rp2040js:rp-pico?"),
    ],
)
def test_what_is_no_port_is_wrong_use(url, words):
    with pytest.raises(WrongUse) as refused:
        connect(url)
    assert str(refused.value) == words


@pytest.mark.parametrize("url", ["host:", "/dev/ttyX", "socket://bench:4000"])
def test_only_emulators_run_an_image(url, small_model):
    with pytest.raises(WrongUse, match=f"{url} runs no image: only an emulator takes one"):
        connect(url, model=small_model, image="x.elf")


@pytest.mark.parametrize(
    ("port", "words"),
    [
        ("sim:rv32-virt", "there is no simulator for rv32-virt: use qemu:rv32-virt"),
        ("sim:arduino-uno", "there is no simulator for arduino-uno: use simavr:arduino-uno"),
        ("qemu:arduino-uno", "QEMU has no machine for arduino-uno: use simavr:arduino-uno"),
        (
            "simavr:microbit",
            "microbit is no AVR, so simavr cannot run it: use qemu:microbit or sim:microbit",
        ),
        (
            "rp2040js:microbit",
            "microbit is no RP2040, so rp2040js cannot run it: use qemu:microbit or sim:microbit",
        ),
    ],
)
def test_an_emulator_that_cannot_names_those_that_can(port, words):
    kind, _, board = port.partition(":")
    assert EMULATORS[kind].why_not(load_board(board)) == words


def levels_of(caplog) -> list[str]:
    """What DTR and RTS of a loop:// were set to, from its opening on."""
    return re.findall(r"_update_(\w+_state\(\w+)\)", caplog.text)


def test_lines_that_reset_a_board_are_held(caplog):
    url = "loop://?logging=info"
    with caplog.at_level("INFO", "pySerial.loop"):
        urls._open(url, 115200).close()
        assert levels_of(caplog) == ["dtr_state(True", "rts_state(True"]
        caplog.clear()
        urls._open(url, 115200, no_reset=True).close()
        assert levels_of(caplog) == ["dtr_state(False", "rts_state(False", "dtr_state(False"]


def test_lines_that_the_system_raises_fall_without_a_reset(caplog):
    """RTS without DTR would be the reset of an ESP."""
    with caplog.at_level("INFO", "pySerial.loop"):
        urls._open_without_reset(
            serial.serial_for_url("loop://?logging=info", do_not_open=True), raised=True
        )
    assert levels_of(caplog) == ["dtr_state(True", "rts_state(False", "dtr_state(False"]


def test_host_link_has_the_methods_of_a_link(small_model):
    link = connect("host:", model=small_model)
    assert isinstance(link, HostLink)
    public = {name for name in vars(Link) if not name.startswith("_")}
    assert public - {"steps_in_a_frame"} <= set(dir(HostLink))
    x_q = np.arange(2 * small_model.n_in).reshape(2, -1).astype(np.int16)
    link.reset()
    y_q = link.step(x_q)
    assert np.array_equal(y_q, small_model.stream().run_q(x_q))
    state = link.get_state()
    link.reset()
    link.set_state(state)
    assert link.get_state() == state and link.stat().steps == 2 and link.echo(b"ab") == b"ab"
    with pytest.raises(LinkError, match="snapshot refused"):
        link.set_state(state[:-1])
    with pytest.raises(LinkError, match="no unit 99"):
        link.probe(0, x_q[0], 99)
