"""Every layer kind and variant: float semantics against other implementations, NumPy reference = C
engine, accuracy, the blob.

``SHAPES`` of shapes.py has every kind; what a kind means is checked against torch, onnxruntime, the
onnx package's reference evaluator, or formulas and integer arithmetic written out here.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from fractions import Fraction
from functools import cache
from itertools import pairwise
from math import floor, isqrt

import numpy as np
import pytest
import stepwell
from shapes import (
    HARD,
    SHAPES,
    graph_of,
    random_dense,
    random_gru,
    random_lstm,
    random_norm,
    random_projected,
    random_rnn,
    random_sequences,
    sequences_for,
)
from stepwell.graph import Graph
from stepwell.integer.fixed import Rows
from stepwell.integer.formats import table_of
from stepwell.integer.functions import Function
from stepwell.layers import (
    Activation,
    ActivationLayer,
    Add,
    AddLayer,
    ArgMax,
    ArgMaxLayer,
    Attention,
    AttentionLayer,
    Concat,
    ConcatLayer,
    Dense,
    DenseLayer,
    Embedding,
    EmbeddingLayer,
    Gru,
    LayerNormLayer,
    Lstm,
    MaxPool,
    MaxPoolLayer,
    Mul,
    MulLayer,
    Rnn,
    Slice,
    SliceLayer,
    Window,
    WindowLayer,
)
from stepwell.metrics import sqnr_db
from stepwell.model import Model
from stepwell.stream import FloatStream

RNG = np.random.default_rng
DB = {  # the least SQNR in dB; what is not named must reach 45
    **dict.fromkeys(
        ["lstm tables", "slice at the end", "layer norm", "projection of everything"], 37
    ),
    **dict.fromkeys(["one unit of each", "lstm relu out"], 40),
}


@cache
def converted(name: str, mode: str = "carry") -> tuple[Graph, Model]:
    graph = graph_of(name)
    return graph, stepwell.convert(
        graph, sequences_for(graph, 21, 16, 60), name=name.replace(",", ""), mode=mode
    )


def codes_of_kind(kind: str, graph: Graph, model: Model, steps: int) -> np.ndarray:
    """int16 codes [steps, n_in]: full scale, ordinary numbers, silence."""
    rng, shape = RNG(3), (steps, model.n_in)
    if kind == "ordinary":
        return model.quantize(sequences_for(graph, 4, 1, steps)[0])
    made = {
        "noise": lambda: rng.integers(-32768, 32768, shape),
        "rails": lambda: rng.choice([-32768, 32767], shape),
        "silence": lambda: np.zeros(shape),
    }
    return made[kind]().astype(np.int16)


@pytest.mark.parametrize("kind", ["noise", "rails", "ordinary", "silence"])
@pytest.mark.parametrize("name", SHAPES)
def test_engine_equals_reference(name, kind):
    graph, model = converted(name)
    x_q = codes_of_kind(kind, graph, model, 50)
    assert np.array_equal(model.stream().run_q(x_q), model.reference().run_q(x_q))


@pytest.mark.parametrize("name", SHAPES)
def test_chunks_and_single_steps_equal_one_run(name):
    graph, model = converted(name)
    x = sequences_for(graph, 5, 1, 41)[0]
    cuts = [0, 1, 2, 2, 9, 20, 41]
    for make in (lambda: FloatStream(graph), model.reference, model.stream):
        whole = make().run(x)
        chunked, stepped = make(), make()
        parts = [chunked.run(x[a:b]) for a, b in pairwise(cuts)]
        steps = np.stack([stepped.step(row) for row in x])
        if isinstance(stepped, FloatStream):
            assert np.allclose(
                np.concatenate(parts), whole, rtol=0, atol=1e-9 * max(1, np.abs(whole).max())
            )
            assert np.allclose(steps, whole, rtol=0, atol=1e-9 * max(1, np.abs(whole).max()))
        else:
            assert np.array_equal(np.concatenate(parts), whole)
            assert np.array_equal(steps, whole)


@pytest.mark.parametrize("name", SHAPES)
def test_sequences_side_by_side_equal_one_after_the_other(name):
    graph, model = converted(name)
    x = sequences_for(graph, 6, 3, 25)
    for make in (lambda: FloatStream(graph), model.reference):
        together = make().run(x)
        assert np.allclose(together, np.stack([make().run(row) for row in x]), rtol=0, atol=1e-9)
    batch = model.batch(3)
    assert np.array_equal(
        np.stack([batch.step(x[:, t]) for t in range(25)], axis=1), model.reference().run(x)
    )


@pytest.mark.parametrize("cut", [1, 4, 13, 30])
@pytest.mark.parametrize("name", SHAPES)
def test_snapshot_in_the_middle(name, cut):
    """After a load the outputs are those of the stream that was saved, held ones too."""
    graph, model = converted(name)
    x_q = codes_of_kind("ordinary", graph, model, 45)
    stream, other = model.stream(), model.stream()
    stream.run_q(x_q[:cut])
    other.run_q(codes_of_kind("noise", graph, model, 17))  # what it had before is forgotten
    snapshot = stream.save()
    other.load(snapshot)
    assert other.digest() == stream.digest() and other.save() == snapshot
    rest, again = stream.run_q(x_q[cut:]), other.run_q(x_q[cut:])
    assert np.array_equal(again, rest)
    assert other.digest() == stream.digest()
    stream.reset()
    assert stream.digest() == model.stream().digest()


@pytest.mark.parametrize("name", SHAPES)
def test_accuracy(name):
    graph, model = converted(name)
    x = sequences_for(graph, 22, 6, 60)
    exact, integer = FloatStream(graph).run(x), model.reference().run(x)
    if isinstance(graph.layers[-1], ArgMax):
        assert np.mean(exact == integer) > 0.95
    else:
        reached = sqnr_db(exact, integer)
        assert reached is None or reached > DB.get(name, 45), reached


# ---- every shape: what is saved and said ----


def assert_same(a: object, b: object, where: str) -> None:
    """Equal to the last field, arrays with their types."""
    assert type(a) is type(b), where
    if isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and np.array_equal(a, b), where
    elif dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            assert_same(getattr(a, field.name), getattr(b, field.name), f"{where}.{field.name}")
    elif isinstance(a, (tuple, list)):
        assert len(a) == len(b), where
        for k, (p, q) in enumerate(zip(a, b, strict=True)):
            assert_same(p, q, f"{where}[{k}]")
    else:
        assert a == b, where


@pytest.mark.parametrize("name", SHAPES)
def test_blob_round_trip(name):
    from stepwell import blob

    _, model = converted(name)
    again = stepwell.loads(model.blob)
    assert_same(again, model, "model")
    assert blob.pack(again) == model.blob and again.id == model.id


@pytest.mark.parametrize("name", SHAPES)
def test_a_model_as_quantised_equals_the_loaded_one(name):
    """convert gives the model read back from its blob: nothing of the quantiser's may be lost on
    the way.
    """
    from stepwell.quantize import quantize
    from stepwell.quantize.calibrate import calibrate
    from stepwell.quantize.folding import fitted
    from stepwell.scaler import NO_SCALER

    graph, model = converted(name)
    sequences = list(sequences_for(graph, 21, 16, 60))
    fit = fitted(graph, NO_SCALER, sequences)
    found = calibrate(fit.graph, [fit.scaler.normalise(x) for x in sequences])
    made = quantize(fit.graph, found, scaler=fit.scaler).replace(notes=model.notes)
    assert_same(made, model, "model")


@pytest.mark.parametrize("name", SHAPES)
def test_info(name):
    _, model = converted(name)
    info = json.loads(json.dumps(model.info()))
    assert [layer["kind"] for layer in info["layers"]] == [layer.kind for layer in model.layers]
    assert info["ram_bytes"] == info["state_bytes"] + info["scratch_bytes"]
    assert info["snapshot_bytes"] == len(model.stream().save())
    rates = zip(info["layers"], model.timing, strict=True)
    assert (
        info["macs_per_step"]
        == round(sum(layer["macs"] / timing.every for layer, timing in rates))
        > 0
    )
    assert info["flash_bytes"] > 0 and info["stw_file_bytes"] == len(model.blob)
    assert all(layer["overflow_margin_bits"] >= 0 for layer in info["layers"])
    assert f"{model.n_in}" in repr(model) and model.layers[0].kind in repr(model)


# ---- recurrent cells against the ONNX operators ----

ONNX_NAMES = {
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "relu": "Relu",
    "hard_sigmoid": "HardSigmoid",
    "softsign": "Softsign",
    "softplus": "Softplus",
    "elu": "Elu",
    "leaky_relu": "LeakyRelu",
    "thresholded_relu": "ThresholdedRelu",
    "scaled_tanh": "ScaledTanh",
    "affine": "Affine",
}
WITH_ALPHA = ("hard_sigmoid", "elu", "leaky_relu", "thresholded_relu", "scaled_tanh", "affine")
WITH_BETA = ("hard_sigmoid", "scaled_tanh", "affine")


def as_onnx(layer, n_steps: int):
    """A model of one ONNX recurrent operator, opset 14: X [T, 1, D] float32 -> Y, Y_h."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    n, op = layer.n_units, type(layer).__name__.upper()
    order = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}[op]

    def gates(rows: np.ndarray) -> np.ndarray:
        parts = np.split(rows, len(order))
        return np.concatenate([parts[k] for k in order])[None].astype(np.float32)

    bias_h = getattr(layer, "bias_h", np.zeros_like(layer.bias))
    inputs = {
        "W": gates(layer.w_x),
        "R": gates(layer.w_h),
        "B": np.concatenate([gates(layer.bias), gates(bias_h)], axis=1),
        "sequence_lens": None,
        "initial_h": None if layer.h0 is None else layer.h0[None, None].astype(np.float32),
    }
    attributes = {"hidden_size": n, "direction": "reverse" if layer.reverse else "forward"}
    functions = [stepwell.integer.functions.as_function(f) for f in layer.functions]
    attributes["activations"] = [ONNX_NAMES[f.name] for f in functions]
    alphas = [f.alpha for f in functions if f.name in WITH_ALPHA]
    betas = [f.beta for f in functions if f.name in WITH_BETA]
    attributes |= ({"activation_alpha": alphas} if alphas else {}) | (
        {"activation_beta": betas} if betas else {}
    )
    if np.isfinite(layer.clip):
        attributes["clip"] = float(layer.clip)
    if op == "GRU":
        attributes["linear_before_reset"] = int(layer.reset_after)
    if op == "LSTM":
        attributes["input_forget"] = int(layer.coupled)
        inputs["initial_c"] = None if layer.c0 is None else layer.c0[None, None].astype(np.float32)
        if layer.peephole is not None:
            p_i, p_f, p_o = np.split(layer.peephole, 3)
            inputs["P"] = np.concatenate([p_i, p_o, p_f])[None].astype(np.float32)
            for name in ("initial_h", "initial_c"):
                inputs[name] = (
                    np.zeros((1, 1, n), np.float32) if inputs[name] is None else inputs[name]
                )
    names = ["X", *(name if value is not None else "" for name, value in inputs.items())]
    while names[-1] == "":
        names.pop()
    graph = helper.make_graph(
        [helper.make_node(op, names, ["Y", "Y_h"], **attributes)],
        "cell",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [n_steps, 1, layer.n_in])],
        [
            helper.make_tensor_value_info("Y", TensorProto.FLOAT, [n_steps, 1, 1, layer.n_out]),
            helper.make_tensor_value_info("Y_h", TensorProto.FLOAT, [1, 1, layer.n_out]),
        ],
        [
            numpy_helper.from_array(value, name)
            for name, value in inputs.items()
            if value is not None
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def cells() -> dict:
    r = RNG(31)

    def lstm(**changes):
        return replace(random_lstm(r, 3, 5), **changes)

    def gru(**changes):
        return replace(random_gru(r, 3, 5), **changes)

    def rnn(**changes):
        return replace(random_rnn(r, 3, 5), **changes)

    soft, relu_like = Function("softsign"), Function("leaky_relu", 0.2)
    start = {"h0": r.uniform(-1, 1, 5)}
    return {
        "lstm": lstm(),
        "lstm peephole": lstm(peephole=r.normal(size=15)),
        "lstm start": lstm(**start, c0=r.normal(size=5)),
        "lstm only c0": lstm(c0=r.normal(size=5)),
        "lstm reverse": lstm(reverse=True, **start),
        "lstm coupled": lstm(coupled=True),
        "lstm clip": lstm(clip=0.6),
        "lstm functions": lstm(functions=(HARD, soft, "tanh")),
        "lstm scaled": lstm(
            functions=("sigmoid", Function("scaled_tanh", 1.5, 0.7), Function("elu", 0.8))
        ),
        "lstm affine": lstm(functions=(HARD, Function("affine", 0.3, 0.1), Function("softplus"))),
        "lstm all": lstm(
            functions=(HARD, relu_like, soft),
            coupled=True,
            peephole=r.normal(size=15) * 0.5,
            clip=1.5,
            **start,
        ),
        "gru": gru(),
        "gru before": gru(reset_after=False),
        "gru start": gru(**start),
        "gru before reverse": gru(reset_after=False, reverse=True, **start),
        "gru clip": gru(clip=0.5),
        "gru before clip": gru(reset_after=False, clip=0.5),
        "gru functions": gru(functions=(HARD, soft), **start),
        "gru before functions": gru(
            reset_after=False, functions=(HARD, Function("elu", 0.5)), clip=2.0
        ),
        "rnn": rnn(),
        "rnn relu": rnn(functions=("relu",)),
        "rnn reverse start": rnn(reverse=True, **start),
        "rnn functions": rnn(functions=(Function("thresholded_relu", 0.3),), clip=1.0),
    }


CELLS = cells()


def run_layer(layer, x: np.ndarray) -> np.ndarray:
    return FloatStream(Graph((layer,))).run(x)


@pytest.mark.parametrize("name", CELLS)
def test_cells_equal_onnxruntime(name):
    ort = pytest.importorskip("onnxruntime")
    layer = CELLS[name]
    x = random_sequences(RNG(1), 1, 14, 3)[0]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(as_onnx(layer, 14).SerializeToString(), options)
    y, y_h = session.run(["Y", "Y_h"], {"X": x[:, None].astype(np.float32)})
    assert np.abs(run_layer(layer, x) - y[:, 0, 0]).max() < 2e-6
    final = run_layer(replace(layer, final=True), x)
    assert np.abs(final - y_h[0, 0]).max() < 2e-6 and (final == final[0]).all()


@pytest.mark.parametrize(
    "name", ["lstm", "lstm peephole", "lstm start", "gru", "gru before", "gru start", "rnn"]
)
def test_cells_equal_the_reference_evaluator_of_onnx(name):
    from onnx.reference import ReferenceEvaluator

    layer = CELLS[name]
    x = random_sequences(RNG(1), 1, 14, 3)[0]
    y = ReferenceEvaluator(as_onnx(layer, 14)).run(["Y"], {"X": x[:, None].astype(np.float32)})[0]
    assert np.abs(run_layer(layer, x) - y.reshape(14, -1)).max() < 2e-6


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def test_lstm_by_its_formulas():
    """Peepholes, coupled gates, clip and projection at once, unit by unit as the docstring of Lstm
    says it.
    """
    r = RNG(32)
    layer = replace(
        random_projected(r, 3, 5, 4),
        peephole=r.normal(size=15),
        coupled=True,
        clip=0.9,
        h0=r.normal(size=4) * 0.3,
    )
    x = random_sequences(RNG(1), 1, 12, 3)[0]
    h, c, expected = layer.h0, np.zeros(5), []
    clip = lambda v: min(max(v, -0.9), 0.9)  # noqa: E731
    for row in x:
        z = layer.w_x @ row + layer.w_h @ h + layer.bias
        c_new, a = np.zeros(5), np.zeros(5)
        for u in range(5):
            i = sigmoid(clip(z[u] + layer.peephole[u] * c[u]))
            c_new[u] = (1 - i) * c[u] + i * np.tanh(clip(z[10 + u]))
            o = sigmoid(clip(z[15 + u] + layer.peephole[10 + u] * c_new[u]))
            a[u] = o * np.tanh(c_new[u])
        h, c = layer.projection @ a, c_new
        expected.append(h)
    assert np.allclose(run_layer(layer, x), expected, rtol=0, atol=1e-12)


# ---- against torch ----


def torch_rnn(kind: str, **options):
    torch = pytest.importorskip("torch")
    torch.manual_seed(3)
    return torch, getattr(torch.nn, kind)(3, 5, batch_first=True, **options).double()


def of_torch(module, suffix: str = "", reverse: bool = False):
    """The layer with a torch module's weights."""
    found = {n: p.detach().numpy() for n, p in module.named_parameters()}
    w_x, w_h, b_x, b_h = (
        found[f"{n}_l0{suffix}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    kind = type(module).__name__
    if kind == "LSTM":
        projection = found.get(f"weight_hr_l0{suffix}")
        return Lstm("t", w_x, w_h, b_x + b_h, projection=projection, reverse=reverse)
    if kind == "GRU":
        return Gru("t", w_x, w_h, b_x, b_h, reverse=reverse)
    return Rnn("t", w_x, w_h, b_x + b_h, functions=(module.nonlinearity,), reverse=reverse)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {}),
        ("LSTM", {"proj_size": 2}),
        ("GRU", {}),
        ("RNN", {}),
        ("RNN", {"nonlinearity": "relu"}),
        ("LSTM", {"bidirectional": True}),
        ("LSTM", {"bidirectional": True, "proj_size": 2}),
        ("GRU", {"bidirectional": True}),
    ],
    ids=str,
)
def test_recurrent_layers_equal_torch(kind, options):
    torch, module = torch_rnn(kind, **options)
    x = random_sequences(RNG(2), 2, 11, 3)
    expected = module(torch.tensor(x))[0].detach().numpy()
    ways = [of_torch(module)]
    if "bidirectional" in options:
        ways.append(of_torch(module, "_reverse", reverse=True))
    got = np.concatenate([run_layer(way, x) for way in ways], axis=-1)
    assert np.allclose(got, expected, rtol=0, atol=1e-12)


