#!/usr/bin/env python3
"""What each board was built and run with, as a table in docs/boards.md: sizes, emulators, cost of a
step, flash programs.

    python tools/board_table.py            writes the table: every cell comes from this run
    python tools/board_table.py --check    exit 1 when a cell that needs no emulator is stale; builds with gcc, as CI does

The demo's model is built for each board with each compiler that is installed, streamed through each
emulator that is installed, and compared with the host, outputs and state. What is not installed
stays empty.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

from stepwell import convert
from stepwell.boards import Board, board_names, load_board
from stepwell.boards.build import COMPILERS, Image, build, why_not
from stepwell.errors import StepwellError
from stepwell.link import connect
from stepwell.link.emulators import EMULATORS
from stepwell.link.hil import run_hil
from stepwell.model import Model
from stepwell.samples import load_samples

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "python" / "stepwell" / "demo"
PAGE = ROOT / "docs" / "boards.md"
BEGIN, END = "<!-- boards:begin -->\n", "<!-- boards:end -->"
STEPS = 60
COLUMNS = (
    "board",
    "label",
    "built by",
    "flash, RAM",
    "stack: step, program",
    "hil, emulated",
    "a step",
    "updates",
    "flash programs",
)
FLASH_MAY_DIFFER = 0.03  # from one version of gcc to the next
SIZES = re.compile(r"([\d.]+) kB, (\d+) B")


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
    return (
        f"{emulator} {'equal' if report.ok else 'DIFFERENT'}",
        f"{report.cost_per_step:.0f} {report.cost_unit}",
    )


def told(board: Board, image: Image | None) -> dict[str, str]:
    """The cells that need no emulator."""
    return {
        "label": board.label,
        "flash, RAM": f"{image.sizes.flash / 1000:.1f} kB, {image.sizes.ram} B" if image else "",
        "stack: step, program": f"{image.step_stack} B, {image.program_stack} B"
        if image and image.step_stack
        else "",
        "updates": "yes" if board.has_update_area else "-",
        "flash programs": " ".join(board.words("FLASH_RUNNERS")) or "-",
    }


def line(name: str, model: Model, x: list) -> str:
    board = load_board(name)
    with tempfile.TemporaryDirectory() as folder:
        images = {
            compiler: built(board, compiler, model, Path(folder) / compiler)
            for compiler in COMPILERS
        }
        image = next((found for found in images.values() if isinstance(found, Image)), None)
        runs = (
            [emulated(board, emulator, image, model, x) for emulator in EMULATORS] if image else []
        )
    ran, costs = (
        ([cell for cell in column if cell] for column in zip(*runs, strict=True))
        if runs
        else ([], [])
    )
    compilers = ", ".join(
        compiler if isinstance(found, Image) else found
        for compiler, found in images.items()
        if found
    )
    cells = {
        "board": name,
        "built by": compilers,
        "hil, emulated": ", ".join(ran),
        "a step": ", ".join(dict.fromkeys(costs)),
    }
    cells |= told(board, image)
    return "| " + " | ".join(cells[column] for column in COLUMNS) + " |"


def write(model: Model) -> int:
    x = [load_samples(DEMO / "turbofan_test.npz", model.n_in).sequences[0][:STEPS]]
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for name in board_names():
        print(name, file=sys.stderr, flush=True)
        lines.append(line(name, model, x))
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + after)
    return int(any("DIFFERENT" in row for row in lines))


# ---- whether it is stale ----


def rows(page: str) -> dict[str, dict[str, str]]:
    """The table's cells by board and column."""
    table = page.partition(BEGIN)[2].partition(END)[0].splitlines()
    columns, _, *body = ([cell.strip() for cell in row.split("|")[1:-1]] for row in table)
    return {cells[0]: dict(zip(columns, cells, strict=True)) for cells in body}


def same(column: str, there: str, now: str) -> bool:
    """Equal, but for the flash."""
    old, new = SIZES.fullmatch(there), SIZES.fullmatch(now)
    if column != "flash, RAM" or not old or not new:
        return there == now
    return abs(float(new[1]) / float(old[1]) - 1) <= FLASH_MAY_DIFFER and old[2] == new[2]


def stale(row: dict[str, str], now: dict[str, str]) -> list[str]:
    """What is wrong with a row."""
    wrong = [column for column in now if not same(column, row.get(column, ""), now[column])]
    return [
        f"{column} is '{now[column]}', the table has '{row.get(column, '')}'" for column in wrong
    ]


def check(model: Model) -> int:
    table, failed = rows(PAGE.read_text()), False
    for name in sorted({*table, *board_names()}):
        if name not in table or name not in board_names():
            found = [
                "the table has no such row" if name in board_names() else "there is no such board"
            ]
        elif reason := why_not("gcc", load_board(name)):
            print(f"{name}: not checked: {reason}")
            continue
        else:
            found = checked(load_board(name), table[name], model)
        failed |= bool(found)
        print(f"{name}: {'STALE: ' + '; '.join(found) if found else 'fresh'}", flush=True)
    if failed:
        print(
            f"{PAGE.relative_to(ROOT)} is stale: run `python tools/board_table.py` where every "
            "emulator is installed"
        )
    return int(failed)


def checked(board: Board, row: dict[str, str], model: Model) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        image = built(board, "gcc", model, Path(folder))
    return [image] if isinstance(image, str) else stale(row, told(board, image))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare what needs no emulator with what is written there",
    )
    model = convert(DEMO / "turbofan.onnx", DEMO / "turbofan_calib.npz")
    return check(model) if parser.parse_args().check else write(model)


if __name__ == "__main__":
    raise SystemExit(main())
