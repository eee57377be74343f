"""Rules for the input's range, and the smallest precision that keeps a metric: in Python and on the
command line.
"""

import json

import numpy as np
import pytest
import stepwell
from conftest import DEMO
from shapes import graph_of, random_dense, random_lstm, random_sequences, sequences_for
from stepwell.errors import QuantizeError, SampleError
from stepwell.graph import Graph
from stepwell.metrics import sqnr_db
from stepwell.quantize.calibrate import calibrate, range_rule
from stepwell.quantize.search import Trial
from stepwell.stream import FloatStream
from test_report import invoke

ONNX, CALIB = DEMO / "turbofan.onnx", DEMO / "turbofan_calib.npz"

# ---- the range of the input ----


def test_rules():
    x = np.abs(np.random.default_rng(1).normal(size=10_000))
    assert range_rule("minmax")(x) == 2 * x.max()
    below, above = np.sort(x)[[9899, 9900]]
    assert below <= range_rule("percentile:99")(x) <= above
    assert range_rule("percentile:100")(x) == x.max()
    # a range of nothing holds nothing
    assert range_rule("percentile:60")(np.array([0.0, 0.0, 0.0, 1.0])) == 1.0


def test_mse_is_the_best_of_all_ranges():
    x = np.abs(np.random.default_rng(1).standard_t(3, size=5000))  # a few far from the rest

    def error(top: float) -> float:
        codes = np.clip(np.round(x / (top / 127)), -127, 127)
        return float(((codes * top / 127 - x) ** 2).mean())

    best = range_rule("mse")(x)
    assert best < x.max()
    assert error(best) <= min(error(top) for top in np.linspace(0.02, 1.0, 50) * x.max()) * (
        1 + 1e-9
    )


@pytest.mark.parametrize(
    "rule",
    ["", "max", "percentile", "percentile:", "percentile:200", "percentile:20", "percentile:nan"],
)
def test_rules_that_make_no_sense(rule):
    with pytest.raises(QuantizeError, match=f"calibration '{rule}' is not one of auto"):
        range_rule(rule)


def test_a_rule_reaches_the_model():
    graph = graph_of("lstm dense")
    x = sequences_for(graph, 8, 16, 60)
    x[0, 0, 0] = 500.0  # one spike
    models = {
        rule: stepwell.convert(graph, x, calibration=rule, auto_scale=False)
        for rule in ("minmax", "percentile:99.9", "mse")
    }
    assert models["minmax"].x_scale == pytest.approx(2 * 500 / 32767)
    assert models["percentile:99.9"].x_scale == pytest.approx(
        np.percentile(np.abs(x), 99.9) / 32767
    )
    assert models["mse"].x_scale <= 500 / 32767
    assert models["mse"].notes["calibration"]["rule"] == "mse"


def test_inputs_of_8_bits_take_the_range_that_the_outputs_want():
    """By default: a spike that gates do not tell from less is clipped."""
    graph = graph_of("lstm dense")
    calib, x = sequences_for(graph, 8, 16, 60), sequences_for(graph, 9, 8, 60)
    y = FloatStream(graph).run(x)

    def sqnr(**options) -> float:
        return sqnr_db(
            y, stepwell.convert(graph, calib, precision="w8a8", **options).reference().run(x)
        )

    assert sqnr() >= sqnr(calibration="minmax")
    calib[0, 0, 0] = 500.0
    assert sqnr() > sqnr(calibration="minmax") + 6
    model = stepwell.convert(graph, calib, precision="w8a8")
    assert model.notes["calibration"]["rule"] == "outputs" and model.x_scale < 100 / 127
    assert stepwell.convert(graph, calib).notes["calibration"]["rule"] == "minmax"


def test_tokens_are_codes_in_every_precision():
    graph = graph_of("embedding")
    assert stepwell.convert(graph, sequences_for(graph, 8, 16, 60), precision="w8a8").x_scale == 1.0


