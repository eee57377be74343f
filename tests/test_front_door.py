"""What stepwell says before it believes a model: one test for each fault of the front door, on
small inputs.

The cases of the design folder run too, where that folder lies beside the repository.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import stepwell
from onnx import helper, numpy_helper
from stepwell.graph import Graph
from stepwell.layers import Dense, Lstm, Window

os.environ.setdefault("KERAS_BACKEND", "torch")  # what imports keras here is the test, not stepwell
CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"


def onnx_lstm(
    path: Path, steps: int | None, seed: int = 0, forget: float = 0.0, answers: str = "last", **how
) -> Path:
    """LSTM(3 -> 8) and Dense(8 -> 2) on [1, steps, 3], as torch exports them. ``how``: attributes
    of the LSTM.
    """
    rng = np.random.default_rng(seed)
    n, n_in = 8, 3
    bias = np.zeros((1, 8 * n))
    bias[0, 2 * n : 3 * n] = forget  # i o f c
    tensors = {
        "W": rng.uniform(-0.6, 0.6, (1, 4 * n, n_in)),
        "R": rng.uniform(-0.6, 0.6, (1, 4 * n, n)) / np.sqrt(n),
        "B": bias,
        "dense": rng.normal(size=(n, 2)),
        "offset": rng.normal(size=2),
    }
    stored = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in tensors.items()]
    stored += [
        numpy_helper.from_array(np.array([k]), name) for name, k in (("zero", 0), ("one", 1))
    ]
    taken = ("", "final") if answers == "last" else ("all", "")
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t", "W", "R", "B"], list(taken), hidden_size=n, **how),
    ]
    if answers == "last":
        nodes.append(helper.make_node("Squeeze", ["final", "zero"], ["h"]))
    else:
        nodes += [
            helper.make_node("Squeeze", ["all", "one"], ["s"]),
            helper.make_node("Transpose", ["s"], ["h"], perm=[1, 0, 2]),
        ]
    nodes += [
        helper.make_node("MatMul", ["h", "dense"], ["m"]),
        helper.make_node("Add", ["m", "offset"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, steps or "T", n_in])]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "lstm", inputs, outputs, stored)
    path.write_bytes(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
        ).SerializeToString()
    )
    return path


def wandering(n: int, width: int = 3, seed: int = 1) -> np.ndarray:
    """A slow sensor: [n, width] in 0 .. 1."""
    steps = np.random.default_rng(seed).normal(size=(n, width)).cumsum(axis=0)
    return 0.5 + 0.5 * np.sin(0.2 * steps)


def run_stepwell(*args: object) -> subprocess.CompletedProcess:
    """The command line, as a person uses it."""
    command = [sys.executable, "-m", "stepwell", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


# ---- W1: windows: the source's window is known, and the gap of carrying on is told ----


def windows_of(x: np.ndarray, window: int) -> np.ndarray:
    return np.stack([x[k : k + window] for k in range(len(x) - window + 1)])


def test_gap_of_carrying_on_is_measured_and_told(tmp_path):
    """Against onnxruntime (or onnx) on every window, not against a graph of ours."""
    from stepwell.importer import import_onnx

    path, x = onnx_lstm(tmp_path / "m.onnx", 10, forget=4.0), wandering(400)
    with pytest.warns(stepwell.FidelityWarning, match=r"windows of 10 steps .* slide:10"):
        model = stepwell.convert(path, x)
    assert model.notes["window"] == 10
    carried = model.stream().run(x)[9:]
    windowed = import_onnx(path).source(windows_of(x, 10))[:, 0]
    gap = (np.sqrt(np.mean((carried - windowed) ** 2, axis=0)) / windowed.std(axis=0)).max()
    assert gap > 0.1
    assert model.notes["fidelity"]["carry_gap"] == pytest.approx(gap, rel=0.05)
    sliding = stepwell.convert(path, windows_of(x, 10)[::10], mode="slide:10")
    np.testing.assert_allclose(sliding.stream().run(x)[9:], windowed, atol=0.01 * windowed.std())


@pytest.mark.filterwarnings("error::stepwell.FidelityWarning")
def test_short_memory_and_free_lengths_are_not_warned_of(tmp_path):
    short = stepwell.convert(onnx_lstm(tmp_path / "short.onnx", 30, forget=-2.0), wandering(400))
    assert short.notes["fidelity"]["carry_gap"] < 0.1
    free = stepwell.convert(onnx_lstm(tmp_path / "free.onnx", None, forget=4.0), wandering(400))
    assert free.notes["window"] is None
    assert free.notes["fidelity"]["carry_gap"] is None
    assert free.notes["fidelity"]["sqnr_db"] > 45


def test_calibration_windows_are_run_end_to_end(tmp_path):
    """A model that was trained on windows is calibrated on them: each by itself would show no gap."""
    path = onnx_lstm(tmp_path / "m.onnx", 10, forget=4.0)
    with pytest.warns(stepwell.FidelityWarning):
        model = stepwell.convert(path, windows_of(wandering(400), 10)[::10])
    assert model.notes["fidelity"]["carry_gap"] > 0.3


def test_a_state_that_grows_without_bound_is_refused(tmp_path):
    """Forget gates near one and relu: the state is finite in a window and in no stream."""
    pytest.importorskip("onnxruntime", reason="onnx's own evaluator knows no relu in an LSTM")
    relu = {"activations": ["Sigmoid", "Relu", "Relu"]}
    path, x = onnx_lstm(tmp_path / "relu.onnx", 10, seed=3, forget=12.0, **relu), wandering(200)
    with pytest.raises(stepwell.QuantizeError, match=r"grows without bound .*slide:10"):
        stepwell.convert(path, windows_of(x, 10))
    assert (
        stepwell.convert(path, windows_of(x, 10), mode="slide:10").notes["fidelity"]["sqnr_db"] > 30
    )


@pytest.mark.parametrize("front", ["keras", "torch", "torch with steps"])
def test_every_front_end_knows_the_window(front):
    torch = pytest.importorskip("torch")
    x = windows_of(wandering(200), 12)[::6]
    if front == "keras":
        keras = pytest.importorskip("keras")
        keras.utils.set_random_seed(1)
        layers = [keras.Input((12, 3)), keras.layers.LSTM(8), keras.layers.Dense(2)]
        source, options = keras.Sequential(layers), {}
    else:
        source, options = _last_step(torch), {"steps": 12} if "steps" in front else {}
    model = stepwell.convert(source, x, **options)
    assert model.notes["window"] == 12
    assert model.notes["fidelity"]["sqnr_db"] > 40
    assert 0 < model.notes["fidelity"]["carry_gap"] < np.inf


def _last_step(torch):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(4)
            self.lstm, self.head = torch.nn.LSTM(3, 8, batch_first=True), torch.nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    return Net().eval()


# ---- W2: scale: a leading affine is the scaler, channels get a scale of their own ----


def in_units(graph, unit_mean, unit_std):
    """The graph as one that takes x * unit_std + unit_mean, its normalisation hidden in the
    weights.
    """
    import numpy as np
    from stepwell.quantize.folding import fold_inputs

    return fold_inputs(graph, -np.asarray(unit_mean) / unit_std, 1 / np.asarray(unit_std))


def decibels(exact, other) -> float:
    import numpy as np

    return float(10 * np.log10((exact**2).sum() / ((exact - other) ** 2).sum()))


UNITS = [101_000.0, 22.0, 0.45, 400.0], [1000.0, 5.0, 0.1, 60.0]  # mean and std of four sensors


@pytest.mark.parametrize("hidden", [False, True], ids=["in a layer", "in the weights"])
def test_physical_units_with_the_normalisation_inside(hidden):
    import numpy as np
    import stepwell
    from shapes import random_dense, random_lstm, random_sequences
    from stepwell.graph import Graph
    from stepwell.layers import Dense
    from stepwell.stream import FloatStream

    rng, (mean, std) = np.random.default_rng(1), np.array(UNITS)
    plain = Graph((random_lstm(rng, 4, 16), random_dense(rng, 16, 2)))
    normal, test = (random_sequences(np.random.default_rng(seed), 16, 50, 4) / 2 for seed in (2, 3))
    affine = Dense("normalise", 1 / std[:, None], -mean / std, groups=4)
    graph = in_units(plain, mean, std) if hidden else Graph((affine, *plain.layers))
    model = stepwell.convert(graph, normal * std + mean)
    exact = FloatStream(plain).run(test)
    assert decibels(exact, np.stack([model.stream().run(x * std + mean) for x in test])) > 55
    (note,) = model.notes["import_notes"]
    assert "input scaler" in note if not hidden else "--no-auto-scale" in note
    if not hidden:
        assert np.allclose(model.scaler.mean, mean, rtol=1e-12) and np.allclose(
            model.scaler.std, std, rtol=1e-12
        )
        assert len(model.layers) == 2


def test_channels_get_a_scale_of_their_own_unless_told_not_to(tmp_path):
    import numpy as np
    import stepwell
    from shapes import random_dense, random_gru, random_sequences
    from stepwell.graph import Graph
    from stepwell.stream import FloatStream

    rng, ratio = np.random.default_rng(4), np.array([10.0, 100.0, 1000.0, 10000.0])
    plain = Graph((random_gru(rng, 4, 12), random_dense(rng, 12, 1)))
    x, test = (random_sequences(np.random.default_rng(seed), 16, 50, 4) / 2 for seed in (5, 6))
    graph, exact = in_units(plain, 0 * ratio, ratio), FloatStream(plain).run(test)
    own, one = (stepwell.convert(graph, x * ratio, auto_scale=auto) for auto in (True, False))
    alike = stepwell.convert(plain, x)
    db = [
        decibels(exact, m.reference().run(test * r))
        for m, r in ((own, ratio), (one, ratio), (alike, 1.0))
    ]
    assert db[0] > db[2] - 3 and db[1] < db[0] - 10, db
    assert one.scaler.is_identity and alike.scaler.is_identity and not alike.notes["import_notes"]


# ---- W3: fidelity: noise is never silent ----


def test_fidelity_is_measured_against_the_source(tmp_path):
    """The figure is the one that anybody gets who runs both."""
    from stepwell.importer import import_onnx

    path, x = onnx_lstm(tmp_path / "m.onnx", 20, forget=1.0), wandering(400)
    windows = windows_of(x, 20)[::20]
    model = stepwell.convert(path, windows)
    exact = import_onnx(path).source(windows)[:, 0]
    found = np.stack([model.stream().run(w)[-1] for w in windows])
    sqnr = 10 * np.log10((exact**2).sum() / ((exact - found) ** 2).sum())
    assert model.notes["fidelity"]["sqnr_db"] == pytest.approx(sqnr, abs=0.01)


def test_noise_is_warned_of_and_refused_when_asked(tmp_path):
    path, data = onnx_lstm(tmp_path / "m.onnx", None, answers="every"), tmp_path / "x.npz"
    x = wandering(400) - 0.5
    np.savez(data, x=x[None])
    with pytest.warns(stepwell.FidelityWarning, match=r"dB only .*precision"):
        model = stepwell.convert(path, x, precision="w4a16", calibration="percentile:50")
    assert model.notes["fidelity"]["sqnr_db"] < 30
    with pytest.raises(stepwell.QuantizeError, match=r"follows its source at .* dB, 90 are wanted"):
        stepwell.convert(path, x, min_sqnr=90)
    target = tmp_path / "m.stw"
    refused = run_stepwell("convert", path, "--calib", data, "-o", target, "--min-sqnr", 90)
    assert refused.returncode == 1
    assert "90 are wanted" in refused.stderr
    assert not target.exists()
    done = run_stepwell("convert", path, "--calib", data, "-o", target)
    assert done.returncode == 0
    assert "dB against the source" in done.stdout
    noisy = run_stepwell(
        "convert", path, "--calib", data, "--precision", "w4a16", "--calibration", "percentile:50"
    )
    assert "warning" in noisy.stderr and "dB only" in noisy.stderr


def test_what_cannot_be_measured_does_not_pass_for_measured(tmp_path):
    source = onnx_lstm(tmp_path / "m.onnx", 40)
    short = [wandering(20, seed=k) for k in range(4)]
    with pytest.warns(stepwell.FidelityWarning, match=r"not measured.*40 steps"):
        assert stepwell.convert(source, short).notes["fidelity"]["answers"] == 0
    with pytest.raises(stepwell.QuantizeError, match=r"nothing was measured.*40 steps"):
        stepwell.convert(source, short, min_sqnr=10)


def test_json_of_convert_has_the_warnings(tmp_path):
    source = onnx_lstm(tmp_path / "m.onnx", 40)
    np.save(tmp_path / "short.npy", wandering(20))
    done = run_stepwell("convert", source, "--calib", tmp_path / "short.npy", "--json")
    assert "not measured" in " ".join(json.loads(done.stdout)["warnings"])


def graph_padded_behind(rng):
    """A convolution with a zero behind the sequence and none before, for channels far from zero."""
    window = Window("w", 2, 2, 1, 1, 0, 1)
    conv = Dense("c", rng.normal(size=(4, 4)) / 10, rng.normal(size=4))
    lstm = Lstm("l", rng.normal(size=(16, 4)), rng.normal(size=(16, 4)), np.zeros(16))
    return Graph((window, conv, lstm), "every")


def test_a_graph_as_its_own_source_ends_as_a_window_does():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(20, 12, 2))
    model = stepwell.convert(graph_padded_behind(rng), x, mode="slide:12")
    assert model.notes["fidelity"]["sqnr_db"] > 30  # without the zeros after the end 3 dB


def test_offsets_are_not_folded_where_windows_would_pad_them():
    from stepwell.check import in_mode
    from stepwell.quantize.folding import float_side

    rng = np.random.default_rng(4)
    graph, x = graph_padded_behind(rng), rng.normal((9.0, 10.0), 1.0, (20, 12, 2))
    carried, windowed = (stepwell.convert(graph, x, mode=mode) for mode in ("carry", "slide:12"))
    other = in_mode(carried, float_side(graph, carried.scaler), windowed.mode)
    assert decibels(windowed.stream().run(x[0])[-1], other.stream().run(x[0])[-1]) > 40


# ---- W4: padding='same': exact in windows, refused in carry ----


def _same_keras(steps: int):
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    k = keras.layers
    keras.utils.set_random_seed(4)
    layers = [
        k.Conv1D(6, 3, padding="same", activation="relu"),
        k.MaxPooling1D(3, 1, padding="same"),
    ]
    layers += [k.Conv1D(4, 4, padding="same"), k.LSTM(5), k.Dense(2)]
    model = keras.Sequential([keras.Input((steps, 3)), *layers])
    return model, lambda x: keras.ops.convert_to_numpy(model(x.astype(np.float32), training=False))


def _same_torch(steps: int):
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            first, second = (
                nn.Conv1d(n, m, k, padding="same") for n, m, k in ((3, 6, 3), (6, 4, 4))
            )
            self.convolutions = nn.Sequential(first, nn.ReLU(), nn.MaxPool1d(3, 1, 1), second)
            self.rnn, self.fc = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x):
            return self.fc(self.rnn(self.convolutions(x.transpose(1, 2)).transpose(1, 2))[0][:, -1])

    torch.manual_seed(4)
    net = Net().eval()
    return net, lambda x: net(torch.tensor(x, dtype=torch.float32)).detach().numpy()


def _same_onnx(steps: int, tmp_path: Path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from test_importer import ONE, lstm, lstm_parts, save, weights
    from test_onnx_layers import step

    nodes = [
        step("Transpose", "x", to="c", perm=[0, 2, 1]),
        step("Conv", "c", "k", to="d", auto_pad="SAME_UPPER"),
        step("Relu", "d", to="e"),
        step("MaxPool", "e", to="f", kernel_shape=[3], pads=[1, 1]),
        step("Conv", "f", "w", to="g", pads=[1, 2]),
        step("Transpose", "g", to="t", perm=[2, 0, 1]),
        lstm(("t", "W", "R", "B"), ("seq", "last")),
        step("Squeeze", "last", "zero"),
    ]
    tensors = (
        lstm_parts(4) | ONE | {"zero": np.array([0]), "k": weights(6, 3, 3), "w": weights(4, 6, 4)}
    )
    path = save(tmp_path / "same.onnx", nodes, tensors, x=(1, steps, 3))
    session = onnxruntime.InferenceSession(path)
    return path, lambda x: np.concatenate(
        [session.run(None, {"x": one[None].astype(np.float32)})[0] for one in x]
    )


@pytest.mark.parametrize("steps", [10, 13])
@pytest.mark.parametrize("source", ["keras", "torch", "onnx"])
def test_same_padding_is_what_the_source_gives(source, steps, tmp_path):
    made = {"keras": _same_keras, "torch": _same_torch}.get(
        source, lambda n: _same_onnx(n, tmp_path)
    )(steps)
    model_of_source, answers = made
    rng = np.random.default_rng(6)
    calib, x = rng.normal(size=(8, 40, 3)), rng.normal(size=(36, 3))
    with pytest.raises(
        stepwell.StepwellError, match=r"looks ahead .*mode carry.*mode='slide:(T|\d+)' or 'tumble:"
    ):
        stepwell.convert(model_of_source, calib)
    for text in (f"slide:{steps}", f"tumble:{steps}", f"stagger:{steps}/{steps}"):
        model = stepwell.convert(model_of_source, calib, mode=text)
        ends = list(range(steps - 1, len(x), steps if text.startswith("tumble") else 1))
        expected = answers(np.stack([x[t + 1 - steps : t + 1] for t in ends]))
        y = model.stream().run(x)
        assert np.array_equal(y, model.reference().run(x))
        error = np.sqrt(((y[ends] - expected) ** 2).mean() / (expected**2).mean())
        assert error < 0.01, f"{source}, {text}: {error:.1%} of the answer"


# ---- W5: check: source, float stream and integer side by side ----


def test_check_compares_with_the_source(tmp_path):
    """Targets that the source gives itself: its own error is nothing, the stream's is the gap of
    carrying on.
    """
    import json

    from stepwell.importer import import_onnx

    path, data = onnx_lstm(tmp_path / "m.onnx", 10, forget=4.0), tmp_path / "x.npz"
    x = np.stack([wandering(40, seed=k) for k in range(12)])
    y = import_onnx(path).source(x[:, -10:])[:, 0]
    np.savez(data, x=x, y=y)
    assert run_stepwell("convert", path, "--calib", data).returncode == 0
    shown = run_stepwell("check", path.with_suffix(".stw"), "--data", data)
    assert shown.returncode == 0, shown.stderr
    assert "stream/source" in shown.stdout and "integer/source" in shown.stdout
    facts = json.loads(
        run_stepwell("check", path.with_suffix(".stw"), "--data", data, "--json").stdout
    )
    assert facts["metric"]["source"] < 1e-6
    assert facts["metric"]["float"] > 0.05 * y.std()
    assert facts["source"]["window"] == 10
    assert facts["source"]["float_sqnr_db"] < 30 < facts["sqnr_db"]


def test_check_says_why_the_source_was_not_run(tmp_path):
    path, data = onnx_lstm(tmp_path / "m.onnx", 10), tmp_path / "x.npz"
    np.savez(data, x=wandering(40)[None])
    assert run_stepwell("convert", path, "--calib", data).returncode == 0
    np.savez(data, x=wandering(8)[None])
    shown = run_stepwell("check", path.with_suffix(".stw"), "--data", data)
    assert "not compared: a sequence has 8 steps, the source takes windows of 10" in shown.stdout


# ---- W6: columns are matched by name ----


def as_csv(path: Path, names: list[str] | None, rows) -> Path:
    lines = ([",".join(names)] if names else []) + [
        ",".join(map(repr, row)) for row in rows.tolist()
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A model made from a csv file with names, and the same rows with a time and the columns turned
    round.
    """
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
    done = invoke(
        "convert", DEMO / "turbofan.onnx", "--calib", folder / "calib.csv", "-o", folder / "m.stw"
    )
    assert done.code == 0, done.stderr
    return folder


