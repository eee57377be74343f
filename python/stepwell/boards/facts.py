"""Board facts: ``KEY = value`` lines of board.mk, in firmware/boards/NAME/ or a folder of your own.

``CORE`` names a file of firmware/cores, ``LIKE`` a relative: a board says what differs. What all
boards share is in firmware/flags.mk.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from stepwell.errors import BuildError, UnknownBoard
from stepwell.integer.packing import TARGETS
from stepwell.sources import firmware

LABELS = ("emulated", "built only", "seen on hardware")
EMULATOR_KEYS = {
    "qemu": "QEMU",
    "sim": "SIM_CPU",
    "simavr": "SIMAVR_MCU",
    "rp2040js": "RP2040JS",
}  # what makes one able to
NAME = re.compile("[A-Za-z0-9 ._+-]+")
# the same to Python, to C and to a linker script
NUMBER = re.compile("0[xX][0-9a-fA-F]+|0|[1-9][0-9]*")


def parse_facts(path: Path) -> dict[str, str]:
    """The assignments of a .mk file. BuildError, with file and line, on anything that is no comment
    and no ``KEY = value``.
    """
    facts = {}
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BuildError(f"{path}: not UTF-8 text: {error}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        fact = line.split("#", 1)[0].strip()
        if not fact:
            continue
        match = re.fullmatch(r"([A-Z][A-Z0-9_]*)\s*=\s*(.*)", fact)
        if match is None:
            raise BuildError(f"{path} line {number}: expected KEY = value, got {fact!r}")
        facts[match[1]] = match[2].strip()
    return facts


@dataclass(frozen=True)
class Board:
    """One board: its folder, and its facts by the keys of its board.mk."""

    folder: Path
    facts: dict[str, str]

    @property
    def name(self) -> str:
        return self.folder.name

    def text(self, key: str) -> str:
        """A fact, or BuildError when board.mk does not give it."""
        if key not in self.facts:
            raise BuildError(f"board {self.name}: its board.mk gives no {key}")
        return self.facts[key]

    def number(self, key: str) -> int:
        """A number, decimal or 0x; BuildError when it is none."""
        if not NUMBER.fullmatch(self.text(key)):
            raise BuildError(
                f"board {self.name}: {key} = {self.text(key)} is no number: write 8192 or 0x2000"
            )
        return int(self.text(key), 0)

    def words(self, key: str) -> list[str]:
        """A list of words; empty when board.mk does not give the key."""
        return self.facts.get(key, "").split()

    @cached_property
    def label(self) -> str:
        """One of LABELS; BuildError when board.mk claims something else."""
        label = self.text("LABEL")
        if label not in LABELS:
            raise BuildError(f"board {self.name}: LABEL = {label}: say one of {', '.join(LABELS)}")
        return label

    @property
    def core(self) -> str:
        """The core, as gcc names it: cortex-m0plus, rv32imac."""
        named = re.search(r"-m(?:cpu|arch|mcu)=([a-z0-9-]+)", self.facts.get("CPU_GCC", ""))
        return named[1] if named else self.text("CPU")

    @property
    def emulators(self) -> list[str]:
        """The emulators that can run it, installed here or not, by the names that URLs give them."""
        return [name for name, key in EMULATOR_KEYS.items() if self.words(key)]

    @property
    def has_update_area(self) -> bool:
        """Whether an image can be built that takes other models over the link (docs/update.md)."""
        return "UPDATE_BYTES" in self.facts and self.number("UPDATE_BYTES") > 0

    def without_update_area(self) -> Board:
        """The board for an image that keeps its model: all flash and RAM for that one."""
        return replace(
            self,
            facts={key: fact for key, fact in self.facts.items() if not key.startswith("UPDATE_")},
        )

    def check(self) -> None:
        """BuildError when a fact that must be a number is none, or CPU names no folder of
        firmware/cpu, or the name is no plain text; missing facts may never be needed.
        """
        if not NAME.fullmatch(self.text("NAME")):
            raise BuildError(
                f"board '{self.text('NAME')}': its name becomes C text: use letters, digits, "
                "spaces and . _ + - alone"
            )
        shared = flags()
        for key in (
            "QEMU_TIMER_HZ",
            "UF2_FAMILY",
            *shared["C_FACTS"].split(),
            *shared["LD_FACTS"].split(),
        ):
            if key in self.facts and key != "NAME":
                self.number(key)
        cpus = sorted(path.parent.name for path in (firmware() / "cpu").glob("*/link.ld.in"))
        if self.facts.get("CPU", cpus[0]) not in cpus:
            raise BuildError(
                f"board {self.name}: CPU = {self.text('CPU')}: firmware/cpu has: {', '.join(cpus)}"
            )

    @property
    def target(self) -> str:
        """The core, as ``emit --target`` names it; "any" for one that has no packing of its own."""
        return self.core if self.core in TARGETS else "any"

    @property
    def port(self) -> Path:
        """The C file with the board's functions: its own, or one that several boards share.
        BuildError when there is none.
        """
        shared = self.facts.get("PORT")
        path = firmware() / "ports" / f"{shared}.c" if shared else self.folder / "board.c"
        if not shared and not path.is_file() and "LIKE" in self.facts:
            path = _folder_of(self.facts["LIKE"]) / "board.c"
        if not path.is_file():
            raise BuildError(
                f"board {self.name}: no {path}; write it, or name a file of "
                f"{firmware() / 'ports'} by PORT"
            )
        return path

    @property
    def more_sources(self) -> list[Path]:
        """Further C files of every image, from MORE_SOURCES. BuildError when one is not in the
        board's folder.
        """
        paths = [self.folder / word for word in self.words("MORE_SOURCES")]
        for path in paths:
            if not path.is_file():
                raise BuildError(
                    f"board {self.name}: MORE_SOURCES names {path.name}, and there is no {path}"
                )
        return paths


def board_names() -> list[str]:
    return sorted(path.parent.name for path in (firmware() / "boards").glob("*/board.mk"))


def load_board(name: str) -> Board:
    """The board ``name``, or the one in the folder ``name`` when that holds a "/" (./myboard).

    UnknownBoard lists the boards; BuildError when its facts make no sense.
    """
    folder = Path(name).resolve() if "/" in name else _folder_of(name)
    if not name or not (folder / "board.mk").is_file():
        raise UnknownBoard(
            f"{_why_unknown(name, folder)}; there are: {', '.join(board_names())}, or a folder of "
            "your own, written with a slash: ./myboard"
        )
    board = Board(folder, {"NAME": folder.name} | _all_facts(folder / "board.mk"))
    board.check()
    return board


def _all_facts(path: Path) -> dict[str, str]:
    """A board's own facts, over those of its core, over those of its relative."""
    own = parse_facts(path)
    relative: dict[str, str] = {}
    if "LIKE" in own:
        if own["LIKE"] not in board_names():
            raise BuildError(f"{path}: LIKE = {own['LIKE']}: there are: {', '.join(board_names())}")
        relative = parse_facts(_folder_of(own["LIKE"]) / "board.mk")
        if "LIKE" in relative:
            raise BuildError(
                f"{path}: {own['LIKE']} is itself LIKE {relative['LIKE']}: name that one"
            )
    name = own.get("CORE", relative.get("CORE"))
    core = {} if name is None else _core_facts(path, name)
    return relative | core | own


def _core_facts(path: Path, name: str) -> dict[str, str]:
    cores = sorted(core.stem for core in (firmware() / "cores").glob("*.mk"))
    if name not in cores:
        raise BuildError(f"{path}: CORE = {name}: there are: {', '.join(cores)}")
    return parse_facts(firmware() / "cores" / f"{name}.mk")


def _folder_of(name: str) -> Path:
    return firmware() / "boards" / name


def _why_unknown(name: str, folder: Path) -> str:
    if "/" not in name:
        return f"no board '{name}'"
    if folder.is_file():
        return (
            f"{name} is a file: a board is the folder that it is in, {name[: name.rindex('/') + 1]}"
        )
    return f"{name} has no board.mk"


def flags() -> dict[str, str]:
    """Compiler flags and sources that all boards share."""
    return parse_facts(firmware() / "flags.mk")
