"""The importer: real exports against what their framework computes, refusals that name the culprit,
damaged files.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import stepwell
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from stepwell.check import find_source
from stepwell.errors import ImportRefused
from stepwell.importer import Replay, file_sha256, import_onnx
from stepwell.layers import Activation, Dense, Gru, Lstm, Rnn
from stepwell.stream import FloatStream
from stepwell.text import printable

PATTERNS = Path(__file__).parent / "data" / "onnx"
SHARED = ROOT.parent / "shared" / "data" / "models"
LIMIT = 1e-5


def difference(graph, x: np.ndarray, y: np.ndarray, batch_first: bool = True) -> float:
    """Largest difference of the stream from the framework's own outputs, over their range."""
    x = x if batch_first else x.swapaxes(0, 1)
    streamed = FloatStream(graph.in_window(x.shape[1]) if graph.needs_window else graph).run(x)
    if graph.readout == "last":
        streamed = streamed[:, -1]
    elif not batch_first:
        streamed = streamed.swapaxes(0, 1)
    return float(np.abs(streamed.reshape(y.shape) - y).max() / np.ptp(y))


# ---- real exports ----

KEPT = {
    "dynamo_lstm_bf_2l": ([Lstm, Lstm], "every"),
    "dynamo_lstm_lin_last": ([Lstm, Dense], "last"),
    "dynamo_lstm_state_step": ([Lstm, Dense], "every"),
    "l2_o11": ([Lstm, Dense], "last"),
    "legacy_gru_last": ([Gru, Dense], "last"),
    "legacy_lstm_bf_2l": ([Lstm, Lstm], "every"),
    "legacy_lstm_lin_last": ([Lstm, Dense], "last"),
    "legacy_lstm_lin_last_dyn": ([Lstm, Dense], "last"),
    "legacy_lstm_state_step": ([Lstm, Dense], "every"),
}


@pytest.mark.parametrize("name", KEPT)
def test_kept_exports(name):
    kinds, readout = KEPT[name]
    imported = import_onnx(PATTERNS / f"{name}.onnx")
    assert [type(layer) for layer in imported.graph.layers] == kinds
    assert imported.graph.readout == readout
    assert imported.replay.error <= LIMIT
    io = np.load(PATTERNS / f"{name}_io.npz")
    x = next(io[key] for key in io.files if io[key].shape[-1] == 5)
    if "state" not in name:  # the recorded step starts from a state that is not zero
        assert difference(imported.graph, x, io["out_0"]) <= LIMIT


KERAS = ROOT / "tests" / "data" / "keras"
LOOP = (
    "wrote the recurrence as a loop.*give stepwell.convert the torch module or Keras model itself"
)
UNROLLED = "the exporter unrolled the recurrence.*give stepwell.convert the torch module or Keras model itself"
KERAS_REFUSED = (
    dict.fromkeys(
        (
            "gru",
            "gru_before",
            "gru_before_last",
            "gru_last",
            "gru_no_bias",
            "gru_stacked",
            "gru-dynamic",
        ),
        LOOP,
    )
    | dict.fromkeys(
        ("layer_norm_gru", "conv_dilated_gru", "bidirectional_last", "lstm_hard", "lstm_masking"),
        LOOP,
    )
    | dict.fromkeys(("rnn", "rnn_cells", "rnn_last"), LOOP)
    | dict.fromkeys(("lstm_unrolled", "torch_backend_lstm_dense"), UNROLLED)
    | {"lstm_global_max-dynamic": "their number is dynamic: export with a fixed number"}
    | {
        "time_distributed": "copied a layer for each step, as for TimeDistributed: give stepwell.convert"
    }
)


@pytest.mark.parametrize("name", sorted(path.stem for path in KERAS.glob("*.onnx")))
def test_keras_exports(name):
    """What keras and tf2onnx write: converted, or refused with the call that works."""
    path = KERAS / f"{name}.onnx"
    if name in KERAS_REFUSED:
        with pytest.raises(ImportRefused, match=KERAS_REFUSED[name]):
            import_onnx(path)
        return
    imported, io = import_onnx(path), np.load(KERAS / f"{name}_io.npz")
    x = io["x"].astype(float)
    assert difference(imported.graph, x if x.ndim == 3 else x[..., None], io["y"]) <= LIMIT
    assert imported.replay.error <= LIMIT


def test_files_of_other_frameworks(tmp_path):
    for name in ("net.pt", "net.pth", "net.safetensors"):
        with pytest.raises(
            ImportRefused, match=r"holds weights, but no layers: build the module in Python"
        ):
            stepwell.convert(tmp_path / name, np.zeros((2, 3)))


def test_external_weights():
    graph = import_onnx(PATTERNS / "dynamo_lstm_lin_every.onnx").graph
    assert (graph.n_in, graph.n_out, graph.readout) == (5, 3, "every")


def test_source_is_recorded():
    path = PATTERNS / "legacy_lstm_lin_last.onnx"
    source = import_onnx(path, verify=False).graph.source
    assert (Path(source.file).name, source.sha256, source.opset) == (
        path.name,
        file_sha256(path),
        20,
    )
    assert source.producer == "pytorch 2.13.0"


def test_state_inputs_are_noted():
    notes = " ".join(import_onnx(PATTERNS / "legacy_lstm_state_step.onnx").graph.notes)
    assert "h0" in notes and "c0" in notes and "state" in notes


def test_verify_is_optional():
    assert import_onnx(PATTERNS / "legacy_lstm_lin_last.onnx", verify=False).replay is None


@pytest.mark.parametrize("export", ["cmapss_lstm32", "cmapss_lstm32.dynamo"])
def test_trained_model(export):
    path = SHARED / f"{export}.onnx"
    if not path.is_file():
        pytest.skip(f"{path} is not part of the repository")
    io = np.load(SHARED / "cmapss_lstm32_io.npz")
    graph = import_onnx(path).graph
    assert graph.readout == "last"
    assert difference(graph, io["x"].astype(float), io["y"].reshape(-1, 1)) <= LIMIT


