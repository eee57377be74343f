"""boards: what `stepwell boards` lists."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from stepwell.boards import board_names, flash, inventory, load_board
from stepwell.cli.commands import cli


@pytest.fixture
def plugged(monkeypatch):
    """A micro:bit, a USB adapter of unknown make, a built-in port, and a name without hardware."""

    def port(device, description, hwid, vid=None, pid=None):
        return SimpleNamespace(device=device, description=description, hwid=hwid, vid=vid, pid=pid)

    found = [
        port("/dev/ttyACM0", "BBC micro:bit CMSIS-DAP", "USB VID:PID=0D28:0204", 0x0D28, 0x0204),
        port("/dev/ttyS0", "n/a", "PNP0501"),
        port("/dev/ttyS1", "n/a", "n/a"),
        port("/dev/ttyUSB0", "adapter", "USB VID:PID=1234:0001", 0x1234, 1),
    ]
    monkeypatch.setattr(inventory.list_ports, "comports", lambda: found)


def listed(*options: str) -> str:
    done = CliRunner().invoke(cli, ["boards", *options], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_json(plugged, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda program: program if program == "avrdude" else None)
    found = json.loads(listed("--json"))
    assert [board["name"] for board in found["boards"]] == board_names()
    microbit = next(board for board in found["boards"] if board["name"] == "microbit")
    assert microbit == {
        "name": "microbit",
        "title": "BBC micro:bit v1, nRF51822, Cortex-M0",
        "label": "emulated",
        "core": "cortex-m0",
        "runners": ["pyocd", "openocd", "drive"],
    }
    ports = [(port["device"], port["vid_pid"], port["boards"]) for port in found["ports"]]
    assert ports == [
        ("/dev/ttyACM0", "0d28:0204", ["microbit"]),
        ("/dev/ttyS0", None, []),
        ("/dev/ttyUSB0", "1234:0001", []),
    ]
    tools = {tool["name"]: tool for tool in found["tools"]}
    assert tools["avrdude"]["installed"] and not tools["openocd"]["installed"]
    assert (
        tools["openocd"]["install"] == "apt-get install openocd"
        and tools["unicorn"]["kind"] == "emulator"
    )
    assert [tool["kind"] for tool in found["tools"]] == sorted(
        tool["kind"] for tool in found["tools"]
    )


def test_text(plugged, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda program: None)
    lines = [" ".join(line.split()) for line in listed().splitlines()]
    assert "/dev/ttyACM0 0d28:0204 BBC micro:bit CMSIS-DAP: could be microbit" in lines
    assert "/dev/ttyUSB0 1234:0001 adapter" in lines
    assert "arm-none-eabi-gcc compiler missing: apt-get install gcc-arm-none-eabi" in lines
    monkeypatch.setattr(inventory.list_ports, "comports", lambda: [])
    assert "none" in [line.strip() for line in listed().splitlines()]


def test_every_program_that_boards_name_is_listed():
    listed = {tool.name for tool in inventory.tools()}
    boards = [load_board(name) for name in board_names()]
    assert set(flash.INSTALL) == set(flash.RUNNERS) - set(flash.DRIVES) <= listed
    assert {board.words("QEMU")[0] for board in boards if board.words("QEMU")} <= listed
    assert {board.facts["GCC"] for board in boards if "GCC" in board.facts} <= listed
