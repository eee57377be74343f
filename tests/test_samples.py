"""Sample data: every form that is taken, and the place of whatever is wrong with it."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepwell.errors import SampleError
from stepwell.samples import RowReader, load_samples

X = np.arange(24, dtype=np.float64).reshape(2, 4, 3)


def refused(source, *words: str, n_in: int = 3, columns=None) -> str:
    """Loading must fail, and say all of ``words``."""
    with pytest.raises(SampleError) as info:
        load_samples(source, n_in, columns)
    message = str(info.value)
    for word in words:
        assert word in message, message
    return message


def npz(folder: Path, **arrays) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def csv(folder: Path, text: str | bytes) -> Path:
    path = folder / "log.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# ---- arrays ----


def test_array_of_sequences():
    samples = load_samples(X, 3)
    assert len(samples.sequences) == 2 and samples.targets is None
    np.testing.assert_array_equal(samples.sequences[1], X[1])
    assert samples.sequences[0].dtype == np.float64


def test_one_sequence():
    assert [s.shape for s in load_samples(X[0], 3).sequences] == [(4, 3)]


def test_sequences_of_different_lengths():
    assert [len(s) for s in load_samples([X[0], X[1][:2]], 3).sequences] == [4, 2]


def test_integers_are_taken():
    assert load_samples(X.astype(np.int16), 3).sequences[0].dtype == np.float64


@pytest.mark.parametrize(
    "source",
    [
        X[..., :2],  # too narrow
        np.zeros((2, 3)).reshape(-1),  # one dimension
        np.zeros((2, 2, 2, 3)),
        np.zeros((0, 4, 3)),  # no sequences
        np.zeros((2, 0, 3)),  # no steps
        [],
        [np.zeros((4, 3)), np.zeros((4, 2))],
        [[1, 2, 3], [1, 2]],  # ragged
        np.array([["a", "b", "c"]]),
        np.array([["1", "2", "3"]]),  # text that looks like numbers
        np.zeros((4, 3), complex),
        np.array([[None, 1, 2]]),
    ],
)
def test_odd_arrays_are_refused(source):
    refused(source)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_values_are_placed(bad):
    x = X.copy()
    x[1, 2, 0] = bad
    refused(x, "sequence 1", "step 2", "input 0", str(bad))


# ---- .npz and .npy ----


def test_npz_with_targets(tmp_path):
    samples = load_samples(npz(tmp_path, x=X, y=np.array([[1.0], [2.0]])), 3)
    assert samples.name.endswith("data.npz")
    np.testing.assert_array_equal(samples.targets[1], [2.0])


def test_npz_with_lengths(tmp_path):
    samples = load_samples(npz(tmp_path, x=X, lengths=np.array([4, 1])), 3)
    assert [len(s) for s in samples.sequences] == [4, 1]


def test_npz_key(tmp_path):
    path = npz(tmp_path, train=X, test=X[:1])
    assert len(load_samples(f"{path}:test", 3).sequences) == 1
    refused(path, "train", "test")
    refused(f"{path}:valid", "valid", "train")


def test_only_suitable_array_of_npz(tmp_path):
    assert len(load_samples(npz(tmp_path, train=X, rul=np.zeros(2)), 3).sequences) == 2


def test_npy(tmp_path):
    np.save(tmp_path / "x.npy", X)
    assert len(load_samples(tmp_path / "x.npy", 3).sequences) == 2


@pytest.mark.parametrize("lengths", [[4], [4, 0], [4, 5], [4, -1], [1.5, 2.0], 4, [[4, 4]], ["a", "b"]])
def test_odd_lengths_are_refused(tmp_path, lengths):
    refused(npz(tmp_path, x=X, lengths=np.array(lengths)), "lengths")


@pytest.mark.parametrize("y", [[1], [1, 2, 3], 7])
def test_odd_targets_are_refused(tmp_path, y):
    refused(npz(tmp_path, x=X, y=np.array(y)), "target")


def test_pickles_are_refused(tmp_path):
    """Loading one would run code."""
    refused(npz(tmp_path, x=np.array([{"a": 1}], dtype=object)), "data.npz")
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    refused(tmp_path / "x.npy", "x.npy")


def test_columns_of_an_array_file_are_refused(tmp_path):
    refused(npz(tmp_path, x=X), "columns", "csv", columns=["a", "b", "c"])


@pytest.mark.parametrize("name", ["x.npz", "x.npy", "x.csv", "x.csv.gz", "x.npz:key"])
def test_missing_file(tmp_path, name):
    refused(tmp_path / name, "x.")


@pytest.mark.parametrize("name", ["x.parquet", "x", "x.txt"])
def test_unknown_kind_of_file(tmp_path, name):
    (tmp_path / name).write_text("1,2,3\n")
    refused(tmp_path / name, ".npz", ".csv")


def test_exchanged_endings(tmp_path):
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "x.npy").rename(tmp_path / "x.npz")
    refused(tmp_path / "x.npz", "x.npz")
    npz(tmp_path, x=X).rename(tmp_path / "y.npy")
    refused(tmp_path / "y.npy", "y.npy")


def _files() -> dict[str, bytes]:
    stored, packed = io.BytesIO(), io.BytesIO()
    np.savez(stored, x=X)
    np.savez_compressed(packed, x=X)
    text = gzip.compress(b"a,b,c\n" + b"1,2,3\n" * 40)
    return {"stored.npz": stored.getvalue(), "packed.npz": packed.getvalue(), "log.csv.gz": text}


FILES = _files()


@pytest.mark.parametrize("name", FILES)
def test_truncated_files(tmp_path, name):
    for length in range(len(FILES[name])):
        (tmp_path / name).write_bytes(FILES[name][:length])
        refused(tmp_path / name, name)


@pytest.mark.parametrize("name", FILES)
def test_flipped_bits(tmp_path, name):
    """Any content may come, no traceback."""

    @settings(max_examples=150, deadline=None)
    @given(st.integers(0, 8 * len(FILES[name]) - 1))
    def check(bit: int) -> None:
        content = bytearray(FILES[name])
        content[bit // 8] ^= 1 << bit % 8
        (tmp_path / name).write_bytes(content)
        try:
            load_samples(tmp_path / name, 3)
        except SampleError as error:
            assert name in str(error)

    check()


def test_array_that_claims_terabytes(tmp_path):
    """A header of an .npy inside a small zip may claim any shape."""
    header = np.lib.format.magic(1, 0)
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000, 3), }"
    text += b" " * (118 - len(text)) + b"\n"
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", header + len(text).to_bytes(2, "little") + text)
    refused(tmp_path / "x.npz", "x.npz")


# ---- .csv ----


def test_csv_without_header(tmp_path):
    (sequence,) = load_samples(csv(tmp_path, "1,2,3\n4,5,6.5\n"), 3).sequences
    np.testing.assert_array_equal(sequence, [[1, 2, 3], [4, 5, 6.5]])


def test_csv_columns_by_name(tmp_path):
    path = csv(tmp_path, "time,s1,s2,s3\n10:00,1,2,3\n10:01,4,5,6\n")
    (sequence,) = load_samples(path, 2, ["s3", "s1"]).sequences
    np.testing.assert_array_equal(sequence, [[3, 1], [6, 4]])


def test_csv_forms(tmp_path):
    """Spaces, quotes, the byte order mark and the line ends of spreadsheets, gzip."""
    text = '\ufeffa,"b",c\r\n 1 ,"2", 3e0\r\n'
    for path in (csv(tmp_path, text), tmp_path / "log.csv.gz"):
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(text.encode()))
        (sequence,) = load_samples(path, 3, ["a", "b", "c"]).sequences
        np.testing.assert_array_equal(sequence, [[1, 2, 3]])


BAD_ROWS = {
    "text": ("a,b,c\n1,2,3\n1,high,3\n", ("line 3", "column b", "high")),
    "text without header": ("1,2,3\n1,2,x\n", ("line 2", "column 3", "'x'")),
    "missing value": ("a,b,c\n1,,3\n", ("line 2", "column b", "missing")),
    "nan": ("a,b,c\n1,2,NaN\n", ("line 2", "column c", "NaN")),
    "inf": ("1,2,3\n1,-inf,3\n", ("line 2", "column 2", "-inf")),
    "too large": ("1,2,1e999\n", ("line 1", "column 3")),
    "underscore": ("1,2,3\n1_0,2,3\n", ("line 2", "column 1", "1_0")),
    "empty row": ("1,2,3\n\n4,5,6\n", ("line 2", "empty")),
    "row of commas": ("1,2,3\n,,\n", ("line 2", "empty")),
    "short row": ("1,2,3\n1,2\n", ("line 2", "2 values", "3")),
    "long row": ("1,2,3\n1,2,3,4\n", ("line 2", "4 values", "3")),
    "wide file": ("a,b,c,d\n1,2,3,4\n", ("line 2", "columns")),
    "semicolons": ("1;2;3\n", ("line 1", "comma")),
    "no rows": ("a,b,c\n", ("no rows",)),
    "empty file": ("", ("no rows",)),
    "latin-1": ("a,b,c\n1,2,3\n1,2,3 °C\n".encode("latin-1"), ("log.csv", "UTF-8")),
    "zero bytes": ("1,2,3\n1,\0,3\n", ("line 2", "log.csv")),
    "open quote": ('1,2,3\n1,"2,3\n', ("line 2",)),
}


@pytest.mark.parametrize("what", BAD_ROWS)
def test_bad_rows_are_placed(tmp_path, what):
    text, words = BAD_ROWS[what]
    refused(csv(tmp_path, text), "log.csv", *words)


def test_enormous_field(tmp_path):
    refused(csv(tmp_path, "1,2," + "3" * 200_000 + "\n"), "log.csv", "line 1")


def test_ragged_row_with_columns(tmp_path):
    refused(csv(tmp_path, "a,b,c,d\n1,2,3\n"), "line 2", "header has 4", n_in=2, columns=["a", "b"])


def test_missing_column_is_named(tmp_path):
    refused(csv(tmp_path, "a,b,c\n1,2,3\n"), "'z'", "a, b, c", n_in=1, columns=["z"])


def test_columns_without_header(tmp_path):
    refused(csv(tmp_path, "1,2,3\n"), "header", columns=["a", "b", "c"])


# ---- line by line ----


def test_rows_one_at_a_time():
    reader = RowReader(2, ["b", "a"], "stdin")
    assert reader.parse("a,b\n", 1) is None
    np.testing.assert_array_equal(reader.parse("1,2\n", 2), [2, 1])
    with pytest.raises(SampleError, match="stdin line 3, column a"):
        reader.parse("x,2\n", 3)
    np.testing.assert_array_equal(reader.parse("3,4\n", 4), [4, 3])


def test_live_rows_without_header():
    reader = RowReader(2, None, "stdin")
    np.testing.assert_array_equal(reader.parse("1,2\n", 1), [1, 2])
    with pytest.raises(SampleError, match="stdin line 2"):
        reader.parse("a,b\n", 2)  # a header comes first or not at all


@given(st.text(max_size=40))
def test_any_line_is_parsed_or_refused(line):
    reader = RowReader(2, None, "stdin")
    for number in (1, 2):
        try:
            values = reader.parse(line, number)
            assert values is None or (values.shape == (2,) and np.isfinite(values).all())
        except SampleError as error:
            assert f"stdin line {number}" in str(error)
