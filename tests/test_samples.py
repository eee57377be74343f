"""Sample data: every form that is taken, and the place of whatever is wrong with it."""

from __future__ import annotations

import gzip
import io
import time
import tracemalloc
import warnings
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import stepwell
from hypothesis import given, settings
from hypothesis import strategies as st
from stepwell.errors import ImportRefused, SampleError, SampleWarning, WrongUse
from stepwell.memory import at_most, check_packed, limit, parse_size
from stepwell.samples import LINE_LIMIT, RowReader, load_samples, numbered_lines
from stepwell.scaler import as_scaler

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


@pytest.mark.parametrize(
    "lengths", [[4], [4, 0], [4, 5], [4, -1], [1.5, 2.0], 4, [[4, 4]], ["a", "b"]]
)
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
    "row of commas": ("1,2,3\n,,\n", ("line 2", "empty")),
    "short row": ("1,2,3\n1,2\n", ("line 2", "2 values", "3")),
    "long row": ("1,2,3\n1,2,3,4\n", ("line 2", "4 values", "3")),
    "wide file": ("a,b,c,d\n1,2,3,4\n", ("line 1", "4 columns (a, b, c, d)", "--columns")),
    "narrow header": ("a,b\n1,2,3\n", ("line 1", "2 values, the model takes 3", "a, b")),
    "wide file without header": (
        "1,2,3,4\n",
        ("line 1", "4 values", "--columns, by number from 0"),
    ),
    "units": ("a,b,c\nC,%,ppm\n1,2,3\n", ("line 2", "column a", "'C' is not a number")),
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


# ---- headers ----

HEADERS = {  # line 1, columns, names of the model -> places of the inputs, names that are kept
    "names": ("a,b,c", None, None, [0, 1, 2], ("a", "b", "c")),
    "numbers": ("0,1,2", None, None, [0, 1, 2], ("0", "1", "2")),
    "pandas' default": (",0,1,2", None, None, [1, 2, 3], ("0", "1", "2")),
    "pandas' default with names": (",a,b,c", None, None, [1, 2, 3], ("a", "b", "c")),
    "pandas' default by number": (",0,1,2,3", "2,0,3", None, [3, 1, 4], ("2", "0", "3")),
    "reset index": ("index,0,1,2", "0,1,2", None, [1, 2, 3], ("0", "1", "2")),
    "years": ("time,2019,2020,2021", "2020,2021,2019", None, [2, 3, 1], ("2020", "2021", "2019")),
    "names of the model": ("t,c,a,b", None, "a,b,c", [2, 3, 1], ("a", "b", "c")),
    "asked in another order": ("a,b,c", "c,a,b", "a,b,c", [0, 1, 2], ("a", "b", "c")),
    "asked for others": ("a,b,c,d", "d,a,b", "a,b,c", [3, 0, 1], ("d", "a", "b")),
    "numbers into a model of names": ("0,1,2", None, "a,b,c", [0, 1, 2], ("0", "1", "2")),
    "names into a model of numbers": ("a,b,c", None, "0,1,2", [0, 1, 2], ("a", "b", "c")),
    "numbers in another order": ("t,2,0,1", None, "0,1,2", [2, 3, 1], ("0", "1", "2")),
}


def split(text: str | None) -> list[str] | None:
    return text.split(",") if text else None


@pytest.mark.parametrize("what", HEADERS)
@pytest.mark.filterwarnings("ignore:.*is taken as a header")
def test_headers(tmp_path, what):
    line, columns, names, places, kept = HEADERS[what]
    rows = np.arange(30, 30 + 2 * (line.count(",") + 1)).reshape(2, -1)
    path = csv(tmp_path, line + "\n" + "\n".join(",".join(map(str, row)) for row in rows) + "\n")
    found = load_samples(path, 3, split(columns), names=split(names))
    np.testing.assert_array_equal(found.sequences[0], rows[:, places])
    assert found.columns == kept


