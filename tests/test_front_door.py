"""What stepwell says before it believes a model: one test for each fault of the front door, on small inputs.

The cases of the design folder run too, where that folder lies beside the repository.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import stepwell

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"


# ---- W1: windows: the source's window is known, and the gap of carrying on is told ----


# ---- W2: scale: a leading affine is the scaler, channels get a scale of their own ----


# ---- W3: fidelity: noise is never silent ----


# ---- W4: padding='same': exact in windows, refused in carry ----


# ---- W5: check: source, float stream and integer side by side ----


# ---- W6: columns are matched by name ----


# ---- W7: csv headers of numbers ----


# ---- W8: banners and noise before a live stream ----


# ---- W9: held outputs ----


# ---- W10: hard_sigmoid by the version of Keras ----


# ---- W11: raw data into a model of scaled data ----


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
    return keras.Model(x, [keras.layers.Dense(2, name="mu")(y), keras.layers.Dense(1, name="value")(y)])


def policy_onnx(folder: Path, mu: str = "mu", value: str = "value") -> Path:
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(1)
    shapes = {"W": (1, 16, 3), "R": (1, 16, 4), "B": (1, 32), "w": (4, 2), "v": (4, 1)}
    tensors = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32) / 2, n) for n, s in shapes.items()]
    graph = helper.make_graph(
        [
            helper.make_node("LSTM", ["x", "W", "R", "B"], ["seq", "hn"], hidden_size=4),
            helper.make_node("Squeeze", ["seq", "one"], ["h"]),
            helper.make_node("MatMul", ["h", "w"], [mu]),
            helper.make_node("MatMul", ["h", "v"], [value]),
        ],
        "policy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("T", 1, 3))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (mu, value, "hn")],
        [*tensors, numpy_helper.from_array(np.array([1]), "one")],
    )
    path = folder / "policy.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    )
    return path


@pytest.mark.parametrize("kind", ["onnx", "keras", "torch"])
def test_all_outputs_stand_side_by_side_or_those_that_are_named(tmp_path, kind):
    source = {"onnx": lambda: policy_onnx(tmp_path), "keras": policy_keras, "torch": policy_module}[kind]()
    both = stepwell.convert(source, CALIB)
    assert both.notes["outputs"] == NAMED and both.n_out == 3
    turned = stepwell.convert(source, CALIB, outputs=["value", "mu"])
    assert turned.notes["outputs"] == NAMED[::-1]
    mu = stepwell.convert(source, CALIB, outputs="mu")
    assert mu.notes["outputs"] == NAMED[:1] and mu.n_out == 2
    x = CALIB[0]
    y, a, b = (model.stream().run(x) for model in (both, mu, turned))
    spread = y.std()
    assert np.abs(y[:, :2] - a).max() < 0.01 * spread and np.abs(y - b[:, [1, 2, 0]]).max() < 0.01 * spread
    with pytest.raises(stepwell.ImportRefused, match="no output 'nu': the model has 'mu', 'value'"):
        stepwell.convert(source, CALIB, outputs="nu")


def test_outputs_on_the_command_line_and_in_c(tmp_path):
    from test_report import invoke as run_cli

    source, calib = policy_onnx(tmp_path, value="va lue\x1b[2J*/"), tmp_path / "calib.npy"
    np.save(calib, CALIB)
    model = tmp_path / "policy.stw"
    done = run_cli("convert", source, "--calib", calib)
    assert done.code == 0 and "mu 0..1, va lue_[2J*/ 2" in done.stdout
    assert "mu 0..1, va lue_[2J*/ 2" in run_cli("info", model).stdout
    outputs = stepwell.load(model).info()["outputs"]
    assert [(output["name"], output["first"], output["size"]) for output in outputs] == [
        ("mu", 0, 2),
        ("va lue_[2J*/", 2, 1),
    ]
    assert run_cli("check", model, "--data", calib).code == 0
    assert run_cli("emit", model, "-o", tmp_path / "c", "--name", "pol").code == 0
    header = (tmp_path / "c" / "pol.h").read_text()
    for line in ("POL_Y_MU 0 ", "POL_Y_MU_SIZE 2", "POL_Y_VA_LUE_2J 2 ", "POL_Y_VA_LUE_2J_SIZE 1"):
        assert f"#define {line}" in header
    assert "va lue" not in header
    done = run_cli("convert", source, "--calib", calib, "--outputs", "mu", "-o", model)
    assert done.code == 0 and stepwell.load(model).notes["outputs"] == NAMED[:1]
    assert run_cli("check", model, "--data", calib).code == 0  # reads the source with the same outputs
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


# ---- W14: short calibration sequences ----


# ---- W15: concatenations of relu layers at 8 bits ----


# ---- W16: info's ranges by channel ----


# ---- the cases of the design folder ----


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
    result = compare(model, reimported(model, source).graph, load_samples(folder / "calib.npz", model.n_in))
    assert result["sqnr_db"] >= 60 and result["engine_mismatches"] == 0


@pytest.mark.skipif(not CASES.is_dir(), reason="not part of the repository: the cases beside it")
def test_case_local_function():
    file = CASES / "hostile" / "F02_local_function.onnx"
    model = stepwell.convert(file, np.random.default_rng(2).normal(size=(8, 40, 3)))
    assert model.notes["source_check"]["error"] < 1e-5
