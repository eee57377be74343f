"""rfc2217://: a board on another computer's serial port, which pyserial's own server shares over
the network.
"""

from __future__ import annotations

import socket
import threading

import pytest
import serial
from serial import rfc2217
from stepwell.boards import load_board
from stepwell.link import connect, sim
from stepwell.link.hil import run_hil

from .conftest import need


class PortServer:
    """Shares a serial port with one client, as pyserial's example of a server does it."""

    def __init__(self, port: serial.SerialBase):
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"rfc2217://127.0.0.1:{self._server.getsockname()[1]}"
        self._port = port
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        self._client, _ = self._server.accept()
        self._client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._manager = rfc2217.PortManager(self._port, self)
        threading.Thread(target=self._from_port, daemon=True).start()
        try:
            while data := self._client.recv(1024):
                self._port.write(b"".join(self._manager.filter(data)))
        except OSError:
            pass

    def _from_port(self) -> None:
        try:
            while True:
                data = self._port.read(max(1, self._port.in_waiting))
                if data:
                    self.write(b"".join(self._manager.escape(data)))
        except (
            OSError,
            TypeError,
            AttributeError,
        ):  # a pyserial socket port that was closed by another thread
            pass

    def write(self, data: bytes) -> None:
        """Also called by PortManager, with its own answers."""
        self._client.sendall(data)

    def close(self) -> None:
        self._server.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:serial")
def test_board_behind_rfc2217(images, turbofan, flights):
    need("sim:netduinoplus2")
    emulator = sim.start_sim(load_board("netduinoplus2"), images(turbofan, "netduinoplus2").elf)
    port = serial.serial_for_url(emulator.url, timeout=0.05)
    server = PortServer(port)
    try:
        with connect(server.url, model=turbofan) as link:
            report = run_hil(link, turbofan, flights[:1])
    finally:
        server.close()
        port.close()
        emulator.close()
    assert report.ok and report.board == "netduinoplus2" and report.steps == len(flights[0])
    assert report.cost_unit == "ticks", "a board behind a network may be an emulator"