def beside(*layers, sources: tuple[tuple[int, ...], ...] = (), n_in: int = 3) -> Graph:
    """A graph of these layers, as if they stood alone: the recurrent layer that every graph needs
    has no reader.

    ``sources`` count from the input as 0, the first of ``layers`` as 1.
    """
    sources = sources or tuple((k,) for k in range(len(layers)))
    moved = tuple(tuple(value + 1 if value else 0 for value in reads) for reads in sources)
    return Graph((random_lstm(RNG(0), n_in, 1), *layers), sources=((0,), *moved))


def fresh(graph: Graph, x: np.ndarray) -> np.ndarray:
    """The outputs of a float graph at the steps at which it makes one."""
    timing = graph.timing[-1]
    return FloatStream(graph).run(x)[..., timing.first :: timing.every, :]


@pytest.mark.parametrize(
    ("taps", "dilation", "stride", "padding", "groups"),
    [
        (3, 1, 1, None, 1),
        (1, 1, 1, None, 1),
        (3, 4, 1, None, 1),
        (3, 1, 1, None, 4),
        (5, 2, 1, None, 2),
        (3, 1, 1, 0, 1),
        (3, 2, 1, 0, 1),
        (4, 1, 1, 1, 1),
        (2, 1, 2, 0, 1),
        (3, 2, 3, 1, 2),
        (3, 1, 5, None, 1),
        (1, 3, 2, 0, 4),
    ],
)
def test_window_and_dense_are_a_convolution_of_torch(taps, dilation, stride, padding, groups):
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    span = (taps - 1) * dilation + 1
    zeros = span - 1 if padding is None else padding
    conv = torch.nn.Conv1d(4, 8, taps, stride=stride, dilation=dilation, groups=groups).double()
    weight, bias = conv.weight.detach().numpy(), conv.bias.detach().numpy()
    window = Window("w", 4, taps, dilation, stride, padding)
    graph = beside(window, Dense("conv", weight.reshape(8, -1), bias, groups=groups), n_in=4)
    x = RNG(3).normal(size=(2, 23, 4))
    padded = torch.nn.functional.pad(torch.tensor(x).transpose(1, 2), (zeros, 0))
    expected = conv(padded).transpose(1, 2).detach().numpy()
    got = fresh(graph, x)
    assert got.shape == expected.shape
    assert np.allclose(got, expected, rtol=0, atol=1e-12)
    stream = FloatStream(graph)
    steps = np.stack([stream.step(x[:, t]) for t in range(23)], axis=1)
    assert np.allclose(steps, FloatStream(graph).run(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding", [None, 0, 2])
def test_window_and_dense_are_numpy_convolve(padding):
    x, kernel = RNG(4).normal(size=30), RNG(5).normal(size=4)
    window = Window("w", 1, 4, padding=padding)
    got = fresh(beside(window, Dense("conv", kernel[None, ::-1], np.zeros(1)), n_in=1), x[:, None])[
        :, 0
    ]
    full = np.convolve(x, kernel)[: len(x)]
    assert np.allclose(got, full[window.delay :], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 1), (3, 2), (4, 3)])
