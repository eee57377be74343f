"""tools/board_table.py --check: whether the table in docs/boards.md is what the boards are now."""

from __future__ import annotations

import sys

import pytest
from conftest import ROOT, skip_for

sys.path.insert(0, str(ROOT / "tools"))
import board_table
from stepwell.boards import board_names, load_board
from stepwell.boards.build import Image, why_not

BOARD = "mps2-an385"


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A page with one board's row, which the test writes."""
    file = tmp_path / "boards.md"
    monkeypatch.setattr(board_table, "PAGE", file)
    monkeypatch.setattr(board_table, "ROOT", tmp_path)
    monkeypatch.setattr(board_table, "board_names", lambda: [BOARD])

    def write(**cells: str) -> None:
        row = dict.fromkeys(board_table.COLUMNS, "") | cells
        head = f"| {' | '.join(row)} |\n{'|---' * len(row)}|\n"
        file.write_text(
            f"{board_table.BEGIN}{head}| {' | '.join(row.values())} |\n{board_table.END}\n"
        )

    return write


@pytest.fixture(scope="module")
def image(turbofan, tmp_path_factory) -> Image:
    skip_for(why_not("gcc", load_board(BOARD)))
    found = board_table.built(load_board(BOARD), "gcc", turbofan, tmp_path_factory.mktemp("image"))
    assert isinstance(found, Image), found
    return found


@pytest.fixture
def right(image, monkeypatch) -> dict[str, str]:
    """The row of an image that is built once."""
    monkeypatch.setattr(board_table, "built", lambda *_: image)
    return {"board": BOARD} | board_table.told(load_board(BOARD), image)


def test_fresh_rows(page, right, turbofan, capsys):
    flash, ram = right["flash, RAM"].split(" kB, ")
    for factor in (0.975, 1.0, 1.025):
        page(**right | {"flash, RAM": f"{float(flash) * factor:.2f} kB, {ram}"})
        assert board_table.check(turbofan) == 0
    assert capsys.readouterr().out == f"{BOARD}: fresh\n" * 3


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("label", "seen on hardware"),
        ("flash, RAM", "1.0 kB, {ram}"),
        ("flash, RAM", "{flash} kB, 1 B"),
        ("flash, RAM", ""),
        ("stack: step, program", "8 B, 9 B"),
        ("updates", "yes, over the air"),
        ("flash programs", "openocd"),
    ],
)
def test_stale_cells_are_named_with_what_to_run(column, cell, page, right, turbofan, capsys):
    flash, ram = right["flash, RAM"].split(" kB, ")
    cell = cell.format(flash=flash, ram=ram)
    page(**right | {column: cell})
    assert board_table.check(turbofan) == 1
    told, advice = capsys.readouterr().out.splitlines()
    assert told == f"{BOARD}: STALE: {column} is '{right[column]}', the table has '{cell}'"
    assert "python tools/board_table.py" in advice


def test_rows_without_a_board_and_boards_without_a_row(page, turbofan, capsys):
    page(board="gone")
    assert board_table.check(turbofan) == 1
    out = capsys.readouterr().out
    assert (
        "gone: STALE: there is no such board" in out
        and f"{BOARD}: STALE: the table has no such row" in out
    )


def test_without_a_compiler_a_row_is_not_checked(page, turbofan, capsys, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda program: None)
    page(board=BOARD)
    assert board_table.check(turbofan) == 0
    assert capsys.readouterr().out.startswith(
        f"{BOARD}: not checked: arm-none-eabi-gcc is not installed"
    )


def test_the_page_has_the_columns_and_boards_that_the_tool_writes():
    table = board_table.rows(board_table.PAGE.read_text())
    assert sorted(table) == board_names()
    assert all(tuple(row) == board_table.COLUMNS for row in table.values())