def commands(folder: Path, file: str) -> dict[str, list]:
    from conftest import DEMO

    onnx, model, data = (
        DEMO / "turbofan.onnx",
        folder / "m.stw",
        ["--data", folder / file, "--json"],
    )
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
    without = [
        re.sub(r'"(data|seconds|steps_per_second)": .*', "", done.stdout)
        for done in (plain, turned)
    ]
    assert without[0].replace("bare.csv", "turned.csv") == without[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_missing_and_double_columns_are_refused_by_name(named, command):
    from test_report import invoke

    for file, words in (
        ("short.csv", ("no column 's6'", "there is s0, s1")),
        ("twice.csv", ("'s6'", "twice")),
    ):
        done = invoke(*commands(named, file)[command])
        assert done.code == 1 and all(word in done.stderr for word in (file, "line 1", *words)), (
            done.stderr
        )


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
    from shapes import random_lstm
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
            stepwell.loads(
                small_model.replace(notes={**small_model.notes, "columns": columns}).blob
            )


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
    chosen = invoke(
        "run",
        named / "m.stw",
        path,
        "--columns",
        ",".join(str(2001 + k) for k in range(14)),
        "--header",
    )
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
    """A bad row, no header: the stream flows behind it with --skip-bad; without, the line and the
    reason.
    """
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


def held_models():
    """Models that hold outputs: by window modes, by strides, by a warm-up, and by all of them. With
    inputs [T, n_in].
    """
    import stepwell
    from shapes import graph_of, sequences_for

    for name, modes in (
        ("lstm dense", ["slide:30/5", "stagger:30/6", "slide:30/30"]),
        ("strided conv and residual", ["carry", "tumble:24", "slide:24/5"]),
        ("valid conv, max pool", ["carry", "tumble:24"]),
    ):
        graph = graph_of(name)
        for mode in modes:
            model = stepwell.convert(graph, sequences_for(graph, 21, 8, 48), mode=mode)
            yield f"{name} {mode}", model, sequences_for(graph, 22, 1, 75)[0]


def test_a_snapshot_holds_the_output_at_every_cut():
    import numpy as np

    for name, model, x in held_models():
        stream, other = model.stream(), model.stream()
        whole = model.reference().run(x)
        snapshots, fresh = [stream.save()], []
        for row in x:
            stream.step(row)
            fresh.append(stream.fresh)
            snapshots.append(stream.save())
        assert np.array_equal(model.stream().run(x), whole) and 0 < sum(fresh) < len(x), name
        for cut, snapshot in enumerate(snapshots):
            other.run(x[:7])  # what it held before is forgotten
            other.load(snapshot)
            assert np.array_equal(other.y, whole[cut - 1] if cut else 0 * whole[0]), (name, cut)
            assert np.array_equal(other.run(x[cut:]), whole[cut:]), (name, cut)


def test_fresh_tells_new_outputs_from_held_ones():
    import numpy as np

    for name, model, x in held_models():
        stream, reference, batch = model.stream(), model.reference(), model.batch(3, 2)
        assert not stream.fresh and not reference.fresh and not batch.fresh
        held = np.zeros(model.n_out)
        for row in x:
            y = stream.step(row)
            assert np.array_equal(reference.step(row), y), name
            assert np.array_equal(batch.step(np.tile(row, (3, 1))), np.tile(y, (3, 1))), name
            assert stream.fresh == reference.fresh == batch.fresh, name
            assert stream.fresh or np.array_equal(y, held), name
            held = y
        last = stream.fresh
        for runner in (stream, reference):
            runner.reset()
            assert not runner.fresh
            runner.run(x)
            assert runner.fresh == last
        stream.load(stream.save())
        assert not stream.fresh


def test_run_prints_new_outputs_only(tmp_path):
    import json

    import numpy as np
    from click.testing import CliRunner
    from stepwell.cli.commands import cli

    for name, model, x in held_models():
        file, data = tmp_path / "m.stw", tmp_path / "x.csv"
        model.save(file)
        np.savetxt(data, x, delimiter=",")
        stream = model.stream()
        steps = [([float(v) for v in stream.step(row)], stream.fresh) for row in x]

        def printed(*options, file=file, data=data):
            done = CliRunner().invoke(cli, ["run", str(file), str(data), *options])
            assert done.exit_code == 0, done.output
            return done.stdout.splitlines()

        assert printed() == [",".join(f"{v:.9g}" for v in y) for y, fresh in steps if fresh], name
        assert printed("--held") == [",".join(f"{v:.9g}" for v in y) for y, _ in steps], name
        new = [
            {"row": row, "y": y, "new": True} for row, (y, fresh) in enumerate(steps, 1) if fresh
        ]
        assert [json.loads(line) for line in printed("--json")] == new, name
        every = [{"row": row, "y": y, "new": fresh} for row, (y, fresh) in enumerate(steps, 1)]
        assert [json.loads(line) for line in printed("--json", "--held")] == every, name


def test_a_snapshot_without_the_output_is_refused_as_another_format():
    """Snapshots of format 1 began with STWS and were shorter by the output."""
    import struct
    import zlib

    import stepwell
    from stepwell._engine import lib
    from test_blob_bounds import Bound

    for _, model, x in held_models():
        stream = model.stream()
        stream.run(x[:40])
        snapshot, digest = stream.save(), stream.digest()
        body = snapshot[:-4]
        for old in (
            b"STWS" + body[4:],
            b"STWS" + body[4 : -4 * model.n_out],
            snapshot[:3] + b"\3" + body[4:],
        ):
            sealed = old + struct.pack("<I", zlib.crc32(old))
            assert lib.stw_load(Bound(model).stream, sealed, len(sealed)) == lib.STW_E_FORMAT
            with pytest.raises(
                stepwell.ModelError, match="not a stepwell model or snapshot of this format"
            ):
                stream.load(sealed)
        assert stream.digest() == digest


def test_a_step_in_c_gives_the_held_output_into_any_memory():
    from stepwell._engine import ffi, lib
    from test_blob_bounds import Bound

    for name, model, x in held_models():
        bound, codes, expected = (
            Bound(model),
            model.quantize(x),
            model.reference().run_q(model.quantize(x)),
        )
        size = lib.stw_snapshot_bytes(bound.model)
        assert size == model.info()["snapshot_bytes"] == len(model.stream().save())
        buffer = ffi.new("uint8_t[]", size)
        for t, row in enumerate(codes):
            y = ffi.new("int32_t[]", [99] * model.n_out)
            status = lib.stw_step(bound.stream, ffi.new("int16_t[]", row.tolist()), y)
            assert status in (lib.STW_OK, lib.STW_HOLD) and list(y) == expected[t].tolist(), (
                name,
                t,
            )
            assert lib.stw_save(bound.stream, buffer, size) == lib.STW_OK
            bound = Bound(model)  # as after a sleep in which RAM was lost
            assert lib.stw_load(bound.stream, buffer, size) == lib.STW_OK


def test_a_model_that_never_holds_needs_no_more_memory(small_model):
    """One layer of 3 units: c and h; 3 codes of scratch."""
    assert (
        small_model.info()["state_bytes"] == round_up_4(3 * 4 + 4 * 2)
        and small_model.mode.kind == "carry"
    )


def round_up_4(n: int) -> int:
    return (n + 3) // 4 * 4


# ---- W10: hard_sigmoid by the version of Keras ----


@pytest.mark.parametrize("version, slope", [("2.2.4", 0.2), ("3.0.0", 1 / 6)])
def test_hard_sigmoid_is_that_of_the_keras_that_trained_it(version, slope, tmp_path):
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    h5py = pytest.importorskip("h5py")
    keras.utils.set_random_seed(4)
    layers = (
        keras.layers.LSTM(6, recurrent_activation="hard_sigmoid"),
        keras.layers.Dense(2, "hard_sigmoid"),
    )
    model = keras.Sequential([keras.Input((12, 3)), *layers])
    path = tmp_path / "old.h5"
    model.save(path)
    with h5py.File(path, "r+") as file:
        file.attrs["keras_version"] = version
    for layer, name in ((layers[0].cell, "recurrent_activation"), (layers[1], "activation")):
        setattr(layer, name, lambda z: keras.ops.clip(slope * z + 0.5, 0.0, 1.0))
    rng = np.random.default_rng(6)
    x = rng.normal(size=(1, 12, 3)) * 2
    trained = keras.ops.convert_to_numpy(model(x.astype(np.float32), training=False))[0]
    y = stepwell.convert(path, rng.normal(size=(8, 40, 3)) * 2).stream().run(x[0])[-1]
    assert np.abs(y - trained).max() < 1e-3


# ---- W11: raw data into a model of scaled data ----


def test_raw_data_in_a_model_of_scaled_data_names_the_channel(tmp_path):
    import numpy as np
    import stepwell
    from shapes import random_dense, random_lstm, random_sequences
    from stepwell.graph import Graph

    rng = np.random.default_rng(7)
    graph = Graph((random_lstm(rng, 3, 16), random_dense(rng, 16, 1)))
    scaled = random_sequences(rng, 16, 40, 3) / 4
    rows = scaled.reshape(-1, 3) * [1, 300, 1] + [0, 1221, 0]
    csv = tmp_path / "log.csv"
    csv.write_text(
        "a,CO2,b\n" + "\n".join(",".join(f"{v:.6g}" for v in row) for row in rows) + "\n"
    )
    model = stepwell.convert(graph, csv, columns=["a", "CO2", "b"])
    said = [text for text in model.notes["warnings"] if "scaled data" in text]
    low, high = rows[:, 1].min(), rows[:, 1].max()
    assert (
        len(said) == 1
        and f"channel CO2 is {low:.4g} .. {high:.4g}" in said[0]
        and "--scaler" in said[0]
    )
    assert "channel a" not in said[0]
    # the same numbers with the scaler, and in a model that was trained on them: nothing to say
    scaler = {"mean": [0, 1221, 0], "std": [1, 300, 1]}
    for source, options in (
        (graph, {"scaler": scaler}),
        (in_units(graph, [0, 1221, 0], [1.0, 300, 1]), {}),
    ):
        calm = stepwell.convert(source, csv, columns=["a", "CO2", "b"], **options)
        assert not any("scaled data" in text for text in calm.notes["warnings"])


# ---- W12: several outputs ----


CALIB = np.random.default_rng(12).normal(size=(8, 60, 3))
NAMED = [{"name": "mu", "size": 2}, {"name": "value", "size": 1}]


def policy_module():
    torch = pytest.importorskip("torch")
    torch.manual_seed(12)

    class Policy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = torch.nn.LSTM(3, 4, batch_first=True)
            self.mu, self.value = torch.nn.Linear(4, 2), torch.nn.Linear(4, 1)

        def forward(self, x):
            y, state = self.rnn(x)
            return {"mu": self.mu(y), "value": self.value(y), "state": state}

    return Policy()


def policy_keras():
    keras = pytest.importorskip("keras")
    x = keras.Input((60, 3))
    y = keras.layers.LSTM(4, return_sequences=True)(x)
    return keras.Model(
        x, [keras.layers.Dense(2, name="mu")(y), keras.layers.Dense(1, name="value")(y)]
    )


def policy_onnx(folder: Path, mu: str = "mu", value: str = "value") -> Path:
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(1)
    shapes = {"W": (1, 16, 3), "R": (1, 16, 4), "B": (1, 32), "w": (4, 2), "v": (4, 1)}
    tensors = [
        numpy_helper.from_array(rng.normal(size=s).astype(np.float32) / 2, n)
        for n, s in shapes.items()
    ]
    graph = helper.make_graph(
        [
            helper.make_node("LSTM", ["x", "W", "R", "B"], ["seq", "hn"], hidden_size=4),
            helper.make_node("Squeeze", ["seq", "one"], ["h"]),
            helper.make_node("MatMul", ["h", "w"], [mu]),
            helper.make_node("MatMul", ["h", "v"], [value]),
        ],
        "policy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("T", 1, 3))],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            for name in (mu, value, "hn")
        ],
        [*tensors, numpy_helper.from_array(np.array([1]), "one")],
    )
    path = folder / "policy.onnx"
    path.write_bytes(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
        ).SerializeToString()
    )
    return path