def test_pooling_equals_torch(kernel, stride):
    torch = pytest.importorskip("torch")
    x = RNG(6).normal(size=(26, 3))
    window = Window("w", 3, kernel, stride=stride, padding=0)
    mean = Dense("mean", np.full((3, kernel), 1 / kernel), np.zeros(3), groups=3)
    for layers, pool in (
        ((window, MaxPool("max", 3 * kernel, kernel)), torch.nn.MaxPool1d(kernel, stride)),
        ((window, mean), torch.nn.AvgPool1d(kernel, stride)),
    ):
        expected = pool(torch.tensor(x.T)[None])[0].T.numpy()
        assert np.allclose(fresh(beside(*layers), x), expected, rtol=0, atol=1e-12)


def test_layers_without_memory_equal_torch():
    torch = pytest.importorskip("torch")
    r = RNG(7)
    x = r.normal(size=(9, 6))
    t = torch.tensor(x)
    norm = random_norm(r, 6)
    embedding = r.normal(size=(9, 5))
    tokens = r.integers(0, 9, (9, 2))
    dense = random_dense(r, 6, 4, "softmax")
    cases = [
        (
            beside(norm, n_in=6),
            torch.nn.functional.layer_norm(
                t, (6,), torch.tensor(norm.gamma), torch.tensor(norm.beta), norm.epsilon
            ),
        ),
        (
            beside(dense, n_in=6),
            torch.softmax(t @ torch.tensor(dense.weight).T + torch.tensor(dense.bias), dim=-1),
        ),
        (beside(ArgMax("a", 6), n_in=6), torch.argmax(t, dim=-1, keepdim=True).double()),
        (beside(Slice("s", 6, 1, 3), n_in=6), t[:, 1:4]),
        (beside(Add("a", 6, (2.0, -0.5), "relu"), sources=((0, 0),), n_in=6), torch.relu(1.5 * t)),
        (beside(Mul("m", 6, "sigmoid"), sources=((0, 0),), n_in=6), torch.sigmoid(t * t)),
        (beside(Concat("c", (6, 6)), sources=((0, 0),), n_in=6), torch.cat([t, t], dim=-1)),
        (beside(Activation("a", Function("gelu"), 6), n_in=6), torch.nn.functional.gelu(t)),
    ]
    for graph, expected in cases:
        assert np.allclose(FloatStream(graph).run(x), expected.numpy(), rtol=0, atol=1e-12), (
            graph.layers[-1]
        )
    graph = Graph(
        (Embedding("e", embedding, 2), random_lstm(r, 10, 2), Slice("s", 10, 0, 10)),
        sources=((0,), (1,), (1,)),
    )
    looked_up = torch.nn.functional.embedding(
        torch.tensor(tokens), torch.tensor(embedding)
    ).reshape(9, 10)
    assert np.array_equal(FloatStream(graph).run(tokens.astype(float)), looked_up.numpy())


