"""Boards: their facts, and what builds, flashes and measures programs for them."""

from stepwell.boards.facts import (
    LABELS,
    NAME,
    Board,
    board_names,
    flags,
    load_board,
    parse_facts,
)

__all__ = ["LABELS", "NAME", "Board", "board_names", "flags", "load_board", "parse_facts"]
