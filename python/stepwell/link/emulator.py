"""A running emulator: a process that serves a board's UART on a TCP port, and how to get rid of it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from stepwell.boards import Board
from stepwell.errors import LinkError

STOP_SECONDS = 5


class Emulator:
    """``command`` as a child process. It holds the other end of a pipe (see leash.py), so it ends
    with this process at the latest.

    ``ticks_per_unit``: how far the board's tick counter moves for each ``unit``: an executed
    instruction, or a CPU cycle where the emulator knows those; exact.
    """

    def __init__(self, command: list[str], ticks_per_unit: float, unit: str = "instructions"):
        self.ticks_per_unit, self.unit = ticks_per_unit, unit
        self.port = 0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)
        }
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
        )
        self._end = weakref.finalize(self, _stop, self._process, self._errors)

    @property
    def url(self) -> str:
        """For pyserial."""
        return f"socket://127.0.0.1:{self.port}"

    def read_line(self) -> str:
        """One line of its standard output; empty when it has ended."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode(errors="replace")

    def alive(self) -> bool:
        return self._process.poll() is None

    def wait(self, seconds: float) -> None:
        """Give a process that is ending the time to say why."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def last_words(self) -> str:
        """The end of what it wrote to stderr."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return "; ".join(lines[-3:])

    def close(self) -> None:
        """End the process and wait for it."""
        self._end()


def _stop(process: subprocess.Popen, errors) -> None:
    with contextlib.suppress(OSError):
        process.stdin.close()  # the leash: the child goes, and takes QEMU along
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()  # not SIGKILL, which would leave QEMU alone
        process.wait()
    process.stdout.close()
    errors.close()


def module_command(module: str, *arguments: str | Path) -> list[str]:
    """``python -m module arguments`` with this interpreter; runpy need not say that the package
    knows the module already.
    """
    return [
        sys.executable,
        "-W",
        "ignore::RuntimeWarning:runpy",
        "-m",
        module,
        *(str(argument) for argument in arguments),
    ]


@contextlib.contextmanager
def flash_file(image: Path) -> Iterator[Path]:
    """What an ELF puts into flash, as a file for an emulator that reads it when it starts; then the
    file goes, with its folder.
    """
    from stepwell.boards.build import flash_bytes

    with tempfile.TemporaryDirectory(prefix="stepwell-flash-") as folder:
        flash = Path(folder) / "flash.bin"
        flash.write_bytes(flash_bytes(image))
        yield flash


def serving(what: str, command: list[str], unit: str = "instructions") -> Emulator:
    """Run ``command``, which prints "port N" when a board's UART waits there for one client; its
    ticks are ``unit``.

    LinkError, with its last words, when it does not come up; ``what`` names it.
    """
    emulator = Emulator(command, ticks_per_unit=1.0, unit=unit)
    line = emulator.read_line().split()
    if not line:
        raise failed(emulator, what)
    emulator.port = int(line[1])
    return emulator


def failed(emulator: Emulator, what: str) -> LinkError:
    """Close the emulator; the error that says why it did not come up."""
    emulator.wait(1)
    words = emulator.last_words() or "it said nothing"
    emulator.close()
    return LinkError(f"{what} did not start: {words}")


def cannot_run(why: str, board: Board) -> str:
    """``why`` an emulator cannot run ``board``, and which ones can."""
    others = " or ".join(f"{name}:{board.name}" for name in board.emulators)
    return f"{why}: use {others}" if others else why


def wait_until(condition, seconds: float) -> bool:
    """Poll ``condition`` for at most ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False