def test_import_of_the_package_does_not_load_onnx():
    code = "import sys, stepwell; sys.exit('onnx' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- the matrix of fresh exports ----


def _pattern_cases(wanted: str) -> list:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import export_patterns
    except ImportError as error:
        return [
            pytest.param(
                None, marks=pytest.mark.skip(reason=f"needs torch and onnxscript: {error}")
            )
        ]
    finally:
        sys.path.pop(0)
    return [pytest.param(case, id=case.name) for case in getattr(export_patterns, wanted)()]


@pytest.mark.parametrize("case", _pattern_cases("crossing"))
def test_crossing_of_cells_layers_exporters_layouts_and_heads(case, tmp_path):
    import export_patterns

    if case.proj and case.exporter == "legacy":
        with pytest.raises(Exception, match="LSTMs with projections"):  # torch's own refusal
            export_patterns.export(case, tmp_path)
        return
    path = export_patterns.export(case, tmp_path)
    if case.proj or (case.cell == "rnn" and case.exporter == "dynamo"):
        reason = "a projection" if case.proj else "the exporter unrolled the recurrence"
        with pytest.raises(
            ImportRefused, match=f"{reason}.*give stepwell.convert the torch module"
        ):
            import_onnx(path)
        return
    imported, io = import_onnx(path), np.load(tmp_path / f"{case.name}_io.npz")
    assert difference(imported.graph, io["x"].astype(float), io["y"], case.batch_first) <= LIMIT
    assert imported.replay.error <= LIMIT
    kind = {"lstm": Lstm, "gru": Gru, "rnn": Rnn}[case.cell]
    cells = [layer for layer in imported.graph.layers if type(layer) is kind]
    assert len(cells) == case.n_layers * (1 + case.bidirectional)
    assert imported.graph.needs_window == case.bidirectional


@pytest.mark.parametrize("case", _pattern_cases("cases"))
def test_fresh_export(case, tmp_path):
    import export_patterns

    if case.exporter == "dynamo":
        pytest.importorskip("onnxscript", reason="torch's dynamo exporter needs onnxscript")
    path = export_patterns.export(case, tmp_path)
    imported = import_onnx(path)
    io = np.load(tmp_path / f"{case.name}_io.npz")
    assert difference(imported.graph, io["x"].astype(float), io["y"], case.batch_first) <= LIMIT
    assert imported.replay.error <= LIMIT
    assert imported.graph.readout == ("every" if case.readout == "every" else "last")
    kind = {"lstm": Lstm, "gru": Gru, "rnn": Rnn}[case.cell]
    assert sum(type(layer) is kind for layer in imported.graph.layers) == case.n_layers

    last = imported.graph.layers[-1]
    if case.head == "lstm_relu":
        assert isinstance(last, Activation) and last.activation == "relu"
    elif case.head in ("relu", "tanh", "sigmoid", "softmax"):
        assert isinstance(last, Dense) and last.activation == case.head


# ---- graphs written by hand ----


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 0.5


def lstm_parts(n_in: int = 3, n: int = 4) -> dict[str, np.ndarray]:
    return {
        "W": weights(1, 4 * n, n_in),
        "R": weights(1, 4 * n, n, seed=1),
        "B": weights(1, 8 * n, seed=2),
    }


