"""A line that loses and flips bytes in both directions: outputs stay equal and the board steps
exactly as often as asked.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time

import numpy as np
import pytest
from conftest import full
from stepwell.boards import load_board
from stepwell.link import connect, sim
from stepwell.link.emulators import EMULATORS

from .conftest import need

BURST_BYTES = 30


class LossyProxy:
    """Between one client and ``port``: drops and flips single bytes, the same ones for the same
    seed.

    ``drop``, ``flip``: probability at each byte; ``burst``: that noise replaces it and some more in
    a row.
    """

    def __init__(
        self, port: int, seed: int, drop: float = 1e-3, flip: float = 1e-4, burst: float = 0.0
    ):
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.dropped = self.flipped = self.bursts = 0
        self._board_port, self._seed, self._rates = port, seed, (drop, flip, burst)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        client, _ = self._server.accept()
        board = socket.create_connection(("127.0.0.1", self._board_port))
        for end in (client, board):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        back = threading.Thread(
            target=self._pump, args=(board, client, self._seed + 1), daemon=True
        )
        back.start()
        self._pump(client, board, self._seed)

    def _pump(self, source: socket.socket, sink: socket.socket, seed: int) -> None:
        rng = random.Random(seed)
        try:
            while data := source.recv(4096):
                sink.sendall(bytes(self._spoil(data, rng)))
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def _spoil(self, data: bytes, rng: random.Random):
        drop, flip, burst = self._rates
        noisy = 0
        for byte in data:
            fate = rng.random()
            if noisy:
                noisy -= 1
                yield rng.randrange(256)
            elif fate > 1 - burst:
                self.bursts += 1
                noisy = BURST_BYTES
            elif fate < drop:
                self.dropped += 1
            elif fate < drop + flip:
                self.flipped += 1
                yield byte ^ 1 << rng.randrange(8)
            else:
                yield byte

    def close(self) -> None:
        self._server.close()


@pytest.mark.parametrize("port", full(["sim:netduinoplus2", "qemu:microbit"], "sim:netduinoplus2"))
def test_each_step_happens_once(port, images, turbofan, flights):
    need(port)
    kind, _, board = port.partition(":")
    x_q = np.concatenate([turbofan.quantize(flight) for flight in flights])[:1200]
    emulator = EMULATORS[kind].start(load_board(board), images(turbofan, board).elf)
    proxy = LossyProxy(emulator.port, seed=11)
    try:
        with connect(f"socket://127.0.0.1:{proxy.port}", model=turbofan) as link:
            link.reset()
            y_q = link.step(x_q)
            state, stat = link.get_state(), link.stat()
    finally:
        proxy.close()
        emulator.close()
    stream = turbofan.stream()
    assert np.array_equal(y_q, stream.run_q(x_q)) and state == stream.save()
    assert stat.steps == len(x_q)
    assert proxy.dropped > 10 and proxy.flipped > 0, "the line was too good to prove anything"
    assert stat.repeats > 0 and stat.damaged > 0 and link.retries >= stat.repeats


@pytest.mark.full
def test_each_of_many_frames_counts_once(images, small_model):
    """One step a frame; STEPWELL_FRAMES=1000000 for the run that docs/hil.md records (-s prints the
    counts).
    """
    need("sim:microbit")
    n = int(os.environ.get("STEPWELL_FRAMES", "2500"))
    x_q = np.random.default_rng(6).integers(-20000, 20000, (n, small_model.n_in)).astype(np.int16)
    emulator = sim.start_sim(load_board("microbit"), images(small_model, "microbit").elf)
    proxy = LossyProxy(emulator.port, seed=12, drop=5e-5, flip=5e-5, burst=1e-5)
    started = time.monotonic()
    try:
        with connect(f"socket://127.0.0.1:{proxy.port}", model=small_model) as link:
            link.reset()
            y_q = np.concatenate([link.step(row[None]) for row in x_q])
            state, stat, retries = link.get_state(), link.stat(), link.retries
    finally:
        proxy.close()
        emulator.close()
    print(
        f"{n} frames in {time.monotonic() - started:.0f} s: {proxy.dropped} bytes dropped, "
        f"{proxy.flipped} flipped,"
    )
    print(f"{proxy.bursts} bursts; {retries} requests sent again, {stat}")
    stream = small_model.stream()
    assert np.array_equal(y_q, stream.run_q(x_q)) and state == stream.save()
    assert stat.steps == n
    assert proxy.dropped > 0 and proxy.flipped > 0 and stat.repeats > 0, (
        "the line was too good to prove anything"
    )
