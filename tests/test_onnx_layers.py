"""ONNX operators beyond plain recurrent and dense layers: each is replayed against onnxruntime (or
onnx), then run as integers.
"""

from __future__ import annotations

import numpy as np
import pytest
import stepwell
from onnx import TensorProto, helper, numpy_helper
from shapes import random_sequences
from stepwell.errors import ImportRefused, QuantizeError
from stepwell.importer import import_onnx
from stepwell.layers import Attention, Embedding, LayerNorm, MaxPool, Recurrent, Window
from stepwell.metrics import sqnr_db
from stepwell.stream import run_in_mode
from stepwell.windowing import parse_mode
from test_importer import (
    ONE,
    after_lstm,
    identity,
    lstm,
    lstm_parts,
    node,
    path,
    refused,
    save,
    squeeze,
    weights,
)

__all__ = ["path"]  # a fixture

ONNXRUNTIME = pytest.mark.skipif(
    not __import__("importlib.util").util.find_spec("onnxruntime"),
    reason="onnx's own evaluator ignores this attribute",
)


def step(op: str, *inputs: str, to: str = "y", **attributes):
    return helper.make_node(op, list(inputs), [to], name=f"{op}_{to}", **attributes)


def runs_as_integers(file, mode: str = "carry", tokens: int = 0) -> None:
    """The file converts, the C engine equals the reference, and both follow the float graph."""
    graph = import_onnx(file).graph
    rng = np.random.default_rng(1)
    x = (
        rng.integers(0, tokens, (16, 30, 1)).astype(float)
        if tokens
        else random_sequences(rng, 16, 30, graph.n_in)
    )
    model = stepwell.convert(graph, x, mode=mode)
    y = model.reference().run(x[0])
    assert np.array_equal(model.stream().run(x[0]), y)
    assert np.isfinite(y).all() and np.abs(y).max() > 0


# ---- attributes of the recurrent operators ----

FUNCTIONS = {
    "hard sigmoid, relu": {"activations": ["HardSigmoid", "Relu", "Tanh"]},
    "alpha and beta": {
        "activations": ["HardSigmoid", "ScaledTanh", "Affine"],
        "activation_alpha": [0.3, 0.7, 0.8],
        "activation_beta": [0.4, 1.2, 0.1],
    },
    "leaky, softsign": {
        "activations": ["Sigmoid", "LeakyRelu", "Softsign"],
        "activation_alpha": [0.05],
    },
    "elu, softplus": {"activations": ["Sigmoid", "Elu", "Softplus"], "activation_alpha": [0.9]},
    "thresholded": {
        "activations": ["Sigmoid", "ThresholdedRelu", "Tanh"],
        "activation_alpha": [0.2],
    },
}
CELLS = {
    "clip": ({"clip": 0.4}, (), {}),
    "coupled gates": ({"input_forget": 1}, (), {}),
    "peepholes": ({}, ("", "", "", "P"), {"P": weights(1, 12, seed=4)}),
    "initial states": (
        {},
        ("", "s", "c"),
        {"s": weights(1, 1, 4, seed=5), "c": weights(1, 1, 4, seed=6) * 3},
    ),
    "everything": (
        {"clip": 0.9, "activations": ["HardSigmoid", "Softsign", "Tanh"]},
        ("", "s", "", "P"),
        {"P": weights(1, 12, seed=4), "s": weights(1, 1, 4, seed=5)},
    ),
    **{name: (attributes, (), {}) for name, attributes in FUNCTIONS.items()},
}


@ONNXRUNTIME
@pytest.mark.parametrize("what", CELLS)
def test_lstm_attributes(path, what):
    attributes, more, tensors = CELLS[what]
    made = lstm(("x", "W", "R", "B", *more), **attributes)
    runs_as_integers(save(path, [made, squeeze(), identity("h")], lstm_parts() | ONE | tensors))