def save(
    path: Path,
    nodes: list,
    tensors: dict[str, np.ndarray],
    *,
    x=(6, 1, 3),
    outputs=("y",),
    y=None,
    opset=17,
    inputs=(),
    dtype=TensorProto.FLOAT,
) -> Path:
    """A model of ``nodes`` that reads x [T, B, n_in] and writes ``outputs``."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", dtype, x), *inputs],
        [helper.make_tensor_value_info(name, dtype, y) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def lstm(inputs=("x", "W", "R", "B"), outputs=("seq",), name="recurrent", **attributes):
    return helper.make_node(
        "LSTM", list(inputs), list(outputs), name=name, **({"hidden_size": 4} | attributes)
    )


def squeeze():
    """[T, 1, B, H] -> [T, B, H]."""
    return helper.make_node("Squeeze", ["seq", "one"], ["h"], name="squeeze")


ONE = {"one": np.array([1], np.int64)}


def after_lstm(path: Path, *nodes, tensors=(), **how) -> Path:
    """LSTM of 3 inputs and 4 units, then ``nodes``, which read h [T, B, 4] and write y."""
    return save(path, [lstm(), squeeze(), *nodes], lstm_parts() | ONE | dict(tensors), **how)


def refused(path: Path, *words: str) -> str:
    """Import must refuse, and say all of ``words``."""
    with pytest.raises(ImportRefused) as info:
        import_onnx(path)
    message = str(info.value)
    for word in words:
        assert word in message, message
    return message


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "model.onnx"


def test_dense_forms(path):
    """Gemm with transA, alpha and beta; MatMul with the bias on either side; without a bias."""
    w, b = weights(4, 2, seed=3), weights(2, seed=4)
    tensors = {"w": w, "wt": w.T.copy(), "b": b, "last": np.array(-1, np.int64)}
    take = helper.make_node("Gather", ["h", "last"], ["p"], axis=0)
    turn = helper.make_node("Transpose", ["p"], ["t"], perm=[1, 0])
    forms = {
        "gemm": (
            [take, helper.make_node("Gemm", ["p", "w", "b"], ["y"], alpha=0.5, beta=2.0)],
            w * 0.5,
            b * 2,
        ),
        "transB": ([take, helper.make_node("Gemm", ["p", "wt"], ["y"], transB=1)], w, b * 0),
        "transA": ([take, turn, helper.make_node("Gemm", ["t", "w", "b"], ["y"], transA=1)], w, b),
        "bias first": (
            [
                helper.make_node("MatMul", ["h", "w"], ["m"]),
                helper.make_node("Add", ["b", "m"], ["y"]),
            ],
            w,
            b,
        ),
        "bias last": (
            [
                helper.make_node("MatMul", ["h", "w"], ["m"]),
                helper.make_node("Add", ["m", "b"], ["y"]),
            ],
            w,
            b,
        ),
        "no bias": ([helper.make_node("MatMul", ["h", "w"], ["y"])], w, b * 0),
    }
    for form, (nodes, weight, bias) in forms.items():
        dense = import_onnx(after_lstm(path, *nodes, tensors=tensors)).graph.layers[-1]
        assert isinstance(dense, Dense), form
        np.testing.assert_allclose(dense.weight, weight.T, rtol=1e-6, err_msg=form)
        np.testing.assert_allclose(dense.bias, bias, rtol=1e-6, err_msg=form)


def test_gate_order(path):
    """The operator stacks i, o, f, c; the graph i, f, g, o, with both biases added."""
    parts = lstm_parts()
    layer = import_onnx(save(path, [lstm(), squeeze(), identity("h")], parts | ONE)).graph.layers[0]
    i, o, f, c = np.split(parts["W"][0], 4)
    np.testing.assert_array_equal(layer.w_x, np.concatenate([i, f, c, o]))
    b = parts["B"][0]
    i, o, f, c = np.split(b[:16].astype(float) + b[16:], 4)
    np.testing.assert_allclose(layer.bias, np.concatenate([i, f, c, o]))


def identity(name: str):
    return helper.make_node("Identity", [name], ["y"], name="out")


def test_batch_first_operator(path):
    """layout = 1, which onnxruntime does not run: the reference evaluator is the oracle."""
    nodes = [lstm(layout=1), helper.make_node("Squeeze", ["seq", "two"], ["y"])]
    imported = import_onnx(
        save(path, nodes, lstm_parts() | {"two": np.array([2], np.int64)}, x=(2, 6, 3))
    )
    assert "onnx" in imported.replay.oracle and "onnxruntime" not in imported.replay.oracle


def test_hidden_size_may_be_left_out(path):
    node = lstm()
    del node.attribute[:]
    graph = import_onnx(
        save(path, [node, squeeze(), identity("h")], lstm_parts() | ONE), verify=False
    ).graph
    assert graph.n_out == 4


def test_relu_of_relu_is_one(path):
    nodes = [
        helper.make_node("MatMul", ["h", "w"], ["m"]),
        helper.make_node("Relu", ["m"], ["r"]),
        node("Relu", "r"),
    ]
    layers = import_onnx(after_lstm(path, *nodes, tensors={"w": weights(4, 2)})).graph.layers
    assert [type(layer) for layer in layers] == [Lstm, Dense] and layers[1].activation == "relu"


def test_time_distributed_dense(path):
    """[T, B, 4] -> [T * B, 4] -> dense -> [T, B, 2], as some exporters write a layer of every step."""
    nodes = [
        helper.make_node("Reshape", ["h", "flat"], ["rows"]),
        helper.make_node("Gemm", ["rows", "w"], ["m"]),
        helper.make_node("Reshape", ["m", "back"], ["y"]),
    ]
    shapes = {"flat": np.array([-1, 4]), "back": np.array([6, 2, 2]), "w": weights(4, 2)}
    graph = import_onnx(after_lstm(path, *nodes, tensors=shapes, x=(6, 2, 3))).graph
    assert (graph.n_out, graph.readout) == (2, "every")


def test_unbatched(path):
    """[T, n_in] with the batch axis put in and taken out again."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "one"], ["x3"]),
        lstm(("x3", "W", "R", "B")),
        helper.make_node("Squeeze", ["seq"], ["y"]),
    ]
    graph = import_onnx(save(path, nodes, lstm_parts() | ONE, x=(6, 3))).graph
    assert (graph.n_in, graph.n_out, graph.readout) == (3, 4, "every")


def test_unused_branch_does_not_matter(path):
    nodes = [identity("h"), helper.make_node("Erf", ["h"], ["nobody reads this"], name="dead")]
    assert import_onnx(after_lstm(path, *nodes)).graph.n_out == 4


def test_last_state_as_output(path):
    """Only Y_h leads to the output: the last step."""
    nodes = [lstm(outputs=("", "hn")), helper.make_node("Squeeze", ["hn", "zero"], ["y"])]
    graph = import_onnx(save(path, nodes, lstm_parts() | {"zero": np.array([0], np.int64)})).graph
    assert graph.readout == "last"


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_other_float_types_are_converted_and_noted(path, kind):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    element = {
        "float16": TensorProto.FLOAT16,
        "bfloat16": TensorProto.BFLOAT16,
        "float64": TensorProto.DOUBLE,
    }[kind]
    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    parts = {name: array.astype(dtype) for name, array in lstm_parts().items()}
    imported = import_onnx(
        save(path, [lstm(), squeeze(), identity("h")], parts | ONE, dtype=element)
    )
    assert imported.graph.layers[0].w_x.dtype == np.float64
    notes = " ".join(imported.graph.notes)
    assert kind in notes or (kind == "float64" and "double" in notes)


def test_half_weights_with_casts(path):
    """Weights stored in half precision and cast to float32 at load time."""
    parts = lstm_parts()
    stored = {f"{name}16": array.astype(np.float16) for name, array in parts.items()}
    casts = [
        helper.make_node("Cast", [f"{name}16"], [name], to=TensorProto.FLOAT) for name in parts
    ]
    graph = import_onnx(save(path, [*casts, lstm(), squeeze(), identity("h")], stored | ONE)).graph
    assert any("float16" in note for note in graph.notes)


# ---- refusals ----


def node(op: str, *inputs: str, name="culprit", **attributes):
    return helper.make_node(op, list(inputs), ["y"], name=name, **attributes)


