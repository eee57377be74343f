"""The emulators, by the names that URLs give them; the first that can run a board is the preferred one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stepwell.boards import Board
from stepwell.link import qemu, sim, simavr
from stepwell.link.emulator import Emulator


@dataclass(frozen=True)
class Kind:
    """``why_not``: the reason why it cannot run a board here, or None. ``start``: runs an ELF; LinkError when it cannot."""

    why_not: Callable[[Board], str | None]
    start: Callable[[Board, Path], Emulator]


EMULATORS = {
    "qemu": Kind(qemu.why_not, qemu.start_qemu),
    "sim": Kind(sim.why_not, sim.start_sim),
    "simavr": Kind(simavr.why_not, simavr.start_simavr),
}


def emulator_for(board: Board) -> str | None:
    """The name of the first emulator that can run ``board`` on this machine."""
    return next((name for name, kind in EMULATORS.items() if kind.why_not(board) is None), None)
