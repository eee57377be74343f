"""What stepwell says before it believes a model: one test for each fault of the front door, on small inputs.

The cases of the design folder run too, where that folder lies beside the repository.
"""

from __future__ import annotations

from pathlib import Path

import pytest

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"


# ---- W1: windows: the source's window is known, and the gap of carrying on is told ----



# ---- W2: scale: a leading affine is the scaler, channels get a scale of their own ----



# ---- W3: fidelity: noise is never silent ----



# ---- W4: padding='same': exact in windows, refused in carry ----



# ---- W5: check: source, float stream and integer side by side ----



# ---- W6: columns are matched by name ----


def as_csv(path: Path, names: list[str] | None, rows) -> Path:
    lines = ([",".join(names)] if names else []) + [",".join(map(repr, row)) for row in rows.tolist()]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A model made from a csv file with names, and the same rows with a time and the columns turned round."""
    import numpy as np
    from conftest import DEMO
    from test_report import invoke

    folder = tmp_path_factory.mktemp("named")
    names = [f"s{k}" for k in range(14)]
    rows = np.load(DEMO / "turbofan_calib.npz")["x"][:4, :25].astype(float).reshape(-1, 14)
    as_csv(folder / "calib.csv", names, rows)
    turned = np.hstack([np.arange(100.0)[:, None], rows[:, ::-1]])
    as_csv(folder / "turned.csv", ["time", *names[::-1]], turned)
    as_csv(folder / "bare.csv", None, rows)
    as_csv(folder / "short.csv", names[:6] + names[7:], np.delete(rows, 6, axis=1))
    as_csv(folder / "twice.csv", [*names, "s6"], np.hstack([rows, rows[:, :1]]))
    done = invoke("convert", DEMO / "turbofan.onnx", "--calib", folder / "calib.csv", "-o", folder / "m.stw")
    assert done.code == 0, done.stderr
    return folder


def commands(folder: Path, file: str) -> dict[str, list]:
    from conftest import DEMO

    onnx, model, data = DEMO / "turbofan.onnx", folder / "m.stw", ["--data", folder / file, "--json"]
    auto = ["--precision", "auto", "--max-drop", "99%", "-o", folder / "auto.stw", *data]
    return {
        "run": ["run", model, folder / file],
        "check": ["check", model, "--float", onnx, *data],
        "report": ["report", model, "--float", onnx, "--steps", 100, *data],
        "hil": ["hil", model, "--port", "host:", *data],
        "convert": ["convert", onnx, "--calib", folder / "calib.csv", *auto],
    }


COMMANDS = ("run", "check", "report", "hil", "convert")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_matches_columns_by_name(named, command):
    """Another order, and one column more: the results are those of the plain file."""
    import re

    import stepwell
    from test_report import invoke

    assert stepwell.load(named / "m.stw").notes["columns"] == [f"s{k}" for k in range(14)]
    plain, turned = (invoke(*commands(named, file)[command]) for file in ("bare.csv", "turned.csv"))
    assert plain.code == turned.code == 0, turned.stderr
    without = [re.sub(r'"(data|seconds|steps_per_second)": .*', "", done.stdout) for done in (plain, turned)]
    assert without[0].replace("bare.csv", "turned.csv") == without[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_missing_and_double_columns_are_refused_by_name(named, command):
    from test_report import invoke

    for file, words in (("short.csv", ("no column 's6'", "there is s0, s1")), ("twice.csv", ("'s6'", "twice"))):
        done = invoke(*commands(named, file)[command])
        assert done.code == 1 and all(word in done.stderr for word in (file, "line 1", *words)), done.stderr


def test_columns_that_are_asked_for(named):
    """The model's own names in any order are matched; others stand for the inputs in their order."""
    from test_report import invoke

    run = ["run", named / "m.stw", named / "turned.csv", "--columns"]
    expected = invoke("run", named / "m.stw", named / "bare.csv").stdout
    assert invoke(*run, ",".join(f"s{k}" for k in reversed(range(14)))).stdout == expected
    one_is_time = invoke(*run, ",".join(["time", *(f"s{k}" for k in range(1, 14))]))
    assert one_is_time.code == 0 and one_is_time.stdout != expected