UNSUPPORTED = {
    "LogSoftmax": (node("LogSoftmax", "h", axis=-1), {}),
    "LayerNormalization over two axes": (
        node("LayerNormalization", "h", "scale", axis=1),
        {"scale": weights(1, 4)},
    ),
    "ReduceMean of everything": (node("ReduceMean", "h", axes=[0, 2]), {}),
    "bias for each step": (node("Add", "h", "scale"), {"scale": weights(6, 1, 4)}),
    "Softmax over time": (node("Softmax", "h", axis=0), {}),
    "Gather of another step": (node("Gather", "h", "k", axis=0), {"k": np.array(2, np.int64)}),
    "Slice of steps": (
        node("Slice", "h", "a", "b", "c"),
        {k: np.array([v]) for k, v in {"a": 2, "b": 6, "c": 0}.items()},
    ),
    "Slice with a stride": (
        node("Slice", "h", "a", "b", "c", "d"),
        {k: np.array([v]) for k, v in {"a": 0, "b": 99, "c": 0, "d": 2}.items()},
    ),
    "Reshape": (node("Reshape", "h", "s"), {"s": np.array([3, 2, 4])}),
    "MatMul from the left": (node("MatMul", "w", "h"), {"w": weights(6, 6)}),
    "MatMul of another width": (node("MatMul", "h", "w"), {"w": weights(5, 2)}),
    "Cast": (node("Cast", "h", to=TensorProto.INT32), {}),
    "Concat of steps": (node("Concat", "h", "h", axis=0), {}),
    "power": (node("Pow", "h", "two"), {"two": np.array([2.0], np.float32)}),
    "product of data over features": (node("MatMul", "h", "h"), {}),
    "a slope for each feature": (node("PRelu", "h", "slope"), {"slope": weights(4)}),
    "foreign domain": (node("FusedThing", "h", domain="com.example"), {}),
}


@pytest.mark.parametrize("what", UNSUPPORTED)
def test_unsupported_nodes_are_named(path, what):
    bad, tensors = UNSUPPORTED[what]
    message = refused(after_lstm(path, bad, tensors=tensors), "culprit", bad.op_type)
    assert len(message) > 50  # a reason, not only a name


def test_flattened_time_is_refused(path):
    flat = helper.make_node("Reshape", ["b", "s"], ["f"])
    nodes = [
        helper.make_node("Transpose", ["h"], ["b"], perm=[1, 0, 2]),
        flat,
        node("Gemm", "f", "w"),
    ]
    refused(
        after_lstm(path, *nodes, tensors={"s": np.array([1, 24]), "w": weights(24, 2)}),
        "culprit",
        "Gemm",
    )


LSTM_REFUSALS = {
    "direction": ({"direction": "sideways"}, (), {}, "direction"),
    "activations": ({"activations": ["Mystery", "Tanh", "Tanh"]}, (), {}, "mystery"),
    "peepholes": ({}, ("", "", "", "P"), {"P": weights(1, 11)}, "P has shape"),
    "initial state": ({}, ("", "s"), {"s": weights(1, 2, 4)}, "initial"),
    "initial cell": ({}, ("", "", "s"), {"s": weights(1, 2, 4)}, "initial"),
    "sequence_lens": ({}, ("n",), {"n": np.array([4], np.int32)}, "sequence"),
    "hidden_size": ({"hidden_size": 5}, (), {}, "hidden_size"),
}


@pytest.mark.parametrize("what", LSTM_REFUSALS)
def test_lstm_variants_are_named(path, what):
    attributes, more, tensors, reason = LSTM_REFUSALS[what]
    bad = lstm(("x", "W", "R", "B", *more), **attributes)
    refused(
        save(path, [bad, squeeze(), identity("h")], lstm_parts() | ONE | tensors),
        "recurrent",
        "LSTM",
        reason,
    )


def test_state_from_another_layer_is_refused(path):
    """Encoder and decoder."""
    nodes = [
        lstm(outputs=("", "hn")),
        lstm(("x", "W", "R", "B", "", "hn"), name="decoder"),
        squeeze(),
        identity("h"),
    ]
    refused(save(path, nodes, lstm_parts() | ONE), "decoder", "LSTM", "initial")


def test_lstm_after_last_step_is_refused(path):
    parts = lstm_parts() | {"W2": weights(1, 16, 4)} | ONE
    nodes = [
        lstm(outputs=("", "hn")),
        lstm(("hn", "W2", "R", "B"), name="second"),
        squeeze(),
        identity("h"),
    ]
    refused(save(path, nodes, parts), "second", "LSTM")


def test_cell_state_as_feature_is_refused(path):
    nodes = [lstm(outputs=("", "", "cn")), node("MatMul", "cn", "w")]
    refused(
        save(path, nodes, lstm_parts() | {"w": weights(4, 2)}), "culprit", "MatMul", "cell state"
    )


def test_projection_shapes_are_refused(path):
    """What torch's dynamo exporter writes for proj_size."""
    parts = lstm_parts() | {"R": weights(1, 16, 2)} | ONE
    refused(save(path, [lstm(), squeeze(), identity("h")], parts), "recurrent", "LSTM")


def test_projection_state_is_refused(path):
    """The dynamo exporter's proj_size model has fitting weights and a wider cell: nothing but its
    shape tells.
    """
    parts = (
        lstm_parts()
        | ONE
        | {"h0": np.zeros((1, 1, 4), np.float32), "c0": np.zeros((1, 1, 8), np.float32)}
    )
    nodes = [lstm(("x", "W", "R", "B", "", "h0", "c0")), squeeze(), identity("h")]
    refused(save(path, nodes, parts), "recurrent", "LSTM", "proj_size")


