"""inventory: which boards there are, what is plugged in, which tools are installed, and what to
type for the missing ones.
"""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import asdict, dataclass
from typing import Any

from serial.tools import list_ports

from stepwell.boards import Board, board_names, build, flash, load_board
from stepwell.link import qemu, rp2040js, sim, simavr


@dataclass(frozen=True)
class Port:
    """A serial port. ``vid_pid``: "0d28:0204", or None; ``boards``: those whose USB_IDS name it
    (several share a probe).
    """

    device: str
    description: str
    vid_pid: str | None
    boards: list[str]


@dataclass(frozen=True)
class Tool:
    """A program or Python package. ``kind``: compiler, emulator or flash; ``install``: what to
    type.
    """

    kind: str
    name: str
    installed: bool
    install: str


def inventory() -> dict[str, Any]:
    """``boards``, ``ports`` and ``tools`` as plain values."""
    boards = [load_board(name) for name in board_names()]
    return {
        "boards": [_facts(board) for board in boards],
        "ports": [asdict(port) for port in ports(boards)],
        "tools": [asdict(tool) for tool in tools()],
    }


def _facts(board: Board) -> dict[str, Any]:
    return {
        "name": board.name,
        "title": board.text("TITLE"),
        "label": board.label,
        "core": board.core,
        "runners": board.words("FLASH_RUNNERS"),
    }


def ports(boards: list[Board]) -> list[Port]:
    """The serial ports of this machine that have hardware behind them."""
    found = []
    for port in sorted(list_ports.comports(), key=lambda port: port.device):
        if port.hwid == "n/a":  # a name that the kernel gives without hardware
            continue
        vid_pid = f"{port.vid:04x}:{port.pid:04x}" if port.vid is not None else None
        fitting = [board.name for board in boards if vid_pid in board.words("USB_IDS")]
        found.append(Port(port.device, port.description, vid_pid, fitting))
    return found


def tools() -> list[Tool]:
    """Cross compilers, emulators and flash programs that some board or command can use."""
    apt = "apt-get install {}".format
    packages = [
        ("compiler", "ziglang", "pip install ziglang"),
        ("emulator", "unicorn", sim.INSTALL),
    ]
    programs = [
        *(("compiler", program, apt(package)) for program, package in build.PACKAGES.items()),
        *(("emulator", program, apt(package)) for program, package in qemu.PACKAGES.items()),
        *(("flash", program, how) for program, how in flash.INSTALL.items()),
    ]
    found = [Tool("emulator", "simavr", simavr.is_installed(), simavr.INSTALL)]
    found += [Tool("emulator", "rp2040js", rp2040js.is_installed(), rp2040js.INSTALL)]
    found += [
        Tool(kind, name, importlib.util.find_spec(name) is not None, how)
        for kind, name, how in packages
    ]
    found += [Tool(kind, name, shutil.which(name) is not None, how) for kind, name, how in programs]
    return sorted(found, key=lambda tool: ("compiler", "emulator", "flash").index(tool.kind))
