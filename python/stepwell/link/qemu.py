"""QEMU as a board. Each instruction takes 2^10 ns of its virtual time, so that timer ticks convert
to instructions exactly.
"""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

from stepwell.boards import Board
from stepwell.errors import LinkError
from stepwell.link.emulator import Emulator, cannot_run, failed, module_command, wait_until

ICOUNT_SHIFT = 10
START_SECONDS = 20
ATTEMPTS = 3  # another program may take the free port before QEMU does
PACKAGES = {"qemu-system-arm": "qemu-system-arm", "qemu-system-riscv32": "qemu-system-misc"}


def why_not(board: Board) -> str | None:
    """The reason why QEMU cannot run ``board`` here, with what to install; None when it can."""
    if not board.words("QEMU"):
        return cannot_run(f"QEMU has no machine for {board.name}", board)
    program = board.words("QEMU")[0]
    return (
        None
        if shutil.which(program)
        else f"{program} is not installed: apt-get install {PACKAGES.get(program, program)}"
    )


def start_qemu(board: Board, image: Path, *more: str) -> Emulator:
    """Run ``image``; the UART waits for one client on ``Emulator.url``. ``more``: options for QEMU.

    LinkError when QEMU is missing or refuses.
    """
    reason = why_not(board)
    if reason:
        raise LinkError(reason)
    ticks = board.number("QEMU_TIMER_HZ") * 1e-9 * (1 << ICOUNT_SHIFT)
    for _ in range(ATTEMPTS):
        port = _free_port()
        # without nodelay a step takes 50 ms
        line = f"tcp:127.0.0.1:{port},server=on,wait=on,nodelay=on"
        options = [
            "-nographic",
            "-monitor",
            "none",
            "-icount",
            f"shift={ICOUNT_SHIFT}",
            "-serial",
            line,
        ]
        command = module_command(
            "stepwell.link.leash", *board.words("QEMU"), *options, *more, "-kernel", image
        )
        emulator = Emulator(command, ticks)
        emulator.port = port
        if _says_waiting(emulator):
            return emulator
        error = failed(emulator, f"QEMU for {board.name}")
        if "in use" not in str(error):
            break
    raise error


def _says_waiting(emulator: Emulator) -> bool:
    """QEMU writes "waiting for connection" to stderr. A trial connection would be taken for the
    client.
    """
    wait_until(
        lambda: "waiting for connection" in emulator.last_words() or not emulator.alive(),
        START_SECONDS,
    )
    return emulator.alive()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
