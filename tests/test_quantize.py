"""The quantiser: overflow proof, repair, scales, and what its two refinements are worth."""

import numpy as np
import pytest
import stepwell
from shapes import random_dense, random_lstm, random_sequences
from stepwell.errors import QuantizeError
from stepwell.graph import Graph
from stepwell.integer import proof
from stepwell.integer.rows import Moments, join_scales, multipliers, round_compensated, round_rows
from stepwell.layers import Activation, Dense, Lstm
from stepwell.metrics import sqnr_db
from stepwell.quantize import quantize
from stepwell.quantize.calibrate import calibrate
from stepwell.stream import FloatStream


def sqnr(graph, model, seed=50):
    x = random_sequences(np.random.default_rng(seed), 8, 100, graph.n_in)
    return sqnr_db(FloatStream(graph).run(x), model.reference().run(x))


def test_accuracy_of_random_graphs(graph, model):
    assert sqnr(graph, model) > 30


def test_every_row_passes_the_proof(model):
    for layer in model.layers:
        assert len(proof.failing_rows(*layer.weight_sums(), layer.rows)) == 0
        assert (layer.margin_bits() > 0).all()


def test_no_input_reaches_the_bound_but_the_worst_comes_close(turbofan):
    """The proven bound is not loose: inputs at the rails with the signs of the weights get within
    its hidden-state share.
    """
    layer = turbofan.layers[0]
    _, total, _ = proof.bounds(*layer.weight_sums(), layer.rows)
    row = int(np.argmax(total))
    x = np.where(layer.w_x[row] > 0, 32767, -32768).astype(np.int64)
    h = np.where(layer.w_h[row] > 0, 32767, -32767).astype(np.int64)
    kx = int(layer.rows.kx[row])
    ax = int(x @ layer.w_x[row].astype(np.int64))
    ax = ax << kx if kx >= 0 else (ax + (1 << (-kx - 1))) >> -kx
    worst = (
        abs(ax) + int(np.abs(h @ layer.w_h[row].astype(np.int64))) + abs(int(layer.rows.bias[row]))
    )
    assert 0.99 * total[row] < worst <= total[row]


def wide_lstm(rng, n_in, n_out):
    """Weights all of one size: the sum of |w| is as large as int8 allows, so rows fail the proof."""
    signs = rng.choice([-1.0, 1.0], (4 * n_out, n_in + n_out))
    weights = 0.05 * signs
    return Lstm("wide", weights[:, :n_in], weights[:, n_in:], rng.normal(size=4 * n_out) * 0.1)


def test_failing_rows_are_repaired_and_reported():
    rng = np.random.default_rng(0)
    graph = Graph((wide_lstm(rng, 700, 100), random_dense(rng, 100, 1)))
    x = random_sequences(rng, 8, 12, 700)
    model = stepwell.convert(graph, x)
    assert model.notes["repaired_rows"], "this model was made to need repair"
    assert (
        "layer 'wide' row" in model.notes["repaired_rows"][0]
        and "gate" in model.notes["repaired_rows"][0]
    )
    for layer in model.layers:
        assert len(proof.failing_rows(*layer.weight_sums(), layer.rows)) == 0
    rails = rng.choice([-32768, 32767], (20, 700)).astype(np.int16)
    assert np.array_equal(model.stream().run_q(rails), model.reference().run_q(rails))
    assert sqnr(graph, model) > 25


def test_a_row_that_cannot_be_repaired_is_named():
    rng = np.random.default_rng(1)
    lstm = random_lstm(rng, 3, 4)
    bias = lstm.bias.copy()
    bias[6] = 1e9  # gate f, unit 2
    graph = Graph((Lstm("lstm", lstm.w_x, lstm.w_h, bias),))
    with pytest.raises(QuantizeError, match=r"layer 'lstm' row 6 \(gate f, unit 2\)"):
        stepwell.convert(graph, random_sequences(rng, 8, 10, 3))


@pytest.mark.parametrize("empty", ["w_x", "w_h", "both"])
def test_rows_without_weights(empty):
    rng = np.random.default_rng(2)
    lstm = random_lstm(rng, 3, 4)
    w_x, w_h = lstm.w_x.copy(), lstm.w_h.copy()
    if empty in ("w_x", "both"):
        w_x[5] = 0
    if empty in ("w_h", "both"):
        w_h[5] = 0
    graph = Graph((Lstm("lstm", w_x, w_h, lstm.bias),))
    model = stepwell.convert(graph, random_sequences(rng, 8, 30, 3))
    assert sqnr(graph, model) > 30


