"""Bits of weights and activations: the same bits everywhere, codes within their formats, packing,
plans, and what each costs.
"""

import numpy as np
import pytest
import stepwell
from shapes import SHAPES, graph_of, random_dense, random_lstm, sequences_for
from stepwell.errors import QuantizeError
from stepwell.graph import Graph
from stepwell.integer import proof
from stepwell.integer.packing import from_nibbles, to_nibbles
from stepwell.integer.precision import PRECISIONS, Plan, parse_precision
from stepwell.layers import RecurrentLayer
from stepwell.metrics import sqnr_db
from stepwell.reference import Reference
from stepwell.stream import FloatStream

NARROW = [name for name in PRECISIONS if name != "w8a16"]
FLOOR = {
    "w8x16h8": 28,
    "w8a8": 22,
    "w4a16": 18,
}  # dB, over all shapes; single rows of few weights are the worst


def converted(name: str, precision: str) -> tuple[Graph, stepwell.Model]:
    graph = graph_of(name)
    return graph, stepwell.convert(graph, sequences_for(graph, 8, 16, 60), precision=precision)


@pytest.mark.parametrize("precision", NARROW)
@pytest.mark.parametrize("name", SHAPES)
def test_engine_equals_reference_within_the_formats(name, precision):
    _, model = converted(name, precision)
    rng = np.random.default_rng(1)
    x_q = rng.integers(-32768, 32768, (80, model.n_in)).astype(np.int16)
    x_q[30:] //= 300
    largest: dict[int, int] = {}

    def observe(index: int, place: str, values: np.ndarray) -> None:
        if place == "h_new":
            largest[index] = max(largest.get(index, 0), int(np.abs(values).max()))

    y_q = Reference(model, observe).run_q(x_q)
    assert np.array_equal(model.stream().run_q(x_q), y_q)
    bits = PRECISIONS[precision]
    for index, layer in enumerate(model.layers):
        if isinstance(layer, RecurrentLayer):
            assert np.abs(np.hstack([layer.w_x, layer.w_h])).max() <= bits.weight_limit
            assert largest[index] <= bits.h_limit
            assert len(proof.failing_rows(*layer.weight_sums(), layer.rows)) == 0
    again = stepwell.loads(model.replace(notes=model.notes).blob)
    assert again.blob == model.blob and np.array_equal(again.reference().run_q(x_q), y_q)
    assert (
        next(layer["formats"]["w"] for layer in model.info()["layers"] if "formats" in layer)
        == f"int{bits.weight_bits}"
    )


@pytest.mark.parametrize("precision", NARROW)
@pytest.mark.parametrize(
    "name", [name for name in SHAPES if name not in ("one unit", "one unit of each", "arg max")]
)
def test_accuracy(name, precision):
    graph, model = converted(name, precision)
    x = sequences_for(graph, 9, 4, 100)
    assert sqnr_db(FloatStream(graph).run(x), model.reference().run(x)) > FLOOR[precision]


def test_inputs_of_8_bits_fit_8_bits():
    graph, model = converted("lstm dense", "w8a8")
    calib = sequences_for(graph, 8, 16, 60)
    codes = np.abs(model.quantize(calib.reshape(-1, model.n_in)))
    assert 100 <= codes.max() <= 127


def test_nibbles():
    rng = np.random.default_rng(1)
    for n in (1, 2, 3, 8, 9):
        weights = rng.integers(-8, 8, (3, 4, n)).astype(np.int8)
        packed = to_nibbles(weights)
        assert packed.shape == (3, 4, (n + 1) // 2) and np.array_equal(
            from_nibbles(packed, n), weights
        )
    assert to_nibbles(np.array([1, -2, 7], np.int8)).tolist() == [-31, 7]  # 0xE1: -2 above 1


def test_weights_of_4_bits_take_half():
    sizes = {p: converted("lstm dense", p)[1].info()["flash_bytes"] for p in ("w8a16", "w4a16")}
    assert sizes["w8a16"] - sizes["w4a16"] == 4 * 32 * (14 + 32) // 2


def stack() -> Graph:
    rng = np.random.default_rng(3)
    layers = (random_lstm(rng, 3, 6), random_lstm(rng, 6, 5), random_dense(rng, 5, 2))
    return Graph(tuple(layers))


def test_a_plan_by_layer():
    graph = stack()
    calib = sequences_for(graph, 8, 16, 60)
    second = graph.layers[1].name
    for text in (
        "w8a16,1:w4a16",
        f"w8a16,{second}:w4a16" if second != graph.layers[0].name else "w8a16,1:w4a16",
    ):
        model = stepwell.convert(graph, calib, precision=text)
        assert [layer.weight_bits for layer in model.layers[:2]] == [8, 4]
        assert model.info()["precision"] == text
        x_q = np.random.default_rng(1).integers(-32768, 32768, (50, 3)).astype(np.int16)
        assert np.array_equal(model.stream().run_q(x_q), model.reference().run_q(x_q))
    assert str(parse_precision("w4a16, 0:w8a8")) == "w4a16,0:w8a8"
    assert parse_precision(PRECISIONS["w8a8"]) == Plan(PRECISIONS["w8a8"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("w8", "precision 'w8' is not one of w8a16, w8x16h8, w8a8, w4a16"),
        ("w8a16,w4a16", "expected w8a16"),
        ("w8a16,0:int4", "precision 'int4' is not one of"),
        ("", "precision '' is not one of"),
        (8, "precision: expected w8a16"),
        (
            "w8a16,2:w4a16",
            "'2' is no recurrent layer of the model, which has 0 'lstm3x6', 1 'lstm6x5'",
        ),
        ("w8a16,encoder:w4a16", "'encoder' is no recurrent layer"),
    ],
)
def test_plans_that_make_no_sense(given, message):
    graph = stack()
    with pytest.raises(QuantizeError, match=message):
        stepwell.convert(graph, sequences_for(graph, 8, 16, 60), precision=given)