@pytest.mark.parametrize("kind", ["onnx", "keras", "torch"])
def test_all_outputs_stand_side_by_side_or_those_that_are_named(tmp_path, kind):
    source = {"onnx": lambda: policy_onnx(tmp_path), "keras": policy_keras, "torch": policy_module}[
        kind
    ]()
    both = stepwell.convert(source, CALIB)
    assert both.notes["outputs"] == NAMED and both.n_out == 3
    turned = stepwell.convert(source, CALIB, outputs=["value", "mu"])
    assert turned.notes["outputs"] == NAMED[::-1]
    mu = stepwell.convert(source, CALIB, outputs="mu")
    assert mu.notes["outputs"] == NAMED[:1] and mu.n_out == 2
    x = CALIB[0]
    y, a, b = (model.stream().run(x) for model in (both, mu, turned))
    spread = y.std()
    assert (
        np.abs(y[:, :2] - a).max() < 0.01 * spread
        and np.abs(y - b[:, [1, 2, 0]]).max() < 0.01 * spread
    )
    with pytest.raises(stepwell.ImportRefused, match="no output 'nu': the model has 'mu', 'value'"):
        stepwell.convert(source, CALIB, outputs="nu")


def test_outputs_on_the_command_line_and_in_c(tmp_path):
    from test_report import invoke as run_cli

    source, calib = policy_onnx(tmp_path, value="va lue\x1b[2J*/"), tmp_path / "calib.npy"
    np.save(calib, CALIB)
    model = tmp_path / "policy.stw"
    done = run_cli("convert", source, "--calib", calib)
    assert done.code == 0 and "mu 0..1, va lue\\x1b[2J*/ 2" in done.stdout
    assert "mu 0..1, va lue\\x1b[2J*/ 2" in run_cli("info", model).stdout
    outputs = stepwell.load(model).info()["outputs"]
    assert [(output["name"], output["first"], output["size"]) for output in outputs] == [
        ("mu", 0, 2),
        ("va lue\\x1b[2J*/", 2, 1),
    ]
    assert run_cli("check", model, "--data", calib).code == 0
    assert run_cli("emit", model, "-o", tmp_path / "c", "--name", "pol").code == 0
    header = (tmp_path / "c" / "pol.h").read_text()
    for line in (
        "POL_Y_MU 0 ",
        "POL_Y_MU_SIZE 2",
        "POL_Y_VA_LUE_X1B_2J 2 ",
        "POL_Y_VA_LUE_X1B_2J_SIZE 1",
    ):
        assert f"#define {line}" in header
    assert "va lue" not in header
    done = run_cli("convert", source, "--calib", calib, "--outputs", "mu", "-o", model)
    assert done.code == 0 and stepwell.load(model).notes["outputs"] == NAMED[:1]
    # reads the source with the same outputs
    assert run_cli("check", model, "--data", calib).code == 0
    done = run_cli("convert", source, "--calib", calib, "--outputs", "nope")
    assert done.code == 1 and "no output 'nope': the model has 'mu'" in done.stderr


