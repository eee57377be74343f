"""connect: a port, a network address or an emulator, given as a URL, becomes a link."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TextIO
from urllib.parse import urlsplit

import serial

from stepwell.boards import Board, board_names, load_board
from stepwell.errors import LinkError, WrongUse
from stepwell.link.board import POLL, Link
from stepwell.link.emulators import EMULATORS
from stepwell.link.host import HostLink
from stepwell.model import Model

WRITE_SECONDS = 5
NETWORK = ("socket", "rfc2217")  # pyserial's URLs with host and port


def connect(
    url: str,
    *,
    model: Model | None = None,
    image: str | Path | None = None,
    baud: int = 115200,
    log: TextIO | None = None,
    no_reset: bool = False,
) -> Link | HostLink:
    """A link to the board at ``url``, ready to use; close it, or use it in a ``with`` statement.

    ``url``: a serial port (/dev/ttyACM0, COM5) or any other pyserial URL (socket://host:port,
    rfc2217://host:port); qemu:BOARD, sim:BOARD, simavr:BOARD or rp2040js:BOARD, which start an
    emulator with ``image`` (an ELF) or with one built from ``model``; host: for the engine in this
    process. With ``model`` the board must run that very model. ``no_reset``: DTR and RTS of a
    serial port stay low, which on some boards are wired to the reset.

    Raises WrongUse (see check_url), LinkError (no such port, silent board, another model, no
    emulator) or BuildError.
    """
    check_url(url, image)
    kind, _, name = url.partition(":")
    if baud < 1:
        raise LinkError(f"{url}: {baud} is no baud rate")
    if kind == "host":
        if model is None:
            raise LinkError(
                "host: is the engine of this process: it needs a model, and takes no update"
            )
        return HostLink(model, url)
    with (
        ExitStack() as on_error,
        tempfile.TemporaryDirectory(prefix="stepwell-") as folder,
    ):  # images are loaded late
        emulator = None
        if kind in EMULATORS:
            board = load_board(name)
            emulator = EMULATORS[kind].start(board, _image(board, image, model, folder))
            on_error.callback(emulator.close)
        port = _open(emulator.url if emulator else url, baud, no_reset)
        on_error.callback(port.close)
        hardware = emulator is None and "://" not in url
        link = Link(port, url, baud=baud, log=log, emulator=emulator, cycles=hardware)
        link.connect(model)
        on_error.pop_all()
    return link


def check_url(url: str, image: str | Path | None = None) -> None:
    """What can be said of ``url``, and of an ``image`` for it, before anything runs: WrongUse."""
    kind, _, name = url.partition(":")
    if kind in EMULATORS:
        load_board(name)
        return
    if image is not None:
        raise WrongUse(f"{url} runs no image: only an emulator takes one")
    if kind.lower() in NETWORK:  # as pyserial reads them
        _check_address(url)
    elif (board := url.rpartition(":")[2]) in board_names():
        ports = [f"{emulator}:{board}" for emulator in load_board(board).emulators]
        raise WrongUse(f"{url} is no port: did you mean {', '.join(ports) or 'its serial port'}?")


def _check_address(url: str) -> None:
    """WrongUse unless there are a host and a port; pyserial goes wrong without."""
    how = f"write {urlsplit(url).scheme}://HOST:PORT"
    try:
        host, port = urlsplit(url).hostname, urlsplit(url).port
    except ValueError as error:
        raise WrongUse(f"{url}: {error}: {how}") from error
    missing = [word for word, value in (("host", host), ("port", port)) if not value]
    if missing:
        raise WrongUse(f"{url} names no {' and no '.join(missing)}: {how}")


def check_image(board: Board, image: Path) -> None:
    """LinkError, or BuildError, unless ``image`` is one that ``board`` can run and the link can
    talk to.
    """
    from stepwell.boards.build import image_board, speaks_mlperf

    if not image.is_file():
        raise LinkError(f"no image {image}")
    if image.read_bytes()[:4] != b"\x7fELF":
        raise LinkError(f"{image} is no ELF file: give the .elf that `stepwell build` wrote")
    built_for = image_board(image)
    if built_for not in (None, board.name):
        raise LinkError(f"{image} is built for {built_for}, not for {board.name}")
    if speaks_mlperf(image):
        raise LinkError(
            f"{image} speaks MLPerf's text interface instead of the link: build it without --mlperf"
        )


def _image(board: Board, image: str | Path | None, model: Model | None, folder: str) -> Path:
    """The image to run: as given, or built from the model into ``folder``."""
    from stepwell.boards.build import build

    if image is not None:
        check_image(board, Path(image))
        return Path(image)
    if model is None:
        raise LinkError(
            f"an emulated {board.name} needs an image to run: give --image, or a model to build "
            "one from"
        )
    return build(model, board, folder).elf


def _open(url: str, baud: int, no_reset: bool = False) -> serial.SerialBase:
    # pyserial's rfc2217 has no write_timeout
    write_timeout = None if url.lower().startswith("rfc2217:") else WRITE_SECONDS
    # two programs at one device would take each other's answers
    alone = None if "://" in url else True
    options = {
        "baudrate": baud,
        "timeout": POLL,
        "write_timeout": write_timeout,
        "exclusive": alone,
    }
    try:
        port = serial.serial_for_url(url, do_not_open=True, **options)
        if no_reset:
            _open_without_reset(port, raised="://" not in url and os.name == "posix")
        else:
            port.open()
    except (OSError, ValueError) as error:
        raise LinkError(f"{url}: cannot be opened: {_reason(error)}") from error
    return port


def _open_without_reset(port: serial.SerialBase, raised: bool) -> None:
    """With DTR and RTS low. ``raised``: by the system, at opening; then RTS goes first, as RTS
    alone is the reset of an ESP.
    """
    port.dtr, port.rts = raised, False
    port.open()
    with suppress(OSError):  # a pseudo terminal has no such lines
        port.dtr = False


def _reason(error: OSError | ValueError) -> str:
    """The system's words; pyserial wraps them in the port's name and in themselves."""
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    if isinstance(cause, BlockingIOError):
        return "another program has locked it"
    return getattr(cause, "strerror", None) or str(cause)
