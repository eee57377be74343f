"""What stepwell says before it believes a model: one test for each fault of the front door, on small inputs.

The cases of the design folder run too, where that folder lies beside the repository.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import stepwell
from onnx import helper, numpy_helper

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"


def onnx_lstm(path: Path, steps: int | None, seed: int = 0, forget: float = 0.0, answers: str = "last", **how) -> Path:
    """LSTM(3 -> 8) and Dense(8 -> 2) on [1, steps, 3], as torch exports them. ``how``: attributes of the LSTM."""
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
    stored += [numpy_helper.from_array(np.array([k]), name) for name, k in (("zero", 0), ("one", 1))]
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
    nodes += [helper.make_node("MatMul", ["h", "dense"], ["m"]), helper.make_node("Add", ["m", "offset"], ["y"])]
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, steps or "T", n_in])]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "lstm", inputs, outputs, stored)
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
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
    relu = {"activations": ["Sigmoid", "Relu", "Relu"]}
    path, x = onnx_lstm(tmp_path / "relu.onnx", 10, seed=3, forget=12.0, **relu), wandering(200)
    with pytest.raises(stepwell.QuantizeError, match=r"grows without bound .*slide:10"):
        stepwell.convert(path, windows_of(x, 10))
    assert stepwell.convert(path, windows_of(x, 10), mode="slide:10").notes["fidelity"]["sqnr_db"] > 30


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
    noisy = run_stepwell("convert", path, "--calib", data, "--precision", "w4a16", "--calibration", "percentile:50")
    assert "warning" in noisy.stderr and "dB only" in noisy.stderr


# ---- W4: padding='same': exact in windows, refused in carry ----


# ---- W5: check: source, float stream and integer side by side ----


def test_check_compares_with_the_source(tmp_path):
    """Targets that the source gives itself: its own error is nothing, the stream's is the gap of carrying on."""
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
    facts = json.loads(run_stepwell("check", path.with_suffix(".stw"), "--data", data, "--json").stdout)
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


# ---- W7: csv headers of numbers ----


# ---- W8: banners and noise before a live stream ----


# ---- W9: held outputs ----


# ---- W10: hard_sigmoid by the version of Keras ----


# ---- W11: raw data into a model of scaled data ----


# ---- W12: several outputs ----


# ---- W13: hidden weights that keep few codes ----


# ---- W14: short calibration sequences ----


# ---- W15: concatenations of relu layers at 8 bits ----


# ---- W16: info's ranges by channel ----


# ---- the cases of the design folder ----

with_cases = pytest.mark.skipif(not CASES.is_dir(), reason="not part of the repository: the cases beside it")


@with_cases
@pytest.mark.parametrize("act", ["relu", "tanh"])
def test_case_01_keras_window_silent(act):
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(3)
    source = keras.Sequential([keras.Input((10, 3)), keras.layers.LSTM(16, activation=act), keras.layers.Dense(1)])
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
