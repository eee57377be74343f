"""flash: which programs can write an image to a board, and with which arguments. Pure functions; the programs do the rest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stepwell.boards import Board
from stepwell.errors import BuildError


@dataclass(frozen=True)
class Files:
    """An image as flash tools want it."""

    elf: Path
    bin: Path
    hex: Path


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


def drive(board: Board, files: Files, port: str | None) -> list[str]:
    """Drag and drop onto the board's USB drive. ``port``: where it is mounted."""
    return [
        sys.executable,
        "-m",
        "stepwell.flash",
        str(files.hex),
        port or str(mounted_drive(board.text("DRIVE_LABEL"))),
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
    """Copy onto a board's drive, which is a folder with a DETAILS.TXT or MICROBIT.HTM; BuildError when it is not that."""
    if not any((drive / name).is_file() for name in ("DETAILS.TXT", "MICROBIT.HTM")):
        raise BuildError(f"{drive} is no board's drive: connect the board, or name the place with --port")
    shutil.copyfile(image, drive / image.name)


RUNNERS: dict[str, Runner] = {
    "openocd": openocd,
    "pyocd": pyocd,
    "st-flash": st_flash,
    "dfu-util": dfu_util,
    "drive": drive,
}


def choose(board: Board, runner: str | None) -> str:
    """The runner to use: as asked, else the board's first that is installed. BuildError names what to install."""
    known = board.words("FLASH_RUNNERS")
    if not known:
        raise BuildError(f"board {board.name} is an emulator's: there is nothing to flash, use qemu:{board.name}")
    if runner is not None:
        if runner not in known:
            raise BuildError(f"board {board.name} cannot be flashed by '{runner}'; it can by: {', '.join(known)}")
        return runner
    anything = Files(Path(), Path(), Path())
    installed = [name for name in known if name != "drive" and shutil.which(RUNNERS[name](board, anything, None)[0])]
    if "drive" in known and mounted_drive(board.text("DRIVE_LABEL")).is_dir():
        installed.append("drive")
    if not installed:
        raise BuildError(
            f"none of the programs that flash {board.name} is installed: {', '.join(known)} "
            "(see --runner; --dry-run shows the command)"
        )
    return installed[0]


def flash(board: Board, files: Files, runner: str, port: str | None = None) -> None:
    """Run the program; its output goes to the terminal. BuildError when it fails."""
    command = RUNNERS[runner](board, files, port)
    try:
        done = subprocess.run(command, check=False)
    except FileNotFoundError as error:
        raise BuildError(f"{command[0]} is not installed") from error
    if done.returncode:
        raise BuildError(f"{command[0]} failed with exit code {done.returncode}")


if __name__ == "__main__":  # the "drive" runner is this program
    try:
        copy_to_drive(Path(sys.argv[1]), Path(sys.argv[2]))
    except (BuildError, OSError) as error:
        sys.exit(str(error))
