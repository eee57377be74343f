"""Sample data from arrays and files: for calibration, checks, hardware tests, and line by line for live input.

Whatever is wrong with the data is said with the file, the row (line number, from 1) and the column.
"""

from __future__ import annotations

import csv
import gzip
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stepwell.errors import SampleError

# what numpy, zipfile and gzip raise for damaged content; a header may also claim more memory than there is
UNREADABLE = (
    *(ValueError, TypeError, KeyError, EOFError, MemoryError, OverflowError, SyntaxError, AttributeError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError),
)


@dataclass(frozen=True, eq=False)
class Samples:
    """``sequences``: float64 [T_i, n_in] each. ``targets``: one for each sequence (float [n_out] or [T_i, n_out], or a label)."""

    sequences: tuple[np.ndarray, ...]
    targets: tuple[np.ndarray, ...] | None = None
    name: str = "array"


def load_samples(
    source: np.ndarray | Sequence[np.ndarray] | str | Path,
    n_in: int,
    columns: Sequence[str] | None = None,
    may_miss: bool = False,
) -> Samples:
    """Sequences of a model with ``n_in`` inputs.

    ``source``: an array [n_seq, T, n_in] or [T, n_in] (one sequence), a list of [T_i, n_in], or a path:
    .npz with an array "x" ("lengths" [n_seq] when padded, "y" for targets; FILE.npz:KEY picks another array), .npy, .csv, .csv.gz
    (UTF-8, one sequence, a header or none).
    ``columns`` picks csv columns by header name. ``may_miss``: NaN and empty csv cells are missing samples. Raises SampleError.
    """
    if isinstance(source, (str, Path)):
        samples = _load_file(str(source), n_in, columns, may_miss)
    else:
        samples = _checked(source, n_in, "array")
    for k, sequence in enumerate(samples.sequences):
        _check_values(sequence, may_miss, f"{samples.name}, sequence {k}")
    return samples