@pytest.mark.parametrize("gain", [1e-6, 1e-3, 1e3, 1e5])
def test_inputs_of_any_size(gain):
    """Input weights scaled against the input: kx reaches far to both sides and the output stays
    right.
    """
    rng = np.random.default_rng(3)
    lstm = random_lstm(rng, 3, 6)
    graph = Graph((Lstm("lstm", lstm.w_x / gain, lstm.w_h, lstm.bias),))
    model = quantize(graph, calibrate(graph, list(random_sequences(rng, 16, 40, 3) * gain)))
    x = random_sequences(np.random.default_rng(9), 4, 60, 3) * gain
    assert sqnr_db(FloatStream(graph).run(x), model.reference().run(x)) > 30


def test_all_zero_calibration_is_refused():
    graph = Graph((random_lstm(np.random.default_rng(0), 2, 3),))
    with pytest.raises(QuantizeError, match="zero"):
        stepwell.convert(graph, np.zeros((8, 10, 2)))


def test_few_sequences_are_warned_about():
    graph = Graph((random_lstm(np.random.default_rng(0), 2, 3),))
    model = stepwell.convert(graph, random_sequences(np.random.default_rng(0), 2, 30, 2))
    assert "2 sequence(s)" in model.notes["warnings"][0]


def test_a_cell_beyond_its_format_is_warned_about():
    n = 2
    w_x, w_h = np.zeros((4 * n, 1)), np.zeros((4 * n, n))
    bias = np.repeat([20.0, 20.0, 20.0, 0.0], n)  # i = f = g = 1: the cell counts steps
    graph = Graph((Lstm("counter", w_x, w_h, bias),))
    model = stepwell.convert(graph, np.ones((8, 600, 1)))
    assert any("saturates at 512" in warning for warning in model.notes["warnings"])
    assert np.array_equal(
        model.stream().run(np.ones((700, 1))), model.reference().run(np.ones((700, 1)))
    )


def test_multipliers_cover_the_range():
    ratio = np.exp2(np.random.default_rng(0).uniform(-31.9, 13, 5000))
    mult, shift = multipliers(ratio)
    assert mult.min() >= 2**14 and shift.min() >= 1 and shift.max() <= 46
    assert np.abs(mult * 2.0 ** -shift.astype(float) / ratio - 1).max() <= 2.0**-15


def test_joined_scales_are_never_narrower():
    rng = np.random.default_rng(1)
    unit_x, unit_h = np.exp2(rng.uniform(-30, -5, 200)), np.exp2(rng.uniform(-24, -18, 200))
    unit, kx = join_scales(unit_x, unit_h, 1.0, 1.0, np.zeros(200))
    assert (unit * 2.0**kx >= unit_x * 0.999999).all() and (unit >= unit_h * 0.999999).all()
    assert (np.abs(kx) <= 15).all()


def test_error_compensation_beats_plain_rounding():
    rng = np.random.default_rng(4)
    mixing = rng.normal(size=(24, 24))
    a = rng.normal(size=(4000, 24)) @ mixing
    weights = rng.normal(size=(40, 24))
    steps = np.full((40, 24), np.abs(weights).max() / 15)
    error = {
        "plain": weights - np.clip(np.floor(weights / steps + 0.5), -15, 15) * steps,
        "compensated": weights - round_compensated(weights, steps, np.cov(a.T), 15) * steps,
    }
    power = {name: np.mean((e @ a.T) ** 2) for name, e in error.items()}
    assert power["compensated"] < 0.5 * power["plain"]


def test_precision_does_not_depend_on_the_unit_of_an_input():
    """The same network with inputs in other units: the same accuracy, within what rounding's luck
    gives.
    """
    rng = np.random.default_rng(11)
    lstm = random_lstm(rng, 4, 16)
    x, test = random_sequences(rng, 24, 60, 4), random_sequences(rng, 8, 60, 4)
    reached = []
    for k in (1e-3, 1.0, 1e3):
        graph = Graph((Lstm("lstm", lstm.w_x / k, lstm.w_h, lstm.bias),))
        model = stepwell.convert(graph, x * k)
        reached.append(sqnr_db(FloatStream(graph).run(test * k), model.reference().run(test * k)))
    assert max(reached) - min(reached) < 0.5, reached