@ONNXRUNTIME
@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize(
    "attributes", [{}, {"clip": 0.5}, {"activations": ["HardSigmoid", "Softsign"]}], ids=str
)
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_gru(path, before, attributes, direction):
    parts = {
        "W": weights(1, 12, 3),
        "R": weights(1, 12, 4, seed=1),
        "B": weights(1, 24, seed=2),
    } | ONE
    gru = helper.make_node(
        "GRU",
        ["x", "W", "R", "B"],
        ["seq"],
        name="g",
        hidden_size=4,
        linear_before_reset=before,
        direction=direction,
        **attributes,
    )
    runs_as_integers(
        save(path, [gru, squeeze(), identity("h")], parts),
        "carry" if direction == "forward" else "slide:6",
    )


@ONNXRUNTIME
@pytest.mark.parametrize("activation", ["Relu", "Softsign", "HardSigmoid", "Affine"])
def test_rnn(path, activation):
    parts = {
        "W": weights(1, 4, 3),
        "R": weights(1, 4, 4, seed=1) * 0.3,
        "B": weights(1, 8, seed=2),
    } | ONE
    rnn = helper.make_node(
        "RNN",
        ["x", "W", "R", "B"],
        ["seq"],
        name="r",
        hidden_size=4,
        activations=[activation],
        **({"activation_alpha": [0.6], "activation_beta": [0.1]} if activation == "Affine" else {}),
    )
    runs_as_integers(save(path, [rnn, squeeze(), identity("h")], parts))


@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
@pytest.mark.parametrize("output", ["Y", "Y_h"])
def test_directions_need_a_window(path, direction, output):
    n = 2 if direction == "bidirectional" else 1
    parts = {"W": weights(n, 16, 3), "R": weights(n, 16, 4, seed=1), "B": weights(n, 32, seed=2)}
    made = lstm(outputs=("seq", "hn"), direction=direction)
    order = [0, 2, 1, 3] if output == "Y" else [1, 0, 2]
    shape = np.array([6, -1, 4 * n] if output == "Y" else [-1, 4 * n])
    nodes = [
        made,
        step("Transpose", "seq" if output == "Y" else "hn", to="t", perm=order),
        step("Reshape", "t", "s"),
    ]
    file = save(path, nodes, parts | {"s": shape})
    graph = import_onnx(file).graph
    assert graph.needs_window and any("slide:T" in note for note in graph.notes)
    assert any(layer.final for layer in graph.layers if isinstance(layer, Recurrent)) == (
        output == "Y_h"
    )
    with pytest.raises(stepwell.QuantizeError, match="slide"):
        stepwell.convert(graph, random_sequences(np.random.default_rng(1), 4, 12, 3))
    runs_as_integers(file, "slide:6")


# ---- neighbours ----

ELEMENTWISE = {
    "LeakyRelu": {"alpha": 0.2},
    "Elu": {"alpha": 0.7},
    "Selu": {},
    "Celu": {"alpha": 1.3},
    "HardSigmoid": {"alpha": 0.3},
    "HardSwish": {},
    "Softplus": {},
    "Softsign": {},
    "ThresholdedRelu": {"alpha": 0.1},
    "Abs": {},
    "Erf": {},
}


@pytest.mark.parametrize("op", ELEMENTWISE)
def test_elementwise_functions(path, op):
    runs_as_integers(after_lstm(path, node(op, "h", **ELEMENTWISE[op])))


NODES = {
    "residual": ([step("MatMul", "h", "w", to="a"), step("Add", "a", "h")], {"w": weights(4, 4)}),
    "difference": ([step("MatMul", "h", "w", to="a"), step("Sub", "h", "a")], {"w": weights(4, 4)}),
    "gate": ([step("Sigmoid", "h", to="a"), step("Mul", "a", "h")], {}),
    "constants": (
        [step("Mul", "h", "k", to="a"), step("Add", "a", "w")],
        {"k": weights(4), "w": weights(1, 4)},
    ),
    "negative": ([step("Neg", "h")], {}),
    "concatenated": ([step("Tanh", "h", to="a"), step("Concat", "h", "a", "h", axis=-1)], {}),
    "one feature": ([step("Gather", "h", "k", axis=2)], {"k": np.array(3)}),
    "softmax of the state": ([step("Softmax", "h", axis=-1)], {}),
    "clipped": (
        [step("Clip", "h", "low", "high")],
        {"low": np.float32(-0.2), "high": np.float32(0.3)},
    ),
    "layer norm": (
        [step("LayerNormalization", "h", "k", "w")],
        {"k": weights(4), "w": weights(4, seed=3)},
    ),
    "split": ([step("Split", "h", "n", to="a", axis=2)], {"n": np.array([4])}),
}


