"""flash: which programs can write an image to a board, and with which arguments. Pure functions;
the programs do the rest.

A runner is (board, files, port) -> the command. The keys of board.mk that it reads are in
docs/boards.md.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stepwell.boards import Board
from stepwell.boards.build import image_board, image_files
from stepwell.errors import BuildError, PortMissing, WrongUse


@dataclass(frozen=True)
class Files:
    """An image as flash tools want it: ``elf``, and what `stepwell build` wrote beside it."""

    elf: Path

    @property
    def bin(self) -> Path:
        return self.elf.with_suffix(".bin")

    @property
    def hex(self) -> Path:
        return self.elf.with_suffix(".hex")

    @property
    def uf2(self) -> Path:
        return self.elf.with_suffix(".uf2")


Runner = Callable[[Board, Files, str | None], list[str]]


def openocd(board: Board, files: Files, port: str | None) -> list[str]:
    """``port``: serial number of the probe."""
    configs = [word for file in board.words("OPENOCD_FILES") for word in ("-f", file)]
    probe = ["-c", f"adapter serial {port}"] if port else []
    return ["openocd", *configs, *probe, "-c", f"program {{{files.elf}}} verify reset exit"]


def pyocd(board: Board, files: Files, port: str | None) -> list[str]:
    """``port``: id of the probe."""
    probe = ["--uid", port] if port else []
    return ["pyocd", "flash", "--target", board.text("PYOCD_TARGET"), *probe, str(files.hex)]


def st_flash(board: Board, files: Files, port: str | None) -> list[str]:
    """``port``: serial number of the ST-LINK."""
    probe = ["--serial", port] if port else []
    return ["st-flash", "--reset", *probe, "write", str(files.bin), board.text("FLASH_ORIGIN")]


def dfu_util(board: Board, files: Files, port: str | None) -> list[str]:
    """The chip's USB bootloader. ``port``: USB serial number."""
    probe = ["--serial", port] if port else []
    target = ["--device", board.text("DFU_DEVICE"), "--alt", board.text("DFU_ALT")]
    where = f"{board.text('FLASH_ORIGIN')}:leave"
    return ["dfu-util", *target, *probe, "--dfuse-address", where, "--download", str(files.bin)]


def stm32loader(board: Board, files: Files, port: str | None) -> list[str]:
    """The serial bootloader in an STM32's ROM (ST AN3155). ``port``: serial port."""
    family = ["--family", board.text("STM32LOADER_FAMILY")]
    at = board.text("FLASH_ORIGIN")
    jobs = ["--erase", "--write", "--verify", "--address", at, "--go-address", at]
    return ["stm32loader", "--port", port or PORT, *family, *jobs, str(files.bin)]


def esptool(board: Board, files: Files, port: str | None) -> list[str]:
    """The bootloader in an ESP's ROM. ``port``: serial port."""
    chip = ["--chip", board.text("ESPTOOL_CHIP")]
    return [
        "esptool",
        *chip,
        "--port",
        port or PORT,
        "write-flash",
        board.text("ESPTOOL_OFFSET"),
        str(files.bin),
    ]


def avrdude(board: Board, files: Files, port: str | None) -> list[str]:
    """A bootloader or a programmer of AVRs. ``port``: serial port, net:HOST:PORT, or usb."""
    programmer = board.text("AVRDUDE_PROGRAMMER")
    baud = ["-b", board.text("AVRDUDE_BAUD")] if "AVRDUDE_BAUD" in board.facts else []
    keep = ["-D"] if programmer in AVR_BOOTLOADERS else []
    target = ["-p", board.text("AVRDUDE_PART"), "-c", programmer, "-P", port or PORT, *baud]
    return ["avrdude", *target, *keep, "-U", f"flash:w:{files.hex}:i"]


def picotool(board: Board, files: Files, port: str | None) -> list[str]:
    """An RP2040 that waits in BOOTSEL mode. ``port``: its USB serial number."""
    probe = ["--ser", port] if port else []
    return ["picotool", "load", "-v", "-x", str(files.uf2), *probe]


def drive(board: Board, files: Files, port: str | None) -> list[str]:
    """Drag and drop of the .hex onto the USB drive of a debug probe. ``port``: where it is mounted."""
    return _copy(files.hex, board, port)


def uf2(board: Board, files: Files, port: str | None) -> list[str]:
    """Drag and drop of the .uf2 onto the USB drive of a bootloader. ``port``: where it is mounted."""
    return _copy(files.uf2, board, port)


def _copy(image: Path, board: Board, place: str | None) -> list[str]:
    """This module is the program."""
    return [
        sys.executable,
        "-m",
        "stepwell.boards.flash",
        str(image),
        place or str(mounted_drive(board.text("DRIVE_LABEL"))),
    ]


def mounted_drive(label: str) -> Path:
    """Where a drive with that label is, or would be, mounted."""
    user = os.environ.get("USER", "")
    places = [
        Path("/media") / user / label,
        Path("/run/media") / user / label,
        Path("/media") / label,
        Path("/Volumes") / label,
    ]
    return next((place for place in places if place.is_dir()), places[0])


def copy_to_drive(image: Path, drive: Path) -> None:
    """Copy onto a board's drive, which is a folder with a file that says so; BuildError when it is
    not that.
    """
    marks = ("INFO_UF2.TXT",) if image.suffix == ".uf2" else ("DETAILS.TXT", "MICROBIT.HTM")
    if not any((drive / name).is_file() for name in marks):
        raise BuildError(
            f"{drive} is no board's drive: connect the board, or name the place with --port"
        )
    shutil.copyfile(image, drive / image.name)