def test_macros_of_outputs_are_unique():
    from stepwell.emit import _output_macros

    names = ["a", "A", "a_size", "frac", "\u901f\u5ea6", "", "a b"]
    made = _output_macros([{"name": name, "first": k, "size": 1} for k, name in enumerate(names)])
    macros = [suffix for m in made for suffix in (m["macro"], m["macro"] + "_SIZE")]
    assert len(set(macros)) == 2 * len(names) and "FRAC" not in macros
    assert all(re.fullmatch("[A-Z0-9_]+", macro) for macro in macros)


# ---- W13: hidden weights that keep few codes ----


def test_hidden_weights_that_keep_few_codes_are_told():
    import numpy as np
    import stepwell
    from shapes import random_dense, random_lstm
    from stepwell.graph import Graph

    rng = np.random.default_rng(8)
    lstm = random_lstm(rng, 257, 8)
    graph = Graph((lstm, random_dense(rng, 8, 1)))
    x = np.abs(rng.normal(size=(8, 60, 257))) * np.exp(rng.normal(size=(8, 60, 1)) * 1.5)
    wide = stepwell.convert(graph, x * 20)
    (said,) = [text for text in wide.notes["warnings"] if "codes" in text]
    assert (
        f"layer '{lstm.name}' row" in said
        and "gate" in said
        and "w8x16h8" in said
        and "--scaler" in said
    )
    assert "hidden weights" in said and np.abs(wide.layers[0].w_h).max(axis=1).min() < 32
    calm = stepwell.convert(graph, x / 200)
    assert not any("codes" in text for text in calm.notes["warnings"])
    assert np.abs(calm.layers[0].w_h).max(axis=1).min() >= 32