@pytest.mark.parametrize("what", NODES)
def test_neighbours(path, what):
    nodes, tensors = NODES[what]
    if what == "split":
        split = helper.make_node("Split", ["h", "n"], ["a", "b"], name="split", axis=2)
        nodes, tensors = [split, step("Mul", "a", "b")], {"n": np.array([2, 2])}
    runs_as_integers(after_lstm(path, *nodes, tensors=tensors))


def test_written_out_layer_norm(path):
    nodes = [
        step("ReduceMean", "h", to="m", axes=[-1]),
        step("Sub", "h", "m", to="d"),
        step("Pow", "d", "two", to="q"),
        step("ReduceMean", "q", to="v", axes=[-1]),
        step("Add", "v", "e", to="ve"),
        step("Sqrt", "ve", to="s"),
        step("Div", "d", "s", to="n"),
        step("Mul", "n", "k", to="g"),
        step("Add", "g", "b"),
    ]
    tensors = {
        "two": np.float32(2),
        "e": np.float32(1e-5),
        "k": weights(4),
        "b": weights(4, seed=3),
    }
    file = after_lstm(path, *nodes, tensors=tensors)
    norm = import_onnx(file).graph.layers[-1]
    assert (
        isinstance(norm, LayerNorm)
        and np.allclose(norm.gamma, tensors["k"])
        and norm.epsilon == pytest.approx(1e-5)
    )
    runs_as_integers(file)


def test_argmax_takes_the_logits(path):
    nodes = [
        step("MatMul", "h", "w", to="a"),
        step("Softmax", "a", to="p", axis=-1),
        step("ArgMax", "p", axis=-1, keepdims=0),
    ]
    graph = helper.make_graph(
        [lstm(), squeeze(), *nodes],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (6, 1, 3))],
        [helper.make_tensor_value_info("y", TensorProto.INT64, None)],
        [
            numpy_helper.from_array(a, n)
            for n, a in (lstm_parts() | ONE | {"w": weights(4, 5)}).items()
        ],
    )
    path.write_bytes(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
        ).SerializeToString()
    )
    runs_as_integers(path)


def convolved(
    path,
    nodes: list,
    tensors: dict,
    x=(1, 20, 3),
    n: int = 4,
    last: bool = False,
    channels_first: bool = False,
):
    """[B, T, C] -> [B, C, T] -> nodes, which read c and make d -> [T, B, C'] -> LSTM -> y"""
    before = (
        [step("Identity", "x", to="c")]
        if channels_first
        else [step("Transpose", "x", to="c", perm=[0, 2, 1])]
    )
    after = [
        step("Transpose", "d", to="t", perm=[2, 0, 1]),
        lstm(("t", "W", "R", "B"), ("seq", "hn")),
        squeeze(),
    ]
    head = [step("Squeeze", "hn", "zero")] if last else [identity("h")]
    return save(
        path,
        [*before, *nodes, *after, *head],
        lstm_parts(n) | ONE | {"zero": np.array([0])} | tensors,
        x=x,
    )


