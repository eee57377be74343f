"""Elementwise functions: formulas against torch and ONNX, tables against the functions, which of
them a gate may have.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import stepwell
from shapes import random_dense, random_gru, random_lstm, random_rnn, random_sequences
from stepwell.errors import ImportRefused, QuantizeError
from stepwell.graph import Graph
from stepwell.integer.fixed import lookup
from stepwell.integer.formats import TABLE_STEP, frac_for, largest, table_of
from stepwell.integer.functions import FORMULAS, PLAIN, Function, as_function
from stepwell.layers import Activation, Add, Dense, LayerNorm, Mul, Window
from stepwell.metrics import sqnr_db
from stepwell.stream import FloatStream

RNG = np.random.default_rng
Z = np.concatenate([np.linspace(-16, 16, 641), [0.0, -0.0, 1e-9, -1e-9, 3.0, -3.0, 1e3, -1e3]])

# a use of every formula: name, alpha, beta
USES = [
    ("none", 0.0, 0.0),
    ("relu", 0.0, 0.0),
    ("tanh", 0.0, 0.0),
    ("sigmoid", 0.0, 0.0),
    ("softmax", 0.0, 0.0),
    ("affine", 0.7, -0.3),
    ("leaky_relu", 0.1, 0.0),
    ("leaky_relu", 1.5, 0.0),
    ("thresholded_relu", 0.5, 0.0),
    ("scaled_tanh", 1.7, 0.6),
    ("hard_sigmoid", 0.2, 0.5),
    ("hard_sigmoid", 1 / 6, 0.5),
    ("elu", 1.0, 0.0),
    ("elu", 0.3, 0.0),
    ("celu", 1.0, 0.0),
    ("celu", 2.5, 0.0),
    ("selu", 0.0, 0.0),
    ("softsign", 0.0, 0.0),
    ("softplus", 0.0, 0.0),
    ("swish", 1.0, 0.0),
    ("swish", 1.7, 0.0),
    ("hard_swish", 0.0, 0.0),
    ("mish", 0.0, 0.0),
    ("gelu", 0.0, 0.0),
    ("gelu_tanh", 0.0, 0.0),
    ("clip", -1.0, 6.0),
    ("abs", 0.0, 0.0),
    ("erf", 0.0, 0.0),
    ("exp", 0.0, 0.0),
]
IDS = [f"{name}({alpha:.3g},{beta:g})" for name, alpha, beta in USES]
TABLES = [use for use in USES if use[0] not in PLAIN and use[0] != "exp"]


def test_every_formula_is_tested():
    assert {name for name, _, _ in USES} == set(FORMULAS)


@pytest.mark.parametrize(("name", "alpha", "beta"), USES, ids=IDS)
def test_formulas_equal_torch(name, alpha, beta):
    torch = pytest.importorskip("torch")
    f, z = torch.nn.functional, torch.tensor(Z)
    expected = {
        "none": lambda: z,
        "relu": lambda: f.relu(z),
        "tanh": lambda: torch.tanh(z),
        "sigmoid": lambda: torch.sigmoid(z),
        "softmax": lambda: torch.softmax(z, dim=-1),
        "affine": lambda: alpha * z + beta,
        "leaky_relu": lambda: f.leaky_relu(z, alpha),
        "thresholded_relu": lambda: f.threshold(z, alpha, 0.0),
        "scaled_tanh": lambda: alpha * torch.tanh(beta * z),
        "hard_sigmoid": lambda: torch.clamp(alpha * z + beta, 0, 1),
        "elu": lambda: f.elu(z, alpha),
        "celu": lambda: f.celu(z, alpha),
        "selu": lambda: f.selu(z),
        "softsign": lambda: f.softsign(z),
        "softplus": lambda: torch.logaddexp(z, torch.zeros_like(z)),
        "swish": lambda: z * torch.sigmoid(alpha * z),
        "hard_swish": lambda: f.hardswish(z),
        "mish": lambda: z * torch.tanh(torch.logaddexp(z, torch.zeros_like(z))),
        "gelu": lambda: f.gelu(z),
        "gelu_tanh": lambda: f.gelu(z, approximate="tanh"),
        "clip": lambda: torch.clamp(z, alpha, beta),
        "abs": lambda: torch.abs(z),
        "erf": lambda: torch.erf(z),
        "exp": lambda: torch.exp(torch.clamp(z, max=700.0)),
    }[name]()
    got = Function(name, alpha, beta)(Z)
    assert np.allclose(got, expected.numpy(), rtol=1e-13, atol=1e-13)


ONNX_OPERATORS = {
    "relu": ("Relu", {}),
    "tanh": ("Tanh", {}),
    "sigmoid": ("Sigmoid", {}),
    "softmax": ("Softmax", {}),
    "leaky_relu": ("LeakyRelu", {"alpha": "alpha"}),
    "thresholded_relu": ("ThresholdedRelu", {"alpha": "alpha"}),
    "hard_sigmoid": ("HardSigmoid", {"alpha": "alpha", "beta": "beta"}),
    "elu": ("Elu", {"alpha": "alpha"}),
    "celu": ("Celu", {"alpha": "alpha"}),
    "selu": ("Selu", {}),
    "softsign": ("Softsign", {}),
    "softplus": ("Softplus", {}),
    "hard_swish": ("HardSwish", {}),
    "mish": ("Mish", {}),
    "gelu": ("Gelu", {}),
    "gelu_tanh": ("Gelu", {"approximate": "tanh"}),
    "abs": ("Abs", {}),
    "erf": ("Erf", {}),
}


@pytest.mark.parametrize(
    ("name", "alpha", "beta"),
    [use for use in USES if use[0] in ONNX_OPERATORS],
    ids=lambda v: str(v)[:12],
)
def test_formulas_equal_the_onnx_operators(name, alpha, beta):
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    operator, named = ONNX_OPERATORS[name]
    attributes = {k: {"alpha": alpha, "beta": beta}.get(v, v) for k, v in named.items()}
    graph = helper.make_graph(
        [helper.make_node(operator, ["z"], ["y"], **attributes)],
        "function",
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, len(Z)])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, len(Z)])],
    )
    z = np.clip(Z, -80, 80)[None].astype(np.float32)  # the evaluator's Softplus overflows beyond
    y = ReferenceEvaluator(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)])
    ).run(None, {"z": z})[0]
    assert np.allclose(Function(name, alpha, beta)(z.astype(float)), y, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize(("name", "alpha", "beta"), USES, ids=IDS)
def test_functions_of_any_shape(name, alpha, beta):
    """None of an array's elements, one, many; far out; with no warning."""
    function = Function(name, alpha, beta)
    shapes = [(0, 3), (4, 0, 3), (1,), (2, 3)]
    with np.errstate(all="raise", under="ignore"):
        for shape in shapes:
            assert function(np.ones(shape)).shape == shape
        far = function(np.array([-1e4, 1e4]))
    assert np.isfinite(far).all()
    assert function(np.array([1, 2], np.int32)).dtype == np.float64


