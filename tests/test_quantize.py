"""The quantiser: overflow proof, repair, scales, and what its two refinements are worth."""

import numpy as np
import pytest
import stepwell
from conftest import random_dense, random_lstm, random_sequences
from stepwell import proof
from stepwell.calibrate import calibrate
from stepwell.check import sqnr_db
from stepwell.errors import QuantizeError
from stepwell.graph import FloatStream, Graph, Lstm
from stepwell.quantize import _join_scales, multipliers, quantize, round_compensated


def sqnr(graph, model, seed=50):
    x = random_sequences(np.random.default_rng(seed), 8, 100, graph.n_in)
    return sqnr_db(FloatStream(graph).run(x), model.reference().run(x))


def test_accuracy_of_random_graphs(graph, model):
    assert sqnr(graph, model) > 30


def test_every_row_passes_the_proof(model):
    for layer in model.layers:
        assert len(proof.failing_rows(*proof.weight_sums(layer), layer.rows)) == 0
        assert proof.layer_margin_bits(layer) > 0


def test_no_input_reaches_the_bound_but_the_worst_comes_close(turbofan):
    """The proven bound is not loose: inputs at the rails with the signs of the weights get within its hidden-state share."""
    layer = turbofan.layers[0]
    _, total, _ = proof.bounds(*proof.weight_sums(layer), layer.rows)
    row = int(np.argmax(total))
    x = np.where(layer.w_x[row] > 0, 32767, -32768).astype(np.int64)
    h = np.where(layer.w_h[row] > 0, 32767, -32767).astype(np.int64)
    kx = int(layer.rows.kx[row])
    ax = int(x @ layer.w_x[row].astype(np.int64))
    ax = ax << kx if kx >= 0 else (ax + (1 << (-kx - 1))) >> -kx
    worst = abs(ax) + int(np.abs(h @ layer.w_h[row].astype(np.int64))) + abs(int(layer.rows.bias[row]))
    assert 0.99 * total[row] < worst <= total[row]


def wide_lstm(rng, n_in, n_out):
    """Weights all of one size: the sum of |w| is as large as int8 allows, so rows fail the proof."""
    signs = rng.choice([-1.0, 1.0], (4 * n_out, n_in + n_out))
    weights = 0.05 * signs
    return Lstm("wide", weights[:, :n_in], weights[:, n_in:], rng.normal(size=4 * n_out) * 0.1)


def test_failing_rows_are_repaired_and_reported():
    rng = np.random.default_rng(0)
    graph = Graph((wide_lstm(rng, 400, 200), random_dense(rng, 200, 1)))
    x = random_sequences(rng, 8, 12, 400)
    model = stepwell.convert(graph, x)
    assert model.notes["repaired_rows"], "this model was made to need repair"
    assert "layer 'wide' row" in model.notes["repaired_rows"][0] and "gate" in model.notes["repaired_rows"][0]
    for layer in model.layers:
        assert len(proof.failing_rows(*proof.weight_sums(layer), layer.rows)) == 0
    rails = rng.choice([-32768, 32767], (20, 400)).astype(np.int16)
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
    """Input weights scaled against the input: kx reaches far to both sides and the output stays right."""
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
    assert np.array_equal(model.stream().run(np.ones((700, 1))), model.reference().run(np.ones((700, 1))))


def test_multipliers_cover_the_range():
    ratio = np.exp2(np.random.default_rng(0).uniform(-31.9, 13, 5000))
    mult, shift = multipliers(ratio)
    assert mult.min() >= 2**14 and shift.min() >= 1 and shift.max() <= 46
    assert np.abs(mult * 2.0 ** -shift.astype(float) / ratio - 1).max() <= 2.0**-15


def test_joined_scales_are_never_narrower():
    rng = np.random.default_rng(1)
    unit_x, unit_h = np.exp2(rng.uniform(-30, -5, 200)), np.exp2(rng.uniform(-24, -18, 200))
    unit, kx = _join_scales(unit_x, unit_h, 1.0, 1.0, np.zeros(200))
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