RUNNERS: dict[str, Runner] = {
    "openocd": openocd,
    "pyocd": pyocd,
    "st-flash": st_flash,
    "dfu-util": dfu_util,
    "stm32loader": stm32loader,
    "esptool": esptool,
    "avrdude": avrdude,
    "picotool": picotool,
    "drive": drive,
    "uf2": uf2,
}
INSTALL = {  # program -> what to type
    "openocd": "apt-get install openocd",
    "pyocd": "pip install pyocd",
    "st-flash": "apt-get install stlink-tools",
    "dfu-util": "apt-get install dfu-util",
    "stm32loader": "pip install stm32loader",
    "esptool": "pip install esptool",
    "avrdude": "apt-get install avrdude",
    "picotool": "apt-get install picotool (Debian 13 and later), or from github.com/raspberrypi/picotool",
}
DRIVES = ("drive", "uf2")  # need no program, but a drive
NEED_PORT = ("stm32loader", "esptool", "avrdude")  # find no board by themselves
PORT = "PORT"  # stands for the port in the command of a dry run
# programmers of avrdude that erase page by page; a chip erase is not for them
AVR_BOOTLOADERS = (
    "arduino",
    "wiring",
)


def runners(board: Board) -> list[str]:
    """The board's runners, in order of preference. BuildError when there are none, or one that does
    not exist.
    """
    named = board.words("FLASH_RUNNERS")
    if not named:
        raise BuildError(
            f"board {board.name} is an emulator's: there is nothing to flash (--port qemu:... "
            "runs it)"
        )
    for name in named:
        if name not in RUNNERS:
            raise BuildError(
                f"board {board.name}: FLASH_RUNNERS names '{name}'; there are: {', '.join(RUNNERS)}"
            )
    return named


def choose(board: Board, runner: str | None) -> str:
    """The runner to use: as asked, else the board's first that is installed. WrongUse when it is
    not the board's, BuildError.
    """
    known = runners(board)
    if runner is not None:
        if runner not in known:
            raise WrongUse(
                f"board {board.name} cannot be flashed by '{runner}'; it can by: {', '.join(known)}"
            )
        return runner
    usable = next((name for name in known if is_usable(board, name)), None)
    if usable is None:
        how = "; ".join(
            INSTALL.get(name, f"{name}: connect and mount the board's drive") for name in known
        )
        raise BuildError(
            f"none of the programs that flash {board.name} is installed: {how} (--dry-run shows "
            "the commands)"
        )
    return usable


def is_usable(board: Board, runner: str) -> bool:
    """Is its program installed, or the board's drive mounted?"""
    if runner in DRIVES:
        return mounted_drive(board.text("DRIVE_LABEL")).is_dir()
    return shutil.which(RUNNERS[runner](board, Files(Path("any.elf")), None)[0]) is not None


def check_port(runner: str, port: str | None) -> None:
    """PortMissing when ``runner`` finds no board without it."""
    if runner in NEED_PORT and port is None:
        raise PortMissing(
            f"{runner} needs --port, the board's serial port; `stepwell boards` lists them"
        )


def check_image(board: Board, files: Files) -> None:
    """BuildError when there is no image, it is for another board, or the files beside the ELF are
    not its own.
    """
    if files.elf.is_dir():
        raise BuildError(f"{files.elf} is a folder: give the .elf file in it")
    if not files.elf.exists():
        raise BuildError(
            f"no {files.elf}: run `stepwell build --board {board.name} MODEL.stw` first, or give "
            "--image"
        )
    built_for = image_board(files.elf)
    if built_for != board.name:
        whose = (
            f"built for {built_for}" if built_for else "not built by stepwell: it names no board"
        )
        raise BuildError(
            f"{files.elf} is {whose}; run `stepwell build --board {board.name} MODEL.stw`"
        )
    for path, content in image_files(files.elf, board).items():
        if not path.is_file() or path.read_bytes() != content:
            raise BuildError(
                f"{path} is missing or not of {files.elf.name}: run `stepwell build` again"
            )


def flash(board: Board, files: Files, runner: str | None = None, port: str | None = None) -> str:
    """Run ``runner``, or the board's first that is installed; its output goes to stderr. Returns
    its name.

    What is wrong with the image is said before what is missing on this machine. PortMissing;
    BuildError when check_image or choose raise it, or the program fails.
    """
    names = [choose(board, runner)] if runner else runners(board)
    if len(names) == 1:
        check_port(names[0], port)
    check_image(board, files)
    runner = choose(board, runner)
    check_port(runner, port)
    command = RUNNERS[runner](board, files, port)
    try:
        done = subprocess.run(command, stdout=2, check=False)
    except FileNotFoundError as error:
        raise BuildError(f"{command[0]} is not installed") from error
    if done.returncode:
        raise BuildError(
            f"{runner} could not write {files.elf} to {board.name}: exit code {done.returncode}, "
            "see above"
        )
    return runner


if __name__ == "__main__":  # the drives' runners are this program
    try:
        copy_to_drive(Path(sys.argv[1]), Path(sys.argv[2]))
    except (BuildError, OSError) as error:
        sys.exit(str(error))