def test_weights_as_inputs_are_refused(path):
    """As the node tests of the onnx package have them."""
    parts = lstm_parts()
    w = parts.pop("W")
    inputs = [helper.make_tensor_value_info("W", TensorProto.FLOAT, w.shape)]
    refused(save(path, [lstm(), squeeze(), identity("h")], parts | ONE, inputs=inputs), "W")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", ["initializer", "constant"])
def test_nonfinite_weights_are_named(path, value, place):
    parts = lstm_parts()
    parts["R"][0, 3, 2] = value
    nodes = [lstm(), squeeze(), identity("h")]
    if place == "constant":
        nodes.insert(
            0,
            helper.make_node(
                "Constant", [], ["R"], name="R", value=numpy_helper.from_array(parts.pop("R"), "R")
            ),
        )
    refused(save(path, nodes, parts | ONE), "'R'", "NaN")


def test_nonfinite_bfloat16_weights_are_named(path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    parts = {name: array.astype(ml_dtypes.bfloat16) for name, array in lstm_parts().items()}
    parts["W"][0, 1, 1] = np.nan
    refused(
        save(path, [lstm(), squeeze(), identity("h")], parts | ONE, dtype=TensorProto.BFLOAT16),
        "'W'",
        "NaN",
    )


def test_cycle_is_refused(path):
    nodes = [
        lstm(),
        squeeze(),
        helper.make_node("Add", ["h", "y"], ["z"], name="loop"),
        node("Relu", "z"),
    ]
    refused(save(path, nodes, lstm_parts() | ONE), "cycle")


def test_dangling_input_is_refused(path):
    refused(after_lstm(path, node("Relu", "nothing")), "culprit", "Relu", "nothing")


def heads(path: Path, *more, outputs=("mu", "value"), **how) -> Path:
    """Two dense heads behind the LSTM, and more nodes."""
    tensors = {"w": weights(4, 2), "v": weights(4, 1, seed=3)}
    nodes = [
        helper.make_node("MatMul", ["h", "w"], ["mu"]),
        helper.make_node("MatMul", ["h", "v"], ["value"]),
    ]
    return after_lstm(
        path, *nodes, *more, tensors=tensors | how.pop("tensors", {}), outputs=outputs, **how
    )


def names_of(imported) -> list[tuple[str, int]]:
    assert imported.replay.error <= LIMIT
    return [(output.name, output.size) for output in imported.graph.outputs]


def test_outputs_side_by_side(path):
    imported = import_onnx(heads(path))
    assert names_of(imported) == [("mu", 2), ("value", 1)]
    assert [type(layer) for layer in imported.graph.layers] == [
        Lstm,
        Dense,
    ]  # two heads are rows of one layer
    x = np.random.default_rng(0).normal(size=(2, 9, 3))
    mu, value = (
        FloatStream(import_onnx(path, outputs=name).graph).run(x) for name in ("mu", "value")
    )
    np.testing.assert_allclose(
        FloatStream(imported.graph).run(x), np.concatenate([mu, value], axis=-1), atol=1e-12
    )
    assert names_of(import_onnx(path, outputs=["value", "mu"])) == [("value", 1), ("mu", 2)]


def test_heads_of_other_sources_keep_their_values(path):
    nodes = [
        helper.make_node("Tanh", ["mu"], ["squashed"]),
        helper.make_node("Identity", ["log_std"], ["spread"]),
        helper.make_node("MatMul", ["squashed", "u"], ["far"]),
    ]
    tensors = {"log_std": np.full((1, 2), -0.5, np.float32), "u": weights(2, 3, seed=5)}
    names = ("squashed", "spread", "value", "far")
    imported = import_onnx(heads(path, *nodes, tensors=tensors, outputs=names))
    assert names_of(imported) == [("squashed", 2), ("spread", 2), ("value", 1), ("far", 3)]
    with pytest.raises(ImportRefused, match="'spread' is a constant"):
        import_onnx(path, outputs="spread")


def test_final_states_are_no_data(path):
    nodes = [lstm(outputs=("seq", "hn", "cn")), squeeze(), identity("h")]
    assert names_of(
        import_onnx(save(path, nodes, lstm_parts() | ONE, outputs=("hn", "y", "cn")))
    ) == [("y", 4)]
    assert names_of(import_onnx(path, outputs="hn")) == [("hn", 4)]
    with pytest.raises(ImportRefused, match="'cn' is a cell state"):
        import_onnx(path, outputs="cn")
    zero = {"zero": np.array([0], np.int64)}
    nodes = [
        lstm(outputs=("", "hn")),
        helper.make_node("Squeeze", ["hn", "zero"], ["end"]),
        helper.make_node("MatMul", ["end", "w"], ["y"]),
    ]
    saved = save(path, nodes, lstm_parts() | zero | {"w": weights(4, 2)}, outputs=("y", "end"))
    assert names_of(import_onnx(saved)) == [("y", 2), ("end", 4)]  # h_n[-1] was asked for as data


APART = {
    "softmax": (
        [helper.make_node("Softmax", ["mu"], ["p"])],
        "'p' ends in softmax",
        "'p', 'value'",
    ),
    "class": (
        [helper.make_node("ArgMax", ["mu"], ["p"], axis=2)],
        "'p' is a class number",
        "'p', 'value'",
    ),
    "last": (
        [helper.make_node("Gather", ["mu", "last"], ["p"], axis=0)],
        "'value' answers at every step",
        "'p', 'value'",
    ),
    "input": (
        [helper.make_node("Identity", ["x"], ["p"])],
        "'p' is the model's input itself",
        None,
    ),
    "unknown": ([helper.make_node("TopK", ["mu", "last"], ["p", ""])], "TopK", None),
}


@pytest.mark.parametrize("name", APART)
def test_outputs_that_cannot_stand_side_by_side(path, name):
    nodes, reason, alone = APART[name]
    heads(path, *nodes, tensors={"last": np.array([-1], np.int64)}, outputs=("p", "value"))
    advice = "by themselves convert 'p', 'value'" if alone else "'value' converts by itself"
    assert f"{advice}: choose with --outputs NAME" in refused(path, reason)
    for output in ("p", "value") if alone else ("value",):
        assert import_onnx(path, outputs=output).replay.error <= LIMIT


@pytest.mark.parametrize(
    ("outputs", "sentence"),
    [
        ("nope", "no output 'nope': the model has 'mu', 'value'"),
        (["mu", "mu"], "wanted twice"),
        ([3], "must be a name"),
    ],
)
def test_outputs_that_do_not_exist(path, outputs, sentence):
    with pytest.raises(ImportRefused, match=sentence):
        import_onnx(heads(path), outputs=outputs)


# ---- local functions ----


def with_functions(path: Path, *bodies: list, domain: str = "local") -> Path:
    """F0, F1, .. of x -> y, the first one called behind the LSTM."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)]
    after_lstm(path, helper.make_node("F0", ["h"], ["y"], domain=domain, name="call"))
    model = onnx.load(path)
    model.opset_import.append(opsets[1])
    model.functions.extend(
        helper.make_function(domain, f"F{k}", ["x"], ["y"], nodes, opsets)
        for k, nodes in enumerate(bodies)
    )
    path.write_bytes(model.SerializeToString())
    return path


def calls(function: int, n: int) -> list:
    """n calls of a function, one after the other."""
    names = ["x", *(f"t{k}" for k in range(n - 1)), "y"]
    return [
        helper.make_node(f"F{function}", [names[k]], [names[k + 1]], domain="local")
        for k in range(n)
    ]


def test_local_functions_are_inlined(path):
    imported = import_onnx(
        with_functions(path, calls(1, 2), [helper.make_node("Relu", ["x"], ["y"])])
    )
    assert imported.replay.error <= LIMIT and isinstance(imported.graph.layers[-1], Activation)


IN_A_LOOP = helper.make_node(
    "If", ["x"], ["y"], then_branch=helper.make_graph(calls(1, 3), "then", [], [])
)
TOO_MUCH = "more than 20000 nodes"
EXPANSIONS = {
    "three calls each": (
        [calls(k + 1, 3) for k in range(18)] + [[helper.make_node("Relu", ["x"], ["y"])]],
        TOO_MUCH,
    ),
    "in a body": (
        [
            [IN_A_LOOP],
            *[calls(k + 2, 3) for k in range(17)],
            [helper.make_node("Relu", ["x"], ["y"])],
        ],
        TOO_MUCH,
    ),
    "in a circle": ([calls(1, 1), calls(0, 1)], "calls itself"),
    "deep": (
        [calls(k + 1, 1) for k in range(500)] + [[helper.make_node("Relu", ["x"], ["y"])]],
        "64 deep",
    ),
}


@pytest.mark.parametrize("name", EXPANSIONS)
def test_local_functions_that_grow_are_refused_at_once(path, name):
    bodies, sentence = EXPANSIONS[name]
    with_functions(path, *bodies)
    start = time.perf_counter()
    refused(path, sentence, "local function")
    assert time.perf_counter() - start < 2


def test_local_functions_of_another_opset(path):
    model = onnx.load(with_functions(path, [helper.make_node("Relu", ["x"], ["y"])]))
    model.functions[0].opset_import[0].version = 13
    path.write_bytes(model.SerializeToString())
    refused(path, "'F0'", "another opset")


def test_constants_that_a_few_bytes_ask_for(path):
    nan = helper.make_node("Constant", [], ["nan"], value_float=float("nan"))
    one = helper.make_node("Constant", [], ["step"], value_float=1.0)
    ranged = helper.make_node("Range", ["nan", "nan", "step"], ["r"], name="culprit")
    refused(after_lstm(path, nan, one, ranged, node("Add", "h", "r")), "culprit")
    pads = {"pads": np.array([2**40, 0, 0, 0, 0, 0], np.int64)}
    padded = helper.make_node("Pad", ["h", "pads"], ["p"], name="culprit")
    mean = helper.make_node("ReduceMean", ["p"], ["y"], axes=[0])
    refused(after_lstm(path, padded, mean, tensors=pads), "culprit", "65535 at most")


# ---- names ----

ODD = "a\u00a0b\t\n\x1b[31m\u202e*/<script>\u00e9\U0001f600"
SHOWN = "a\\xa0b\\t\\n\\x1b[31m\\u202e*/<script>\u00e9\U0001f600"


def test_names_that_cannot_be_printed(path):
    nodes = [
        lstm(name=ODD),
        squeeze(),
        helper.make_node("MatMul", ["h", ODD], [ODD + "y"], name=""),
    ]
    save(path, nodes, lstm_parts() | ONE | {ODD: weights(4, 2)}, outputs=(ODD + "y",))
    imported = import_onnx(path)
    assert names_of(imported) == [(SHOWN + "y", 2)]
    assert [layer.name for layer in imported.graph.layers] == [SHOWN, SHOWN + "y"]
    (note,) = imported.graph.notes
    assert "cannot be printed" in note and note.isprintable()
    assert names_of(import_onnx(path, outputs=ODD + "y")) == names_of(
        import_onnx(path, outputs=SHOWN + "y")
    )


def test_names_that_become_the_same(path):
    nodes = [
        helper.make_node("Relu", ["mu"], ["a\tb"]),
        helper.make_node("Tanh", ["value"], ["a\\tb"]),
    ]
    imported = import_onnx(heads(path, *nodes, outputs=("a\tb", "a\\tb")))
    assert names_of(imported) == [("a\\tb_2", 2), ("a\\tb", 1)]


def test_refusals_show_no_unprintable_name(path):
    text = refused(after_lstm(path, helper.make_node("Det", ["h"], ["y"], name="\x1b[2J")), "Det")
    assert text.isprintable()


@pytest.mark.parametrize(
    "name", ["a\u00a0b", "a\tb", "a\nb", "\x1b[31m", "\U0001f600", "\u6a21\u578b"]
)
def test_file_names(tmp_path, name):
    """Whatever the file is called, it converts, and check finds it again."""
    file = after_lstm(tmp_path / f"{name}.onnx", identity("h"))
    model = stepwell.convert(file, np.random.default_rng(0).normal(size=(8, 20, 3)))
    model.save(tmp_path / "m.stw")
    again = stepwell.load(tmp_path / "m.stw")
    assert again.notes["source"]["file"] == f"{printable(name)}.onnx" and again.name == printable(
        name
    )
    assert find_source(again, tmp_path / "m.stw", None) == file


def test_missing_output_is_refused(path):
    refused(after_lstm(path, identity("h"), outputs=("z",)), "'z'")


def test_model_without_lstm_is_refused(path):
    refused(save(path, [node("Relu", "x")], {}), "Relu", "LSTM")


@pytest.mark.parametrize("x", [(6, 1, 0), (6, 1, -3), (), (6, 1, 2, 3), None])
def test_odd_input_shapes_are_refused(path, x):
    refused(after_lstm(path, identity("h"), x=x), "x")


@pytest.mark.parametrize(
    ("name", "shape"), [("W", (1, 0, 3)), ("W", (1, 16, 0)), ("R", (0, 16, 4)), ("B", (1, 0))]
)
def test_zero_size_weights_are_refused(path, name, shape):
    parts = lstm_parts() | {name: np.zeros(shape, np.float32)}
    refused(save(path, [lstm(), squeeze(), identity("h")], parts | ONE), "recurrent", "LSTM")


def test_huge_constant_is_refused(path):
    """A file of a few hundred bytes that asks for 8 TB."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["s"], name="culprit"),
        lstm(("x", "W", "R", "B", "", "s")),
        squeeze(),
        identity("h"),
    ]
    parts = lstm_parts() | ONE | {"shape": np.array([10**6, 10**6], np.int64)}
    refused(save(path, nodes, parts), "culprit", "ConstantOfShape")


