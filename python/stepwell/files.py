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
    if path.is_dir():
        raise IsADirectoryError(EISDIR, "is a folder", str(path))
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:  # name what was asked for, not the temporary file
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
