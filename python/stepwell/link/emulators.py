"""The emulators, by the names that URLs give them; the first that can run a board is the preferred
one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stepwell.boards import Board
from stepwell.link import qemu, rp2040js, sim, simavr
from stepwell.link.emulator import Emulator


@dataclass(frozen=True)
class Kind:
    """``why_not``: the reason why it cannot run a board here, or None. ``start``: runs an ELF;
    LinkError when it cannot. ``counts``: the unit of what a step costs there.
    """

    why_not: Callable[[Board], str | None]
    start: Callable[[Board, Path], Emulator]
    counts: str


EMULATORS = {
    "qemu": Kind(qemu.why_not, qemu.start_qemu, "instructions"),
    "sim": Kind(sim.why_not, sim.start_sim, "instructions"),
    "simavr": Kind(simavr.why_not, simavr.start_simavr, simavr.COUNTS),
    "rp2040js": Kind(rp2040js.why_not, rp2040js.start_rp2040js, rp2040js.COUNTS),
}


def instruction_counter_for(board: Board) -> str | None:
    """The name of the first emulator that can run ``board`` on this machine and counts
    instructions.
    """
    counting = ((name, kind) for name, kind in EMULATORS.items() if kind.counts == "instructions")
    return next((name for name, kind in counting if kind.why_not(board) is None), None)
