"""What the tests on emulated boards share: images built once, real data, and raw access to a board."""

from __future__ import annotations

import socket

import numpy as np
import pytest
from conftest import DEMO, skip_for
from stepwell.boards import load_board
from stepwell.boards.build import Image, build, no_compiler, why_not
from stepwell.link import messages, sim
from stepwell.link.emulator import Emulator
from stepwell.link.emulators import EMULATORS
from stepwell.link.frame import Frame, FrameReader, encode
from stepwell.samples import load_samples

BOARDS = ("mps2-an386", "microbit", "netduinoplus2")
PORTS = [f"{emulator}:{board}" for board in BOARDS for emulator in ("qemu", "sim")]


# compilers of a matrix: each run takes the one that `stepwell build` takes, `pytest --all` zig as
# well
BY_BOTH = [pytest.param(None, id=""), pytest.param("zig", marks=pytest.mark.full)]


def need(port: str, compiler: str | None = None) -> None:
    """Skip when the emulator of ``port`` or the compiler for its board is missing; None: every
    compiler.
    """
    emulator, _, name = port.partition(":")
    board = load_board(name)
    skip_for(
        EMULATORS[emulator].why_not(board)
        or (why_not(compiler, board) if compiler else no_compiler(board))
    )


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """(model, board) -> Image, built when first asked for; ``updates``: one that takes other
    models.
    """
    built: dict[tuple[int, str, bool, str | None], Image] = {}

    def image(model, board: str, updates: bool = False, compiler: str | None = None) -> Image:
        key = (model.id, board, updates, compiler)
        if key not in built:
            built[key] = build(
                model, board, tmp_path_factory.mktemp(board), compiler, updates=updates
            )
        return built[key]

    return image


@pytest.fixture(scope="session")
def flights(turbofan) -> list[np.ndarray]:
    """Real sequences of the demo's data, more than 2,000 steps."""
    sequences, steps = [], 0
    for sequence in load_samples(DEMO / "turbofan_test.npz", turbofan.n_in).sequences:
        sequences.append(sequence)
        steps += len(sequence)
        if steps > 2000:
            break
    return sequences


class RawBoard:
    """A board behind a plain socket: sends any bytes, collects frames."""

    def __init__(self, emulator: Emulator):
        self.emulator = emulator
        self.socket = socket.create_connection(("127.0.0.1", emulator.port))
        self._reader = FrameReader()

    def ask(self, type_: int, payload: bytes = b"", seq: int = 1) -> Frame:
        """Send a frame and return the answer to it. TimeoutError after ten seconds."""
        self.socket.settimeout(10)
        self.socket.sendall(encode(Frame(type_, seq, payload)))
        while data := self.socket.recv(4096):
            for frame in self._reader.feed(data):
                if frame.type != messages.LOG and frame.seq == seq:
                    return frame
        raise EOFError("the board has gone")

    def close(self) -> None:
        self.socket.close()
        self.emulator.close()


@pytest.fixture
def raw_board(images, small_model):
    need("sim:microbit")
    board = RawBoard(sim.start_sim(load_board("microbit"), images(small_model, "microbit").elf))
    yield board
    board.close()
