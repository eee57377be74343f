"""What a step of the user's model costs on each core: counted in an emulator where there is one,
else estimated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stepwell.boards import Board, board_names, load_board
from stepwell.boards.build import no_compiler
from stepwell.errors import BuildError, LinkError, WrongUse
from stepwell.link import connect
from stepwell.link.emulators import EMULATORS, instruction_counter_for
from stepwell.model import Model
from stepwell.report import cost

# cycles for an instruction: cores differ, and flash with wait states makes it more
LIKELY_CPI = 1.5
STEPS = 5


@dataclass(frozen=True)
class Figure:
    """One core's cost. ``how``: the emulator's URL, or "estimated", then ``error`` is the
    estimate's relative error.
    """

    core: str
    how: str
    instructions_per_step: int
    error: float
    stack_bytes: int | None = None
    note: str = ""

    @property
    def is_measured(self) -> bool:
        return self.how != "estimated"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"measured": self.is_measured}


@dataclass(frozen=True)
class Deadline:
    """``seconds`` for a step at ``hertz``."""

    seconds: float
    hertz: float

    def verdict(self, instructions: int) -> tuple[str, float, float]:
        """("meets", "may miss" or "misses", seconds at one cycle an instruction, seconds at
        LIKELY_CPI).
        """
        least = instructions / self.hertz
        likely = least * LIKELY_CPI
        word = (
            "misses" if least > self.seconds else "meets" if likely <= self.seconds else "may miss"
        )
        return word, least, likely


def bench(
    model: Model,
    cores: Iterable[str] | None = None,
    progress: Callable[[str], object] = lambda core: None,
) -> list[Figure]:
    """The cost of one step of ``model`` on ``cores`` (default: all that are known). WrongUse for an
    unknown core.
    """
    wanted = list(cores or cost.cores())
    for core in wanted:
        if core not in cost.cores():
            raise WrongUse(f"unknown core '{core}'; there are: {', '.join(cost.cores())}")
    figures = []
    for core in wanted:
        progress(core)
        figures.append(_figure(model, core))
    return figures


def _figure(model: Model, core: str) -> Figure:
    board, reason = _emulated(core)
    if board is not None:
        try:
            return _measured(model, core, board)
        except (BuildError, LinkError) as error:  # too large for the board or its link
            reason = str(error).splitlines()[0]
    return Figure(
        core, "estimated", cost.instructions_per_step(model, core), cost.error(core), note=reason
    )


def _emulated(core: str) -> tuple[Board | None, str]:
    """An emulated board with that core that can be built and run here, or the reason why there is
    none.
    """
    reason = "no emulated board has this core"
    for board in map(load_board, board_names()):
        if board.target != core or board.label != "emulated":
            continue
        missing = no_compiler(board) or (
            EMULATORS["qemu"].why_not(board) if instruction_counter_for(board) is None else None
        )
        if missing is None:
            return board, ""
        reason = missing
    return None, reason


def _measured(model: Model, core: str, board: Board) -> Figure:
    url = f"{instruction_counter_for(board)}:{board.name}"
    with connect(url, model=model) as link:
        link.reset()
        link.step(np.zeros((STEPS, model.n_in), np.int16))
        found = link.bench()
        return Figure(core, url, round(link.cost_per_step), 0.0, found.stack_bytes)
