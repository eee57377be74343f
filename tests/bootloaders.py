"""Bootloaders in software, for tests of flash programs: a TCP port that answers as the chip's own
bootloader would.

Written from ST's AN3155 (USART protocol of STM32 bootloaders) and Atmel's AVR061 (STK500 protocol,
version 1, of which optiboot answers a part). Both keep what was written in ``flash``, so that a
test compares bytes.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from functools import reduce
from operator import xor

QUICK_ACK = getattr(socket, "TCP_QUICKACK", None)  # Linux


class Bootloader:
    """One client after the other, until ``close``. ``refuse``: the command that is answered as the
    chip answers a failure.
    """

    FLASH_BYTES = 1 << 20

    def __init__(self, refuse: int | None = None):
        self.refuse = refuse
        self.flash = bytearray(b"\xff" * self.FLASH_BYTES)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._server.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            with client, contextlib.suppress(EOFError, ConnectionError):
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._client = client
                while True:
                    self.command()

    def command(self) -> None:
        raise NotImplementedError

    def get(self, n: int) -> bytes:
        if QUICK_ACK:  # a client that sends byte by byte waits 40 ms for each one otherwise
            self._client.setsockopt(socket.IPPROTO_TCP, QUICK_ACK, 1)
        data = self._client.recv(n, socket.MSG_WAITALL)
        if len(data) < n:
            raise EOFError
        return data

    def put(self, data: bytes) -> None:
        self._client.sendall(data)


class Stm32(Bootloader):
    """AN3155. ``started``: the address of a Go command."""

    ORIGIN, SYNC, ACK, NACK = 0x08000000, 0x7F, b"\x79", b"\x1f"
    GET, GET_ID, READ, GO, WRITE, ERASE = 0x00, 0x02, 0x11, 0x21, 0x31, 0x44
    started: int | None = None

    def command(self) -> None:
        code = self.get(1)[0]
        if code == self.SYNC:
            return self.put(self.ACK)
        known = {
            self.GET: lambda: self.put(
                bytes([6, 0x31, 0x00, 0x02, 0x11, 0x21, 0x31, 0x44]) + self.ACK
            ),
            self.GET_ID: lambda: self.put(b"\x01\x04\x13" + self.ACK),  # STM32F405
            self.READ: self._read,
            self.GO: self._go,
            self.WRITE: self._write,
            self.ERASE: self._erase,
        }
        if self.get(1)[0] != code ^ 0xFF or code not in known or code == self.refuse:
            return self.put(self.NACK)
        self.put(self.ACK)
        return known[code]()

    def _checked(self, n: int) -> bytes | None:
        """``n`` bytes whose check byte is right, answered; None, refused, when it is wrong."""
        data = self.get(n)
        right = reduce(xor, data[:-1]) ^ (0xFF if n == 2 else 0) == data[-1]
        self.put(self.ACK if right else self.NACK)
        return data[:-1] if right else None

    def _address(self) -> int:
        return int.from_bytes(self._checked(5) or b"", "big") - self.ORIGIN

    def _read(self) -> None:
        at, n = self._address(), (self._checked(2) or b"\0")[0] + 1
        # beyond: chip id and flash size
        self.put(bytes(self.flash[at : at + n]) if at < self.FLASH_BYTES else bytes(n))

    def _write(self) -> None:
        at, n = self._address(), self.get(1)
        data = self.get(n[0] + 1)
        right = reduce(xor, n + data) == self.get(1)[0]
        if right:
            erased = self.flash[at : at + len(data)]
            # writing clears bits
            self.flash[at : at + len(data)] = bytes(
                a & b for a, b in zip(erased, data, strict=True)
            )
        self.put(self.ACK if right else self.NACK)

    def _erase(self) -> None:
        if self.get(3) == b"\xff\xff\x00":
            self.flash[:] = b"\xff" * self.FLASH_BYTES
            self.put(self.ACK)
        else:
            self.put(self.NACK)

    def _go(self) -> None:
        self.started = self._address() + self.ORIGIN


ARGUMENTS = {0x41: 1, 0x42: 20, 0x45: 5, 0x55: 2, 0x56: 4}  # bytes after a command of STK500
KNOWN = {0x30, 0x50, 0x51, 0x64, 0x74, 0x75, *ARGUMENTS}


class Optiboot(Bootloader):
    """STK500 version 1. ``signature``: of the chip, an ATmega328P unless told. Its own place at the
    end of flash is locked.
    """

    FLASH_BYTES, PROGRAM_BYTES = 32 << 10, (32 << 10) - 512
    OK, FAILED, IN_SYNC, NO_SYNC, END = b"\x10", b"\x11", b"\x14", b"\x15", 0x20
    WRITE_PAGE, READ_PAGE, SIGNATURE = 0x64, 0x74, 0x75

    def __init__(self, refuse: int | None = None, signature: bytes = b"\x1e\x95\x0f"):
        self.signature, self._at = signature, 0
        super().__init__(refuse)

    def command(self) -> None:
        code = self.get(1)[0]
        if code not in KNOWN:
            return self.put(self.NO_SYNC)
        given = self.get(ARGUMENTS.get(code, 0))
        answer, done = b"", code != self.refuse
        if code in (self.WRITE_PAGE, self.READ_PAGE):
            n = int.from_bytes(self.get(2), "big")
            assert self.get(1) == b"F", "flash is all that the runner writes"
            page = slice(self._at, self._at + n)
            if code == self.WRITE_PAGE:
                data, done = self.get(n), done and page.stop <= self.PROGRAM_BYTES
                if done:
                    self.flash[page] = data
            else:
                answer = bytes(self.flash[page])
        elif code == 0x55:
            self._at = 2 * int.from_bytes(given, "little")  # in words
        elif code == self.SIGNATURE:
            answer = self.signature
        elif code in (0x41, 0x56):
            answer = b"\x03"
        if self.get(1)[0] != self.END:
            return self.put(self.NO_SYNC)
        return self.put(self.IN_SYNC + answer + (self.OK if done else self.FAILED))