# ---- W14: short calibration sequences ----


def test_short_sequences_for_a_carried_stream_are_told_and_run_end_to_end():
    from dataclasses import replace

    import numpy as np
    import stepwell
    from shapes import random_dense, random_lstm
    from stepwell.graph import Graph
    from stepwell.stream import FloatStream

    rng = np.random.default_rng(0)
    lstm = random_lstm(rng, 3, 12, 0.8)
    bias = lstm.bias.copy()
    bias[12:24] += 4.5  # the forget gates: a memory of a hundred steps
    graph = Graph((replace(lstm, bias=bias), random_dense(rng, 12, 2)))
    short, long = rng.normal(size=(32, 12, 3)), rng.normal(size=(4, 600, 3))
    model = stepwell.convert(graph, short)
    (said,) = [text for text in model.notes["warnings"] if "without a reset" in text]
    assert "short for mode carry" in said
    # 33 by the short ones alone
    assert decibels(FloatStream(graph).run(long), model.reference().run(long)) > 45
    windows = stepwell.convert(graph, short, mode="slide:12")
    assert not any("without a reset" in text for text in windows.notes["warnings"])


# ---- W15: concatenations of relu layers at 8 bits ----


def test_finer_inputs_beside_hidden_states_of_8_bits_cost_nothing():
    from dataclasses import replace

    import numpy as np
    import stepwell
    from shapes import random_dense, random_gru, random_sequences
    from stepwell.graph import Graph
    from stepwell.layers import Concat
    from stepwell.stream import FloatStream

    rng = np.random.default_rng(9)

    def relu(n_in, n):
        return replace(
            random_gru(rng, n_in, n, 1.0), functions=("sigmoid", "relu"), reset_after=False
        )

    first = relu(6, 8)
    graph = Graph(
        (
            *(
                replace(first, w_x=first.w_x * 4),
                Concat("b", (8, 6)),
                relu(14, 8),
                Concat("d", (8, 14)),
                relu(22, 8),
            ),
            random_dense(rng, 8, 2, "tanh"),
        ),
        sources=((0,), (1, 0), (2,), (3, 2), (4,), (5,)),
    )
    x, test = (random_sequences(np.random.default_rng(seed), 16, 60, 6) / 4 for seed in (10, 11))
    exact = FloatStream(graph).run(test)
    models = {p: stepwell.convert(graph, x, precision=p) for p in ("w8a16", "w8x16h8", "w8a8")}
    db = {p: decibels(exact, model.reference().run(test)) for p, model in models.items()}
    assert db["w8x16h8"] >= db["w8a8"] - 0.5 and db["w8a16"] > db["w8x16h8"] > 40, db
    # a concatenation holds what its widest source can reach, in steps of 16 bits: not the step of 8
    # bits
    first, joined = models["w8x16h8"].layers[:2]
    assert np.isclose(
        joined.y_scale, max(127 * first.y_scale, 32767 * models["w8x16h8"].x_scale) / 32767
    )
    assert not any("bits beside" in text for text in models["w8x16h8"].notes["warnings"])