def test_percentiles_rescue_inputs_of_8_bits_from_a_spike():
    graph = graph_of("lstm dense")
    calib, x = sequences_for(graph, 8, 16, 60), sequences_for(graph, 9, 8, 60)
    calib[0, 0, 0] = 500.0

    def sqnr(rule: str) -> float:
        model = stepwell.convert(graph, calib, precision="w8a8", calibration=rule, auto_scale=False)
        return sqnr_db(FloatStream(graph).run(x), model.reference().run(x))

    assert sqnr("percentile:99.9") > sqnr("minmax") + 6


def test_sequences_that_do_not_cover_the_range_are_warned_about():
    graph = graph_of("lstm dense")
    x = sequences_for(graph, 8, 16, 60)
    assert stepwell.convert(graph, x).notes["warnings"] == []
    x[3] *= 5
    found = calibrate(graph, list(x))
    assert sorted(found.x_halves) == sorted((np.abs(x[::2]).max(), np.abs(x[1::2]).max()))
    (warning,) = stepwell.convert(graph, x, auto_scale=False).notes[
        "warnings"
    ]  # else in units of its own scales
    assert (
        "do not cover the inputs' range" in warning
        and f"half of them reach {np.abs(x).max():.3g}" in warning
    )


# ---- the smallest precision ----


def stack() -> Graph:
    rng = np.random.default_rng(3)
    return Graph((random_lstm(rng, 3, 20), random_lstm(rng, 20, 6), random_dense(rng, 6, 2)))


@pytest.fixture(scope="module")
def task():
    """A graph, calibration, and test sequences whose targets are what it computes."""
    graph = stack()
    x = random_sequences(np.random.default_rng(5), 6, 60, 3)
    return (
        graph,
        random_sequences(np.random.default_rng(8), 16, 60, 3),
        x,
        FloatStream(graph).run(x),
    )


def data_file(folder, x, y=None):
    np.savez(folder / "test.npz", x=x, **({} if y is None else {"y": y}))
    return folder / "test.npz"


def relative_error(model, x, y) -> float:
    """RMS error in percent of the output's RMS."""
    outputs = np.stack([model.reference().run(s) for s in x])
    return float(100 * np.sqrt(((outputs - y) ** 2).sum() / (y**2).sum()))


def test_the_smallest_that_fits_is_taken(task, tmp_path):
    graph, calib, x, y = task
    file, seen = data_file(tmp_path, x), []
    exhaustive = {
        plan: stepwell.convert(graph, calib, precision=plan)
        for plan in ("w4a16", "w8a16,0:w4a16", "w8a16,1:w4a16", "w8a16")
    }
    errors = {plan: relative_error(model, x, y) for plan, model in exhaustive.items()}
    sizes = {plan: model.info()["flash_bytes"] for plan, model in exhaustive.items()}
    assert errors["w8a16"] < min(e for plan, e in errors.items() if plan != "w8a16")
    for limit in sorted(errors.values()):
        model, tried = stepwell.smallest(
            graph, calib, file, max_drop=limit * 1.0001, tried=seen.append
        )
        fitting = [plan for plan, error in errors.items() if error <= limit * 1.0001]
        assert str(tried[-1].plan) == min(fitting, key=sizes.get) and tried[-1].fits
        assert model.blob == exhaustive[str(tried[-1].plan)].blob
        assert tried[-1].drop_percent == pytest.approx(errors[str(tried[-1].plan)])
        assert tried[-1].flash_bytes == sizes[str(tried[-1].plan)]
    assert all(isinstance(trial, Trial) for trial in seen)


def test_the_users_metric_decides(task, tmp_path):
    graph, calib, x, y = task
    file = data_file(tmp_path, x, y + 0.5)
    model, tried = stepwell.smallest(graph, calib, file, max_drop=1.0, metric="mae")
    outputs = np.stack([model.stream().run(s) for s in x])
    exact, found = np.abs(y - y - 0.5).mean(), np.abs(outputs - y - 0.5).mean()
    assert tried[-1].drop_percent == pytest.approx(100 * (found - exact) / exact)
    never, always = (lambda t, y: 1.0), iter(range(1, 100))
    # what does not care takes the smallest
    assert len(stepwell.smallest(graph, calib, file, metric=never)[1]) == 1
    with pytest.raises(QuantizeError, match="no precision keeps the drop"):
        stepwell.smallest(graph, calib, file, metric=lambda t, y: float(next(always)))


