"""Where the C trees are: inside the installed package, or in the checkout of an editable install."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def csrc() -> Path:
    """The C library."""
    return _tree("csrc")


def firmware() -> Path:
    """The device program, the board ports and the CPU start-up code."""
    return _tree("firmware")


def _tree(name: str) -> Path:
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent.parent / name