# ---- W16: info's ranges by channel ----


def info_of(model, path) -> tuple[dict, str]:
    """What ``stepwell info`` says of the input: as JSON, and all it says as text."""
    import json

    from click.testing import CliRunner
    from stepwell.cli.commands import cli

    model.save(path)
    ask = CliRunner().invoke
    return json.loads(ask(cli, ["info", str(path), "--json"]).output)["input"], ask(
        cli, ["info", str(path)]
    ).output


def test_info_gives_the_range_of_each_channel(tmp_path):
    import numpy as np
    import stepwell
    from shapes import random_dense, random_lstm, random_sequences
    from stepwell.graph import Graph

    rng = np.random.default_rng(12)
    graph = Graph((random_lstm(rng, 2, 4), random_dense(rng, 4, 1)))
    scaler = {"mean": [101_000.0, 22.0], "std": [60.0, 2.0]}
    x = random_sequences(rng, 8, 30, 2)
    in_units = stepwell.convert(graph, x * scaler["std"] + scaler["mean"], scaler=scaler)
    facts, text = info_of(in_units, tmp_path / "units.stw")
    assert (
        facts["range"] is None and facts["ranges"][0][0] > 90_000 and facts["ranges"][1][1] < 1000
    )
    for k, (low, high) in enumerate(facts["ranges"]):
        assert f"channel {k}: {low:.4g} .. {high:.4g}" in text
    facts, text = info_of(stepwell.convert(graph, x), tmp_path / "plain.stw")
    assert facts["range"] == facts["ranges"][0] == facts["ranges"][1] and "channel 0" not in text


