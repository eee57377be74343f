"""stepwell bench: counted where an emulator is, estimated and said so elsewhere; deadlines; the
fitted cost model.
"""

import json

import numpy as np
import pytest
import stepwell
from click.testing import CliRunner
from conftest import skip_for
from shapes import random_dense, random_gru, random_lstm, random_sequences
from stepwell.boards import load_board
from stepwell.boards.build import no_compiler
from stepwell.cli.commands import cli
from stepwell.errors import WrongUse
from stepwell.graph import Graph
from stepwell.link import qemu
from stepwell.report import bench, cost

EMULATED = {
    "cortex-m0": "microbit",
    "cortex-m3": "mps2-an385",
    "cortex-m4": "mps2-an386",
    "cortex-m7": "mps2-an500",
}
EMULATED |= {"cortex-m33": "mps2-an505", "cortex-m55": "mps3-an547", "rv32imac": "rv32-virt"}


def need(core: str) -> None:
    board = load_board(EMULATED[core])
    skip_for(qemu.why_not(board) or no_compiler(board))


def test_layers_behind_an_odd_one_keep_the_dual_multiplies():
    """The kernel of Cortex-M4 reads two int16 at once: each layer's hidden states begin at a
    multiple of 4 bytes.
    """
    need("cortex-m4")
    rng, counts = np.random.default_rng(1), []
    for n in (33, 34):
        model = model_of(random_lstm(rng, 7, n), random_lstm(rng, n, 32), random_dense(rng, 32, 2))
        counts.append(bench.bench(model, ["cortex-m4"])[0].instructions_per_step)
    assert counts[0] < 1.02 * counts[1]


def model_of(*layers, precision: str = "w8a16") -> stepwell.Model:
    graph = Graph(layers)
    return stepwell.convert(
        graph,
        random_sequences(np.random.default_rng(1), 2, 20, layers[0].n_in),
        precision=precision,
    )


@pytest.fixture
def lstm(tmp_path):
    rng = np.random.default_rng(3)
    model = model_of(random_lstm(rng, 6, 20), random_dense(rng, 20, 2))
    model.save(tmp_path / "motor.stw")
    return model, str(tmp_path / "motor.stw")


def run(*words: str):
    return CliRunner().invoke(cli, ["bench", *words])


@pytest.mark.parametrize("core", EMULATED)
def test_counted_and_estimated_agree(core):
    """Within the error that the fit states for itself, and a little for the dense layer."""
    need(core)
    rng = np.random.default_rng(5)
    models = [model_of(random_lstm(rng, 8, 24), random_dense(rng, 24, 1))]
    if core in ("cortex-m0", "cortex-m4"):
        models += [
            model_of(random_gru(rng, 5, 12)),
            model_of(random_lstm(rng, 5, 12), precision="w4a16"),
        ]
    for model in models:
        (figure,) = bench.bench(model, [core])
        assert (
            figure.is_measured
            and figure.how == f"qemu:{figure.how.partition(':')[2]}"
            and figure.error == 0
        )
        assert 100 < figure.stack_bytes < 1200
        estimate = cost.instructions_per_step(model, core)
        assert estimate == pytest.approx(figure.instructions_per_step, rel=cost.error(core) + 0.08)


def test_without_emulators_it_is_an_estimate_with_the_reason(lstm, monkeypatch):
    model, _ = lstm
    monkeypatch.setattr("shutil.which", lambda program: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (figure,) = bench.bench(model, ["cortex-m4"])
    assert not figure.is_measured and figure.error == cost.error("cortex-m4") > 0
    assert figure.instructions_per_step == cost.instructions_per_step(model, "cortex-m4")
    assert ": apt-get install gcc-arm-none-eabi, or pip install ziglang" in figure.note


def test_a_model_too_wide_for_the_link_is_estimated():
    rng = np.random.default_rng(1)
    (figure,) = bench.bench(model_of(random_lstm(rng, 2, 61)), ["cortex-m0"])
    assert not figure.is_measured and (
        "61 outputs" in figure.note or "not installed" in figure.note
    )


def test_estimates_count_modes_and_strides():
    rng = np.random.default_rng(1)
    model = model_of(random_lstm(rng, 3, 8))
    once = cost.instructions_per_step(model, "cortex-m3")
    slide = model.replace(mode=stepwell.windowing.parse_mode("slide:12/3"))
    assert cost.instructions_per_step(slide, "cortex-m3") == pytest.approx(4 * once, abs=2)


def test_verdicts():
    limit = bench.Deadline(seconds=1e-3, hertz=10e6)  # 10,000 cycles
    assert [limit.verdict(n)[0] for n in (6000, 6700, 10_000, 10_001)] == [
        "meets",
        "may miss",
        "may miss",
        "misses",
    ]
    assert limit.verdict(5000)[1:] == pytest.approx((0.5e-3, 0.75e-3))


def test_command_says_how_and_judges_deadlines(lstm):
    need("cortex-m4")
    path = lstm[1]
    done = run(path, "--core", "cortex-m4", "--deadline", "5ms", "--clock", "64MHz")
    assert done.exit_code == 0, done.output
    assert "cortex-m4" in done.output and "qemu:" in done.output and "meets 5ms" in done.output
    late = run(path, "--core", "cortex-m4", "--deadline", "1us", "--clock", "64MHz", "--json")
    assert late.exit_code == 1
    (core,) = json.loads(late.stdout)["cores"]
    assert core["verdict"] == "misses" and core["measured"] and core["seconds_least"] > 1e-6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--core", "z80"], "unknown core 'z80'; there are: cortex-m0"),
        (["--deadline", "5ms"], "--deadline and --clock go together"),
        (
            ["--deadline", "5 parsecs", "--clock", "64MHz"],
            "--deadline 5 parsecs: expected a positive number and one of s, ms, us",
        ),
        (["--deadline", "5ms", "--clock", "0MHz"], "--clock 0MHz: expected a positive number"),
    ],
)
def test_wrong_words(lstm, words, said):
    done = run(lstm[1], *words)
    assert isinstance(done.exception, WrongUse)  # exit code 2
    assert said in str(done.exception) + done.output
