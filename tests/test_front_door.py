"""What stepwell says before it believes a model: one test for each fault of the front door, on small inputs.

The cases of the design folder run too, where that folder lies beside the repository.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import stepwell

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"


# ---- W1: windows: the source's window is known, and the gap of carrying on is told ----



# ---- W2: scale: a leading affine is the scaler, channels get a scale of their own ----



# ---- W3: fidelity: noise is never silent ----



# ---- W4: padding='same': exact in windows, refused in carry ----


def _same_keras(steps: int):
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    k = keras.layers
    keras.utils.set_random_seed(4)
    layers = [k.Conv1D(6, 3, padding="same", activation="relu"), k.MaxPooling1D(3, 1, padding="same")]
    layers += [k.Conv1D(4, 4, padding="same"), k.LSTM(5), k.Dense(2)]
    model = keras.Sequential([keras.Input((steps, 3)), *layers])
    return model, lambda x: keras.ops.convert_to_numpy(model(x.astype(np.float32), training=False))


def _same_torch(steps: int):
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            first, second = (nn.Conv1d(n, m, k, padding="same") for n, m, k in ((3, 6, 3), (6, 4, 4)))
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
    tensors = lstm_parts(4) | ONE | {"zero": np.array([0]), "k": weights(6, 3, 3), "w": weights(4, 6, 4)}
    path = save(tmp_path / "same.onnx", nodes, tensors, x=(1, steps, 3))
    session = onnxruntime.InferenceSession(path)
    return path, lambda x: np.concatenate([session.run(None, {"x": one[None].astype(np.float32)})[0] for one in x])


@pytest.mark.parametrize("steps", [10, 13])
@pytest.mark.parametrize("source", ["keras", "torch", "onnx"])
def test_same_padding_is_what_the_source_gives(source, steps, tmp_path):
    made = {"keras": _same_keras, "torch": _same_torch}.get(source, lambda n: _same_onnx(n, tmp_path))(steps)
    model_of_source, answers = made
    rng = np.random.default_rng(6)
    calib, x = rng.normal(size=(8, 40, 3)), rng.normal(size=(36, 3))
    with pytest.raises(stepwell.StepwellError, match=r"looks ahead .*mode carry.*mode='slide:(T|\d+)' or 'tumble:"):
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



# ---- W6: columns are matched by name ----



# ---- W7: csv headers of numbers ----



# ---- W8: banners and noise before a live stream ----



# ---- W9: held outputs ----



# ---- W10: hard_sigmoid by the version of Keras ----


@pytest.mark.parametrize("version, slope", [("2.2.4", 0.2), ("3.0.0", 1 / 6)])
def test_hard_sigmoid_is_that_of_the_keras_that_trained_it(version, slope, tmp_path):
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    h5py = pytest.importorskip("h5py")
    keras.utils.set_random_seed(4)
    layers = keras.layers.LSTM(6, recurrent_activation="hard_sigmoid"), keras.layers.Dense(2, "hard_sigmoid")
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



# ---- W12: several outputs ----



# ---- W13: hidden weights that keep few codes ----



# ---- W14: short calibration sequences ----



# ---- W15: concatenations of relu layers at 8 bits ----



# ---- W16: info's ranges by channel ----



# ---- the cases of the design folder ----