NOT_HEADERS = {  # line 1, columns, names of the model, words of the refusal
    "a column is missing": (
        "a,b,d",
        None,
        "a,b,c",
        ("no column 'c'", "made from a, b, c", "there is a, b, d"),
    ),
    "twice": ("a,b,c,b", None, "a,b,c", ("'b'", "twice")),
    "asked for what is there twice": ("a,b,c,b", "a,b,c", None, ("'b'", "twice")),
    "too few are asked for": ("a,b,c", "a,b", None, ("picks 2", "takes 3")),
    "an index, and too few": (",b,c", None, None, ("behind the index", "2 values", "takes 3")),
    "numbers in no order": (
        "2,0,1",
        "0,1,2",
        None,
        ("2, 0, 1 can be names or a sample", "--header", "--no-header"),
    ),
    "a number that is not there": ("5,6,7.5", "1,2,3", None, ("no column 3", "0 to 2")),
    "names without a header": ("5,6,7.5", "a,b,c", None, ("no header", "numbers, from 0")),
    "a word among numbers": ("5,high,7", None, None, ("column 2", "'high' is not a number")),
    "escapes": ("\x1b[31ma,b,c", None, None, ("'\\x1b[31ma' is not a number",)),
}


@pytest.mark.parametrize("what", NOT_HEADERS)
def test_lines_that_are_no_headers(tmp_path, what):
    line, columns, names, words = NOT_HEADERS[what]
    with pytest.raises(SampleError) as info:
        load_samples(
            csv(tmp_path, f"{line}\n{'9,' * line.count(',')}9\n"),
            3,
            split(columns),
            names=split(names),
        )
    assert all(word in str(info.value) for word in ("line 1", *words)), info.value
    assert str(info.value).isprintable()


def test_the_name_of_one_column_may_be_data(tmp_path):
    path = csv(tmp_path, "0\n0.5\n")
    refused(path, "line 1", "--no-header", n_in=1)
    assert len(load_samples(path, 1, header=True).sequences[0]) == 1
    assert len(load_samples(path, 1, header=False).sequences[0]) == 2
    assert len(load_samples(csv(tmp_path, ",0\n0,0.5\n"), 1).sequences[0]) == 1


def test_what_is_taken_as_a_header_is_said(tmp_path):
    with pytest.warns(
        SampleWarning, match=r"log.csv line 1 is taken as a header \(0, 1, 2\): --no-header"
    ):
        assert len(load_samples(csv(tmp_path, "0,1,2\n3,4,5\n"), 3).sequences[0]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_samples(tmp_path / "log.csv", 3, header=True).sequences[0]) == 1
        assert len(load_samples(tmp_path / "log.csv", 3, header=False).sequences[0]) == 2
        assert len(load_samples(csv(tmp_path, ",0,1,2\n0,3,4,5\n"), 3).sequences[0]) == 1


def test_header_by_order(tmp_path):
    """--header takes any line that fits, --no-header none."""
    path = csv(tmp_path, "5,high,7\n1,2,3\n")
    np.testing.assert_array_equal(load_samples(path, 3, header=True).sequences[0], [[1, 2, 3]])
    with pytest.raises(SampleError, match="line 1, column 1: 'a' is not a number"):
        load_samples(csv(tmp_path, "a,b,c\n1,2,3\n"), 3, header=False)
    with pytest.raises(SampleError, match="line 1: 2 values"):
        load_samples(csv(tmp_path, "5,6\n1,2,3\n"), 3, header=True)


def test_columns_by_number(tmp_path):
    """Where no header is, numbers from 0; the other columns may hold anything."""
    path = csv(tmp_path, "10:00,x,1,2\n10:01,y,3,4\n")
    np.testing.assert_array_equal(load_samples(path, 2, [3, 2]).sequences[0], [[2, 1], [4, 3]])
    assert load_samples(path, 2, [3, 2], names=["a", "b"]).columns is None


def test_blank_lines_are_ignored(tmp_path):
    path = csv(tmp_path, "\n  \na,b,c\r\n\r\n1,2,3\n\n4,5,6\n\n\n")
    np.testing.assert_array_equal(load_samples(path, 3).sequences[0], [[1, 2, 3], [4, 5, 6]])