def test_names():
    assert as_function("tanh") == Function("tanh") and as_function(
        Function("elu", 1.0)
    ) == Function("elu", 1.0)
    assert (
        str(Function("hard_sigmoid", 0.2, 0.5)) == "hard_sigmoid(0.2, 0.5)"
        and str(Function("gelu")) == "gelu"
    )
    assert [name for name in FORMULAS if Function(name).plain] == list(PLAIN)
    with pytest.raises(ValueError, match="'sine' is not one of none, relu"):
        Function("sine")


# ---- tables ----


@pytest.mark.parametrize("z_scale", [2.0**-11, 3e-4, 1e-2])
@pytest.mark.parametrize(("name", "alpha", "beta"), TABLES, ids=lambda v: str(v)[:12])
def test_tables_follow_their_function(name, alpha, beta, z_scale):
    """Within what a straight line between entries, and the rounding of both ends, can be off:
    curvature times step^2 / 8.
    """
    function = Function(name, alpha, beta)
    y_scale = largest(function, z_scale) / 32767
    table = table_of(function, z_scale, y_scale)
    z = np.arange(-32768, 32768)
    got, exact = lookup(table, z) * y_scale, function(z * z_scale)
    step = TABLE_STEP * z_scale
    at = np.arange(513) * TABLE_STEP - 32768
    assert np.abs(table * y_scale - function(at * z_scale)).max() <= 0.51 * y_scale
    fine = function(np.arange(-32768 * 4, 32768 * 4) * z_scale / 4)
    rise = np.abs(
        fine[4 * TABLE_STEP :] - fine[: -4 * TABLE_STEP]
    ).max()  # no more than all of a step's change, at a corner
    smooth = name not in (
        "leaky_relu",
        "thresholded_relu",
        "hard_sigmoid",
        "hard_swish",
        "clip",
        "abs",
        "elu",
        "selu",
        "celu",
    )
    curve = np.abs(np.diff(fine, 2)).max() * 16 / z_scale**2
    bound = min(rise, 1.2 * curve * step**2 / 8) if smooth else rise
    assert np.abs(got - exact).max() <= bound + 1.02 * y_scale


