"""The report: one page that stands alone, numbers that an independent computation finds too, and
faults that show.
"""

import io
import json
import re
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import stepwell
from conftest import DEMO
from shapes import graph_of, random_dense, random_lstm, random_sequences, sequences_for
from stepwell.cli import main
from stepwell.graph import Graph
from stepwell.layers import Lstm
from stepwell.reference import Reference
from stepwell.report import Analysis, analyse, to_json, write_report
from stepwell.samples import Samples
from stepwell.stream import FloatStream

ONNX = DEMO / "turbofan.onnx"
Z, C = 2.0**-11, 2.0**-22  # real values of a code


def stack(seed: int = 3) -> Graph:
    rng = np.random.default_rng(seed)
    head = replace(random_dense(rng, 10, 2), bias=np.zeros(2))
    return Graph((random_lstm(rng, 3, 12, 4.0), random_lstm(rng, 12, 10, 4.0), head))


def samples_for(graph: Graph, n: int = 6, steps: int = 60) -> Samples:
    return Samples(tuple(sequences_for(graph, 5, n, steps)), None, "made")


def analysed(
    graph: Graph, precision: str = "w8a16", steps: int = 400
) -> tuple[stepwell.Model, Samples, Analysis]:
    model = stepwell.convert(graph, sequences_for(graph, 8, 16, 60), precision=precision)
    samples = samples_for(graph)
    return model, samples, analyse(model, graph, samples, steps)


def db(exact: np.ndarray, other: np.ndarray) -> float:
    return 10 * np.log10((exact**2).sum() / ((exact - other) ** 2).sum())


# ---- the page ----


@pytest.fixture(scope="module")
def stw(tmp_path_factory, turbofan):
    path = tmp_path_factory.mktemp("report") / "turbofan.stw"
    turbofan.save(path)
    return path


def invoke(*args) -> SimpleNamespace:
    """The command line, in this process."""
    out, err = io.StringIO(), io.StringIO()
    argv = mock.patch.object(sys, "argv", ["stepwell", *map(str, args)])
    with argv, redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main()
    return SimpleNamespace(code=ended.value.code, stdout=out.getvalue(), stderr=err.getvalue())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A few engines of the demo's."""
    path, whole = tmp_path_factory.mktemp("data") / "test.npz", np.load(DEMO / "turbofan_test.npz")
    np.savez(path, **{name: whole[name][:20] for name in ("x", "lengths", "y")})
    return path


@pytest.fixture(scope="module")
def page(stw, data) -> str:
    done = invoke("report", stw, "--data", data, "--float", ONNX, "--steps", 1000)
    assert done.code == 0, done.stderr
    assert "nothing stands out" in done.stdout
    return stw.with_suffix(".html").read_text()


