"""The result of hardware-in-the-loop runs as one page without scripts: ``stepwell hil --html`` and
``pytest --hil-html``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from stepwell._version import __version__
from stepwell.errors import StepwellError
from stepwell.files import write_whole
from stepwell.link.hil import HilReport
from stepwell.text import render

OUTCOMES = ("passed", "failed", "error", "skipped")


@dataclass(frozen=True)
class Run:
    """One line of the page. ``outcome``: one of OUTCOMES; ``facts``: what is known of it, in
    columns; ``text``: why it failed.
    """

    name: str
    outcome: str
    facts: dict[str, str] = field(default_factory=dict)
    text: str = ""


def run_of(port: str, result: HilReport | StepwellError) -> Run:
    """The line of one board."""
    if isinstance(result, StepwellError):
        return Run(port, "error", {}, str(result))
    facts = {
        "board": result.board,
        "model": result.model_id,
        "sequences": str(result.sequences),
        "steps": str(result.steps),
        **(
            {"a step": f"{result.cost_per_step:.0f} {result.cost_unit}"} if result.cost_unit else {}
        ),
        **(
            {"stack of a step": f"{result.stack_bytes} B"} if result.stack_bytes is not None else {}
        ),
        "RAM of the stream": f"{result.ram_bytes} B",
        "frames": str(result.frames),
        "damaged": str(result.damaged_at_board + result.damaged_here),
        "sent again": str(result.retries),
        "seconds": f"{result.seconds:.1f}",
    }
    difference = "" if result.ok else f"{result.mismatches} values differ; {result.first}"
    return Run(port, "passed" if result.ok else "failed", facts, difference)


def write_page(path: str | Path, title: str, runs: Iterable[Run]) -> Path:
    """Write the page; it needs no other file. OSError when it cannot be written."""
    rows = list(runs)
    columns = list(dict.fromkeys(column for run in rows for column in run.facts))
    counts = {outcome: sum(run.outcome == outcome for run in rows) for outcome in OUTCOMES}
    page = render(
        "hil.html.j2", title=title, runs=rows, columns=columns, counts=counts, version=__version__
    )
    return write_whole(path, page)
