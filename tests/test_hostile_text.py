"""Text of a file reaches C source, pages and the terminal escaped only, whichever string of the
file holds it.
"""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
import sys
import unicodedata
from copy import deepcopy
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import stepwell
from shapes import random_dense, random_lstm, random_sequences
from stepwell.blob import MATCHED, NOTES, host_notes
from stepwell.cli import main
from stepwell.emit import emit
from stepwell.errors import LinkError, ModelError, StepwellError
from stepwell.graph import Graph, Source
from stepwell.report.hil_page import Run, run_of, write_page
from stepwell.text import c_text, html_text, markdown_text, printable, terminal_text
from test_blob import forged

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases" / "hostile"
HOSTILE = {
    "comment": "a*/ int evil; /*b",
    "code": 'w8a16 */\n__attribute__((constructor)) static void f(void){__builtin_puts("PWNED");}\n/*',
    "directive": "x\n#error pwned\n",
    "trigraph": "a??/\n*??/\n/ int evil;",
    "quotes": '"\'`\\" \\',
    "backslash at the end": "evil*\\",
    "tag": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "attribute": '" onmouseover="alert(1)',
    "entity": "&lt;b&gt;&#0;",
    "markdown": "[x](javascript:alert(1)) | `ls` | ![y](z)",
    "template": "{{ 7 * 7 }}{% raw %}",
    "formula": "$\\frac{1}$ $",
    "ansi": "\x1b[31mred\x1b]0;title\x07\x9b2J",
    "controls": "\x00\x08\r\t\x7f",
    "no-break space": "Temp\xa0\u2009C",
    "bidi": "\u202egnp.exe\u2066",
    "lines": "a\u2028b\x0bc\x85d",
    "emoji": "\U0001f600\u200d\U0001f525\ufe0f",
    "surrogate": "\ud800x",
    "tags beyond the BMP": "\U000e0041\U0010ffff",
    "long": "long*/" * 2000,
}
WARNINGS = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
CODE = ("int evil", "attribute__((cons", "#error pwned")


def texts(value: object, path: tuple = ()) -> list[tuple]:
    """The way to each text in nested dicts and lists."""
    if isinstance(value, str):
        return [path]
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [way for key, item in items for way in texts(item, (*path, key))]


def put(value: object, path: tuple, text: str) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = text


def example(shape: object) -> object:
    """A value of a shape of NOTES, texts in it."""
    if isinstance(shape, dict):
        return {name.removesuffix("?"): example(inner) for name, inner in shape.items()}
    if isinstance(shape, list):
        return [example(shape[0])] * 2
    kind = shape[0] if isinstance(shape, tuple) else shape
    return {str: "text", int: 3, float: 0.5, bool: True}[kind]


# two inputs and two outputs
NAMED = {
    "columns": ["one", "two"],
    "outputs": [{"name": "mu", "size": 1}, {"name": "nu", "size": 1}],
}


@pytest.fixture(scope="module")
def host() -> tuple[stepwell.Model, dict]:
    """A model and the host's part of its file, in which every field that stepwell knows has a
    value.
    """
    rng = np.random.default_rng(5)
    graph = Graph(
        (random_lstm(rng, 2, 4), random_dense(rng, 4, 2)),
        source=Source("motor.onnx", "0" * 64, "a tool"),
    )
    model = stepwell.convert(graph, random_sequences(rng, 8, 30, 2))
    part = json.loads(json.dumps(host_notes(model)))
    kept = {k: v for k, v in part["notes"].items() if v}
    part["notes"] = example(NOTES) | kept | NAMED | {"of_later": {"a": ["b"]}}
    return model, part


def with_host(model: stepwell.Model, part: dict) -> bytes:
    device_bytes = int.from_bytes(model.blob[12:16], "little")
    return forged(model.blob[:device_bytes] + json.dumps(part).encode() + bytes(4))


def hostile_everywhere(part: dict, text: str) -> dict:
    """``part`` with ``text`` in place of every text but those of the scaler, which are words of its
    own.
    """
    changed = deepcopy(part)
    for way in texts({name: part[name] for name in ("layers", "notes")}):
        put(changed, way, text)
    changed["notes"]["columns"] = [
        f"{text}{k}" for k in range(2)
    ]  # each input has a name of its own
    return changed


def assert_harmless(text: str) -> None:
    """What a terminal shows: lines of characters that can be seen."""
    bad = {c for c in text if not c.isprintable() and c != "\n"}
    assert not bad, f"{bad} in {text[:300]!r}"