CONVOLUTIONS = {
    "causal by Pad": (
        [
            step("Pad", "c", "p", to="e"),
            step("Conv", "e", "k", "b", to="f"),
            step("Relu", "f", to="d"),
        ],
        {"p": np.array([0, 0, 2, 0, 0, 0]), "k": weights(4, 3, 3), "b": weights(4)},
    ),
    "causal by pads": (
        [step("Conv", "c", "k", to="d", pads=[4, 0], dilations=[2])],
        {"k": weights(4, 3, 3)},
    ),
    "valid": ([step("Conv", "c", "k", to="d")], {"k": weights(4, 3, 3)}),
    "strided": ([step("Conv", "c", "k", to="d", strides=[2])], {"k": weights(4, 3, 2)}),
    "depthwise": (
        [step("Conv", "c", "k", to="e", group=3, pads=[2, 0]), step("Conv", "e", "w", to="d")],
        {"k": weights(3, 1, 3), "w": weights(4, 3, 1)},
    ),
    "looks ahead": ([step("Conv", "c", "k", to="d", pads=[1, 1])], {"k": weights(4, 3, 3)}),
    "same": ([step("Conv", "c", "k", to="d", auto_pad="SAME_UPPER")], {"k": weights(4, 3, 3)}),
    "max pool": (
        [
            step("Conv", "c", "k", to="e", pads=[2, 0]),
            step("MaxPool", "e", to="d", kernel_shape=[2], strides=[2]),
        ],
        {"k": weights(4, 3, 3)},
    ),
    "average pool": (
        [
            step("Conv", "c", "k", to="e"),
            step("AveragePool", "e", to="d", kernel_shape=[3], strides=[3]),
        ],
        {"k": weights(4, 3, 2)},
    ),
    "batch norm": (
        [
            step("Conv", "c", "k", to="e", pads=[2, 0]),
            step("BatchNormalization", "e", "s", "b", "m", "v", to="d"),
        ],
        {
            "k": weights(4, 3, 3),
            "s": weights(4),
            "b": weights(4, seed=3),
            "m": weights(4, seed=4),
            "v": np.abs(weights(4, seed=5)) + 0.1,
        },
    ),
}


@pytest.mark.parametrize("what", CONVOLUTIONS)
def test_convolutions(path, what):
    nodes, tensors = CONVOLUTIONS[what]
    file = convolved(path, nodes, tensors)
    graph = import_onnx(file).graph
    assert any(isinstance(layer, Window) for layer in graph.layers)
    assert any("1 steps ahead" in note for note in graph.notes) == (what in ("looks ahead", "same"))
    runs_as_integers(file)


AHEAD = {
    "both sides": ([step("Conv", "c", "k", to="d", pads=[1, 1])], {"k": weights(4, 3, 3)}),
    "upper": ([step("Conv", "c", "k", to="d", auto_pad="SAME_UPPER")], {"k": weights(4, 3, 4)}),
    "lower": ([step("Conv", "c", "k", to="d", auto_pad="SAME_LOWER")], {"k": weights(4, 3, 4)}),
    "strided": (
        [step("Conv", "c", "k", to="d", auto_pad="SAME_UPPER", strides=[3])],
        {"k": weights(4, 3, 4)},
    ),
    "strided, lower": (
        [step("Conv", "c", "k", to="d", auto_pad="SAME_LOWER", strides=[2])],
        {"k": weights(4, 3, 5)},
    ),
    "padded before": (
        [step("Pad", "c", "p", to="e"), step("Conv", "e", "k", to="f"), step("Relu", "f", to="d")],
        {"p": np.array([0, 0, 1, 0, 0, 2]), "k": weights(4, 3, 4)},
    ),
    "two": (
        [
            step("Conv", "c", "k", to="e", pads=[2, 2]),
            step("Relu", "e", to="f"),
            step("Conv", "f", "w", to="d", pads=[1, 1]),
        ],
        {"k": weights(5, 3, 5), "w": weights(4, 5, 3)},
    ),
    "largest": ([step("MaxPool", "c", to="d", kernel_shape=[3], pads=[1, 1])], {}),
    "largest, strided": (
        [step("MaxPool", "c", to="d", kernel_shape=[3], strides=[2], auto_pad="SAME_UPPER")],
        {},
    ),
    "largest, dilated": (
        [step("MaxPool", "c", to="d", kernel_shape=[3], dilations=[2], pads=[2, 2])],
        {},
    ),
    "mean": ([step("AveragePool", "c", to="d", kernel_shape=[3], pads=[1, 1])], {}),
    "mean, strided": (
        [step("AveragePool", "c", to="d", kernel_shape=[3], strides=[2], auto_pad="SAME_LOWER")],
        {},
    ),
    "mean, uneven": ([step("AveragePool", "c", to="d", kernel_shape=[4], pads=[1, 2])], {}),
    "mean with zeros": (
        [step("AveragePool", "c", to="d", kernel_shape=[4], pads=[2, 1], count_include_pad=1)],
        {},
    ),
}