class _Tags(HTMLParser):
    """Names of all tags, what they load, and that every one is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.names: list[str] = []
        self.loaded: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        self.loaded += [
            value
            for name, value in attributes
            if name in ("src", "href", "xlink:href", "action", "data")
        ]
        if tag not in ("meta", "link", "img", "br"):
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag


def test_the_page_stands_alone(page):
    tags = _Tags(page)
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(tags.names)
    assert all(target.startswith(("#", "data:")) for target in tags.loaded)
    assert not re.findall(r"url\(\s*[\"']?(?!#)", page) and "@import" not in page
    assert not re.search(r"\son\w+=", page)
    assert tags.names.count("svg") == 9
    for heading in (
        "What to do",
        "A run of 1000 steps",
        "The task",
        "Which layer costs what",
        "Cost of a step",
    ):
        assert heading in page
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL).lower().split()


def test_pictures_take_their_ink_from_the_page(page):
    """Text that is black by default would be lost in the dark."""
    assert "prefers-color-scheme: dark" in page
    svgs = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert not any("#000" in svg for svg in svgs)
    for tag in re.findall(r"<text[^>]*>", "".join(svgs)):
        assert 'fill="currentColor"' in tag


def test_same_page_twice(turbofan, tmp_path):
    graph = graph_of("lstm dense")
    _, _, analysis = analysed(graph)
    first, second = (
        write_report(analysis, tmp_path / name).read_text() for name in ("a.html", "b.html")
    )
    assert first == second


def test_names_in_a_model_cannot_become_markup(tmp_path):
    graph = stack()
    graph = replace(
        graph,
        layers=(replace(graph.layers[0], name="<script>alert(1)</script>"), *graph.layers[1:]),
    )
    _, _, analysis = analysed(graph)
    text = write_report(analysis, tmp_path / "a.html").read_text()
    assert "<script" not in text and "&lt;script&gt;" in text


@pytest.mark.parametrize(
    "name", ["gru", "rnn", "projection", "softmax", "gru rnn lstm gru", "strided conv and residual"]
)
def test_other_layers(name, tmp_path):
    _, _, analysis = analysed(graph_of(name))
    json.dumps(to_json(analysis), allow_nan=False)
    assert analysis.facts["places"]
    _Tags(write_report(analysis, tmp_path / "a.html").read_text())


@pytest.mark.parametrize("mode", ["slide:20", "tumble:20", "stagger:20/10"])
def test_modes(mode, tmp_path):
    graph = graph_of("lstm dense")
    model = stepwell.convert(graph, sequences_for(graph, 8, 16, 60), mode=mode)
    analysis = analyse(model, graph, samples_for(graph), 400)
    run = analysis.facts["long_run"]
    assert run is None if mode.startswith("slide") else not run["grows"]
    _Tags(write_report(analysis, tmp_path / "a.html").read_text())


# ---- --json, and errors ----


def test_json_gives_the_facts(stw, data):
    before = set(stw.parent.iterdir())
    done = invoke(
        "report", stw, "--data", data, "--float", ONNX, "--steps", 500, "--metric", "mae", "--json"
    )
    assert done.code == 0 and set(stw.parent.iterdir()) == before  # no page unless asked for
    facts = json.loads(done.stdout)
    assert set(facts) == {
        "info",
        "check",
        "warm_up",
        "places",
        "layers",
        "long_run",
        "cost",
        "advice",
        "float",
    }
    assert facts["check"]["metric"]["name"] == "mae" and facts["check"]["engine_mismatches"] == 0
    assert facts["long_run"]["steps"] == 500
    both = invoke(
        "report",
        stw,
        "--data",
        data,
        "--float",
        ONNX,
        "--steps",
        500,
        "--json",
        "-o",
        stw.parent / "b.html",
    )
    assert (
        json.loads(both.stdout)["long_run"] == facts["long_run"]
        and (stw.parent / "b.html").is_file()
    )


@pytest.mark.parametrize(
    ("given", "message", "code"),
    [
        ({"--data": "nowhere.npz"}, "nowhere.npz", 1),
        ({"--data": "narrow.npz"}, "narrow.npz", 1),
        ({"--data": "text.npz"}, "text.npz", 1),
        ({"--steps": 20}, "20 is not in the range x>=100", 2),
        ({"--metric": "beauty"}, "metric 'beauty' is not one of accuracy", 2),
        ({"--float": "nowhere.onnx"}, "nowhere.onnx", 1),
        ({"-o": "no/folder/r.html"}, "no/folder/r.html", 1),
    ],
)
def test_errors_leave_no_page(given, message, code, stw, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("narrow.npz", x=np.zeros((2, 30, 3)))
    (tmp_path / "text.npz").write_text("no archive")
    before = set(tmp_path.iterdir())
    options = {"--data": data, "--float": ONNX, "--steps": 100, "-o": tmp_path / "r.html"} | given
    done = invoke("report", stw, *(part for option in options.items() for part in option))
    assert done.code == code and message in done.stderr and "Traceback" not in done.stderr
    assert set(tmp_path.iterdir()) == before


def test_without_matplotlib(stw, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    options = ("report", stw, "--data", data, "--float", ONNX, "--steps", 100)
    done = invoke(*options, "-o", tmp_path / "r.html")
    assert done.code == 1 and "pip install 'stepwell[report]'" in done.stderr
    assert not list(tmp_path.iterdir())
    assert json.loads(invoke(*options, "--json").stdout)["advice"]  # numbers need no pictures


# ---- the numbers, computed another way ----


def watched(run, kind: str, x: np.ndarray) -> dict[tuple[int, str], np.ndarray]:
    """All that a FloatStream or a Reference shows of its first two layers."""
    seen: dict[tuple[int, str], np.ndarray] = {}
    run(lambda index, name, values: seen.__setitem__((index, name), np.array(values, float))).run(x)
    return {
        (index, "h" if name == kind else name): v
        for (index, name), v in seen.items()
        if name in ("z", "c", kind)
    }


def test_sqnr_of_places():
    graph = stack()
    model, samples, analysis = analysed(graph, "w4a16")
    floats = [watched(lambda see: FloatStream(graph, see), "y", x) for x in samples.sequences]
    integers = [watched(lambda see: Reference(model, see), "h_new", x) for x in samples.sequences]
    found = {(place["layer"], place["place"]): place for place in analysis.facts["places"]}
    assert len(found) == 2 * 6

    def joined(sides: list, index: int, name: str) -> np.ndarray:
        return np.concatenate([side[index, name] for side in sides])

    for index, units in ((0, 12), (1, 10)):
        layer = model.layers[index]
        for k, gate in enumerate("ifgo"):
            columns = slice(k * units, (k + 1) * units)
            exact, codes = (
                joined(floats, index, "z")[:, columns],
                joined(integers, index, "z")[:, columns],
            )
            place = found[layer.name, f"z of gate {gate}"]
            assert place["sqnr_db"] == pytest.approx(db(exact, codes * Z))
            assert place["largest"] == pytest.approx(np.abs(exact).max()) and place["limit"] == 16
            assert place["saturated"] == np.sum((codes == 32767) | (codes == -32768))
        cell, hidden = found[layer.name, "cell state c"], found[layer.name, "hidden state h"]
        assert cell["sqnr_db"] == pytest.approx(
            db(joined(floats, index, "c"), joined(integers, index, "c") * C)
        )
        scale = layer.y_scale
        assert hidden["sqnr_db"] == pytest.approx(
            db(joined(floats, index, "h"), joined(integers, index, "h") * scale)
        )
        assert cell["headroom_bits"] == pytest.approx(
            np.log2(512 / np.abs(joined(floats, index, "c")).max())
        )


def test_ablation_of_a_layer():
    """Only the second LSTM has its integer weights, each worth mult * 2^(kx - shift) * 2^-11 / the
    scale of its input.
    """
    graph = stack()
    model, samples, analysis = analysed(graph, "w4a16")
    layer, source = model.layers[1], graph.layers[1]
    unit = layer.rows.mult * 2.0**-11 / 2.0 ** layer.rows.shift.astype(float)
    w_x = layer.w_x * (unit * 2.0 ** layer.rows.kx.astype(float))[:, None] / (layer.x_scale)
    w_h = layer.w_h * unit[:, None] / layer.y_scale
    assert np.abs(w_x - source.w_x).max() < np.abs(source.w_x).max() / 4
    changed = replace(source, w_x=w_x, w_h=w_h, bias=layer.rows.bias * unit)
    other = replace(graph, layers=(graph.layers[0], changed, graph.layers[2]))
    x = np.stack(samples.sequences)
    expected = db(FloatStream(graph).run(x), FloatStream(other).run(x))
    alone = next(found for found in analysis.facts["layers"] if found["layer"] == layer.name)
    assert alone["sqnr_db"] == pytest.approx(expected) and alone["weight_bits"] == 4


def test_margins_are_those_of_the_weights():
    model, _, analysis = analysed(stack())
    for layer in model.layers[:2]:
        x = 2**15 * np.abs(layer.w_x.astype(int)).sum(axis=1) + 2**14
        kx = layer.rows.kx.astype(int)
        x = np.where(kx >= 0, x << np.maximum(kx, 0), (x >> np.maximum(-kx, 0)) + 1)
        total = (
            x
            + 2**15 * np.abs(layer.w_h.astype(int)).sum(axis=1)
            + np.abs(layer.rows.bias.astype(int))
        )
        bits = analysis.curves["margins"][layer.name]
        assert np.allclose(bits, 31 - np.log2(total)) and bits.min() > 0
        found = next(other for other in analysis.facts["layers"] if other["layer"] == layer.name)
        assert found["overflow_margin_bits"] == pytest.approx(bits.min(), abs=0.005)


def test_error_over_the_long_run():
    graph = stack()
    model, samples, analysis = analysed(graph, steps=400)
    quarter = np.concatenate(samples.sequences)[:100]
    x = np.tile(quarter, (4, 1))
    error = np.abs(FloatStream(graph).run(x) - model.stream().run(x)).max(axis=1)
    _, rms, largest = analysis.curves["long_run"]
    assert np.allclose(rms, np.sqrt((error.reshape(100, 4) ** 2).mean(axis=1)))
    assert np.allclose(largest, error.reshape(100, 4).max(axis=1))
    run = analysis.facts["long_run"]
    assert run["rms_error_late"] == pytest.approx(rms[75:].mean()) and not run["grows"]
    z: list[np.ndarray] = []
    Reference(model, lambda k, name, v: z.append(v) if (k, name) == (0, "z") else None).run(x)
    flat = 100 * (np.abs(z[0][:, 12:24]) > 5 * 2**11).mean()
    gate = next(
        g
        for g in run["flat_gates"]
        if g["layer"] == model.layers[0].name and g["place"] == "z of gate f"
    )
    assert gate["integer_percent"] == pytest.approx(flat)


@pytest.mark.parametrize(
    ("port", "core"), [("sim:netduinoplus2", "cortex-m4"), ("sim:microbit", "cortex-m0")]
)
@pytest.mark.parametrize("precision", ["w8a16", "w4a16"])
def test_estimated_instructions_are_near_those_of_an_emulated_run(port, core, precision, tmp_path):
    pytest.importorskip("unicorn")
    pytest.importorskip("ziglang")
    graph = graph_of("lstm dense")
    model, samples, analysis = analysed(graph, precision)
    estimated = next(
        cost["instructions_per_step"] for cost in analysis.facts["cost"] if cost["core"] == core
    )
    model.save(tmp_path / "m.stw")
    np.savez(tmp_path / "x.npz", x=samples.sequences[0][:6])
    done = invoke("hil", "--port", port, tmp_path / "m.stw", "--data", tmp_path / "x.npz", "--json")
    by_gcc = shutil.which("arm-none-eabi-gcc")  # the estimates are fitted to its code
    counted = json.loads(done.stdout)["instructions_per_step"]
    assert estimated == pytest.approx(counted, rel=0.1 if by_gcc else 0.15)


# ---- faults that must show ----


@pytest.mark.parametrize("costly", [0, 1])
def test_the_layer_with_4_bits_is_the_costly_one(costly):
    graph = stack()
    _, _, analysis = analysed(graph, f"w8a16,{costly}:w4a16")
    name = graph.layers[costly].name
    alone = {layer["layer"]: layer["sqnr_db"] for layer in analysis.facts["layers"]}
    assert min(alone, key=alone.get) == name
    said = [line for line in analysis.facts["advice"] if f"layer '{name}' costs most" in line]
    assert len(said) == 1 and "give it 8 bits" in said[0]


def test_no_layer_is_blamed_when_all_are_good():
    _, _, analysis = analysed(stack())
    assert not any("costs most" in line for line in analysis.facts["advice"])


def test_a_unit_that_stands_still_is_named():
    graph = graph_of("lstm dense")
    model, samples, analysis = analysed(graph)
    assert analysis.facts["long_run"]["stuck"] == []
    layer = model.layers[0]
    bias = layer.rows.bias.copy()
    # the input gate of unit 5 never opens
    bias[5], w_x, w_h = (
        -(2**28),
        layer.w_x.copy(),
        layer.w_h.copy(),
    )
    w_x[5], w_h[5] = 0, 0
    broken = replace(layer, w_x=w_x, w_h=w_h, rows=replace(layer.rows, bias=bias))
    found = analyse(model.replace(layers=(broken, *model.layers[1:])), graph, samples, 400).facts
    assert [unit["unit"] for unit in found["long_run"]["stuck"]] == [5]
    assert any(
        f"'{layer.name}' unit 5: its hidden state stands still" in line for line in found["advice"]
    )


def integrator(step: float) -> Graph:
    """Unit 0 adds ``step`` to its cell at each step of input 1 and never forgets; unit 1 forgets
    half.
    """
    w_x, bias = np.zeros((8, 1)), np.zeros(8)
    w_x[4:6, 0] = np.arctanh(step) / 2  # half of it: the gates' other half comes from the bias
    bias[4:6] = np.arctanh(step) / 2
    bias[0:2] = 20.0  # input gates open
    bias[2:4] = 20.0, 0.0  # forget gates
    lstm = Lstm("counter", w_x, np.zeros((8, 2)), bias)
    return Graph((lstm, random_dense(np.random.default_rng(1), 2, 1)))


@pytest.mark.parametrize(("step", "saturates"), [(0.05, False), (0.5, True)])
def test_a_cell_that_climbs_is_named(step, saturates):
    """Calibrated on 50 steps, run for 4000: 0.05 a step makes 200, 0.5 would make 2000 and Q9.22
    ends at 512.
    """
    graph = integrator(step)
    x = np.random.default_rng(1).uniform(0.9, 1.1, (16, 50, 1))
    model = stepwell.convert(graph, x)
    facts = analyse(model, graph, Samples(tuple(x), None, "made"), 4000).facts
    cells = facts["long_run"]["climbing"]
    assert [(cell["layer"], cell["unit"], cell["saturates"]) for cell in cells] == [
        ("counter", 0, saturates)
    ]
    assert cells[0]["long_run"] == pytest.approx(4000 * step, rel=0.05)
    assert cells[0]["within_sequences"] == pytest.approx(50 * step, rel=0.05)
    said = next(
        line for line in facts["advice"] if "layer 'counter' unit 0: its cell climbs" in line
    )
    assert "--mode tumble:T" in said and ("the end of its format (512)" in said) == saturates
    windowed = stepwell.convert(graph, x, mode="tumble:50")
    assert (
        analyse(windowed, graph, Samples(tuple(x), None, "made"), 4000).facts["long_run"][
            "climbing"
        ]
        == []
    )


def test_clipped_inputs_are_named(turbofan):
    graph = graph_of("lstm dense")
    model, samples, _ = analysed(graph)
    wild = samples.sequences[0].copy()
    wild[3, 5] = 1e4
    found = analyse(model, graph, Samples((wild, *samples.sequences[1:]), None, "made"), 400).facts
    total = sum(x.size for x in samples.sequences)
    assert any(line.startswith(f"1 of {total} inputs are clipped") for line in found["advice"])


def test_an_error_that_grows_is_named():
    """A counter whose integer increments are a little off: the difference adds up."""
    graph = integrator(0.01)
    x = random_sequences(np.random.default_rng(1), 16, 50, 1) * 0.05
    x -= 1 + x.mean()  # adds nothing on average, so that nothing climbs or clips
    model = stepwell.convert(graph, x)
    layer = model.layers[0]
    bias = layer.rows.bias.copy()
    bias[4] += 10_000
    drifting = model.replace(
        layers=(replace(layer, rows=replace(layer.rows, bias=bias)), *model.layers[1:])
    )
    facts = analyse(drifting, graph, Samples(tuple(x), None, "made"), 4000).facts
    assert facts["long_run"]["grows"] and facts["long_run"]["climbing"] == []
    assert any(line.startswith("the error grows over 4000 steps") for line in facts["advice"])