def stepwell_says(*args: object, encoding: str = "utf-8") -> SimpleNamespace:
    """A command whose output is no terminal, in this process, with the exit code."""
    kept = sys.argv, sys.stdout, sys.stderr
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="") for _ in range(2)]
    sys.argv, (sys.stdout, sys.stderr) = ["stepwell", *map(str, args)], streams
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv, sys.stdout, sys.stderr = kept
    said = []
    for stream in streams:
        stream.flush()
        said.append(stream.buffer.getvalue().decode(encoding))
        assert_harmless(said[-1])
    return SimpleNamespace(returncode=ended.value.code, stdout=said[0], stderr=said[1])


@pytest.fixture(scope="module")
def built_engine(host, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("engine")
    emit(host[0], folder, "m")
    sources = [p for p in sorted(folder.glob("*.c")) if p.name not in ("m.c", "main.c")]
    subprocess.run(["gcc", *WARNINGS, "-c", *sources], cwd=folder, check=True)
    return sorted(folder.glob("*.o"))


@pytest.mark.parametrize("kind", HOSTILE)
def test_every_text_of_a_model(kind, host, built_engine, tmp_path):
    """All at once, so that fields of later versions are covered, too."""
    text = HOSTILE[kind]
    model = stepwell.loads(with_host(host[0], hostile_everywhere(host[1], text)))
    file = tmp_path / "hostile.stw"
    file.write_bytes(model.blob)
    assert model.name == printable(text), "it is kept in a form that can be read"
    assert_harmless(repr(model))
    assert "\n" not in model.layers[0].name

    said = stepwell_says("info", file)
    assert said.returncode == 0 and printable(text)[:30] in said.stdout
    as_json = json.loads(stepwell_says("info", file, "--json").stdout)
    assert as_json["name"] == printable(text)

    folder = tmp_path / "c"
    assert stepwell_says("emit", file, "-o", folder, "--name", "m").returncode == 0
    emitted = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert all(text.isascii() for name, text in emitted.items() if name != "README.md")
    for name in ("m.h", "m.c", "main.c", "README.md"):
        assert_harmless(emitted[name])
        assert name == "README.md" or "??/" not in emitted[name]
    assert "<script>" not in emitted["README.md"]
    for name in ("m.h", "m.c"):
        outside = subprocess.run(
            ["gcc", "-fpreprocessed", "-dD", "-E", "-P", name], cwd=folder, capture_output=True
        )
        assert not any(code in outside.stdout.decode() for code in CODE), (
            "a comment has ended early"
        )
    sources = ["main.c", "m.c", *built_engine]
    subprocess.run(["gcc", *WARNINGS, "-I.", "-o", "demo", *sources], cwd=folder, check=True)
    out = subprocess.run(
        [folder / "demo"], input=b"1,2\n3,4\n", capture_output=True, check=True
    ).stdout
    assert len(out.split()) == 2 and b"PWNED" not in out


def test_default_names_of_a_hostile_model(host, tmp_path):
    """Without --name the model's name becomes that of files: they stay inside the folder, and are
    no device.
    """
    for text in (
        HOSTILE["controls"],
        HOSTILE["long"],
        "../../up",
        "/etc/passwd",
        "con",
        "..",
        "",
        "-o",
        "stdint",
    ):
        part = deepcopy(host[1])
        part["notes"]["name"] = text
        model = stepwell.loads(with_host(host[0], part))
        files = emit(model, tmp_path / "out")
        assert all(path.parent == tmp_path / "out" and len(path.name) < 70 for path in files)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


WRONG = [
    ("notes.name", 5),
    ("notes.precision", ["w8a16"]),
    ("notes.source", "abc"),
    ("notes.source.sha256", None),
    ("notes.warnings[1]", 1),
    ("notes.import_notes", {}),
    ("notes.columns[0]", 7),
    ("notes.window", "10"),
    ("notes.window", True),
    ("notes.calibration.x_peak", "1"),
    ("notes.fidelity.carry_gap", []),
    ("notes", []),
    ("layers[1].name", 3),
    ("layers[0].x_scale", "1"),
    ("layers", {}),
    ("x_scale", None),
    ("scaler", [1]),
]


@pytest.mark.parametrize(
    ("place", "value"), WRONG, ids=[f"{place}={value}" for place, value in WRONG]
)
def test_notes_of_a_wrong_type_are_refused_by_name(place, value, host):
    part = deepcopy(host[1])
    way = [
        int(w) if w.isdigit() else w for w in place.replace("[", ".").replace("]", "").split(".")
    ]
    put(part, tuple(way), value)
    with pytest.raises(ModelError) as refused:
        stepwell.loads(with_host(host[0], part))
    assert f"no usable host notes: {place} is " in str(refused.value)


def test_missing_notes_are_fine_and_unknown_ones_are_kept(host):
    part = host[1] | {"notes": {"of_later": {"x": 1}}, "of_later": 3}
    model = stepwell.loads(with_host(host[0], part))
    assert (
        model.notes == {"of_later": {"x": 1}}
        and model.info()["precision"]
        and model.name == "model"
    )


def test_names_of_columns_stay_as_they_are(host):
    """They are matched with the user's data."""
    assert MATCHED == ("columns",)
    part = deepcopy(host[1])
    part["notes"]["columns"] = ["Temp\xa0C", "b"]
    assert stepwell.loads(with_host(host[0], part)).notes["columns"] == ["Temp\xa0C", "b"]


class _Tags(HTMLParser):
    """The tags, attributes and text of a page. A tag of somebody else's would be seen."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("kind", HOSTILE)
def test_page_of_a_hil_run(kind, tmp_path):
    text = HOSTILE[kind]
    runs = [Run(text, "failed", {text: text}, text), run_of(text, LinkError(f"{text}: silent"))]
    write_page(tmp_path / "page.html", text, runs)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    harmless = tmp_path / "harmless.html"
    write_page(
        harmless, "t", [Run("n", "failed", {"c": "f"}, "t"), run_of("p", LinkError("p: silent"))]
    )
    found, usual = _Tags(page), _Tags(harmless.read_text())
    assert (found.tags, found.attributes) == (usual.tags, usual.attributes)
    assert_harmless(page)
    assert found.text.count(printable(text, "\n")) >= 5, "it can be read"


def test_page_of_a_report(host, tmp_path):
    """Names of layers in tables and pictures, notes, warnings, the name of the data, advice."""
    from stepwell.report import analyse, write_report
    from stepwell.samples import load_samples

    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(7)
    layers = (random_lstm(rng, 2, 4), random_dense(rng, 4, 2))
    graph = Graph(layers, source=Source("motor.onnx", "0" * 64, "a tool"))
    x = random_sequences(rng, 4, 30, 2)
    converted = stepwell.convert(graph, x)
    hostile = "".join(text for text in HOSTILE.values() if len(text) < 1000)
    pages = []
    for text in ("plain", hostile):
        part = json.loads(json.dumps(host_notes(converted))) | {"notes": example(NOTES) | NAMED}
        model = stepwell.loads(with_host(converted, hostile_everywhere(part, text)))
        analysis = analyse(model, graph, load_samples(x, 2), 200)
        analysis.facts["check"]["data"] = text  # the name of the file of test data
        analysis.facts["advice"] = [text]
        pages.append(write_report(analysis, tmp_path / "page.html").read_text(encoding="utf-8"))
        assert_harmless(pages[-1])
    found, usual = _Tags(pages[1]), _Tags(pages[0])
    assert found.tags - usual.tags == set() and found.attributes - usual.attributes == set()
    assert found.text.count(printable(hostile)) > 5, "it can be read"


# ---- the terminal ----


def test_a_hostile_model_in_every_command(host, tmp_path):
    """Errors, warnings and results; over a terminal, too, and in an encoding that lacks most
    characters.
    """
    text = "".join(
        HOSTILE[kind] for kind in ("ansi", "controls", "bidi", "emoji", "no-break space", "lines")
    )
    file, data = tmp_path / "m.stw", tmp_path / "x.npy"
    file.write_bytes(with_host(host[0], hostile_everywhere(host[1], text)))
    np.save(data, np.zeros((3, 9, 2), np.float32))
    for encoding in ("utf-8", "ascii", "latin-1"):
        said = stepwell_says("info", file, encoding=encoding)
        assert said.returncode == 0 and "\\x1b[31mred" in said.stdout, "escaped, not stripped"
    # the float model is not there
    assert stepwell_says("check", file, "--data", data).returncode == 1
    assert "\\x1b[31mred" in stepwell_says("check", file, "--data", data).stderr
    assert stepwell_says("hil", file, "--port", "host:", "--data", data).returncode == 0
    assert stepwell_says("bench", file, "--core", text).returncode in (1, 2)
    assert stepwell_says("emit", file, "-o", tmp_path / "out").returncode == 0
    assert stepwell_says("info", tmp_path / "absent\x1b[31m.stw").returncode == 1
    assert stepwell_says("info", "--nonsense\x1b[31m").returncode == 2
    assert stepwell_says("no\x1b[31mcommand").returncode == 2


def test_a_terminal_gets_no_escapes_either(host, tmp_path):
    """click strips them where the output is no terminal: this one is one."""
    file = tmp_path / "m.stw"
    file.write_bytes(with_host(host[0], hostile_everywhere(host[1], HOSTILE["ansi"])))
    main, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "stepwell", "info", file], stdout=side, stderr=side
    )
    os.close(side)
    said = b""
    try:
        while part := os.read(main, 4096):
            said += part
    except OSError:  # how Linux says that the other side has closed
        pass
    os.close(main)
    assert process.wait() == 0 and b"\\x1b[31mred" in said
    assert_harmless(said.decode().replace("\r\n", "\n"))


def test_commands_inside_another_program(host, tmp_path):
    """The group escapes by itself, and gives the streams back."""
    from click.testing import CliRunner
    from stepwell.cli.commands import cli

    file = tmp_path / "m.stw"
    file.write_bytes(with_host(host[0], hostile_everywhere(host[1], HOSTILE["ansi"])))
    before = sys.stdout, sys.stderr
    said = CliRunner().invoke(cli, ["info", str(file)])
    assert said.exit_code == 0 and "\\x1b[31mred" in said.output
    assert_harmless(said.output)
    assert (sys.stdout, sys.stderr) == before


@pytest.mark.parametrize(
    "kind", [kind for kind in HOSTILE if kind not in ("surrogate", "lines", "controls")]
)
def test_headers_and_cells_of_csv_files(kind, host, tmp_path):
    """Whether it is read or refused, with whichever reason."""
    text = HOSTILE[kind]
    file = tmp_path / "x.csv"
    for rows in (
        [[text, "b"], ["1", "2"]],
        [["1", "2"], ["3", text]],
        [["a", "b", "c"], ["1", "2", text]],
    ):
        with file.open("w", newline="", encoding="utf-8") as lines:
            csv.writer(lines).writerows(rows)
        model = tmp_path / "m.stw"
        model.write_bytes(host[0].blob)
        for command in ("run", "hil"):
            extra = ("--port", "host:", "--data", file) if command == "hil" else (file,)
            stepwell_says(command, model, *extra)
            stepwell_says(command, model, *extra, "--columns", f"{text},zz".replace("\x00", ""))


def onnx_named(text: str) -> object:
    """An LSTM of ONNX in which every name that the format knows is ``text``, or begins with it."""
    import onnx
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(1)
    names = {name: f"{text}{name}" for name in ("X", "W", "R", "B", "Y", "S", "Z", "axis")}
    arrays = {
        "W": rng.normal(size=(1, 16, 2)) * 0.3,
        "R": rng.normal(size=(1, 16, 4)) * 0.3,
        "B": np.zeros((1, 32)),
    }
    initial = [numpy_helper.from_array(a.astype(np.float32), names[k]) for k, a in arrays.items()]
    initial.append(numpy_helper.from_array(np.array([1], np.int64), names["axis"]))
    nodes = [
        helper.make_node(
            "LSTM", [names[k] for k in "XWRB"], [names["Y"]], name=text, hidden_size=4
        ),
        helper.make_node(
            "Squeeze", [names["Y"], names["axis"]], [names["Z"]], name=f"{text}squeeze"
        ),
    ]
    x = helper.make_tensor_value_info(names["X"], onnx.TensorProto.FLOAT, [f"{text}T", 1, 2])
    y = helper.make_tensor_value_info(names["Z"], onnx.TensorProto.FLOAT, [f"{text}T", 1, 4])
    graph = helper.make_graph(nodes, text, [x], [y], initial, doc_string=text)
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], producer_name=text, doc_string=text
    )
    made.ir_version = 8
    return made


@pytest.mark.parametrize("kind", [kind for kind in HOSTILE if kind != "surrogate"])
def test_names_of_an_onnx_file(kind, tmp_path):
    onnx = pytest.importorskip("onnx")
    file, calib = tmp_path / "m.onnx", tmp_path / "calib.npy"
    onnx.save(onnx_named(HOSTILE[kind]), file)
    np.save(calib, np.random.default_rng(2).normal(size=(8, 20, 2)).astype(np.float32))
    said = stepwell_says("convert", file, "--calib", calib)
    assert said.returncode == 0, said.stderr
    assert stepwell_says("info", tmp_path / "m.stw").returncode == 0
    assert (
        stepwell_says("emit", tmp_path / "m.stw", "-o", tmp_path / "c", "--name", "m").returncode
        == 0
    )
    subprocess.run(["gcc", *WARNINGS, "-fsyntax-only", "m.c"], cwd=tmp_path / "c", check=True)


@pytest.mark.parametrize(
    "name", ["a\xa0b", "tab\there", "\U0001f600", "red\x1b[31m", 'q"uote', "new\nline", "a*"]
)
def test_names_of_files(name, tmp_path):
    """The name of a source is kept with the model; the source is found by it."""
    onnx = pytest.importorskip("onnx")
    file, calib = tmp_path / f"{name}.onnx", tmp_path / "calib.npy"
    onnx.save(onnx_named("n"), file)
    np.save(calib, np.random.default_rng(2).normal(size=(8, 20, 2)).astype(np.float32))
    said = stepwell_says("convert", file, "--calib", calib)
    assert said.returncode == 0, said.stderr
    assert stepwell_says("check", tmp_path / f"{name}.stw", "--data", calib).returncode == 0


@pytest.mark.parametrize(
    "name", ['b"; int evil;', "b\\", "b\x1b[31m", "a(b", "a,b", "<b>", "caf\xe9"]
)
def test_name_of_a_board_of_ones_own(name, host, tmp_path):
    """It would become text of C and of the assembler."""
    model, folder = tmp_path / "m.stw", tmp_path / name
    model.write_bytes(host[0].blob)
    folder.mkdir()
    (folder / "board.mk").write_text("LABEL = built only\nCPU = armv6m\n")
    said = stepwell_says("build", model, "--board", f"{folder}/", "-o", tmp_path)
    assert said.returncode == 1 and "its name becomes C text" in said.stderr
    (tmp_path / "plain").mkdir(exist_ok=True)
    (tmp_path / "plain" / "board.mk").write_text(
        f"NAME = {name}\nLABEL = {name}\n", encoding="utf-8"
    )
    assert (
        stepwell_says("build", model, "--board", f"{tmp_path}/plain", "-o", tmp_path).returncode
        == 1
    )


def test_errors_of_the_library_are_printable():
    assert_harmless(str(StepwellError("".join(HOSTILE.values()))))
    assert str(StepwellError("two\nlines")) == "two\nlines"


# ---- the functions ----


@pytest.mark.parametrize("kind", HOSTILE)
def test_escaped_text(kind):
    text = HOSTILE[kind]
    for escaped in (c_text(text), printable(text), markdown_text(text)):
        assert_harmless(escaped)
        assert "\n" not in escaped
    code = c_text(text)
    assert code.isascii() and not any(part in code for part in ("*/", "/*", "??"))
    assert not any(c in html_text(text) for c in "<>\"'") and not any(
        c in markdown_text(text) for c in "<>`[]|"
    )
    assert terminal_text(terminal_text(text)) == terminal_text(text)
    assert terminal_text(text, "ascii").isascii()


def test_every_character_that_a_terminal_obeys_is_escaped():
    for code in range(sys.maxunicode + 1):
        c = chr(code)
        if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c != "\n":
            assert c not in terminal_text(f"a{c}b")


def test_c_text_is_a_string_and_a_comment(tmp_path):
    """The compiler reads back from the quotes what a person reads."""
    lines = [
        f'/* {c_text(text)} */ puts("{c_text(text)}");'
        for text in HOSTILE.values()
        if len(text) < 1000
    ]
    program = "#include <stdio.h>\nint main(void)\n{\n" + "\n".join(lines) + "\nreturn 0;\n}\n"
    (tmp_path / "p.c").write_text(program)
    subprocess.run(["gcc", *WARNINGS, "-o", "p", "p.c"], cwd=tmp_path, check=True)
    said = subprocess.run([tmp_path / "p"], capture_output=True, check=True).stdout.decode()
    assert_harmless(said)
    assert said.count("\n") == len(lines) and "\\x1b[31mred" in said


@pytest.mark.skipif(not CASES.is_dir(), reason="not part of the repository: the cases beside it")
def test_the_case_of_an_injected_precision(tmp_path):
    case = CASES / "F01_inject_precision.stw"
    assert stepwell_says("info", case).returncode == 0
    assert stepwell_says("emit", case, "-o", tmp_path / "c").returncode == 0
    engine = sorted(path.name for path in (tmp_path / "c").glob("*.c"))
    subprocess.run(["gcc", *WARNINGS, "-o", "demo", *engine], cwd=tmp_path / "c", check=True)
    out = subprocess.run(
        [tmp_path / "c" / "demo"], input=b"1,2,3\n", capture_output=True, check=True
    ).stdout
    assert b"PWNED" not in out and len(out.split()) == 1