# ---- the cases of the design folder ----


with_cases = pytest.mark.skipif(
    not CASES.is_dir(), reason="not part of the repository: the cases beside it"
)


@with_cases
@pytest.mark.parametrize("act", ["relu", "tanh"])
def test_case_01_keras_window_silent(act):
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(3)
    source = keras.Sequential(
        [keras.Input((10, 3)), keras.layers.LSTM(16, activation=act), keras.layers.Dense(1)]
    )
    weights = source.layers[0].get_weights()
    weights[2][16:32] = 3.0
    source.layers[0].set_weights(weights)
    rng = np.random.default_rng(0)
    x = np.clip(0.5 + 0.2 * rng.normal(size=(2000, 3)).cumsum(0) * 0.05, 0, 1)
    windows = np.stack([x[k : k + 10] for k in range(1990)])
    with pytest.warns(stepwell.FidelityWarning, match="slide:10"):
        carried = stepwell.convert(source, windows[::20])
    assert carried.notes["fidelity"]["carry_gap"] > 1
    sliding = stepwell.convert(source, windows[::20], mode="slide:10")
    exact = np.asarray(source.predict(windows, verbose=0), np.float64)[:, 0]
    y = sliding.stream().run(x)[9:1999, 0]
    assert np.sqrt(np.mean((y - exact) ** 2)) < 0.02 * exact.std()


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
        np.testing.assert_allclose(
            np.array([r.split(",") for r in found], float), expected, atol=2e-3
        )
        code, found, said = live(tmp_path / "m3.stw", content)
        assert code == 1 and not found and "stdin line 1: " in said


@pytest.mark.skipif(not CASES.is_dir(), reason="not part of the repository: the cases beside it")
@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (
            "F08_missed_window.stw",
            "mode stagger:16/4: the model gives an output every 3 steps, and none at the window's",
        ),
        (
            "F10_overlapping_places.stw",
            "layer 1 'dense12x6' writes over the output of layer 0 'window'",
        ),
    ],
)
def test_models_that_the_exporter_never_writes(file, reason):
    import stepwell
    from stepwell._engine import lib
    from test_blob_bounds import opened

    path = CASES / "hostile" / file
    assert opened(path.read_bytes(), 64) == lib.STW_E_SHAPE
    with pytest.raises(stepwell.ModelError, match=f"{file}: {reason}"):
        stepwell.load(path)