def test_first_rows_that_lack_samples_are_no_header(tmp_path):
    path = csv(tmp_path, "NA,,nan\n1,2,3\n")
    (sequence,) = load_samples(path, 3, may_miss=True).sequences
    assert np.isnan(sequence[0]).all() and len(sequence) == 2


# ---- DataFrames ----


class Table:
    """What stepwell asks of a DataFrame."""

    def __init__(self, columns: dict):
        self._columns, self.columns = columns, list(columns)

    def __getitem__(self, name):
        return np.asarray(self._columns[name])

    def to_numpy(self):
        raise AssertionError("the columns that are not fed may be of any type")


def test_tables_are_matched_by_name():
    table = Table({"time": ["x", "y"], "b": [1, 2], "a": [3.5, 4]})
    found = load_samples(table, 2, names=["a", "b"])
    assert found.columns == ("a", "b")
    np.testing.assert_array_equal(found.sequences[0], [[3.5, 1], [4, 2]])
    found = load_samples(
        [Table({"a": [1], "b": [2]}), Table({"b": [4, 6], "c": [0, 0], "a": [3, 5]})], 2
    )
    assert found.columns == ("a", "b")
    np.testing.assert_array_equal(found.sequences[1], [[3, 4], [5, 6]])
    np.testing.assert_array_equal(
        load_samples(table, 2, columns=["b", "a"]).sequences[0], [[1, 3.5], [2, 4]]
    )


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (Table({"a": [1], "c": [2]}), ("DataFrame", "no column 'b'", "there is a, c")),
        (Table({"a": [1], "b": ["2"]}), ("column 'b'", "expected real numbers")),
        ([Table({"a": [1], "b": [2]}), np.zeros((1, 2))], ("sequence 1", "no DataFrame")),
        ([Table({"a": [1], "b": [2]}), Table({"a": [1]})], ("sequence 1", "no column 'b'")),
    ],
)
def test_tables_that_do_not_fit(table, words):
    with pytest.raises(SampleError) as info:
        load_samples(table, 2, names=["a", "b"])
    assert all(word in str(info.value) for word in words), info.value


def test_pandas(tmp_path):
    pd = pytest.importorskip("pandas", reason="needs pandas")
    frame = pd.DataFrame(
        {
            "t": pd.date_range("2024", periods=3),
            "b": pd.array([1, None, 3], "Int64"),
            "a": [4.0, 5, 6],
        }
    )
    (sequence,) = load_samples(frame, 2, names=["a", "b"], may_miss=True).sequences
    np.testing.assert_array_equal(sequence, [[4, 1], [5, np.nan], [6, 3]])
    twice = pd.DataFrame([[1, 2, 3]], columns=["a", "b", "a"])
    with pytest.raises(SampleError, match="'a' stands there twice"):
        load_samples(twice, 2, names=["a", "b"])
    np.testing.assert_array_equal(load_samples(twice, 3).sequences[0], [[1, 2, 3]])
    for index in (True, False):
        frame.drop(columns="t").fillna(0).to_csv(tmp_path / "log.csv", index=index)
        (sequence,) = load_samples(tmp_path / "log.csv", 2, names=["a", "b"]).sequences
        np.testing.assert_array_equal(sequence, [[4, 1], [5, 0], [6, 3]])


# ---- live streams ----


def test_a_header_may_come_after_noise():
    """No line that was refused counts; a header comes before the first row."""
    reader = RowReader(2, None, "stdin", names=["a", "b"])
    for number, noise in enumerate(
        ["ready", "\0\ufffd", "1,2,3", "x" * (LINE_LIMIT + 1), "1,"], start=1
    ):
        with pytest.raises(SampleError, match=f"stdin line {number}"):
            reader.parse(noise, number)
    assert reader.parse("t,b,a", 6) is None
    np.testing.assert_array_equal(reader.parse("0,1,2", 7), [2, 1])
    with pytest.raises(SampleError, match="line 8"):
        reader.parse("t,a,b", 8)