def _load_file(path: str, n_in: int, columns: Sequence[str] | None, may_miss: bool) -> Samples:
    file, _, key = path.rpartition(":") if ".npz:" in path else (path, "", "")
    if columns and not file.endswith((".csv", ".csv.gz")):
        raise SampleError(f"{file}: columns can be picked from a csv file only: leave them out, or convert the file")
    try:
        if file.endswith(".npz"):
            return _load_npz(file, key, n_in)
        if file.endswith(".npy"):
            with open(file, "rb") as content:
                return _checked(np.lib.format.read_array(content, allow_pickle=False), n_in, file)
        if file.endswith((".csv", ".csv.gz")):
            return _load_csv(file, n_in, columns, may_miss)
    except OSError as error:
        raise SampleError(f"{file}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SampleError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from error
    except UNREADABLE as error:
        raise SampleError(f"{file}: not a readable array file ({error}): write or copy it again") from error
    raise SampleError(f"{file}: unknown kind of file: give .npz, .npy, .csv or .csv.gz")


def _load_npz(file: str, key: str, n_in: int) -> Samples:
    with np.load(file, allow_pickle=False) as archive:
        names = list(archive.files)
        if not key:
            candidates = ["x"] if "x" in names else [name for name in names if archive[name].ndim == 3]
            if len(candidates) != 1:
                raise SampleError(
                    f"{file}: which array holds the sequences? It has {names}: name one x, or give {file}:NAME"
                )
            key = candidates[0]
        if key not in names:
            raise SampleError(f"{file}: no array '{key}'; it has {names}")
        sequences = _checked(archive[key], n_in, file).sequences
        padded_to = len(sequences[0])
        if "lengths" in names:
            sequences = _cut(sequences, archive["lengths"], file)
        targets = archive["y"] if "y" in names else None
    if targets is not None and targets.shape[:1] != (len(sequences),):
        raise SampleError(
            f"{file}: targets 'y' of shape {list(targets.shape)} for {len(sequences)} sequences: give one target a sequence"
        )
    if targets is not None and targets.ndim == 3 and targets.shape[1] == padded_to:
        targets = [
            target[: len(s)] for target, s in zip(targets, sequences, strict=True)
        ]  # one for each step: padded, too
    return Samples(sequences, None if targets is None else tuple(targets), file)


def _cut(sequences: tuple[np.ndarray, ...], lengths: np.ndarray, file: str) -> tuple[np.ndarray, ...]:
    """Padded sequences without their padding."""
    fits = lengths.shape == (len(sequences),) and lengths.dtype.kind in "iu"
    if not fits or any(not 1 <= n <= len(s) for n, s in zip(lengths, sequences, strict=True)):
        raise SampleError(f"{file}: 'lengths' must give 1..T for each of the {len(sequences)} sequences, as integers")
    return tuple(s[: int(n)] for n, s in zip(lengths, sequences, strict=True))


def _checked(source: Any, n_in: int, name: str) -> Samples:
    ragged = isinstance(source, (list, tuple)) and len(source) > 0 and np.ndim(source[0]) == 2
    try:
        arrays = [_numeric(s) for s in source] if ragged else [_numeric(source)]
    except (TypeError, ValueError) as error:
        raise SampleError(f"{name}: not numeric: {error}") from error
    if not ragged and arrays[0].ndim == 3:
        arrays = list(arrays[0])
    if not arrays:
        raise SampleError(f"{name}: no sequences")
    for k, sequence in enumerate(arrays):
        _check_sequence(sequence, n_in, f"{name}, sequence {k}")
    return Samples(tuple(arrays), None, name)


def _numeric(values: Any) -> np.ndarray:
    """float64 array; TypeError for text, complex numbers and objects, ValueError for ragged rows."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"values of type {array.dtype}, expected real numbers")
    return array.astype(np.float64)


def _check_sequence(sequence: np.ndarray, n_in: int, where: str) -> None:
    if sequence.ndim != 2 or sequence.shape[1] != n_in:
        raise SampleError(f"{where}: shape {list(sequence.shape)}, the model takes {n_in} inputs: expected [T, {n_in}]")
    if len(sequence) == 0:
        raise SampleError(f"{where}: no rows")


def _check_values(sequence: np.ndarray, may_miss: bool, where: str) -> None:
    bad = np.argwhere(np.isinf(sequence) if may_miss else ~np.isfinite(sequence))
    if len(bad):
        step, feature = (int(v) for v in bad[0])
        raise SampleError(
            f"{where}: {sequence[step, feature]} at step {step}, input {feature} ({len(bad)} such values): fill or drop them first"
        )


class RowReader:
    """Reads csv lines one at a time: the first may be a header, which ``columns`` picks from by name.

    ``may_miss``: an empty cell or NaN is a missing sample, NaN in the result.
    """

    def __init__(self, n_in: int, columns: Sequence[str] | None, name: str, may_miss: bool = False):
        self.n_in, self.columns, self.name, self._may_miss = n_in, columns, name, may_miss
        self._picked: list[int] | None = None
        self._labels: list[str] = []
        self._started = False

    def parse(self, line: str, number: int) -> np.ndarray | None:
        """Values of line ``number`` (from 1), float64 [n_in]; None for a header. Raises SampleError."""
        cells = self._cells(line, f"{self.name} line {number}")
        if not any(cells):
            raise SampleError(f"{self.name} line {number}: empty row: remove it, or fill the missing values")
        if not self._started:
            self._started = True
            if not any(_is_number(cell) for cell in cells):
                self._take_header(cells, number)
                return None
            if self.columns:
                raise SampleError(
                    f"{self.name} line {number}: columns {','.join(self.columns)} asked for, but there is no header"
                )
        return self._values(cells, number)

    def _cells(self, line: str, where: str) -> list[str]:
        try:
            cells = [cell.strip() for cell in next(csv.reader([line.removeprefix("\ufeff")]), [])]
        except csv.Error as error:
            raise SampleError(f"{where}: {error}: is it a csv file?") from error
        if len(cells) == 1 and (self.n_in > 1 or self.columns) and any(mark in line.strip() for mark in ";\t"):
            raise SampleError(f"{where}: no commas, but ';' or tabs: separate values by commas, decimals by a point")
        return cells

    def _take_header(self, cells: list[str], number: int) -> None:
        self._labels = cells
        if self.columns:
            missing = [name for name in self.columns if name not in cells]
            if missing:
                raise SampleError(
                    f"{self.name} line {number}: no column {missing[0]!r}; the header has {', '.join(cells)}"
                )
            self._picked = [cells.index(name) for name in self.columns]

    def _values(self, cells: list[str], number: int) -> np.ndarray:
        where = f"{self.name} line {number}"
        if self._labels and len(cells) != len(self._labels):
            raise SampleError(f"{where}: {len(cells)} values, the header has {len(self._labels)}")
        if self._picked is not None:
            cells = [cells[k] for k in self._picked]
        if len(cells) != self.n_in:
            hint = "" if self.columns or len(cells) < self.n_in else ": pick some with --columns a,b,c"
            raise SampleError(f"{where}: {len(cells)} values, the model takes {self.n_in}{hint}")
        labels = self.columns or self._labels or [str(k + 1) for k in range(self.n_in)]
        read = _number_or_missing if self._may_miss else _number
        return np.array([read(cell, where, label) for cell, label in zip(cells, labels, strict=True)])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # Python would read 1_0 as 10


def _number(cell: str, where: str, label: str) -> float:
    if not cell:
        raise SampleError(f"{where}, column {label}: missing value: fill it first")
    if not _is_number(cell):
        raise SampleError(f"{where}, column {label}: {cell[:40]!r} is not a number")
    value = float(cell)
    if not np.isfinite(value):
        raise SampleError(f"{where}, column {label}: {cell} cannot be fed to the model: fill it first")
    return value


def _number_or_missing(cell: str, where: str, label: str) -> float:
    return float("nan") if cell.lower() in ("", "nan", "na", "null") else _number(cell, where, label)


def _load_csv(file: str, n_in: int, columns: Sequence[str] | None, may_miss: bool) -> Samples:
    """A csv file is one sequence: a row a timestep."""
    reader = RowReader(n_in, columns, file, may_miss)
    with gzip.open(file, "rt", encoding="utf-8") if file.endswith(".gz") else open(file, encoding="utf-8") as lines:
        rows = [reader.parse(line, number) for number, line in enumerate(lines, start=1)]
    values = [row for row in rows if row is not None]
    if not values:
        raise SampleError(f"{file}: no rows")
    return Samples((np.stack(values),), None, file)