def test_huge_broadcast_is_refused(path):
    nodes = [
        helper.make_node("Add", ["a", "b"], ["s"], name="culprit"),
        lstm(("x", "W", "R", "B", "", "s")),
        squeeze(),
    ]
    tall, wide = np.zeros((10**5, 1), np.float32), np.zeros((1, 10**5), np.float32)
    refused(
        save(path, [*nodes, identity("h")], lstm_parts() | ONE | {"a": tall, "b": wide}),
        "culprit",
        "Add",
    )


def test_doubling_constants_are_refused(path):
    """Forty nodes that each double their input ask for 4 TB."""
    nodes = [
        helper.make_node("Concat", [f"s{k}", f"s{k}"], [f"s{k + 1}"], name=f"double{k}", axis=0)
        for k in range(40)
    ]
    bad = [*nodes, lstm(("x", "W", "R", "B", "", "s40")), squeeze(), identity("h")]
    refused(save(path, bad, lstm_parts() | ONE | {"s0": weights(1, 1, 4)}), "double", "Concat")


def test_training_mode_dropout_is_refused(path):
    tensors = {"ratio": np.array(0.5, np.float32), "train": np.array(True)}
    refused(
        after_lstm(path, node("Dropout", "h", "ratio", "train"), tensors=tensors),
        "culprit",
        "Dropout",
    )


