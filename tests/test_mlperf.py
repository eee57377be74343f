"""The text interface of MLPerf Tiny: under sanitisers on this machine, and on emulated boards as a
runner drives it.
"""

from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import serial
from conftest import full
from hil.conftest import need
from stepwell.boards import load_board
from stepwell.boards.build import build
from stepwell.link.emulators import EMULATORS
from test_service import SANITISED, host_program

READY = "m-ready"


@pytest.fixture(scope="module")
def program(small_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mlperf")
    return host_program(small_model, folder, "-DAPP_MLPERF", "-DMLPERF_INPUT_BYTES=64u", *SANITISED)


def talk(program: Path, *commands: str | bytes) -> list[list[str]]:
    """The lines that answer each command; those of the start are checked and left out."""
    text = b"%".join([c if isinstance(c, bytes) else c.encode() for c in commands]) + b"%"
    done = subprocess.run([program], input=text, capture_output=True, check=True)
    assert not done.stderr, done.stderr.decode()[:2000]
    start, *answers = done.stdout.decode("ascii").split(READY + "\r\n")
    assert start == "m-init-done\r\n" and answers.pop() == "" and len(answers) == len(commands)
    return [answer.split("\r\n")[:-1] for answer in answers]


def results_of(lines: list[str]) -> list[float]:
    """Exact: doubles hold every int32 / 2^n."""
    found = next(
        re.fullmatch(r"m-results-\[([^]]+)\]", line)
        for line in lines
        if line.startswith("m-results")
    )
    return [float(v) for v in found[1].split(",")]


def expected(model, x_q: np.ndarray) -> list[float]:
    return (model.stream().run_q(x_q)[-1] / 2.0**model.y_frac).tolist()


def test_commands(program, small_model):
    x_q = (np.arange(8).reshape(4, 2) * 3000 - 9000).astype("<i2")
    data = x_q.tobytes().hex()
    name, profile, load, first, rest, shown, inferred, results, again = talk(
        program,
        "name",
        "profile",
        "db load 16",
        "db " + data[:20],
        "\r\ndb " + data[20:].upper() + "ffff",  # what is too much is left out
        "db print",
        "infer 3 1",
        "results",
        "infer 1 0",
    )
    assert name == ["m-name-dut-[host]"]
    assert (
        profile[0].startswith("m-profile-[")
        and profile[1] == f"m-model-[stepwell-{small_model.id:08x}]"
    )
    assert load == ["m-[Expecting 16 bytes]"] and first == [] and rest == ["m-load-done"]
    digits = [data[i : i + 2] for i in range(0, 32, 2)]
    assert shown == ["m-buffer-" + "-".join(digits[:8]), "m-buffer-" + "-".join(digits[8:])]
    assert inferred[:3] == ["m-warmup-start-1", "m-warmup-done", "m-infer-start-3"]
    started, ended = (int(re.fullmatch(r"m-lap-us-(\d+)", line)[1]) for line in inferred[3:5])
    assert ended - started == 3 * 4 * 7 * 1000 + 7000, (
        "the host's counter moves by 7 of 1000 a second at each look"
    )
    assert inferred[5] == "m-infer-done" and len(inferred) == 7
    for lines in (inferred, results, again):
        assert results_of(lines) == expected(small_model, x_q)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("dance", "Unknown command"),
        ("x" * 200, "Command too long"),
        ("db", "requires a subcommand"),
        ("db load", "at most 64 bytes"),
        ("db load 65", "at most 64 bytes"),
        ("db load 4294967300", "at most 64 bytes"),
        ("db load -4", "at most 64 bytes"),
        ("db load 0", "multiple of a step's 4"),
        ("db load 6", "multiple of a step's 4"),
        ("db 00", "db load N comes first"),
        ("infer", "No input: db load N"),
        ("infer 0", "must be >0"),
        ("infer many", "must be >0"),
        ("infer 1 -1", "must be >=0"),
        ("results", "No inference yet"),
    ],
)
def test_refusals(program, command, words):
    (answer,) = talk(program, command)
    assert len(answer) == 1 and re.fullmatch(r"e-\[.*\]", answer[0]) and words in answer[0]


def test_a_load_that_is_not_finished_is_not_run(program):
    *_, odd, wrong, early = talk(program, "db load 8", "db 0011", "db 001", "db 0g", "infer 1 0")
    assert odd == ["e-[Insufficient number of hex digits]"] and wrong == ["e-[Invalid hex digit]"]
    assert early == ["e-[No input: db load N, then db HEX]"]


def test_wild_text(program):
    """Every answer ends with m-ready, and the sanitisers are silent."""
    rng = random.Random(3)
    words = [
        "db",
        "load",
        "print",
        "infer",
        "results",
        "name",
        "1",
        "64",
        "0",
        "-1",
        "99999999999",
        "00ff",
        "zz",
        " ",
    ]
    commands = []
    for _ in range(4000):
        text = " ".join(rng.choice(words) for _ in range(rng.randrange(7))).encode()
        noise = bytes(b for b in rng.randbytes(rng.choice([0, 0, 3, 150])) if b != ord("%"))
        commands.append(text.replace(b"99999999999", b"7") + noise)
    assert len(talk(program, *commands)) == 4000


class Runner:
    """As MLPerf Tiny's runner drives a device: a command, lines until m-ready, 31 bytes of hex at
    most in one command.
    """

    def __init__(self, url: str):
        self._port = serial.serial_for_url(url, timeout=20)

    def wait(self) -> list[str]:
        lines = []
        while READY not in lines:
            line = self._port.read_until(b"\n").decode()
            assert line.endswith("\r\n"), f"no answer but {line!r}"
            lines.append(line.strip())
        return lines[:-1]

    def send(self, command: str) -> list[str]:
        self._port.write(f"{command}%".encode())
        return self.wait()

    def load(self, data: bytes) -> list[str]:
        self.send(f"db load {len(data)}")
        return [self.send(f"db {data[i : i + 31].hex()}") for i in range(0, len(data), 31)][-1]

    def close(self) -> None:
        self._port.close()


@pytest.mark.parametrize("port", full(["sim:microbit", "qemu:mps2-an386"], "sim:microbit"))
def test_a_runner_gets_the_bits_of_the_host(port, turbofan, tmp_path):
    need(port)
    kind, _, board = port.partition(":")
    x_q = turbofan.quantize(np.sin(np.arange(60 * turbofan.n_in)).reshape(60, -1)).astype("<i2")
    emulator = EMULATORS[kind].start(
        load_board(board), build(turbofan, board, tmp_path, mlperf=True).elf
    )
    runner = Runner(emulator.url)
    try:
        assert runner.wait() == ["m-init-done"] and runner.send("name") == [f"m-name-dut-[{board}]"]
        assert f"m-model-[stepwell-{turbofan.id:08x}]" in runner.send("profile")
        times = []
        for part in (x_q[:1], x_q[:40], x_q):
            assert runner.load(part.tobytes()) == ["m-load-done"]
            lines = runner.send("infer 2 1")
            assert results_of(lines) == expected(turbofan, part)
            start, end = (
                int(line.rpartition("-")[2]) for line in lines if line.startswith("m-lap-us")
            )
            times.append(end - start)
    finally:
        runner.close()
        emulator.close()
    assert times[0] < times[1] < times[2] and times[2] / times[1] == pytest.approx(
        60 / 40, rel=0.05
    )
