"""rp2040js as a board: an RP2040 with its clocks. The library runs in a small program,
firmware/emulators/rp2040js.cjs.
"""

from __future__ import annotations

import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

from stepwell.boards import Board
from stepwell.errors import LinkError
from stepwell.link.emulator import Emulator, cannot_run, flash_file, module_command, serving
from stepwell.sources import firmware

COUNTS = "cycles"  # what a step costs there
INSTALL = "install Node.js 18 or later, then npm install -g rp2040js"


def why_not(board: Board) -> str | None:
    """The reason why rp2040js cannot run ``board`` here, with what to install; None when it can."""
    if not board.words("RP2040JS"):
        return cannot_run(f"{board.name} is no RP2040, so rp2040js cannot run it", board)
    return None if is_installed() else f"rp2040js is not installed: {INSTALL}"


@lru_cache(maxsize=1)
def is_installed() -> bool:
    """Node.js, and the library where npm puts it: here, or with -g."""
    return (
        shutil.which("node") is not None
        and subprocess.run(_program(), capture_output=True, check=False).returncode == 0
    )


def start_rp2040js(board: Board, image: Path) -> Emulator:
    """Run ``image``; the UART waits for one client on ``Emulator.url``. LinkError when rp2040js is
    missing or refuses.
    """
    reason = why_not(board)
    if reason:
        raise LinkError(reason)
    with flash_file(image) as flash:
        command = module_command("stepwell.link.leash", *_program(), flash, board.text("UART_BAUD"))
        return serving(f"rp2040js for {board.name}", command, COUNTS)


def _program() -> list[str]:
    return ["node", str(firmware() / "emulators" / "rp2040js.cjs")]