@pytest.mark.parametrize("size", [1e-2, 2e-4, 1e-6, 1e-9])
def test_rows_whose_weights_have_decayed(size):
    rng = np.random.default_rng(12)
    lstm = random_lstm(rng, 3, 4)
    w_x, w_h, bias = lstm.w_x.copy(), lstm.w_h.copy(), lstm.bias.copy()
    w_x[5] *= size
    w_h[5] *= size
    bias[5] = 1.0
    graph = Graph((Lstm("lstm", w_x, w_h, bias),))
    assert sqnr(graph, stepwell.convert(graph, random_sequences(rng, 16, 40, 3))) > 40


@pytest.mark.parametrize("peak", [1e-3, 1e-5, 1e-7])
def test_hidden_layers_that_calibration_finds_nearly_dead(peak):
    rng = np.random.default_rng(13)
    hidden = random_dense(rng, 6, 5, "relu")
    bias = np.full(5, -100.0)
    bias[0] = peak - hidden.weight[0] @ np.zeros(6)
    graph = Graph(
        (
            random_lstm(rng, 3, 6),
            Dense("hidden", hidden.weight * peak, bias, "relu"),
            random_dense(rng, 5, 2),
        )
    )
    assert sqnr(graph, stepwell.convert(graph, random_sequences(rng, 16, 40, 3))) > 40


def test_inputs_far_from_zero():
    """A column such as a time stamp: its mean is huge against its spread."""
    rng = np.random.default_rng(14)
    x = random_sequences(rng, 16, 40, 3)
    x[..., 2] += 1.7e9
    graph = Graph((random_lstm(rng, 3, 4),))
    covariance = calibrate(graph, list(x)).layers[0].moments.covariance
    assert np.allclose(
        covariance[:3, :3], np.cov(x.reshape(-1, 3).T - [[0], [0], [1.7e9]], bias=True), rtol=1e-3
    )
    with pytest.raises(QuantizeError, match="normalise the inputs"):
        stepwell.convert(graph, x)
    with pytest.raises(stepwell.SampleError, match="normalise the inputs"):
        stepwell.convert(graph, x * 1e200)


def test_bias_correction_takes_up_the_mean_of_what_rounding_left():
    rng = np.random.default_rng(15)
    weights, mean = rng.normal(size=(8, 12)), rng.normal(size=12) + 3
    moments = Moments(mean, np.eye(12))
    steps, unit = np.full((8, 12), 0.1), np.full(8, 1e-6)
    q, bias = round_rows(weights, np.zeros(8), steps, unit, moments, 127)
    assert np.abs(weights @ mean - (q * steps) @ mean).max() > 1e-3, "rounding moved the mean"
    assert np.abs(weights @ mean - (q * steps) @ mean - bias * unit).max() < 1e-6


def test_the_demo_keeps_its_accuracy(turbofan):
    """A guard over all choices of the quantiser: the figure is 65 dB today."""
    from conftest import DEMO
    from stepwell.importer import import_onnx

    graph = import_onnx(DEMO / "turbofan.onnx", verify=False).graph
    x = np.load(DEMO / "turbofan_test.npz")["x"].astype(float)
    assert sqnr_db(FloatStream(graph).run(x), turbofan.reference().run(x)) > 63


LSTM = random_lstm(np.random.default_rng(0), 3, 4)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((), "at least one recurrent layer"),
        ((random_dense(np.random.default_rng(0), 3, 4),), "at least one recurrent layer"),
        ((LSTM, random_dense(np.random.default_rng(0), 5, 2)), "is given 4 values and takes 5"),
        (
            (LSTM, random_dense(np.random.default_rng(0), 4, 2, "gelu")),
            "activation 'gelu' is not one of",
        ),
        ((LSTM, Activation("act", "none", 4)), "activation 'none' is not one of"),
        ((LSTM, random_dense(np.random.default_rng(0), 4, 513, "softmax")), "at most 512 classes"),
        (
            (LSTM, random_dense(np.random.default_rng(0), 4, 4, "softmax"), LSTM),
            "softmax must come last",
        ),
        ((Lstm("bad", LSTM.w_x * np.nan, LSTM.w_h, LSTM.bias),), "layer 0 'bad': w_x holds NaN"),
        ((Lstm("bad", LSTM.w_x[:8], LSTM.w_h, LSTM.bias),), "w_x has shape"),
        ((Lstm("bad", LSTM.w_x, LSTM.w_h, LSTM.bias[:3]),), "bias has shape"),
    ],
)
def test_graphs_that_make_no_sense(layers, message):
    with pytest.raises(stepwell.ImportRefused, match=message):
        Graph(layers)
