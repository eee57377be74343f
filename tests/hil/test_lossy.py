"""A line that loses and flips bytes in both directions: outputs stay equal and the board steps exactly as often as asked."""

from __future__ import annotations

import random
import socket
import threading

import numpy as np
import pytest
from stepwell.boards import load_board
from stepwell.link import connect
from stepwell.link.urls import EMULATORS

from .conftest import need

DROP, FLIP = 1e-3, 1e-4
BURST_BYTES = 30


class LossyProxy:
    """Between one client and ``port``: drops and flips single bytes, the same ones for the same seed.

    ``burst``: probability at each byte that noise replaces some bytes in a row.
    """

    def __init__(self, port: int, seed: int, burst: float = 0.0):
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.dropped = self.flipped = self.bursts = 0
        self._board_port, self._seed, self._burst = port, seed, burst
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        client, _ = self._server.accept()
        board = socket.create_connection(("127.0.0.1", self._board_port))
        for end in (client, board):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        back = threading.Thread(target=self._pump, args=(board, client, self._seed + 1), daemon=True)
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
        noisy = 0
        for byte in data:
            fate = rng.random()
            if noisy:
                noisy -= 1
                yield rng.randrange(256)
            elif fate > 1 - self._burst:
                self.bursts += 1
                noisy = BURST_BYTES
            elif fate < DROP:
                self.dropped += 1
            elif fate < DROP + FLIP:
                self.flipped += 1
                yield byte ^ 1 << rng.randrange(8)
            else:
                yield byte

    def close(self) -> None:
        self._server.close()


@pytest.mark.parametrize("port", ["sim:netduinoplus2", "qemu:microbit"])
def test_each_step_happens_once(port, images, turbofan, flights):
    need(port)
    kind, _, board = port.partition(":")
    x_q = np.concatenate([turbofan.quantize(flight) for flight in flights])[:1200]
    emulator = EMULATORS[kind](load_board(board), images(turbofan, board).elf)
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
