"""simavr as a board: an AVR with exact cycle counts. Its library runs in a small C program,
firmware/emulators/simavr.c.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from stepwell.boards import Board
from stepwell.errors import LinkError
from stepwell.link.emulator import Emulator, cannot_run, flash_file, module_command, serving
from stepwell.sources import firmware

HEADER = "simavr/sim_avr.h"
INCLUDES = ("/usr/include", "/usr/local/include", "/opt/homebrew/include")
COUNTS = "cycles"  # what a step costs there
INSTALL = "apt-get install gcc libsimavr-dev libelf-dev"


def why_not(board: Board) -> str | None:
    """The reason why simavr cannot run ``board`` here, with what to install; None when it can."""
    if not board.words("SIMAVR_MCU"):
        return cannot_run(f"{board.name} is no AVR, so simavr cannot run it", board)
    return None if is_installed() else f"simavr is not installed: {INSTALL}"


def is_installed() -> bool:
    """Its library, and a compiler for the program around it."""
    return (
        any((Path(folder) / HEADER).is_file() for folder in INCLUDES)
        and shutil.which("cc") is not None
    )


def start_simavr(board: Board, image: Path) -> Emulator:
    """Run ``image``; the UART waits for one client on ``Emulator.url``. LinkError when simavr is
    missing or refuses.
    """
    reason = why_not(board)
    if reason:
        raise LinkError(reason)
    with flash_file(image) as flash:
        arguments = [_compiled(flash.parent), board.text("SIMAVR_MCU"), board.text("CPU_HZ"), flash]
        return serving(
            f"simavr for {board.name}", module_command("stepwell.link.leash", *arguments), COUNTS
        )


def _compiled(folder: Path) -> Path:
    """The runner. LinkError with the compiler's words."""
    program = folder / "simavr"
    command = [
        "cc",
        "-O2",
        firmware() / "emulators" / "simavr.c",
        "-o",
        program,
        "-lsimavr",
        "-lelf",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LinkError(f"simavr.c does not compile: {done.stderr.strip()[-400:]}; {INSTALL}")
    return program
