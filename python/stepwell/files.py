"""Output files appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from errno import EISDIR
from pathlib import Path


def write_whole(path: str | Path, content: bytes | str) -> Path:
    """Write ``content`` to a temporary file beside ``path``, then rename it into place.

    Raises OSError (with the path) when the folder is missing or not writable; then nothing has changed.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = _beside(path)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def check_can_write(path: str | Path) -> None:
    """Raises the OSError that ``write_whole`` would, before long work that ends in it."""
    handle, temporary = _beside(Path(path))
    os.close(handle)
    Path(temporary).unlink()


def _beside(path: Path) -> tuple[int, str]:
    """A temporary file: handle and name."""
    if path.is_dir():
        raise IsADirectoryError(EISDIR, "is a folder", str(path))
    try:
        return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:  # name what was asked for, not the temporary file
        raise OSError(error.errno, error.strerror, str(path)) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
