#!/usr/bin/env python3
"""What each board was built and run with, as a table in docs/boards.md: sizes, emulators, cost of a step, flash programs.

    python tools/board_table.py

Every cell comes from this run: the demo's model is built for each board with each compiler that is installed, streamed through
each emulator that is installed, and compared with the host, outputs and state. What is not installed stays empty.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from stepwell import convert
from stepwell.boards import Board, board_names, load_board
from stepwell.build import COMPILERS, Image, build, why_not
from stepwell.errors import StepwellError
from stepwell.hil import run_hil
from stepwell.link import connect
from stepwell.link.emulators import EMULATORS
from stepwell.model import Model
from stepwell.samples import load_samples

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "python" / "stepwell" / "demo"
PAGE = ROOT / "docs" / "boards.md"
BEGIN, END = "<!-- boards:begin -->\n", "<!-- boards:end -->"
STEPS = 60


def built(board: Board, compiler: str, model: Model, folder: Path) -> Image | str:
    """The image, or why there is none."""
    if board.words(f"CPU_{compiler.upper()}") == [] or why_not(compiler, board):
        return ""
    try:
        return build(model, board, folder, compiler)
    except StepwellError as error:
        return f"no: {str(error).splitlines()[0]}"


def emulated(board: Board, emulator: str, image: Image, model: Model, x: list) -> tuple[str, str]:
    """What a run says, and the cost of a step."""
    if EMULATORS[emulator].why_not(board):
        return "", ""
    with connect(f"{emulator}:{board.name}", model=model, image=image.elf) as link:
        report = run_hil(link, model, x)
    return f"{emulator} {'equal' if report.ok else 'DIFFERENT'}", f"{report.cost_per_step:.0f} {report.cost_unit}"


def line(name: str, model: Model, x: list) -> str:
    board = load_board(name)
    with tempfile.TemporaryDirectory() as folder:
        images = {compiler: built(board, compiler, model, Path(folder) / compiler) for compiler in COMPILERS}
        image = next((found for found in images.values() if isinstance(found, Image)), None)
        runs = [emulated(board, emulator, image, model, x) for emulator in EMULATORS] if image else []
    ran, costs = ([cell for cell in column if cell] for column in zip(*runs, strict=True)) if runs else ([], [])
    stack = f"{image.step_stack} B" if image and image.step_stack else ""
    sizes = f"{image.sizes.flash / 1000:.1f} kB, {image.sizes.ram} B" if image else ""
    compilers = ", ".join(
        compiler if isinstance(found, Image) else found for compiler, found in images.items() if found
    )
    cells = [name, board.label, compilers, sizes, stack, ", ".join(ran), ", ".join(dict.fromkeys(costs))]
    cells += ["yes" if board.has_update_area else "-", " ".join(board.words("FLASH_RUNNERS")) or "-"]
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    model = convert(DEMO / "turbofan.onnx", DEMO / "turbofan_calib.npz")
    x = [load_samples(DEMO / "turbofan_test.npz", model.n_in).sequences[0][:STEPS]]
    lines = [
        "| board | label | built by | flash, RAM | stack of a step | hil, emulated | a step | updates | flash programs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in board_names():
        print(name, file=sys.stderr, flush=True)
        lines.append(line(name, model, x))
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + after)
    return int(any("DIFFERENT" in row for row in lines))


if __name__ == "__main__":
    raise SystemExit(main())