def test_formats_hold_their_peak():
    for peak in (1e-9, 0.5, 0.99996, 1.0, 1.5, 3.99, 255.9, 32767.0, 1e6, 1e-300):
        frac = frac_for(peak)
        assert peak * 2.0**frac <= 32767 and (frac == 15 or peak * 2.0 ** (frac + 1) > 32767)
    assert frac_for(0.0) == 15 and frac_for(100.0, 5) == 5
    assert largest(Function("elu", 1.0)) == pytest.approx(16, abs=0.1)


# ---- where functions may stand ----


def sqnr(graph: Graph, scale: float = 1.0) -> float:
    model = stepwell.convert(graph, random_sequences(RNG(8), 16, 60, graph.n_in) * scale)
    x = random_sequences(RNG(9), 3, 50, graph.n_in) * scale
    noise = RNG(10).integers(-32768, 32768, (60, graph.n_in)).astype(np.int16)
    assert np.array_equal(model.stream().run_q(noise), model.reference().run_q(noise))
    integer = model.reference().run(x)
    assert np.array_equal(model.stream().run(x[0]), integer[0])
    return sqnr_db(FloatStream(graph).run(x), integer) or 200.0


@pytest.mark.parametrize(("name", "alpha", "beta"), TABLES, ids=lambda v: str(v)[:12])
def test_functions_in_every_place(name, alpha, beta):
    """In a dense layer between others and at the end, alone, behind a sum and a product."""
    function, r = Function(name, alpha, beta), RNG(3)
    lstm = random_lstm(r, 3, 6)
    graphs = [
        Graph((lstm, random_dense(r, 6, 5, function), random_dense(r, 5, 2))),
        Graph((lstm, random_dense(r, 6, 5, function))),
        Graph((lstm, Activation("act", function, 6), random_dense(r, 6, 2))),
        Graph(
            (lstm, Add("sum", 6, (1.0, 0.5), function), random_gru(r, 6, 3)),
            sources=((0,), (1, 1), (2,)),
        ),
        Graph((lstm, Mul("product", 6, function)), sources=((0,), (1, 1))),
    ]
    floor = 8 if name == "thresholded_relu" else 40  # its jump lies between two entries
    for graph in graphs:
        assert sqnr(graph) > floor, graph.layers


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("name", ["leaky_relu", "softplus", "gelu"])
def test_tables_of_large_and_small_numbers(name, scale):
    r = RNG(4)
    graph = Graph(
        (
            random_lstm(r, 3, 6),
            Dense("d", r.normal(size=(4, 6)) * scale, np.zeros(4), Function(name, 0.1)),
        )
    )
    assert sqnr(graph) > 40


@pytest.mark.parametrize(
    ("kind", "scale"),
    [
        *((kind, scale) for kind in ("table", "norm") for scale in (1e4, 1e5, 1e6, 1e7, 1e9)),
        *((kind, scale) for kind in ("relu", "none", "sum") for scale in (1e4, 1e5, 1e6, 1e7, 1e9)),
    ],
)
def test_outputs_beyond_int16(kind, scale):
    """A head that predicts large numbers: right, or refused by name."""
    r = RNG(5)
    lstm = random_lstm(r, 3, 6)
    weight = r.normal(size=(4, 6)) * scale
    last = {
        "table": Dense("head", weight, np.zeros(4), Function("leaky_relu", 0.1)),
        "relu": Dense("head", weight, np.zeros(4), "relu"),
        "none": Dense("head", weight, np.zeros(4)),
        "norm": LayerNorm("head", np.full(6, scale), np.zeros(6)),
        "sum": Add("head", 6, (scale, scale)),
    }[kind]
    graph = Graph((lstm, last), sources=((0,), (1, 1) if kind == "sum" else (1,)))
    try:
        assert sqnr(graph) > 40
    except QuantizeError as error:
        assert scale > 1e8 and ("'head'" in str(error) or "'output'" in str(error))