@ONNXRUNTIME
@pytest.mark.parametrize("steps", [12, 13, "time"])
@pytest.mark.parametrize("what", AHEAD)
def test_what_looks_ahead_is_exact_in_windows(path, what, steps):
    nodes, tensors = AHEAD[what]
    n_out = 4 if "k" in tensors else 3
    file = convolved(path, nodes, tensors, x=(1, steps, 3), n=n_out, last=True)
    import onnxruntime

    graph, n = import_onnx(file).graph, 13 if steps == "time" else steps
    rng = np.random.default_rng(3)
    calib, x = (
        random_sequences(rng, 8, 40, 3),
        random_sequences(rng, 1, 30, 3)[0].astype(np.float32),
    )
    run = onnxruntime.InferenceSession(file).run
    expected = np.stack(
        [run(None, {"x": x[None, at : at + n]})[0].reshape(-1) for at in range(31 - n)]
    )
    for text in (f"slide:{n}", f"tumble:{n}", f"stagger:{n}/{n}"):
        mode = parse_mode(text, graph.readout)
        model = stepwell.convert(graph, calib, mode=mode)
        ends = list(range(n - 1, 30, n if mode.kind == "tumble" else 1))
        wanted = expected[[t + 1 - n for t in ends]]
        assert np.abs(run_in_mode(graph, mode, x)[ends] - wanted).max() < 1e-5
        y = model.stream().run(x)
        assert np.array_equal(y, model.reference().run(x)) and sqnr_db(wanted, y[ends]) > 40
    if graph.needs_window:
        with pytest.raises(QuantizeError, match=r"layer '.+' looks ahead.*mode='slide:T'"):
            stepwell.convert(graph, calib)


@pytest.mark.parametrize(
    "node, reason",
    [
        (
            step("AveragePool", "c", to="d", kernel_shape=[3], pads=[2, 2]),
            "leaves them out of the mean",
        ),
        (
            step("MaxPool", "c", to="d", kernel_shape=[3], pads=[3, 1]),
            "pads 3 and 1 zeros, more than its 3 steps",
        ),
        (step("Conv", "c", "k", to="d", pads=[1, 3]), "pads 1 and 3 zeros, more than its 3 steps"),
        (step("MaxPool", "c", to="d", kernel_shape=[3], ceil_mode=1), "ceil_mode"),
    ],
)
def test_padding_that_is_refused(path, node, reason):
    refused(convolved(path, [node], {"k": weights(3, 3, 3)}, n=3, last=True), node.op_type, reason)


def test_channels_first_input(path):
    nodes, tensors = CONVOLUTIONS["causal by pads"]
    file = convolved(path, nodes, tensors, x=(1, 3, 20), channels_first=True)
    assert import_onnx(file).graph.n_in == 3
    runs_as_integers(file)


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax", "ReduceSum"])
def test_reductions_over_a_fixed_window(path, op):
    axes = (
        [step(op, "h", "k", keepdims=0)]
        if op == "ReduceSum"
        else [step(op, "h", axes=[0], keepdims=0)]
    )
    file = after_lstm(path, *axes, tensors={"k": np.array([0])})
    graph = import_onnx(file).graph
    assert graph.readout == "last" and any(
        isinstance(layer, MaxPool) for layer in graph.layers
    ) == (op == "ReduceMax")
    runs_as_integers(file, "tumble:6")
    message = refused(after_lstm(path, *axes, tensors={"k": np.array([0])}, x=("time", 1, 3)), op)
    assert "dynamic" in message


