"""Sample data from arrays and files: for calibration, checks, hardware tests, and line by line for
live input.

Whatever is wrong with the data is said with the file, the row (line number, from 1) and the column.
"""

from __future__ import annotations

import csv
import gzip
import unicodedata
import warnings
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from stepwell.columns import Wanted, is_range, is_table, shown
from stepwell.errors import SampleError, SampleWarning
from stepwell.memory import DAMAGED, Npz, at_most, check_size, read_npy

if TYPE_CHECKING:
    from stepwell.model import Model


@dataclass(frozen=True, eq=False)
class Samples:
    """``sequences``: float64 [T_i, n_in] each. ``targets``: one for each sequence (float [n_out] or
    [T_i, n_out], or a label).

    ``columns``: names of the inputs, when the data had them.
    """

    sequences: tuple[np.ndarray, ...]
    targets: tuple[np.ndarray, ...] | None = None
    name: str = "array"
    columns: tuple[str, ...] | None = None


def load_samples(
    source: np.ndarray | Sequence[np.ndarray] | str | Path,
    n_in: int,
    columns: Sequence[object] | None = None,
    may_miss: bool = False,
    *,
    names: Sequence[str] | None = None,
    header: bool | None = None,
    max_memory: int | str | None = None,
) -> Samples:
    """Sequences of a model with ``n_in`` inputs.

    ``source``: an array [n_seq, T, n_in] or [T, n_in] (one sequence), a list of [T_i, n_in], a
    DataFrame or a list of them (one for each sequence), or a path: .npz with an array "x"
    ("lengths" [n_seq] when padded, "y" for targets; FILE.npz:KEY picks another array), .npy, .csv,
    .csv.gz (UTF-8, one sequence, a header or none).

    ``names``: the columns that the model was made from. Data with names is matched by them, extra
    columns are ignored. ``columns`` picks others, in the order of the inputs; without a header, by
    number from 0. ``header``: whether a csv file has one (None: by its looks). ``may_miss``: NaN
    and empty csv cells are missing samples. ``max_memory``: the most that the file may unpack to,
    bytes or "2G" (default: a quarter of the machine's memory). Raises SampleError.
    """
    wanted = Wanted(n_in, columns, names)
    with at_most(max_memory):
        if isinstance(source, (str, Path)):
            samples = _load_file(str(source), wanted, may_miss, header)
        else:
            samples = _from_memory(source, wanted)
    for k, sequence in enumerate(samples.sequences):
        _check_values(sequence, may_miss, f"{samples.name}, sequence {k}")
    return samples


def samples_for(
    model: Model,
    source: object,
    columns: Sequence[object] | None = None,
    header: bool | None = None,
) -> Samples:
    """``load_samples`` for a model: its inputs, their names, and its rule for missing samples."""
    may_miss = model.scaler.missing != "refuse"
    return load_samples(source, model.n_in, columns, may_miss, names=model.columns, header=header)


def _from_memory(source: Any, wanted: Wanted) -> Samples:
    """Arrays, or DataFrames matched by name: the names of the first when none are given."""
    listed = list(source) if isinstance(source, (list, tuple)) else []
    tables = [source] if is_table(source) else listed
    if not any(is_table(table) for table in tables):
        if wanted.asked:
            raise SampleError("array: has no columns to pick: give a csv file or a DataFrame")
        return _checked(source, wanted.n_in, "array")
    sequences: list[np.ndarray] = []
    found: tuple[str, ...] | None = None
    for k, table in enumerate(tables):
        where = "DataFrame" if table is source else f"sequence {k}"
        if not is_table(table):
            raise SampleError(f"{where}: no DataFrame, as others are: give either them or arrays")
        choice = wanted if wanted.names or found is None else Wanted(wanted.n_in, names=found)
        values, labels = choice.of_table(table, where)
        found = found or labels
        sequences.append(values)
    return replace(_checked(sequences, wanted.n_in, "DataFrame"), columns=found)


