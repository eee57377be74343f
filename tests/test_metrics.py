"""Every metric against another way to compute it; the user's own; what is refused, and what a drop
is.
"""

import json
import re

import numpy as np
import pytest
import stepwell
from conftest import DEMO
from stepwell.check import is_source, task_metric, warm_up
from stepwell.cli.model_commands import _warm_up_text
from stepwell.errors import SampleError
from stepwell.graph import Graph
from stepwell.layers import Lstm
from stepwell.metrics import METRICS, Metric, find_metric, usual_metric
from stepwell.windowing import parse_mode
from test_report import invoke

RNG = np.random.default_rng(1)
T = [RNG.normal(size=3) for _ in range(20)]
Y = [t + 0.3 * RNG.normal(size=3) for t in T]
LABELS = [np.array(k) for k in RNG.integers(0, 4, 60)]
LOGITS = [np.eye(4)[label] + 0.6 * RNG.normal(size=4) for label in LABELS]


def score(name: str, targets, outputs) -> float:
    return METRICS[name].score(targets, outputs)


def test_errors_and_variance():
    error = [float(t - y) for t, y in zip(np.ravel(T), np.ravel(Y), strict=True)]
    assert score("rmse", T, Y) == pytest.approx((sum(e * e for e in error) / 60) ** 0.5)
    assert score("mae", T, Y) == pytest.approx(sum(map(abs, error)) / 60)
    assert score("r2", T, Y) == pytest.approx(1 - np.mean(np.square(error)) / np.var(np.ravel(T)))
    assert score("r2", T, T) == 1 and score(
        "r2", T, [np.full(3, np.mean(T))] * 20
    ) == pytest.approx(0)


def test_cosine():
    t, y = np.ravel(T), np.ravel(Y)
    assert score("cosine", T, Y) == pytest.approx(sum(t * y) / (sum(t * t) * sum(y * y)) ** 0.5)
    assert score("cosine", T, [3 * v for v in T]) == pytest.approx(1)
    assert score("cosine", T, [-v for v in T]) == pytest.approx(-1)
    assert score("cosine", T, [0 * v for v in T]) == 0


def test_accuracy_and_f1_of_many_classes():
    predicted = [int(np.argmax(y)) for y in LOGITS]
    hits = [int(label) == k for label, k in zip(LABELS, predicted, strict=True)]
    assert 0.3 < np.mean(hits) < 1
    assert score("accuracy", LABELS, LOGITS) == pytest.approx(sum(hits) / 60)
    each = []
    for label in range(4):
        precision = np.mean([hit for hit, k in zip(hits, predicted, strict=True) if k == label])
        recall = np.mean([hit for hit, actual in zip(hits, LABELS, strict=True) if actual == label])
        each.append(2 * precision * recall / (precision + recall))
    assert score("f1", LABELS, LOGITS) == pytest.approx(np.mean(each))


@pytest.mark.parametrize("cut", [0.0, 0.5])
def test_two_classes_from_one_output(cut):
    """Logits are cut at 0, probabilities at 1/2; F1 is that of class 1; labels at every step of
    sequences of their own length.
    """
    labels = [np.array([1, 0, 1, 1]), np.array([0, 0, 1])]
    y = [np.array([[0.2], [0.1], [-0.4], [0.3]]), np.array([[-0.3], [0.4], [0.1]])]
    outputs = [
        v + 0.5 if cut else v for v in y
    ]  # predictions 1 1 0 1, 0 1 1: three hits, two false, one missed
    assert score("accuracy", labels, outputs) == pytest.approx(4 / 7)
    assert score("f1", labels, outputs) == pytest.approx(2 * 3 / (2 * 3 + 2 + 1))


@pytest.mark.parametrize(
    ("name", "targets", "outputs", "message"),
    [
        ("rmse", [np.zeros(2)], [np.zeros(3)], "a target has 2 values, the model's output 3"),
        ("accuracy", [np.array([0.5])], [np.zeros(3)], "the targets are no class labels: use rmse"),
        ("f1", [np.array([1, 2])], [np.zeros((3, 4))], "2 labels for 3 outputs"),
    ],
)
def test_targets_that_do_not_fit(name, targets, outputs, message):
    with pytest.raises(SampleError, match=message):
        score(name, targets, outputs)


def test_what_a_drop_is():
    assert METRICS["accuracy"].drop_percent(0.8, 0.6) == pytest.approx(25)
    assert METRICS["accuracy"].drop_percent(0.8, 0.84) == pytest.approx(-5)
    assert METRICS["rmse"].drop_percent(2.0, 2.1) == pytest.approx(5)
    assert METRICS["r2"].drop_percent(-0.5, -0.6) == pytest.approx(20)
    own = Metric("own", lambda t, y: 0.0)
    # which way is better is unknown
    assert own.drop_percent(2.0, 1.5) == own.drop_percent(2.0, 2.5) == pytest.approx(25)
    assert (
        METRICS["mae"].drop_percent(0.0, 0.1) is None and METRICS["mae"].drop_percent(0.0, 0.0) == 0
    )