def attention_nodes(form: str) -> list:
    """h [T, B, 4] -> b [B, T, 4] -> attention -> y"""
    start = [step("Transpose", "h", to="b", perm=[1, 0, 2])]
    if form.startswith("score"):
        scores = [
            step("MatMul", "b", "w", to="u"),
            step("Tanh", "u", to="v"),
            step("MatMul", "v", "k", to="s"),
        ]
        soft = step("Softmax", "s", to="p", axis=1)
        if form == "score, sum":
            return [
                *start,
                *scores,
                soft,
                step("Mul", "p", "b", to="m"),
                step("ReduceSum", "m", "one", keepdims=0),
            ]
        return [
            *start,
            *scores,
            soft,
            step("Transpose", "p", to="q", perm=[0, 2, 1]),
            step("MatMul", "q", "b", to="m"),
            step("Squeeze", "m", "one"),
        ]
    last = [step("Gather", "b", "end", to="last", axis=1)]
    if form == "dot, query first":
        return [
            *start,
            *last,
            step("Unsqueeze", "last", "one", to="q"),
            step("Transpose", "b", to="bt", perm=[0, 2, 1]),
            step("MatMul", "q", "bt", to="s"),
            step("Mul", "s", "half", to="s2"),
            step("Softmax", "s2", to="p", axis=-1),
            step("MatMul", "p", "b", to="m"),
            step("Squeeze", "m", "one"),
        ]
    return [
        *start,
        *last,
        step("Unsqueeze", "last", "two", to="q"),
        step("MatMul", "b", "q", to="s"),
        step("Softmax", "s", to="p", axis=1),
        step("Transpose", "p", to="pt", perm=[0, 2, 1]),
        step("MatMul", "pt", "b", to="m"),
        step("Squeeze", "m", "one"),
    ]


ATTENTIONS = ("score, sum", "score, product", "dot, query first", "dot, keys first")
ATTENTION_TENSORS = {
    "w": weights(4, 4),
    "k": weights(4, 1),
    "end": np.array(-1),
    "two": np.array([2]),
    "half": np.float32(0.5),
}


@pytest.mark.parametrize("form", ATTENTIONS)
def test_attention(path, form):
    file = after_lstm(path, *attention_nodes(form), tensors=ATTENTION_TENSORS)
    (attention,) = [
        layer for layer in import_onnx(file).graph.layers if isinstance(layer, Attention)
    ]
    assert attention.steps == 6 and attention.form == form.split(",")[0]
    assert attention.scale == (0.5 if form == "dot, query first" else 1.0)
    runs_as_integers(file)
    runs_as_integers(file, "slide:6")


def test_embedding(path):
    nodes = [
        step("Gather", "table", "x", to="e"),
        lstm(("e", "W", "R", "B")),
        squeeze(),
        identity("h"),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.INT64, (6, 1))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(a, n)
            for n, a in (lstm_parts() | ONE | {"table": weights(11, 3)}).items()
        ],
    )
    path.write_bytes(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
        ).SerializeToString()
    )
    assert isinstance(import_onnx(path).graph.layers[0], Embedding)
    runs_as_integers(path, tokens=11)


def test_normalisation_inside_the_model(path):
    """(x - mean) / std before the recurrent layer."""
    nodes = [
        step("Sub", "x", "m", to="a"),
        step("Div", "a", "s", to="b"),
        lstm(("b", "W", "R", "B")),
        squeeze(),
        identity("h"),
    ]
    runs_as_integers(
        save(path, nodes, lstm_parts() | ONE | {"m": weights(3), "s": np.abs(weights(3)) + 0.5})
    )


@pytest.mark.parametrize("op", ["Loop", "Scan"])
def test_loops_are_refused_with_what_would_work(path, op):
    body = helper.make_graph([], "body", [], [])
    made = helper.make_node(op, ["x"], ["y"], name="loop", body=body)
    refused(save(path, [made], {}), op, "dynamo=False", "Keras model itself")


def test_unrolled_recurrence_is_recognised(path):
    nodes, h = [], "x"
    for k in range(4):
        nodes += [step("MatMul", h, "w", to=f"a{k}"), step("Tanh", f"a{k}", to=f"h{k}")]
        h = f"h{k}"
    refused(save(path, [*nodes, identity(h)], {"w": weights(3, 3)}), "unrolled", "dynamo=False")


def test_unused_layers_are_left_out(path):
    nodes = [step("Softplus", "h", to="unused"), step("Tanh", "h")]
    graph = import_onnx(after_lstm(path, *nodes)).graph
    assert [type(layer).__name__ for layer in graph.layers] == ["Lstm", "Activation"]


def test_only_import_refused_comes_out_of_odd_graphs(path):
    """Every operator with every other one behind it."""
    from stepwell.importer.walk import HANDLERS

    for op in HANDLERS:
        try:
            import_onnx(
                after_lstm(path, helper.make_node(op, ["h", "h", "h"], ["y"], name="odd")),
                verify=False,
            )
        except ImportRefused as error:
            assert "odd" in str(error) or "layer" in str(error)
