"""Memory is bounded before data is read: a small file may hold much more than the machine has.

Sizes come from directories and headers, so that a refusal takes no memory and no time.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np

from stepwell.errors import ImportRefused, SampleError, WrongUse

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
UNKNOWN_MACHINE = 8 << 30  # bytes, where the system does not tell
HELP = "Most memory that one file may take when it is unpacked: 2G, 512M, bytes (default: a quarter of the machine's)."

# what NumPy, zipfile and gzip raise for damaged content
DAMAGED = (
    *(ValueError, TypeError, KeyError, EOFError, MemoryError, OverflowError, SyntaxError),
    *(AttributeError, RuntimeError, OSError, zipfile.BadZipFile, zlib.error, NotImplementedError),
)

_chosen: ContextVar[int | None] = ContextVar("most bytes of one file", default=None)


@contextmanager
def at_most(size: int | str | None) -> Iterator[None]:
    """Inside, no file may unpack to more than ``size``: bytes, or text such as "2G".

    None changes nothing. Raises WrongUse.
    """
    if size is None:
        yield
        return
    token = _chosen.set(parse_size(size))
    try:
        yield
    finally:
        _chosen.reset(token)


def limit() -> int:
    """The most bytes that one file may take: as chosen, or a quarter of the machine's memory."""
    return _chosen.get() or _machine() // 4


@cache
def _machine() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return UNKNOWN_MACHINE


def parse_size(size: int | str) -> int:
    """Bytes of "2G", "512M", "64k" (powers of 1024) or a number. WrongUse for anything else."""
    text = str(size).strip().upper().removesuffix("B").removesuffix("I")
    digits, unit = (text[:-1], text[-1]) if text[-1:] in UNITS and text else (text, "")
    try:
        n_bytes = float(digits) * UNITS[unit]
    except ValueError:
        n_bytes = 0.0
    if not 1 <= n_bytes < 2**63:
        raise WrongUse(f"max-memory {size}: expected a size such as 2G, 512M or a number of bytes")
    return int(n_bytes)


def size_text(n_bytes: int) -> str:
    """Bytes as people write them, in powers of 1024: 1.5 GB."""
    value, unit = float(n_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.4g} {unit}"


def check_size(n_bytes: int, what: str, error: Callable[[str], Exception] = SampleError) -> None:
    """Raises ``error`` when ``what`` would take more than the limit."""
    if n_bytes > limit():
        raise error(
            f"{what} takes {size_text(n_bytes)} of memory, the limit is {size_text(limit())}: "
            "allow more with --max-memory (max_memory=), or give less data"
        )


# ---- arrays of NumPy ----


def read_npy(file: str) -> np.ndarray:
    """The array of an .npy file. Raises SampleError, and what NumPy raises for damaged content."""
    with open(file, "rb") as content:
        _check_array(file, *_declared(content, os.fstat(content.fileno()).st_size, file))
        content.seek(0)
        return np.lib.format.read_array(content, allow_pickle=False)


class Npz:
    """The arrays of an .npz file, each read when it is asked for.

    Together they stay below the limit.
    """

    def __init__(self, file: str | Path):
        self._file = str(file)
        self._zip = zipfile.ZipFile(file)
        members = self._zip.infolist()
        self._entries = {member.filename.removesuffix(".npy"): member for member in members}
        self._taken = 0

    def __enter__(self) -> Npz:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def n_dims(self, name: str) -> int:
        """Dimensions of an array, by its header. Its data is not read."""
        return len(self._header(name)[0])

    def read(self, name: str) -> np.ndarray:
        """Raises SampleError beyond the limit, and what NumPy raises for damaged content."""
        shape, dtype = self._header(name)
        _check_array(f"{self._file}, array '{name}'", shape, dtype, self._taken)
        self._taken += _bytes_of(shape, dtype)
        with self._zip.open(self._entries[name]) as content:
            return np.lib.format.read_array(content, allow_pickle=False)

    def _header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        entry = self._entries[name]
        with self._zip.open(entry) as content:
            return _declared(content, entry.file_size, f"{self._file}, array '{name}'")


def _declared(content: IO[bytes], size: int, what: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type by the header at the start of ``content``, which holds ``size`` bytes.

    Raises SampleError, and what NumPy raises for damaged content.
    """
    version = np.lib.format.read_magic(content)
    npy = np.lib.format
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(content)
    if dtype.hasobject:
        raise SampleError(f"{what}: holds Python objects, which could run code: save numbers")
    declared = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or declared > size:
        check_size(_bytes_of(shape, dtype), what)
        raise SampleError(
            f"{what}: its header says {declared} bytes of shape {list(shape)}, it holds {size}: "
            "copy it again"
        )
    return shape, dtype


def _bytes_of(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """What an array takes once it is float64."""
    return math.prod(shape) * max(dtype.itemsize, 8)


def _check_array(what: str, shape: tuple[int, ...], dtype: np.dtype, besides: int = 0) -> None:
    check_size(besides + _bytes_of(shape, dtype), f"{what} of shape {list(shape)}")


# ---- files of models ----


def check_packed(path: Path, error: Callable[[str], Exception] = ImportRefused) -> None:
    """Raises ``error`` when a zip (.keras) or HDF5 file (.h5) would unpack beyond the limit.

    A damaged file passes: its reader has more to say.
    """
    check_size(_zip_bytes(path) + _hdf5_bytes(path), str(path), error)


def _zip_bytes(path: Path) -> int:
    """Of the members of a zip, and of the arrays in an HDF5 file among them; 0 for other files."""
    size = 0
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            size = sum(member.file_size for member in members)
            for member in members:
                if member.filename.endswith(".h5") and size <= limit():
                    size += _hdf5_bytes(io.BytesIO(archive.read(member)))
    except DAMAGED:
        pass
    return size


def _hdf5_bytes(file: Path | IO[bytes]) -> int:
    """Of all datasets, which may be compressed; 0 for other files, and without h5py."""
    try:
        import h5py  # comes with Keras
    except ImportError:
        return 0
    sizes: list[int] = []

    def count(_: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            sizes.append(item.size * item.dtype.itemsize)

    try:
        with h5py.File(file, "r") as content:
            content.visititems(count)
    except Exception:  # damaged content can raise anything
        return sum(sizes)
    return sum(sizes)