def test_the_usual_metric():
    assert usual_metric(np.array(3), 10).name == "accuracy"
    assert usual_metric(np.array(3), 1).name == "rmse"
    assert usual_metric(np.array([0.5]), 10).name == "rmse"


def test_last_step_or_every_step():
    outputs = [RNG.normal(size=(9, 2)) for _ in range(3)]
    at_last = task_metric([np.zeros(2)] * 3, outputs, outputs)
    assert at_last["at"] == "last step" and at_last["float"] == pytest.approx(
        np.sqrt(np.mean([y[-1] ** 2 for y in outputs]))
    )
    at_each = task_metric([np.zeros((9, 2))] * 3, outputs, outputs)
    assert at_each["at"] == "every step" and at_each["float"] == pytest.approx(
        np.sqrt(np.mean(np.square(outputs)))
    )


# ---- the user's own ----


def test_a_function_of_the_users(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy as np\ndef worst(t, y):\n    return max(np.abs(a - b).max() for a, b in "
        "zip(t, y))\nNUMBER = 1\n"
    )
    metric = find_metric(f"{file}:worst")
    assert metric.name == "worst" and metric.score(T, Y) == np.abs(np.array(T) - Y).max()
    assert find_metric(metric) is metric and find_metric(METRICS["mae"].score).score(T, Y) == score(
        "mae", T, Y
    )
    for given, message in (
        (f"{file}:best", "has no function best"),
        (f"{file}:NUMBER", "has no function NUMBER"),
        (str(tmp_path / "none.py:worst"), r"none\.py: no such file"),
        (
            "beauty",
            "metric 'beauty' is not one of accuracy, f1, r2, cosine, rmse, mae, or "
            "FILE.py:FUNCTION",
        ),
    ):
        with pytest.raises(SampleError, match=message):
            find_metric(given)
    file.write_text("1 / 0\n")
    with pytest.raises(SampleError, match=r"mine\.py: ZeroDivisionError: division by zero"):
        find_metric(f"{file}:worst")


@pytest.fixture(scope="module")
def demo(tmp_path_factory, turbofan):
    """A folder with the demo's model, its source and a few test sequences."""
    folder, whole = tmp_path_factory.mktemp("demo"), np.load(DEMO / "turbofan_test.npz")
    turbofan.save(folder / "turbofan.stw")
    (folder / "turbofan.onnx").write_bytes((DEMO / "turbofan.onnx").read_bytes())
    np.savez(folder / "test.npz", **{name: whole[name][:20] for name in ("x", "lengths", "y")})
    np.savez(folder / "bare.npz", **{name: whole[name][:20] for name in ("x", "lengths")})
    (folder / "mine.py").write_text(
        "def late(t, y):\n    return max(b[0] - a[0] for a, b in zip(t, y))\ndef bad(t, y):\n    "
        "return t.nothing\n"
    )
    return folder


def test_check_takes_the_users_metric(demo):
    found = json.loads(
        invoke(
            "check",
            demo / "turbofan.stw",
            "--data",
            demo / "test.npz",
            "--metric",
            f"{demo}/mine.py:late",
            "--json",
        ).stdout
    )
    data, stream = np.load(demo / "test.npz"), stepwell.load(demo / "turbofan.stw").stream()
    ends = []
    for x, n, y in zip(data["x"].astype(float), data["lengths"], data["y"], strict=True):
        stream.reset()
        ends.append(stream.run(x[:n])[-1, 0] - y[0])
    assert found["metric"]["name"] == "late" and found["metric"]["integer"] == max(ends)
    assert found["metric"]["drop_percent"] == pytest.approx(abs(found["metric"]["change_percent"]))
    done = invoke(
        "check",
        demo / "turbofan.stw",
        "--data",
        demo / "test.npz",
        "--metric",
        f"{demo}/mine.py:bad",
    )
    assert done.code == 1 and "metric bad: AttributeError" in done.stderr
    done = invoke("check", demo / "turbofan.stw", "--data", demo / "bare.npz", "--metric", "mae")
    assert done.code == 1 and "mae needs targets: an array 'y' in the .npz file" in done.stderr


# ---- memory ----


def leaky(keep: float) -> Graph:
    """One unit whose cell keeps ``keep`` of itself at each step, read while it is small: the output
    is nearly the cell.
    """
    w_x, bias = (
        np.array([[0.0], [0.0], [0.1], [0.0]]),
        np.array([20.0, np.log(keep / (1 - keep)), 0.0, 20.0]),
    )
    return Graph((Lstm("leaky", w_x, np.zeros((4, 1)), bias),))


def test_warm_up_of_a_known_memory():
    """After n steps keep^n of the start is left."""
    x = np.random.default_rng(1).normal(size=(8, 400, 1))
    model = stepwell.convert(leaky(0.9), x)
    found = warm_up(model, list(x))
    assert (
        15 <= found["steps"] <= np.log(0.01) / np.log(0.9) + 5
        and found["of"] == 400
        and found["sequences"] == 7
    )
    model = stepwell.convert(leaky(0.999), x)
    assert warm_up(model, list(x))["steps"] is None  # 0.999^400 = 0.67 is left
    assert warm_up(model, list(x[:1])) is None
    assert warm_up(model.replace(mode=parse_mode("tumble:20", "last")), list(x)) is None


def test_check_prints_the_memory(demo, tmp_path):
    done = invoke("check", demo / "turbofan.stw", "--data", demo / "test.npz")
    assert (
        "  memory      the state still shows its start after 50 steps: give longer sequences"
        in done.stdout.replace("of", "of")
    )
    x = np.random.default_rng(1).normal(size=(8, 400, 1))
    text = _warm_up_text(warm_up(stepwell.convert(leaky(0.9), x), list(x)))
    assert re.match(
        r"the state has forgotten its start after \d\d steps \(7 sequences, 1 % of the range\)",
        text,
    )


# ---- nothing to compare, or something else ----


def test_a_window_that_no_sequence_fills_gives_no_figures(demo):
    """Neither "exact" nor a metric: nothing came out."""
    lengths = np.load(demo / "test.npz")["lengths"]
    said = f"no output: the sequences have at most {lengths.max()} steps, the window takes 2000"
    options = [
        "check",
        demo / "turbofan.stw",
        "--data",
        demo / "test.npz",
        "--modes",
        f"slide:2000,slide:{lengths.max()}",
    ]
    shown = invoke(*options).stdout
    assert re.search(
        rf"  mode slide:2000 +{said}\n  mode slide:{lengths.max()} +rmse float .*SQNR ", shown
    )
    never, once = json.loads(invoke(*options, "--json").stdout)["modes"]
    assert (never["no_output"], never["sqnr_db"], never["metric"]) == (said, None, None)
    assert once["no_output"] is None and once["sqnr_db"] > 30 and once["metric"]["name"] == "rmse"


def test_a_model_whose_own_window_is_never_full(demo, tmp_path):
    model = stepwell.load(demo / "turbofan.stw").replace(mode=parse_mode("slide:70"))
    model.save(tmp_path / "wide.stw")
    np.savez(tmp_path / "short.npz", x=np.load(demo / "test.npz")["x"][:, :10], y=np.zeros(20))
    said = "no output: the sequences have 10 steps, the window takes 70"
    options = [
        tmp_path / "wide.stw",
        "--data",
        tmp_path / "short.npz",
        "--float",
        demo / "turbofan.onnx",
    ]
    shown = invoke("check", *options).stdout
    assert (
        f"\n  {said}\n" in shown
        and "SQNR" not in shown.split("mode carry")[0]
        and "rmse float" in shown
    )
    found = json.loads(invoke("check", *options, "--json").stdout)
    assert (
        found["no_output"] == said
        and found["metric"] is None
        and found["outputs"][0]["max_abs_error"] is None
    )
    done = invoke("report", *options, "--json")
    assert done.code == 1 and f"short.npz: {said}" in done.stderr


def test_another_float_model_is_said_to_be_another(demo, tmp_path):
    other = tmp_path / "other.onnx"
    # an empty domain: the same model in other bytes
    other.write_bytes((demo / "turbofan.onnx").read_bytes() + b"\x72\x00")
    for command in (["check"], ["report", "--steps", 500]):
        options = [*command, demo / "turbofan.stw", "--data", demo / "test.npz", "--json"]
        done = invoke(*options, "--float", other)
        assert done.code == 0 and json.loads(done.stdout)["float"] == {
            "file": str(other),
            "is_source": False,
        }
        stw = demo / "turbofan.stw"
        assert (
            done.stderr
            == f"stepwell: {other} is not the file that {stw} was made from ('turbofan.onnx', by SHA-256)\n"
        )
        done = invoke(*options)
        assert done.stderr == "" and json.loads(done.stdout)["float"]["is_source"] is True
    done = invoke(
        "check",
        demo / "turbofan.stw",
        "--data",
        demo / "test.npz",
        "--float",
        tmp_path / "absent.onnx",
    )
    assert done.code == 1 and "absent.onnx: No such file" in done.stderr


def test_a_model_of_a_graph_has_no_source_file(tmp_path):
    (tmp_path / "any.onnx").touch()
    model = stepwell.convert(leaky(0.9), np.random.default_rng(1).normal(size=(2, 40, 1)))
    assert is_source(model, tmp_path / "any.onnx") is None