def test_tables_into_streams_and_batches(named):
    """DataFrames by name, and one row as a dict or a Series; arrays by position as ever."""
    import numpy as np
    import stepwell

    pd = pytest.importorskip("pandas", reason="needs pandas")
    model, frame = stepwell.load(named / "m.stw"), pd.read_csv(named / "turned.csv")
    rows = pd.read_csv(named / "bare.csv", header=None).to_numpy()
    expected = model.stream().run(rows)
    for run in (model.stream().run, model.reference().run):
        np.testing.assert_array_equal(run(frame), expected)
    stream, other = model.stream(), model.stream()
    for k in range(5):
        np.testing.assert_array_equal(stream.step(frame.iloc[k]), expected[k])
        np.testing.assert_array_equal(other.step(dict(frame.iloc[k])), expected[k])
    np.testing.assert_array_equal(model.batch(100).step(frame), model.batch(100).step(rows))
    np.testing.assert_array_equal(model.quantize(frame), model.quantize(rows))
    before = stream.digest()
    for bad in (frame.drop(columns="s6"), frame.drop(columns="s6").iloc[0], {"s1": 1.0}):
        with pytest.raises(stepwell.SampleError, match="no column 's"):
            (stream.run if bad is not dict and getattr(bad, "ndim", 1) == 2 else stream.step)(bad)
    with pytest.raises(stepwell.SampleError, match="no column 's6'"):
        model.batch(100).step(frame.drop(columns="s6"))
    assert stream.digest() == before


def test_calibration_by_dataframes():
    """The names of what is fed are kept; sequences of other order are matched."""
    import numpy as np
    import stepwell
    from conftest import random_lstm
    from stepwell.graph import Graph

    pd = pytest.importorskip("pandas", reason="needs pandas")
    rng = np.random.default_rng(1)
    graph, x = Graph((random_lstm(rng, 3, 4),)), rng.normal(size=(8, 20, 3))
    frames = [pd.DataFrame(s, columns=["a", "b", "c"]).assign(t=0)[list("tcab")] for s in x]
    mixed = [frames[0][list("abct")], *frames[1:]]
    plain = stepwell.convert(graph, x)
    model = stepwell.convert(graph, mixed, columns=["a", "b", "c"])
    assert model.notes["columns"] == ["a", "b", "c"] and model.id == plain.id
    assert "columns" not in plain.notes
    np.testing.assert_array_equal(model.stream().run(frames[3]), plain.stream().run(x[3]))
    with pytest.raises(stepwell.SampleError, match="two columns are named 'a'"):
        stepwell.convert(graph, pd.DataFrame(x[0], columns=["a", "b", "a"]))


def test_the_plugin_matches_dataframes(named):
    import stepwell
    from stepwell.link import connect
    from stepwell.pytest_plugin import Dut

    pd = pytest.importorskip("pandas", reason="needs pandas")
    model, frame = stepwell.load(named / "m.stw"), pd.read_csv(named / "turned.csv")
    with connect("host:", model=model) as link:
        assert Dut(link, model).run([frame]).steps == Dut(link, model).run(frame).steps == 100
        with pytest.raises(stepwell.SampleError, match="no column 's6'"):
            Dut(link, model).run([frame.drop(columns="s6")])


def test_names_of_columns_in_a_file_are_checked(small_model):
    """A .stw of another's making names each input once, or is refused."""
    import stepwell

    for columns in (["a"] * small_model.n_in, ["a"], [1] * small_model.n_in, "abc"):
        with pytest.raises(stepwell.ModelError, match="columns"):
            stepwell.loads(small_model.replace(notes={**small_model.notes, "columns": columns}).blob)



# ---- W7: csv headers of numbers ----


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_pandas_files(named, command):
    """to_csv of an array, with its index and without: headers, and the same results as without one."""
    import numpy as np
    from test_report import invoke

    rows = np.loadtxt(named / "bare.csv", delimiter=",")
    names = [str(k) for k in range(14)]
    as_csv(named / "no_index.csv", names, rows)
    as_csv(named / "index.csv", ["", *names], np.hstack([np.arange(100.0)[:, None], rows]))
    plain = invoke(*commands(named, "bare.csv")[command])
    for file, said in (("no_index.csv", True), ("index.csv", False)):
        done = invoke(*commands(named, file)[command])
        assert done.code == 0, done.stderr
        assert ("line 1 is taken as a header" in done.stderr) == said, done.stderr
        if command == "run":
            assert done.stdout == plain.stdout
        no_header = invoke(*commands(named, file)[command], "--no-header")
        if command == "convert":  # the option holds for --calib, too, which has a header
            assert no_header.code == 1 and "calib.csv line 1" in no_header.stderr
        elif file == "index.csv":
            assert no_header.code == 1 and "line 1: 15 values" in no_header.stderr
        elif command == "run":
            assert len(no_header.stdout.splitlines()) == 101 and not no_header.stderr.count("taken")


