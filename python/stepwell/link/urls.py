"""connect: a port, a network address or an emulator, given as a URL, becomes a link."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

import serial

from stepwell.boards import Board, load_board
from stepwell.errors import LinkError
from stepwell.link.board import POLL, Link
from stepwell.link.emulators import EMULATORS
from stepwell.link.host import HostLink
from stepwell.model import Model

WRITE_SECONDS = 5


def connect(
    url: str,
    *,
    model: Model | None = None,
    image: str | Path | None = None,
    baud: int = 115200,
    log: TextIO | None = None,
) -> Link | HostLink:
    """A link to the board at ``url``, ready to use; close it, or use it in a ``with`` statement.

    ``url``: a serial port (/dev/ttyACM0, COM5) or any other pyserial URL (socket://host:port, rfc2217://host:port);
    qemu:BOARD, sim:BOARD, simavr:BOARD or rp2040js:BOARD, which start an emulator with ``image`` (an ELF) or with one built
    from ``model``; host: for the engine in this process. With ``model`` the board must run that very model.

    Raises LinkError (no such port, silent board, another model, no emulator) or BuildError.
    """
    kind, _, name = url.partition(":")
    if baud < 1:
        raise LinkError(f"{url}: {baud} is no baud rate")
    if kind == "host":
        if model is None:
            raise LinkError("host: is the engine of this process: it needs a model, and takes no update")
        return HostLink(model, url)
    with ExitStack() as on_error, tempfile.TemporaryDirectory(prefix="stepwell-") as folder:  # images are loaded late
        emulator = None
        if kind in EMULATORS:
            board = load_board(name)
            emulator = EMULATORS[kind].start(board, _image(board, image, model, folder))
            on_error.callback(emulator.close)
        port = _open(emulator.url if emulator else url, baud)
        on_error.callback(port.close)
        hardware = emulator is None and "://" not in url
        link = Link(port, url, baud=baud, log=log, emulator=emulator, cycles=hardware)
        link.connect(model)
        on_error.pop_all()
    return link


def _image(board: Board, image: str | Path | None, model: Model | None, folder: str) -> Path:
    """The image to run: as given, or built from the model into ``folder``."""
    from stepwell.build import build, image_board

    if image is not None:
        if not Path(image).is_file():
            raise LinkError(f"no image {image}")
        if Path(image).read_bytes()[:4] != b"\x7fELF":
            raise LinkError(f"{image} is no ELF file: give the .elf that `stepwell build` wrote")
        built_for = image_board(Path(image))
        if built_for not in (None, board.name):
            raise LinkError(f"{image} is built for {built_for}, not for {board.name}")
        return Path(image)
    if model is None:
        raise LinkError(f"an emulated {board.name} needs an image to run: give --image, or a model to build one from")
    return build(model, board, folder).elf


def _open(url: str, baud: int) -> serial.SerialBase:
    # pyserial's rfc2217 has no write_timeout, and raises TypeError without a port number
    write_timeout = None if url.startswith("rfc2217:") else WRITE_SECONDS
    alone = None if "://" in url else True  # two programs at one device would take each other's answers
    try:
        return serial.serial_for_url(url, baudrate=baud, timeout=POLL, write_timeout=write_timeout, exclusive=alone)
    except (OSError, ValueError, TypeError) as error:
        raise LinkError(f"{url}: cannot be opened: {error}") from error