@pytest.mark.parametrize(
    "functions",
    [
        (Function("affine", 1.0, 0.0), "tanh", "tanh"),
        ("relu", "tanh", "tanh"),
        (Function("softplus"), "tanh", "tanh"),
        (Function("leaky_relu", 0.1), "tanh", "tanh"),
    ],
    ids=str,
)
def test_gates_that_nothing_bounds_are_refused(functions):
    graph = Graph((replace(random_lstm(RNG(1), 3, 4), functions=functions),))
    with pytest.raises(QuantizeError, match=r"the gates' activation .* leaves -1 .. 1"):
        stepwell.convert(graph, random_sequences(RNG(8), 8, 20, 3))


def test_gates_below_zero():
    """An LSTM's gate may be negative, a GRU's and a coupled one may not: f = 1 - i would pass 1."""
    signed, calib = Function("softsign"), random_sequences(RNG(8), 16, 60, 3)
    assert (
        sqnr(Graph((replace(random_lstm(RNG(1), 3, 4), functions=(signed, "tanh", "tanh")),))) > 40
    )
    for layer in (
        replace(random_gru(RNG(1), 3, 4), functions=(signed, "tanh")),
        replace(random_lstm(RNG(1), 3, 4), functions=("tanh", "tanh", "tanh"), coupled=True),
    ):
        with pytest.raises(QuantizeError, match=r"leaves 0 .. 1"):
            stepwell.convert(Graph((layer,)), calib)


def test_candidates_that_grow_too_fast_are_refused():
    for layer in (
        replace(random_lstm(RNG(1), 3, 4), functions=("sigmoid", Function("exp"), "tanh")),
        replace(
            random_lstm(RNG(1), 3, 4), functions=("sigmoid", "tanh", Function("affine", 100.0))
        ),
    ):
        with pytest.raises(QuantizeError, match=r"reaches .* train with another one"):
            stepwell.convert(Graph((layer,)), random_sequences(RNG(8), 8, 20, 3))


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        ("gelu", "activation 'gelu' is not one of none, relu"),
        (Function("relu"), "activation relu is plain: give its name"),
        (Function("affine", np.inf), "is not finite everywhere"),
        (Function("affine", np.nan), "is not finite everywhere"),
        (Function("elu", np.nan), "is not finite everywhere"),
    ],
    ids=str,
)
def test_activations_that_make_no_sense(activation, message):
    lstm = random_lstm(RNG(1), 3, 4)
    with np.errstate(all="ignore"):
        for make in (
            lambda: Graph((lstm, random_dense(RNG(1), 4, 2, activation))),
            lambda: Graph((lstm, Activation("act", activation, 4))),
            lambda: Graph((replace(lstm, functions=("sigmoid", activation, "tanh")),)),
            lambda: Graph((replace(random_rnn(RNG(1), 3, 4), functions=(activation,)),)),
        ):
            with pytest.raises(ImportRefused, match=message):
                make()


def test_float_layers_that_have_nothing_to_do_yet():
    """Behind a strided window most steps compute nothing at all: every function takes that."""
    for name, alpha, beta in USES:
        if name == "softmax" or name in PLAIN[:1]:
            continue
        activation = name if name in PLAIN else Function(name, alpha, beta)
        window = Window("w", 3, 2, stride=4, padding=0)
        graph = Graph((window, Activation("act", activation, 6), random_rnn(RNG(1), 6, 2)))
        stream, x = FloatStream(graph), random_sequences(RNG(2), 1, 12, 3)[0] * 0.1
        assert np.allclose(
            [stream.step(row) for row in x], FloatStream(graph).run(x), rtol=0, atol=1e-12
        )


def test_exponentials_keep_to_their_range():
    """exp grows so fast that a table with room to spare is coarse where the data lies: said or
    refused, never silently nothing.
    """
    r = RNG(6)
    graph = Graph(
        (random_lstm(r, 3, 6), random_dense(r, 6, 4, Function("exp")), random_dense(r, 4, 2))
    )
    assert sqnr(graph) > 30