@pytest.mark.skipif(not CASES.is_dir(), reason="not part of the repository: the cases beside it")
def test_case_serial_newline_translation(tmp_path, monkeypatch):
    """INFO is answered and STEP is not: the bytes that the line changes are named, and text that
    arrives is shown.
    """
    import numpy as np
    import stepwell
    from click.testing import CliRunner
    from hil.conftest import need
    from hil.test_line import Relay, dropping, replacing
    from stepwell.boards import load_board
    from stepwell.boards.build import build
    from stepwell.cli.commands import cli
    from stepwell.link import Link, qemu

    need("qemu:microbit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(Link.__init__.__kwdefaults__, "patience", 1.0)
    x = np.random.default_rng(0).normal(size=(1, 160, 3)).astype(np.float32)
    np.savez("x.npz", x=x)
    model = stepwell.convert(CASES / "serial_newline_translation" / "m3.onnx", list(x))
    model.save("m3.stw")
    board = qemu.start_qemu(load_board("microbit"), build(model, "microbit", tmp_path).elf)
    relay = Relay(board.port)
    speaking = Relay(["sh", "-c", r'while :; do printf "temp=23.1 hum=40\r\n"; sleep 0.05; done'])

    def hil(url: str) -> str:
        done = CliRunner().invoke(cli, ["hil", "--port", url, "m3.stw", "--data", "x.npz"])
        assert done.exit_code == (0 if "equal" in done.output else 1), done.output
        assert "powered" not in done.output
        return done.output

    try:
        assert "outputs     equal, bit for bit" in hil(relay.url)
        relay.down = replacing(b"\n", b"\r\n")
        assert "byte 0x0a does not pass from the board (found by ECHO)" in hil(relay.url)
        relay.down = bytes
        relay.up = replacing(b"\r", b"\n")
        assert "byte 0x0d does not pass to the board (found by ECHO)" in hil(relay.url)
        relay.up = relay.down = dropping(b"\x11\x13")
        text = hil(relay.url)
        assert "the board answers " in text and " but not " in text
        assert (
            "bytes 0x11, 0x13 do not pass to the board (found by ECHO): software flow control"
            in text
        )
        assert r"but readable text: 'temp=23.1 hum=40\r\ntemp" in hil(speaking.url)
    finally:
        relay.close()
        speaking.close()
        board.close()


# Cases that are still open: each test says what is right, fails until then, and tells when it does
# not.


def followed(
    source: str, folder: str, mode: str = "carry", least: float = 40.0, **options
) -> stepwell.Model:
    """A case's model, converted on its calibration data, follows its source."""
    if source.endswith((".h5", ".keras")):
        pytest.importorskip("keras")
    model = stepwell.convert(
        CASES / folder / source, CASES / folder / "calib.npz", mode=mode, **options
    )
    assert model.notes["fidelity"]["sqnr_db"] > least
    return model


def case_channels_first_input(tmp_path):
    followed("model.onnx", "channels_first_input")


def case_final_states_permuted(tmp_path):
    followed("model.onnx", "final_states_permuted", least=50)


def case_flat_window_input(tmp_path):
    followed("model.onnx", "flat_window_input", mode="slide:40")


def case_keras2_h5_refused(tmp_path):
    same = followed("same_weights.keras", "keras2_h5_refused", least=55)
    assert followed("tfkeras210_gru_time_major.h5", "keras2_h5_refused", least=55).id == same.id


def case_keras2_h5_of_keras_2_2_4(tmp_path):
    followed("keras224_sequential.h5", "keras2_h5_refused")


def case_keras_autoencoder_window(tmp_path):
    followed("autoencoder.keras", "keras_autoencoder_window", mode="slide:30")


def case_keras_state_in_out(tmp_path):
    followed("lstm_step.keras", "keras_state_in_out")


def case_sequence_lengths(tmp_path):
    for source in ("lstm_seq_len_input.onnx", "torch_packed.onnx"):
        followed(source, "sequence_lengths")


def case_keras_cnn_lstm(tmp_path):
    """A refusal, but one that says what the model is given: pieces of windows."""
    pytest.importorskip("keras")
    with pytest.raises(stepwell.ImportRefused, match="axes"):
        followed("cnn_lstm.keras", "keras_cnn_lstm")


def case_files_of_other_tools(tmp_path):
    """Each refusal says what the file is."""
    said = {
        "model.tflite": "TensorFlow Lite",
        "architecture.json": "architecture",
        "torchscript.pt": "TorchScript",
        "whole_module.pt": "module",
        "saved_model": "SavedModel",
        "weights_only.weights.h5": "weights",
    }
    for file, words in said.items():
        folder = CASES / "files_of_other_tools"
        done = run_stepwell(
            "convert", folder / file, "--calib", folder / "calib.npz", "-o", tmp_path / "m.stw"
        )
        assert done.returncode == 1
        assert words in done.stderr, done.stderr


def case_torch_misleading_refusals(tmp_path):
    torch = pytest.importorskip("torch")
    net = torch.ao.quantization.quantize_dynamic(
        _last_step(torch), {torch.nn.LSTM}, dtype=torch.qint8
    )
    with pytest.raises(stepwell.ImportRefused, match="float"):
        stepwell.convert(net, wandering(40))


def case_csv_of_loggers(tmp_path):
    """Forty rows of each."""
    folder = CASES / "csv_of_loggers"
    stepwell.convert(folder / "m3.onnx", wandering(100)).save(tmp_path / "m3.stw")
    files = [path for path in folder.iterdir() if path.suffix not in (".onnx", "")]
    assert len(files) > 5
    for path in files:
        done = run_stepwell("run", tmp_path / "m3.stw", path)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 40


def case_info_of_wide_models(tmp_path):
    from stepwell.boards.build import why_not

    if reason := why_not("netduinoplus2"):
        pytest.skip(reason)
    done = run_stepwell(
        "info", CASES / "info_of_wide_models" / "big.stw", "--board", "netduinoplus2"
    )
    assert done.returncode == 0, done.stderr


def case_two_models_one_folder(tmp_path):
    """An engine built for the first model names what the second one lacks: a mode."""
    from conftest import ROOT
    from stepwell.emit import lean_flags

    folder = CASES / "two_models_one_folder"
    for file, name in (("m.stw", "motor"), ("pump.stw", "pump")):
        assert run_stepwell("emit", folder / file, "-o", tmp_path, "--name", name).returncode == 0
    flags = [f for f in lean_flags(stepwell.load(folder / "m.stw")) if "MODES" in f]
    files = [folder / "main.c", *(path for path in tmp_path.glob("*.c") if path.name != "main.c")]
    subprocess.run(
        ["cc", "-std=c99", *flags, f"-I{tmp_path}", *files, "-o", tmp_path / "both"],
        check=True,
        cwd=ROOT,
    )
    shown = subprocess.run([tmp_path / "both"], capture_output=True, text=True).stdout
    assert "left out of this build" in shown


OTHER_CASES = {name[5:]: test for name, test in list(globals().items()) if name.startswith("case_")}


@with_cases
def test_case_names_of_c_headers(tmp_path):
    folder = CASES / "names_of_c_headers"
    model = stepwell.convert(folder / "stdint.onnx", folder / "x.npz")
    model.save(tmp_path / "stdint.stw")
    assert run_stepwell("emit", tmp_path / "stdint.stw", "-o", tmp_path / "e").returncode == 0
    sources = sorted(path.name for path in (tmp_path / "e").glob("*.c"))
    subprocess.run(
        ["cc", "-std=c99", "-I.", *sources, "-o", "demo"], check=True, cwd=tmp_path / "e"
    )


@with_cases
@pytest.mark.xfail(
    strict=True, raises=(AssertionError, stepwell.StepwellError), reason="not mended yet"
)
@pytest.mark.parametrize("name", OTHER_CASES)
def test_case_that_is_still_open(name, tmp_path):
    OTHER_CASES[name](tmp_path)


@pytest.mark.skipif(not CASES.is_dir(), reason="not part of the repository: the cases beside it")
def test_case_raw_units_normalised_inside():
    import numpy as np
    import stepwell

    folder = CASES / "raw_units_normalised_inside"
    model = stepwell.convert(folder / "weather.onnx", folder / "weather.npz")
    x, y = np.load(folder / "weather.npz")["x"], np.load(folder / "expected.npz")["y"]
    assert decibels(y, np.stack([model.stream().run(sequence) for sequence in x])) >= 55
    assert any("input scaler" in note for note in model.notes["import_notes"])


@pytest.mark.skipif(not CASES.is_dir(), reason="not part of the repository: the cases beside it")
@pytest.mark.parametrize("outputs", [None, "mu"])
def test_case_several_outputs(outputs):
    from stepwell.check import compare, reimported
    from stepwell.samples import load_samples

    folder = CASES / "several_outputs"
    source = folder / "policy_mu_logstd_value.onnx"
    model = stepwell.convert(source, folder / "calib.npz", outputs=outputs)
    names = [output["name"] for output in model.notes["outputs"]]
    assert names == (["mu"] if outputs else ["mu", "log_std", "value"])
    result = compare(
        model, reimported(model, source).graph, load_samples(folder / "calib.npz", model.n_in)
    )
    assert result["sqnr_db"] >= 60 and result["engine_mismatches"] == 0


@pytest.mark.skipif(not CASES.is_dir(), reason="not part of the repository: the cases beside it")
def test_case_local_function():
    file = CASES / "hostile" / "F02_local_function.onnx"
    model = stepwell.convert(file, np.random.default_rng(2).normal(size=(8, 40, 3)))
    assert model.notes["source_check"]["error"] < 1e-5
