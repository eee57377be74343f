"""Output files appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from errno import EISDIR
from pathlib import Path


def write_whole(path: str | Path, content: bytes | str) -> Path:
    """Write ``content`` to a temporary file beside ``path``, then rename it into place.

    Raises OSError (with the path) when the folder is missing or not writable, or the disk is full; then nothing has changed.
    """
    return write_all({Path(path): content})[0]


def write_all(contents: Mapping[Path, bytes | str]) -> list[Path]:
    """The same for files that belong together: none is renamed before all are written."""
    written: dict[Path, str] = {}
    try:
        for path, content in contents.items():
            with _named(path):
                handle, written[path] = _beside(path)
                with os.fdopen(handle, "wb") as file:
                    file.write(content.encode() if isinstance(content, str) else content)
                os.chmod(written[path], 0o666 & ~_umask())
        for path, temporary in written.items():
            with _named(path):
                os.replace(temporary, path)
    except BaseException:
        for temporary in written.values():
            Path(temporary).unlink(missing_ok=True)
        raise
    return list(written)


@contextmanager
def folder_for(folder: Path) -> Iterator[None]:
    """Make ``folder`` and those above it; take away again what was made when the files that it is for cannot be written."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for place in made:
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()
        raise


def check_can_write(path: str | Path) -> None:
    """Raises the OSError that ``write_whole`` would, before long work that ends in it."""
    with _named(Path(path)):
        handle, temporary = _beside(Path(path))
    os.close(handle)
    Path(temporary).unlink()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors name what was asked for: not the temporary file, and not nothing, as those of a full disk do."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _beside(path: Path) -> tuple[int, str]:
    """A temporary file: handle and name."""
    if path.is_dir():
        raise IsADirectoryError(EISDIR, "is a folder", str(path))
    return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