def test_a_header_is_said_to_be_one(named):
    """--header takes a first line that looks like data."""
    import numpy as np
    from test_report import invoke

    rows = np.loadtxt(named / "bare.csv", delimiter=",")
    path = as_csv(named / "years.csv", [str(2001 + k) for k in range(14)], rows)
    done = [invoke("run", named / "m.stw", path, *option) for option in ((), ("--header",))]
    assert len(done[0].stdout.splitlines()) == 101
    assert done[1].code == 1 and "no column 's0'" in done[1].stderr
    chosen = invoke("run", named / "m.stw", path, "--columns", ",".join(str(2001 + k) for k in range(14)), "--header")
    assert chosen.stdout == invoke("run", named / "m.stw", named / "bare.csv").stdout



# ---- W8: banners and noise before a live stream ----


def live(model: Path, content: bytes, *options) -> tuple[int, list[str], str]:
    """Exit code, rows and messages of ``stepwell run`` on such a stream."""
    import io
    import sys
    from unittest import mock

    from test_report import invoke

    with mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(content))):
        done = invoke("run", model, "-", *options)
    return done.code, done.stdout.splitlines(), done.stderr


NOISE = {  # what comes before the rows -> the line that is named
    "banner": (b"MPU6050 ready\n", 1),
    "banner with commas": (b"boot,ok\n", 1),
    "binary": (bytes(range(256)) + b"\n", 1),
    "zeros": (bytes(3000) + b"\n", 1),
    "half a row": (b"2,0.5\n", 1),
    "a row after noise": (b"\x00\xff\x80" + b"1," * 13 + b"1\n", 1),
    "blank lines": (b"\n\r\n  \nready\n", 4),
    "megabytes without an end": (b"x" * 5_000_000 + b"\n", 1),
}


@pytest.mark.parametrize("what", NOISE)
def test_noise_before_a_stream(named, what):
    """A bad row, no header: the stream flows behind it with --skip-bad; without, the line and the reason."""
    noise, line = NOISE[what]
    rows = (named / "bare.csv").read_bytes().splitlines(keepends=True)[:20]
    _, expected, _ = live(named / "m.stw", b"".join(rows))
    code, found, said = live(named / "m.stw", noise + b"".join(rows), "--skip-bad")
    assert code == 0 and found == expected and said.count(f"stdin line {line}") == 1
    code, found, said = live(named / "m.stw", noise + b"".join(rows))
    assert code == 1 and not found and f"stdin line {line}" in said
    assert len(said) < 1000 and said.replace("\n", "").isprintable()


def test_header_behind_a_banner(named):
    """It counts as long as no row was read, and its names are matched."""
    turned = (named / "turned.csv").read_bytes()
    bare = (named / "bare.csv").read_bytes()
    code, found, said = live(named / "m.stw", b"ready\n\x00\n" + turned, "--skip-bad")
    assert code == 0 and len(found) == 100 and said.count("stdin line") == 2
    assert found == live(named / "m.stw", bare)[1]


def test_stream_of_bad_rows_only(named):
    code, found, said = live(named / "m.stw", b"a\nb\n", "--skip-bad")
    assert code == 1 and not found and "no rows: all 2 were bad" in said



# ---- W9: held outputs ----



# ---- W10: hard_sigmoid by the version of Keras ----



# ---- W11: raw data into a model of scaled data ----



# ---- W12: several outputs ----



# ---- W13: hidden weights that keep few codes ----



# ---- W14: short calibration sequences ----



# ---- W15: concatenations of relu layers at 8 bits ----



# ---- W16: info's ranges by channel ----



# ---- the cases of the design folder ----


@pytest.mark.skipif(not CASES.is_dir(), reason="not part of the repository: the cases beside it")
def test_case_csv_headers_and_banners(tmp_path):
    """csv_numeric_header and live_stream_banner: 60 rows, those of x.npz."""
    import numpy as np
    import stepwell
    from test_report import invoke

    headers, banners = CASES / "csv_numeric_header", CASES / "live_stream_banner"
    model = stepwell.convert(headers / "m3.onnx", headers / "x.npz")
    model.save(tmp_path / "m3.stw")
    expected = model.stream().run(np.load(headers / "x.npz")["x"][0])
    for file in ("to_csv_index_false.csv", "to_csv_default.csv"):
        for option in ((), ("--columns", "0,1,2")):
            done = invoke("run", tmp_path / "m3.stw", headers / file, *option)
            found = np.array([line.split(",") for line in done.stdout.splitlines()], float)
            np.testing.assert_allclose(found, expected, rtol=1e-8)
    for file in ("banner.txt", "banner_and_header.txt", "garbage.bin"):
        content = (banners / file).read_bytes()
        code, found, said = live(tmp_path / "m3.stw", content, "--skip-bad")
        assert code == 0 and said.count("stdin line 1: ") == said.count("\n") == 1, said
        np.testing.assert_allclose(np.array([r.split(",") for r in found], float), expected, atol=2e-3)
        code, found, said = live(tmp_path / "m3.stw", content)
        assert code == 1 and not found and "stdin line 1: " in said