# ---- attention ----


def attention_by_hand(form, steps, scale, weight, query, key, value) -> np.ndarray:
    """Every step from its definition: softmax of the scores of the last ``steps`` steps."""
    made = []
    for t in range(len(value)):
        seen = range(max(0, t + 1 - steps), t + 1)
        if form == "score":
            scores = [scale * key[i][0] for i in seen]
        elif form == "dot":
            scores = [scale * query[t] @ key[i] for i in seen]
        else:
            scores = [scale * weight @ np.tanh(query[t] + key[i]) for i in seen]
        p = np.exp(np.array(scores) - max(scores))
        made.append((p / p.sum()) @ value[list(seen)])
    return np.array(made)


@pytest.mark.parametrize("steps", [1, 2, 5, 30, 200])
@pytest.mark.parametrize("form", ["score", "dot", "additive"])
def test_attention_by_its_definition(form, steps):
    """Fewer steps than the memory holds, exactly as many, and many times around the ring."""
    r = RNG(8)
    width = 1 if form == "score" else 4
    weight = r.normal(size=width) if form == "additive" else None
    parts = [random_dense(r, 3, n) for n in (width, width, 5)]
    attention = Attention("mean", form, steps, width, 5, scale=0.8, weight=weight)
    reads = (2, 3) if form == "score" else (1, 2, 3)
    graph = beside(*parts, attention, sources=((0,), (0,), (0,), reads))
    x = RNG(9).normal(size=(64, 3))
    query, key, value = (x @ layer.weight.T + layer.bias for layer in parts)
    expected = attention_by_hand(form, steps, 0.8, weight, query, key, value)
    assert np.allclose(FloatStream(graph).run(x), expected, rtol=0, atol=1e-12)
    model = stepwell.convert(graph, RNG(10).normal(size=(16, 60, 3)))
    integer, stream = model.reference().run(x), model.stream()
    assert np.array_equal(stream.run(x), integer)
    assert sqnr_db(expected, integer) > 50
    stream.reset()  # the memory is empty again
    assert np.array_equal(stream.run(x), integer)