def _load_file(path: str, wanted: Wanted, may_miss: bool, header: bool | None) -> Samples:
    file, _, key = path.rpartition(":") if ".npz:" in path else (path, "", "")
    if wanted.asked and not file.endswith((".csv", ".csv.gz")):
        raise SampleError(
            f"{file}: columns can be picked from a csv file only: leave them out, or convert the "
            "file"
        )
    try:
        if file.endswith(".npz"):
            return _load_npz(file, key, wanted.n_in)
        if file.endswith(".npy"):
            return _checked(read_npy(file), wanted.n_in, file)
        if file.endswith((".csv", ".csv.gz")):
            return _load_csv(file, wanted, may_miss, header)
    except UnicodeDecodeError as error:
        raise SampleError(
            f"{file}: not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from error
    except DAMAGED as error:
        if isinstance(error, OSError):
            raise SampleError(f"{file}: cannot be read: {error.strerror or error}") from error
        raise SampleError(
            f"{file}: not a readable array file ({error}): write or copy it again"
        ) from error
    raise SampleError(f"{file}: unknown kind of file: give .npz, .npy, .csv or .csv.gz")


def _load_npz(file: str, key: str, n_in: int) -> Samples:
    with Npz(file) as archive:
        names = archive.names
        if not key:
            candidates = (
                ["x"] if "x" in names else [name for name in names if archive.n_dims(name) == 3]
            )
            if len(candidates) != 1:
                raise SampleError(
                    f"{file}: which array holds the sequences? It has {names}: name one x, or give "
                    f"{file}:NAME"
                )
            key = candidates[0]
        if key not in names:
            raise SampleError(f"{file}: no array '{key}'; it has {names}")
        sequences = _checked(archive.read(key), n_in, file).sequences
        padded_to = len(sequences[0])
        if "lengths" in names:
            sequences = _cut(sequences, archive.read("lengths"), file)
        targets = archive.read("y") if "y" in names else None
    if targets is not None and targets.shape[:1] != (len(sequences),):
        raise SampleError(
            f"{file}: targets 'y' of shape {list(targets.shape)} for {len(sequences)} sequences: "
            "give one target a sequence"
        )
    if targets is not None and targets.ndim == 3 and targets.shape[1] == padded_to:
        targets = [
            target[: len(s)] for target, s in zip(targets, sequences, strict=True)
        ]  # one for each step: padded, too
    return Samples(sequences, None if targets is None else tuple(targets), file)


def _cut(
    sequences: tuple[np.ndarray, ...], lengths: np.ndarray, file: str
) -> tuple[np.ndarray, ...]:
    """Padded sequences without their padding."""
    fits = lengths.shape == (len(sequences),) and lengths.dtype.kind in "iu"
    if not fits or any(not 1 <= n <= len(s) for n, s in zip(lengths, sequences, strict=True)):
        raise SampleError(
            f"{file}: 'lengths' must give 1..T for each of the {len(sequences)} sequences, as "
            "integers"
        )
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
        raise SampleError(
            f"{where}: shape {list(sequence.shape)}, the model takes {n_in} inputs: expected [T, "
            f"{n_in}]"
        )
    if len(sequence) == 0:
        raise SampleError(f"{where}: no rows")


def _check_values(sequence: np.ndarray, may_miss: bool, where: str) -> None:
    bad = np.argwhere(np.isinf(sequence) if may_miss else ~np.isfinite(sequence))
    if len(bad):
        step, feature = (int(v) for v in bad[0])
        raise SampleError(
            f"{where}: {sequence[step, feature]} at step {step}, input {feature} ({len(bad)} such "
            "values): fill or drop them first"
        )


LINE_LIMIT = 1 << 20  # characters: a longer line is no row
NO_SAMPLE = ("", "nan", "na", "null", "n/a", "#n/a", "none", "?", "-")  # cells that say so


def numbered_lines(file: TextIO) -> Iterator[tuple[int, str]]:
    """Lines and their numbers, from 1, each when it comes. Of a long line only the start is kept."""
    number = 0
    while line := file.readline(LINE_LIMIT + 1):
        number += 1
        yield number, line
        while len(line) > LINE_LIMIT and not line.endswith("\n"):
            line = file.readline(LINE_LIMIT + 1) or "\n"


class RowReader:
    """Reads csv lines one at a time. ``columns``, ``names``, ``header``, ``may_miss``: as
    ``load_samples``.

    A line before the first row may be a header: it holds no numbers, or 0, 1, 2, ... in order, or
    the wanted columns. It must fit: hold the wanted columns, or as many cells as the model has
    inputs. An empty first cell says that the first column is an index, which is ignored.
    ``labels``: names of the columns that are fed, once a header came.
    """

    def __init__(
        self,
        n_in: int,
        columns: Sequence[object] | None,
        name: str,
        may_miss: bool = False,
        names: Sequence[str] | None = None,
        header: bool | None = None,
    ):
        self.n_in, self.name, self.labels = n_in, name, None
        self._wanted, self._may_miss, self._header = Wanted(n_in, columns, names), may_miss, header
        self._picked: list[int] | None = None
        self._width = 0  # cells of the header
        self._settled = False  # a header or a row has been read
        self._refused = ""  # a header that lacks columns

    def parse(self, line: str, number: int) -> np.ndarray | None:
        """Values of line ``number`` (from 1), float64 [n_in]; None for a header and a blank line.

        Raises SampleError. Then the line counts for nothing, and the next may still be the header.
        """
        where, line = f"{self.name} line {number}", line.removeprefix("\ufeff")
        if len(line) > LINE_LIMIT:
            raise SampleError(f"{where}: longer than {LINE_LIMIT} characters: is it a csv file?")
        if not line.strip():
            return None
        cells = self._cells(line, where)
        if not any(cells):
            raise SampleError(f"{where}: empty row: remove it, or fill the missing values")
        if not self._settled and self._is_header(cells, where):
            self._take_header(cells, where)
            return None
        values = self._values(cells, where)
        self._settled = True
        return values

    def _cells(self, line: str, where: str) -> list[str]:
        try:
            cells = [cell.strip() for cell in next(csv.reader([line]), [])]
        except csv.Error as error:
            raise SampleError(f"{where}: {error}: is it a csv file?") from error
        one_column = self.n_in == 1 and not self._wanted.asked
        if len(cells) == 1 and not one_column and any(mark in line.strip() for mark in ";\t"):
            raise SampleError(
                f"{where}: no commas, but ';' or tabs: separate values by commas, decimals by a "
                "point"
            )
        return cells

    # ---- the header ----

    def _is_header(self, cells: list[str], where: str) -> bool:
        """Whether a line before the first row looks like a header. SampleError when none can tell."""
        if self._header is not None:
            return self._header
        if any(_is_noise(cell) for cell in cells):
            return False
        numbers = [cell for cell in cells if _is_number(cell)]
        if not numbers:
            return any(cell.lower() not in NO_SAMPLE for cell in cells)
        if not all(map(str.isdigit, numbers)):
            return False
        holds_wanted = self._wanted.names is not None and set(self._wanted.names) <= set(cells)
        named_index = len(cells) > 2 and cells[0][:1].isalpha()
        counts = is_range(cells[1:] if cells[0] == "" or named_index else cells)
        if cells == ["0"] or (holds_wanted and not counts and len(numbers) == len(cells)):
            raise SampleError(
                f"{where}: {shown(cells)} can be names or a sample: say --header or --no-header "
                "(header=)"
            )
        return holds_wanted or counts

    def _take_header(self, cells: list[str], where: str) -> None:
        index = 0 if cells[0] else 1
        labels = cells[index:]
        try:
            places = self._wanted.places(labels, f"{where}, behind the index" if index else where)
        except SampleError as error:
            if self._wanted.names and len(labels) >= max(2, self.n_in):
                self._refused = str(error)
            raise
        self._picked = [index + place for place in places]
        self.labels = tuple(labels[place] for place in places)
        self._width, self._settled = len(cells), True
        if self._header is None and cells[0] and any(map(_is_number, cells)):
            text = f"{where} is taken as a header ({shown(cells)}): --no-header if it is data"
            warnings.warn(f"{text} (header=False)", SampleWarning, stacklevel=2)

    # ---- rows ----

    def _values(self, cells: list[str], where: str) -> np.ndarray:
        if self._refused and not self._settled:
            raise SampleError(f"{where}: its columns are not known: {self._refused}")
        if self._width and len(cells) != self._width:
            raise SampleError(f"{where}: {len(cells)} values, the header has {self._width}")
        labels = self.labels or self._wanted.asked or [str(k + 1) for k in range(self.n_in)]
        by_number = self._wanted.asked and not self._width
        picked = self._by_number(cells, where) if by_number else self._picked
        if picked is not None:
            cells = [cells[k] for k in picked]
        if len(cells) != self.n_in:
            hint = ": pick some with --columns, by number from 0" if len(cells) > self.n_in else ""
            raise SampleError(f"{where}: {len(cells)} values, the model takes {self.n_in}{hint}")
        read = _number_or_missing if self._may_miss else _number
        return np.array(
            [read(cell, where, label) for cell, label in zip(cells, labels, strict=True)]
        )

    def _by_number(self, cells: list[str], where: str) -> list[int]:
        """The columns asked for where no header has been read: their numbers, from 0."""
        asked = self._wanted.asked
        if not all(name.isascii() and name.isdigit() for name in asked):
            raise SampleError(
                f"{where}: columns {shown(asked)} asked for, but there is no header: give their "
                "numbers, from 0"
            )
        self._wanted.check_count(where)
        numbers = [int(name) for name in asked]
        if max(numbers) >= len(cells):
            raise SampleError(f"{where}: no column {max(numbers)}: there are 0 to {len(cells) - 1}")
        return numbers


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # Python would read 1_0 as 10


def _is_noise(cell: str) -> bool:
    """Whether a cell holds control characters, or bytes that are no text."""
    return any(c == "\ufffd" or unicodedata.category(c) == "Cc" for c in cell)


def _number(cell: str, where: str, label: str) -> float:
    if not cell:
        raise SampleError(f"{where}, column {shown([label])}: missing value: fill it first")
    if not _is_number(cell):
        raise SampleError(f"{where}, column {shown([label])}: {cell[:40]!r} is not a number")
    value = float(cell)
    if not np.isfinite(value):
        raise SampleError(f"{where}, column {shown([label])}: {cell} cannot be fed: fill it first")
    return value


def _number_or_missing(cell: str, where: str, label: str) -> float:
    return (
        float("nan") if cell.lower() in ("", "nan", "na", "null") else _number(cell, where, label)
    )


def _load_csv(file: str, wanted: Wanted, may_miss: bool, header: bool | None) -> Samples:
    """A csv file is one sequence: a row a timestep."""
    reader = RowReader(wanted.n_in, wanted.asked, file, may_miss, wanted.known, header)
    check_size(Path(file).stat().st_size, file)
    values, n_characters = array("d"), 0
    with (
        gzip.open(file, "rt", encoding="utf-8")
        if file.endswith(".gz")
        else open(file, encoding="utf-8") as lines
    ):
        for number, line in numbered_lines(lines):
            n_characters += len(line)
            check_size(max(n_characters, 8 * len(values)), f"{file}, up to line {number}")
            row = reader.parse(line, number)
            if row is not None:
                values.extend(row)
    if not values:
        raise SampleError(f"{file}: no rows")
    return Samples((np.array(values).reshape(-1, wanted.n_in),), None, file, reader.labels)