def test_rows_below_a_header_that_lacks_a_column_are_refused():
    """By position they would be fed in the wrong order."""
    reader = RowReader(2, None, "stdin", names=["a", "b"])
    for number, line in enumerate(["b,c", "1,2"], start=1):
        with pytest.raises(SampleError, match="no column 'a'"):
            reader.parse(line, number)
    assert reader.parse("b,a", 3) is None
    np.testing.assert_array_equal(reader.parse("1,2", 4), [2, 1])


def test_long_lines_are_read_in_pieces():
    class Endless(io.StringIO):
        most = 0

        def readline(self, size=-1):
            self.most = max(self.most, size)
            assert 0 < size <= LINE_LIMIT + 1
            return super().readline(size)

    lines = Endless("a" * (5 * LINE_LIMIT) + "\n1,2\n" + "b" * (2 * LINE_LIMIT))
    found = [(number, len(line)) for number, line in numbered_lines(lines)]
    assert found == [(1, LINE_LIMIT + 1), (2, 4), (3, LINE_LIMIT + 1)]


# ---- memory ----

GIGABYTE = 1 << 30


def zeros_in_npz(path: Path, member: str = "x.npy", n_bytes: int = GIGABYTE) -> Path:
    """A zip of a member of zeros, a thousandth of its size."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(member, "w", force_zip64=True) as out,
    ):
        np.lib.format.write_array_header_1_0(
            out, {"descr": "|u1", "fortran_order": False, "shape": (n_bytes // 3, 3)}
        )
        for _ in range(n_bytes >> 24):
            out.write(bytes(1 << 24))
    return path


@pytest.fixture(scope="module")
def bomb(tmp_path_factory) -> Path:
    """64 MB of zeros inside: the tests allow less."""
    return zeros_in_npz(tmp_path_factory.mktemp("bomb") / "x.npz", n_bytes=1 << 26)


def memory_of(call) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_npz_beyond_the_limit(bomb):
    """Refused by its header. The size is what it takes as float64."""
    assert bomb.stat().st_size < 100_000

    def load() -> None:
        with pytest.raises(
            SampleError, match=r"x\.npz, array 'x' of shape .* takes 512 MB .*--max-memory"
        ):
            load_samples(bomb, 3, max_memory="100M")

    assert memory_of(load) < 1 << 20


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize(("shape", "words"), [((GIGABYTE,), "takes 8 GB"), ((1 << 70,), "TB")])
def test_a_claim_of_gigabytes_is_refused_at_once(tmp_path, name, shape, words):
    """A few bytes that claim 8 GB as float64, or all there is; nothing is allocated."""
    out = io.BytesIO()
    head = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, head)
    (tmp_path / "x.npy").write_bytes(out.getvalue())
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.write(tmp_path / "x.npy", "x.npy")
    start = time.monotonic()
    assert memory_of(lambda: refused_at(tmp_path / name, "1G", words)) < 1 << 20
    assert time.monotonic() - start < 1


def refused_at(path: Path, limit: str, *words: str) -> None:
    with pytest.raises(SampleError) as info:
        load_samples(path, 3, max_memory=limit)
    assert all(word in str(info.value) for word in (path.name, "--max-memory", *words)), info.value


def test_arrays_that_are_not_asked_for_cost_nothing(tmp_path):
    """The arrays of a file count together, as far as they are read."""
    np.savez_compressed(tmp_path / "x.npz", x=X, other=np.zeros((1000, 1000, 3)))
    assert len(load_samples(tmp_path / "x.npz", 3, max_memory=1000).sequences) == 2
    np.savez_compressed(tmp_path / "x.npz", x=X, y=np.zeros((2, 100)))
    refused_at(tmp_path / "x.npz", "1000", "array 'y'", "1.75 kB")


def test_objects_are_refused_by_name(tmp_path):
    refused(npz(tmp_path, x=np.array([{"a": 1}], dtype=object)), "array 'x'", "Python objects")


@pytest.mark.parametrize("line", ["1,2,3\n", "1,2,3", "\n"])
def test_csv_gz_beyond_the_limit(tmp_path, line):
    with gzip.open(tmp_path / "x.csv.gz", "wt") as out:
        for _ in range(100):
            out.write(line * 100_000)
    if "\n" in line:
        refused_at(tmp_path / "x.csv.gz", "1M", "line")
    else:
        refused(tmp_path / "x.csv.gz", "line 1", "longer than")


def test_scaler_beyond_the_limit(bomb):
    with at_most("1M"), pytest.raises(SampleError, match=r"x\.npz.*--max-memory"):
        as_scaler(bomb)


def test_keras_files_beyond_the_limit(tmp_path):
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", bytes(1 << 24))
    with at_most("10M"), pytest.raises(ImportRefused, match=r"m\.keras takes 16 MB .*--max-memory"):
        check_packed(path)
    check_packed(path)
    path.write_bytes(b"PK nothing")
    check_packed(path)


def test_hdf5_files_beyond_the_limit(tmp_path):
    h5py = pytest.importorskip("h5py", reason="keras brings h5py")
    with h5py.File(tmp_path / "m.h5", "w") as content:
        content.create_dataset(
            "layer/kernel", (1 << 20, 1 << 10), "f4", compression="gzip", chunks=True
        )
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.write(tmp_path / "m.h5", "model.weights.h5")
    for name in ("m.h5", "m.keras"):
        with at_most("1G"), pytest.raises(ImportRefused, match=rf"{name} takes 4 GB"):
            check_packed(tmp_path / name)


@pytest.mark.parametrize("option", [["--max-memory", "1k"], ["--max-memory=1024"]])
def test_commands_have_the_limit(tmp_path, option):
    """Each refuses its data, or the model that it opens, with exit code 1 and the option's name."""
    from conftest import DEMO
    from test_report import invoke

    onnx, data, model = DEMO / "turbofan.onnx", DEMO / "turbofan_test.npz", tmp_path / "m.stw"
    stepwell.convert(onnx, DEMO / "turbofan_calib.npz").save(model)
    (tmp_path / "log.csv").write_text("1,2\n")
    for args, file in (
        (["convert", onnx, "--calib", data, "-o", tmp_path / "new.stw"], onnx),
        (["check", model, "--data", data], model),
        (["report", model, "--data", data], model),
        (["hil", model, "--port", "host:", "--data", data], model),
        (["run", model, tmp_path / "log.csv"], model),
    ):
        done = invoke(*args, *option)
        assert done.code == 1 and f"{file} takes" in done.stderr and "--max-memory" in done.stderr
    done = invoke("check", model, "--data", data, "--float", onnx, "--max-memory", "100k")
    assert done.code == 1 and "array 'x'" in done.stderr and "the limit is 100 kB" in done.stderr
    assert not (tmp_path / "new.stw").exists()
    done = invoke("run", model, tmp_path / "log.csv", "--max-memory", "lots")
    assert done.code == 2 and "max-memory lots: expected a size such as 2G" in done.stderr


def test_limit_of_the_api():
    from conftest import DEMO

    onnx, data = DEMO / "turbofan.onnx", DEMO / "turbofan_calib.npz"
    for convert in (stepwell.convert, partial(stepwell.smallest, data=data)):
        with pytest.raises(SampleError, match=r"turbofan_calib.npz, array 'x' .*max_memory="):
            convert(onnx, data, max_memory="100k")
        with pytest.raises(ImportRefused, match=r"turbofan.onnx takes .*max_memory="):
            convert(onnx, data, max_memory=1000)


@pytest.mark.parametrize(
    ("text", "size"),
    [("2G", 2 << 30), ("512m", 512 << 20), ("64kB", 65536), ("1.5GiB", 3 << 29), (4096, 4096)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "0", "-1G", "nan", "inf", "2X", "1e30G"])
def test_sizes_that_are_none(text):
    with pytest.raises(WrongUse, match="expected a size"):
        parse_size(text)


def test_the_limit_is_a_quarter_of_the_machine():
    whole = limit()
    assert whole > 1 << 26
    with at_most("1M"):
        assert limit() == 1 << 20
    assert limit() == whole