def test_attention_equals_torch():
    torch = pytest.importorskip("torch")
    r = RNG(11)
    parts = [random_dense(r, 3, 4) for _ in range(3)]
    attention = Attention("mean", "dot", 500, 4, 4, scale=0.5)
    graph = beside(*parts, attention, sources=((0,), (0,), (0,), (1, 2, 3)))
    x = r.normal(size=(20, 3))
    q, k, v = (torch.tensor(x @ layer.weight.T + layer.bias)[None, None] for layer in parts)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)[
        0, 0
    ].numpy()
    assert np.allclose(FloatStream(graph).run(x), expected, rtol=0, atol=1e-12)


# ---- integer layers alone, against arithmetic written out here ----


def row(mult: int = 2**14, shift: int = 14, bias: int = 0, n: int = 1) -> Rows:
    """n rows of one kind: v = RSH(acc * mult, shift)."""
    return Rows(
        np.full(n, bias, np.int32),
        np.full(n, mult, np.int16),
        np.zeros(n, np.int8),
        np.full(n, shift, np.int8),
    )


def alone(layer, *reads: int) -> Model:
    """A model of one layer that reads the input."""
    return Model((layer,), 1.0, 0, {}, (reads or (0,),))


def both(model: Model, x_q: np.ndarray) -> np.ndarray:
    """What reference and engine give, which must be the same."""
    x_q = np.asarray(x_q, np.int16)
    expected = model.reference().run_q(x_q)
    assert np.array_equal(model.stream().run_q(x_q), expected)
    return expected