@pytest.mark.parametrize("opset", [1, 6])
def test_old_opset_is_refused(path, opset):
    refused(after_lstm(path, identity("h"), opset=opset), "opset")


def test_wrong_import_is_caught_by_replay(path, monkeypatch):
    """The replay is the net under the importer: a graph that differs must not get through."""
    true = FloatStream.outputs
    monkeypatch.setattr(FloatStream, "outputs", lambda self, x: true(self, x) * 1.0001)
    refused(after_lstm(path, identity("h")), "differ")


def test_fixed_step_of_a_dynamic_sequence_is_refused(path):
    """Step 4 is the last one of 5, and of no other length; step 22 is what the walk itself may take
    for the last one.
    """
    for step in (4, 22):
        picks = {"step": np.array(step, np.int64)}
        refused(
            after_lstm(path, node("Gather", "h", "step", axis=0), tensors=picks, x=("time", 1, 3))
        )


def test_large_offset_is_no_difference(path):
    """An output of 1000 +- 0.01: float32 in the source rounds it to 6e-5."""
    tensors = {"w": weights(4, 1) * 0.01, "b": np.array([1000], np.float32)}
    nodes = [
        helper.make_node("MatMul", ["h", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["y"]),
    ]
    assert import_onnx(after_lstm(path, *nodes, tensors=tensors)).replay.error <= LIMIT


def test_window_is_noted():
    assert import_onnx(PATTERNS / "dynamo_lstm_lin_last.onnx").source.window == 12
    assert import_onnx(PATTERNS / "legacy_lstm_lin_last_dyn.onnx").source.window is None


def test_what_the_reference_evaluator_does_not_know_is_no_misreading(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    relu = lstm(activations=["Sigmoid", "Relu", "Relu"])
    save(path, [relu, squeeze(), identity("h")], lstm_parts() | ONE)
    assert "misread" not in refused(path, "differs", "pip install onnxruntime")


def test_replay_without_onnxruntime(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = import_onnx(after_lstm(path, identity("h"))).replay
    assert "reference" in result.oracle and result.error <= LIMIT


# ---- files ----


def test_missing_file(tmp_path):
    refused(tmp_path / "nowhere.onnx", "nowhere.onnx")


def test_folder_instead_of_file(tmp_path):
    refused(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"PK\x03\x04 a zip", json.dumps({"a": 1}).encode()]
)
def test_garbage(path, content):
    path.write_bytes(content)
    refused(path, "model.onnx", "not an ONNX file")


def test_huge_file_is_refused(path):
    with open(path, "wb") as file:
        file.truncate(2 * 10**9)  # sparse: takes no room
    refused(path, "1 GB")


def external(path: Path, location: str, **entries: int) -> Path:
    """A model whose W is external."""
    save(path, [lstm(), squeeze(), identity("h")], lstm_parts() | ONE)
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == "W")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_beyond_the_limit(tmp_path):
    """Counted before it is read: tensors that share a file take memory each."""
    import onnx
    from stepwell.memory import at_most

    (tmp_path / "w.bin").write_bytes(bytes(10_000))
    path = external(tmp_path / "model.onnx", "w.bin")
    model = onnx.load(path, load_external_data=False)
    (tensor,) = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    for k in range(200):
        model.graph.initializer.add().CopyFrom(tensor)
        model.graph.initializer[-1].name = f"copy{k}"
    path.write_bytes(model.SerializeToString())
    with at_most("1M"):
        refused(path, "in other files takes 1.917 MB", "--max-memory")


def test_missing_external_data(path):
    refused(external(path, "weights.bin"), "'W'", "weights.bin", "missing")


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "sub/../../secret.bin", ""])
def test_external_data_stays_in_the_folder(tmp_path, location):
    (tmp_path / "secret.bin").write_bytes(bytes(192))
    (tmp_path / "models").mkdir()
    refused(external(tmp_path / "models" / "model.onnx", location), "'W'")