def test_what_cannot_be_had_is_said_with_the_best_there_was(task, tmp_path):
    graph, calib, x, y = task
    file = data_file(tmp_path, x)
    best = stepwell.convert(graph, calib)
    error, size = relative_error(best, x, y), best.info()["flash_bytes"]
    with pytest.raises(QuantizeError) as info:
        stepwell.smallest(graph, calib, file, max_drop=error / 10)
    assert (
        f"no precision keeps the drop at {error / 10:g} %; the best is w8a16 with {error:.3g} % in "
        f"{size} bytes" in str(info.value)
    )
    with pytest.raises(
        QuantizeError,
        match=r"within 100 bytes of constants; the best is w8a16 .* fine-tune with stepwell\.qat",
    ):
        stepwell.smallest(graph, calib, file, max_drop=50, max_flash=100)


def test_many_layers_are_narrowed_one_after_the_other(tmp_path):
    rng = np.random.default_rng(1)
    graph = Graph(tuple(random_lstm(rng, 2, 2) for _ in range(8)))
    x = random_sequences(rng, 8, 30, 2)
    with pytest.raises(QuantizeError, match="no precision keeps"):
        stepwell.smallest(graph, x, data_file(tmp_path, x), max_drop=0, tried=(tried := []).append)
    sizes = [trial.flash_bytes for trial in tried]
    assert len(tried) == 9 and sizes == sorted(sizes) and str(tried[-1].plan) == "w8a16"


# ---- on the command line ----


def test_auto_on_the_command_line(tmp_path):
    whole = np.load(DEMO / "turbofan_test.npz")
    np.savez(tmp_path / "test.npz", **{name: whole[name][:30] for name in ("x", "lengths", "y")})
    np.savez(tmp_path / "bare.npz", **{name: whole[name][:30] for name in ("x", "lengths")})
    command = (
        "convert",
        ONNX,
        "--calib",
        CALIB,
        "-o",
        tmp_path / "m.stw",
        "--precision",
        "auto",
        "--data",
    )
    done = invoke(*command, tmp_path / "test.npz", "--max-drop", "5%", "--metric", "mae")
    assert done.code == 0, done.stderr
    assert "  tried       w4a16 " in done.stdout and ": taken" in done.stdout
    model = stepwell.load(tmp_path / "m.stw")
    assert model.info()["precision"] == "w4a16" and f"{model.id:08x}, w4a16" in done.stdout
    found = json.loads(
        invoke(*command, tmp_path / "bare.npz", "--max-drop", "0.2", "--json").stdout
    )
    assert [trial["precision"] for trial in found["tried"]] == ["w4a16", "w8a16"]
    assert [trial["fits"] for trial in found["tried"]] == [False, True] and found[
        "precision"
    ] == "w8a16"
    before = (tmp_path / "m.stw").read_bytes()
    done = invoke(*command, tmp_path / "test.npz", "--max-drop", "5%", "--max-flash", 1000)
    assert done.code == 1 and "within 1000 bytes of constants; the best is" in done.stderr
    assert (tmp_path / "m.stw").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--precision", "auto"), "--precision auto needs test sequences: --data FILE"),
        (
            ("--precision", "auto", "--data", "x.npz", "--max-drop", "little"),
            "--max-drop little: expected a percentage",
        ),
        (
            ("--precision", "auto", "--data", "x.npz", "--max-drop", "-1"),
            "--max-drop -1: expected a percentage",
        ),
        (("--precision", "auto", "--data", "nowhere.npz"), "nowhere.npz"),
        (("--precision", "w2a2"), "precision 'w2a2' is not one of w8a16"),
        (("--calibration", "median"), "calibration 'median' is not one of auto"),
    ],
)
def test_wrong_requests(options, message, tmp_path):
    done = invoke("convert", ONNX, "--calib", CALIB, "-o", tmp_path / "m.stw", *options)
    assert done.code == (1 if message == "nowhere.npz" else 2) and message in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_metric_without_targets(task, tmp_path):
    graph, calib, x, _ = task
    with pytest.raises(SampleError, match="mae needs targets"):
        stepwell.smallest(graph, calib, data_file(tmp_path, x), metric="mae")