def rsh(v: int, n: int) -> int:
    return floor(Fraction(v) / Fraction(2) ** n + Fraction(1, 2))


def sat16(v: int) -> int:
    return min(max(v, -32768), 32767)


ALL_CODES = np.arange(-32768, 32768).reshape(1024, 64)
TABLES = {
    "softplus": table_of(Function("softplus"), 2.0**-11, 2.0**-11),
    "affine": table_of(Function("affine", 1.0, 0.0), 1.0, 1.0),
    "sawtooth": np.where(np.arange(513) % 2, 32767, -32767).astype(np.int16),
    "rails": np.repeat([32767, -32767], 257).astype(np.int16)[:513],
    "noise": RNG(12).integers(-32767, 32768, 513).astype(np.int16),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_at_every_code(name):
    """TAB(z) of docs/numerics.md in Python's integers, for all 65536 arguments."""
    table = TABLES[name]
    model = alone(ActivationLayer("table", 64, row(), "table", 1.0, 1.0, table))
    got = both(model, ALL_CODES).reshape(-1)
    t = [int(v) for v in table]
    for z in range(-32768, 32768):
        a = z + 32768
        k = a >> 7
        assert got[a] == t[k] + (((t[k + 1] - t[k]) * (a & 127) + 64) >> 7)
    assert got.min() >= -32767 and got.max() <= 32767


def test_a_table_of_a_straight_line_is_exact():
    model = alone(ActivationLayer("table", 64, row(), "table", 1.0, 1.0, TABLES["affine"]))
    got, z = both(model, ALL_CODES).reshape(-1), ALL_CODES.reshape(-1)
    assert np.array_equal(got[128:-128], z[128:-128])
    assert np.abs(got - z).max() == 1  # the entries at both ends are +-32767


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_activations_at_every_code(activation):
    model = alone(ActivationLayer("act", 64, row(), activation, 1.0, 1.0))
    got, z = both(model, ALL_CODES).reshape(-1), ALL_CODES.reshape(-1) / 2048
    exact = {
        "relu": np.maximum(z, 0) * 2048,
        "tanh": 32768 * np.tanh(z),
        "sigmoid": 32768 / (1 + np.exp(-z)),
    }
    assert (
        np.abs(got - exact[activation]).max()
        <= {"relu": 0, "tanh": 1.47, "sigmoid": 1.02}[activation]
    )


def norm_by_hand(x: list[int], gamma, rows: Rows, epsilon: int, exponent: int) -> list[int]:
    """docs/numerics.md, "LayerNorm", word by word in exact numbers."""
    n, total = len(x), sum(x)
    d = [n * v - total for v in x]
    w_all = sum(v * v for v in d) + epsilon
    e = next(
        e for e in range(-30, 64, 2) if 2**30 <= floor(Fraction(w_all) / Fraction(2) ** e) < 2**32
    )
    w = floor(Fraction(w_all) / Fraction(2) ** e)
    r = isqrt(2**62 // w)
    assert r * r * w <= 2**62 < (r + 1) * (r + 1) * w and 2**15 <= r <= 2**16
    q = [sat16(rsh(v * r, 16 + e // 2 - exponent)) for v in d]
    acc = [int(g) * v + int(b) for g, v, b in zip(gamma, q, rows.bias, strict=True)]
    return [
        sat16(rsh(a * int(m), int(s))) for a, m, s in zip(acc, rows.mult, rows.shift, strict=True)
    ]


def norm_inputs(n: int, rng) -> np.ndarray:
    one_hot = np.zeros((4, n), int)
    one_hot[[0, 1, 2, 3], rng.integers(0, n, 4)] = 32767, -32768, 1, -1
    ends = np.where(np.arange(n) % 2, 32767, -32768)
    all_but_one = np.full(n, 32767)
    all_but_one[0] = -32768
    return np.concatenate(
        [
            *(np.full((1, n), v) for v in (0, 1, -1, 32767, -32768)),
            one_hot,
            ends[None],
            -ends[None] - 1,
            all_but_one[None],
            -all_but_one[None] - 1,
            rng.integers(-32768, 32768, (4, n)),
            rng.integers(-30, 31, (4, n)),
            rng.integers(-1, 2, (2, n)) + 30000,
        ]
    )


@pytest.mark.parametrize("epsilon", [1, 2, 2**31, 2**61 - 1])
@pytest.mark.parametrize("n", [2, 3, 7, 64, 1024])
def test_layer_norm_at_its_extremes(n, epsilon):
    rng = RNG(n + epsilon % 97)
    x = norm_inputs(n, rng)
    for exponent in (0, 5):
        gamma = rng.integers(-32767, 32768, n).astype(np.int16)
        rows = row(20000, 29, 0, n)
        rows.bias[:] = rng.integers(-(2**28), 2**28, n)
        model = alone(LayerNormLayer("norm", gamma, rows, epsilon, exponent, 1.0, 1.0))
        expected = [
            norm_by_hand([int(v) for v in line], gamma, rows, epsilon, exponent) for line in x
        ]
        assert np.array_equal(both(model, x), expected)


def test_inverse_square_root_of_layer_norm():
    """Sums of squares at the ends of the range of w, where the root is 2^15, 2^16 or just beside
    it, and a sweep between.
    """
    rng = RNG(13)
    ends = [2**30 + k for k in range(4)] + [2**32 - 1 - k for k in range(4)] + [2**31, 2**31 + 1]
    sums = [w << s for w in ends for s in (0, 2, 20)] + [
        int(2**v) for v in rng.uniform(30, 60, 300)
    ]
    for total in sums:
        # d of two values +-a/2 is +-a, and 2 a^2 must leave room for epsilon
        most = isqrt(total // 2 - 1)
        a = min(most, 65534) // 2 * 2
        x = [a // 2, -a // 2]
        rows, gamma = row(2**14, 29, 0, 2), np.array([32767, -32767], np.int16)
        for exponent in (0, 3):
            epsilon = total - 2 * a * a
            model = alone(LayerNormLayer("norm", gamma, rows, epsilon, exponent, 1.0, 1.0))
            assert both(model, [x])[0].tolist() == norm_by_hand(x, gamma, rows, epsilon, exponent)


def exp2_entry(k: int) -> int:
    from stepwell.integer.fixed import exp2_table

    return int(exp2_table()[k])


def softmax_by_hand(z: list[int]) -> list[int]:
    e = []
    for v in z:
        d = max(z) - v
        j, n = d >> 10 & 63, d >> 16
        y = 1024 * exp2_entry(j) - (d & 1023) * (exp2_entry(j) - exp2_entry(j + 1))
        e.append(0 if n > 28 else y >> (n + 3))
    return [(v * 2**16 // sum(e) + 1) >> 1 for v in e]


def tanh_code(z: int) -> int:
    from stepwell.integer.fixed import tanh

    return int(tanh(np.array([z], np.int64))[0])


@pytest.mark.parametrize("form", ["score", "dot", "additive"])
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_attention_in_integers(form, steps):
    """docs/numerics.md, "Attention", in Python's integers; small and huge scores, warm-up and
    wrap-around.
    """
    rng = RNG(steps)
    width = 1 if form == "score" else 3
    for mult, shift, size in (
        (2**14, 1, 32768),
        (2**15 - 1, 20, 32768),
        (2**14, 62, 32768),
        (2**14, 12, 50),
    ):
        rows = row(mult, shift)
        weight = rng.integers(-32767, 32768, width).astype(np.int16) if form == "additive" else None
        layer = AttentionLayer("mean", form, steps, width, width, weight, rows, 1.0, 1.0)
        model = alone(layer, *((0, 0) if form == "score" else (0, 0, 0)))
        x = rng.integers(-size, size, (20, width))
        x[4] = x[5] = -32768
        got = both(model, x)
        for t in range(20):
            seen = [[int(v) for v in x[i]] for i in range(max(0, t + 1 - steps), t + 1)]
            query = [int(v) for v in x[t]]
            if form == "score":
                acc = [key[0] for key in seen]
            elif form == "dot":
                acc = [sum(a * b for a, b in zip(query, key, strict=True)) for key in seen]
            else:
                acc = [
                    sum(
                        int(w) * tanh_code(sat16(a + b))
                        for w, a, b in zip(weight, query, key, strict=True)
                    )
                    for key in seen
                ]
            limit = 2**31 - 2**16
            p = softmax_by_hand([min(max(rsh(a * mult, shift), -limit), limit) for a in acc])
            expected = [
                sat16(rsh(sum(q * v[k] for q, v in zip(p, seen, strict=True)), 15))
                for k in range(width)
            ]
            assert got[t].tolist() == expected, (t, mult, shift)


def test_layers_that_move_values():
    x = RNG(14).integers(-32768, 32768, (40, 6))
    x[0], x[1] = 32767, -32768
    x[2] = [5, 9, 9, 1, 9, 0]
    assert np.array_equal(both(alone(SliceLayer("s", 6, 2, 3, 1.0, 1.0)), x), x[:, 2:5])
    assert np.array_equal(
        both(alone(MaxPoolLayer("m", 6, 3, 1.0, 1.0)), x), x.reshape(40, 2, 3).max(axis=2)
    )
    assert np.array_equal(both(alone(ArgMaxLayer("a", 6, 1.0)), x)[:, 0], np.argmax(x, axis=1))
    table = RNG(15).integers(-32768, 32768, (7, 2)).astype(np.int16)
    clamped = table[np.clip(x, 0, 6)].reshape(40, 12)
    assert np.array_equal(both(alone(EmbeddingLayer("e", table, 6, 1.0, 1.0)), x), clamped)
    concat = ConcatLayer(
        "c",
        (6, 6),
        Rows(
            *(np.concatenate(p) for p in zip(_fields(row()), _fields(row(2**14, 13)), strict=True))
        ),
        1.0,
        1.0,
    )
    doubled = np.clip(2 * x, -32768, 32767)
    assert np.array_equal(both(alone(concat, 0, 0), x), np.concatenate([x, doubled], axis=1))


def _fields(rows: Rows):
    return (rows.bias, rows.mult, rows.kx, rows.shift)


@pytest.mark.parametrize("activation", ["none", "relu"])
def test_sums_and_products_of_full_scale(activation):
    x = RNG(16).choice([-32768, 32767, 0, 1, -1], (60, 4))
    weights = np.array([16384, -16384], np.int16)
    add = AddLayer("a", 4, weights, row(2**14, 14), activation, 1.0, 1.0)
    mul = MulLayer("m", 4, row(2**15 - 1, 15), activation, 1.0, 1.0)
    down = SliceLayer("s", 4, 0, 4, 1.0, 1.0)

    def expected(values):
        return np.maximum(values, 0) if activation == "relu" else values

    for layer, by_hand in (
        (add, lambda a, b: rsh((16384 * a - 16384 * b) * 2**14, 14)),
        (mul, lambda a, b: rsh(a * b * (2**15 - 1), 15)),
    ):
        model = Model((turned(), down, layer), 1.0, 0, {}, ((0,), (1,), (0, 2)))
        got = both(model, x)
        other = x[:, [3, 2, 1, 0]]
        made = np.vectorize(lambda a, b, f=by_hand: f(int(a), int(b)))(x, other)
        assert np.array_equal(got, expected(made))


def turned():
    """A dense layer that turns the values round: what the other layers read beside the input."""
    weight = np.eye(4, dtype=np.int16)[::-1].copy()
    return DenseLayer("turn", weight, row(2**14, 14, 0, 4), "none", 1.0, 1.0)


@pytest.mark.parametrize(("taps", "dilation"), [(1, 1), (1, 7), (2, 1), (3, 2), (5, 9)])
def test_window_in_integers(taps, dilation):
    layer = WindowLayer("w", 3, taps, dilation, 1.0, 1.0)
    x = RNG(17).integers(-32768, 32768, (60, 3))
    span = (taps - 1) * dilation + 1
    past = np.concatenate([np.zeros((span - 1, 3), int), x])
    expected = np.stack([past[t : t + span : dilation].T.reshape(-1) for t in range(60)])
    assert np.array_equal(both(alone(layer), x), expected)


def test_the_widest_softmax_attention():
    """512 steps to attend to, the most there may be: warm-up, full, wrapped."""
    layer = AttentionLayer("mean", "dot", 512, 2, 2, None, row(2**14, 14), 1.0, 1.0)
    x = RNG(18).integers(-200, 200, (1100, 2))
    both(alone(layer, 0, 0, 0), x)