def test_external_data_behind_a_link(tmp_path):
    (tmp_path / "secret.bin").write_bytes(bytes(192))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "w.bin").symlink_to(tmp_path / "secret.bin")
    refused(external(tmp_path / "models" / "model.onnx", "w.bin"), "'W'", "outside")


@pytest.mark.parametrize(
    "entries", [{}, {"offset": 8, "length": 192}, {"length": 4}, {"offset": -8}, {"length": -1}]
)
def test_external_data_of_the_wrong_size(path, entries):
    (path.parent / "w.bin").write_bytes(bytes(100))
    refused(external(path, "w.bin", **entries), "'W'", "w.bin")


def test_external_data_with_odd_entries(path):
    (path.parent / "w.bin").write_bytes(bytes(192))
    refused(external(path, "w.bin", offset="many"), "'W'", "w.bin")


def only_import_refused(path: Path) -> None:
    """Importing may work or be refused; anything else is a defect."""
    try:
        import_onnx(path)
    except ImportRefused as error:
        assert str(error)


@pytest.mark.parametrize("name", ["legacy_lstm_lin_last", "dynamo_lstm_state_step"])
def test_truncated_files(path, name):
    content = (PATTERNS / f"{name}.onnx").read_bytes()
    for length in {*range(0, len(content), 29), *range(len(content) - 40, len(content))}:
        path.write_bytes(content[:length])
        only_import_refused(path)


FLIPPED = {
    name: (PATTERNS / f"{name}.onnx").read_bytes()
    for name in ("l2_o11", "dynamo_lstm_bf_2l", "legacy_lstm_state_step")
}


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), name=st.sampled_from(sorted(FLIPPED)))
def test_flipped_bits(path, data, name):
    content = bytearray(FLIPPED[name])
    for position in data.draw(
        st.lists(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=4)
    ):
        content[position // 8] ^= 1 << position % 8
    path.write_bytes(content)
    only_import_refused(path)


def test_demo_model_converts_to_what_it_was():
    """The model that ships: imports, with its provenance."""
    path = Path(stepwell.__file__).parent / "demo" / "turbofan.onnx"
    imported = import_onnx(path)
    assert (imported.graph.n_in, imported.graph.n_out, imported.graph.readout) == (14, 1, "every")
    assert isinstance(imported.replay, Replay)


def test_dead_nodes_are_not_run(path):
    """Nothing reads the loop; a replay of the whole file would never end."""
    forever = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["again"])],
        "forever",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("again", TensorProto.BOOL, [])],
    )
    tensors = {"count": np.array(2**62, np.int64), "true": np.array(True)}
    loop = helper.make_node("Loop", ["count", "true"], [], body=forever)
    loop.output.append("")
    nodes = [lstm(), squeeze(), identity("h"), loop]
    assert import_onnx(save(path, nodes, lstm_parts() | ONE | tensors)).replay.error <= LIMIT


@pytest.mark.parametrize("shape", [(2**33, 1, 3), (5, 2**40, 3)])
def test_inputs_that_would_not_fit_memory(path, shape):
    with pytest.raises(ImportRefused, match="more than 16 million values"):
        import_onnx(save(path, [lstm(), squeeze(), identity("h")], lstm_parts() | ONE, x=shape))


def test_sequences_that_would_take_minutes(path):
    refused(
        after_lstm(path, identity("h"), x=(2**20, 1, 3)),
        "1048576 steps",
        "4096 at most",
        "dynamic number",
    )


def test_axis_that_is_added_twice(path):
    twice = {"twice": np.array([0, 0])}
    refused(
        after_lstm(path, node("Unsqueeze", "h", "twice"), tensors=twice),
        "'culprit' (Unsqueeze)",
        "one axis twice",
    )


def test_attribute_of_another_type(path):
    clip = numpy_helper.from_array(np.ones(1, np.float32))
    refused(
        save(path, [lstm(clip=clip), squeeze(), identity("h")], lstm_parts() | ONE),
        "'clip' is not of type float",
    )


FOUND = sorted((ROOT / "tests" / "fuzz" / "found" / "importer").iterdir())


@pytest.mark.parametrize("found", FOUND, ids=lambda path: path.name)
def test_files_that_fuzzing_found(found, tmp_path):
    """Once they were crashes."""
    file = tmp_path / "found.onnx"
    file.write_bytes(found.read_bytes())
    with pytest.raises(ImportRefused):
        import_onnx(file)
