"""stepwell build, flash and hil as a user calls them."""

from __future__ import annotations

import json
import re
import threading
import time

import numpy as np
import pytest
import stepwell
from click.testing import CliRunner
from conftest import ROOT
from shapes import random_dense, random_lstm, random_sequences
from stepwell.boards import board_names, load_board
from stepwell.boards.build import build
from stepwell.cli.commands import cli
from stepwell.errors import BuildError, LinkError, SampleError, StepwellError, WrongUse
from stepwell.graph import Graph
from stepwell.link import sim, urls
from stepwell.link.hil import run_side_by_side

from .conftest import need
from .test_faults import with_bit_flipped
from .test_lossy import LossyProxy


@pytest.fixture
def folder(tmp_path, small_model, monkeypatch):
    """The current folder, with a model and data."""
    monkeypatch.chdir(tmp_path)
    small_model.save("m.stw")
    np.savez("test.npz", x=np.sin(np.arange(2 * 40 * small_model.n_in)).reshape(2, 40, -1))
    return tmp_path


@pytest.fixture
def small_graph_data(small_model):
    """A graph with as many inputs as small_model, and sequences for it."""
    rng, n_in = np.random.default_rng(5), small_model.n_in
    return Graph((random_lstm(rng, n_in, 4), random_dense(rng, 4, 1))), random_sequences(
        rng, 6, 20, n_in
    )


def run(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(cli, arguments)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.output


def test_build_then_hil_on_that_image(folder, small_model):
    need("sim:microbit")
    facts = json.loads(run("build", "--board", "microbit", "m.stw", "-o", "out", "--json"))
    assert (
        facts["board"] == "microbit"
        and facts["label"] == "emulated"
        and facts["sizes"]["flash"] > 5000
    )
    text = run(
        "hil", "--port", "sim:microbit", "m.stw", "--data", "test.npz", "--image", facts["elf"]
    )
    assert (
        "equal, bit for bit" in text
        and "2 sequences, 80 steps" in text
        and "executed instructions, not cycles" in text
    )
    report = json.loads(
        run(
            "hil",
            "--port",
            "sim:microbit",
            "m.stw",
            "--data",
            "test.npz",
            "--image",
            facts["elf"],
            "--steps",
            "50",
            "--json",
        )
    )
    assert (report["steps"], report["mismatches"], report["board"]) == (50, 0, "microbit")
    assert (
        report["instructions_per_step"] > 100
        and report["ram_bytes"] == small_model.info()["ram_bytes"]
    )


def test_hil_builds_its_own_image(folder):
    need("sim:netduinoplus2")
    assert "equal, bit for bit" in run(
        "hil", "--port", "sim:netduinoplus2", "m.stw", "--data", "test.npz"
    )


def test_mismatch_is_exit_code_1(folder, images, small_model):
    need("sim:microbit")
    bad = with_bit_flipped(
        images(small_model, "microbit").elf, folder / "bad.elf", "app_model_w0", 0
    )
    text = run(
        "hil", "--port", "sim:microbit", "m.stw", "--data", "test.npz", "--image", str(bad), code=1
    )
    assert "DIFFERENT in" in text and "unit 0, z of gate i: board" in text
    as_json = run(
        "hil",
        "--port",
        "sim:microbit",
        "m.stw",
        "--data",
        "test.npz",
        "--image",
        str(bad),
        "--json",
        code=1,
    )
    first = json.loads(as_json)["first"]
    assert (first["unit"], first["gate"], first["quantity"]) == (0, "i", "z")


def test_host_port(folder):
    assert "equal, bit for bit" in run("hil", "--port", "host:", "m.stw", "--data", "test.npz")


def test_the_manuals_board(folder):
    """docs/boards.md leads to a board that works: its two files, as they stand, in a folder of
    one's own.
    """
    need("qemu:mps2-an385")
    page = (ROOT / "docs" / "boards.md").read_text()
    (folder / "lm3s6965evb").mkdir()
    for name in ("board.mk", "board.c"):
        text = re.search(
            rf"<!-- example: {re.escape(name)} -->\n```\w+\n(.*?)```", page, re.DOTALL
        ).group(1)
        (folder / "lm3s6965evb" / name).write_text(text)
    assert "*emulated*" in run("build", "--board", "./lm3s6965evb", "m.stw", "-o", "out")
    text = run(
        "hil",
        "--port",
        "qemu:./lm3s6965evb",
        "m.stw",
        "--data",
        "test.npz",
        "--image",
        "out/lm3s6965evb.elf",
    )
    assert "equal, bit for bit" in text and text.startswith("lm3s6965evb ")
    for key in load_board("./lm3s6965evb").facts.keys() - {"NAME"}:
        assert f"`{key}`" in page.split("## Keys of board.mk")[1], f"{key} is not in the table"


def test_every_key_is_in_the_manual():
    page = (ROOT / "docs" / "boards.md").read_text()
    boards = [load_board(name) for name in board_names()]
    own = {key for board in boards for key in board.words("PORT_FACTS")}
    assert {key for board in boards for key in board.facts} - own - {"NAME"} <= set(
        re.findall(r"`([A-Z0-9_]+)`", page)
    )


def test_several_boards_side_by_side(folder, images, small_model):
    """Two emulators at once and the host, with one bad board among them: the others are not
    disturbed.
    """
    need("sim:microbit")
    need("qemu:microbit")
    ports = (
        "--port",
        "sim:microbit",
        "--port",
        "host:",
        "--port",
        "/dev/no-such-port",
        "--port",
        "qemu:microbit",
    )
    options = ("m.stw", "--data", "test.npz", "--html", "page.html", "--json")
    result = json.loads(run("hil", *ports, *options, code=1))
    boards = result["boards"]
    assert not result["equal"] and [b["url"] for b in boards] == list(ports[1::2])
    assert [b.get("equal") for b in boards] == [
        True,
        True,
        None,
        True,
    ] and "cannot be opened" in boards[2]["error"]
    assert boards[0]["instructions_per_step"] == pytest.approx(
        boards[3]["instructions_per_step"], abs=1
    )
    page = (folder / "page.html").read_text()
    assert "<b>3</b>passed" in page and "<b>1</b>error" in page and "cannot be opened" in page
    assert json.loads(run("hil", *ports[2:4], *ports[2:4], *options))["equal"]
    image = images(small_model, "microbit").elf
    assert "--image is for one --port" in run(
        "hil", *ports, *options, "--image", str(image), code=2
    )


def test_side_by_side_is_at_once():
    """Each run waits for the other one: one after the other they would wait for ever."""
    meeting = threading.Barrier(3, timeout=20)
    results = run_side_by_side([lambda tick: meeting.wait()] * 3)
    assert sorted(results) == [0, 1, 2]


def test_interrupted_side_by_side_ends_the_threads():
    ended = []

    def run(tick):
        try:
            while True:
                tick(1, 2)
                time.sleep(0.01)
        finally:
            ended.append(True)

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_side_by_side([run, run], interrupt)
    assert len(ended) == 2


def test_surprise_on_one_board_leaves_the_others(capsys):
    def fail(tick):
        raise ZeroDivisionError("surprise")

    results = run_side_by_side([fail, lambda tick: "fine"])
    assert str(results[0]) == "ZeroDivisionError: surprise" and results[1] == "fine"


def test_ports_that_cannot_be(folder):
    rest = ("m.stw", "--data", "test.npz")
    assert "is given twice" in run(
        "hil", "--port", "/dev/ttyX", "--port", "/dev/ttyX", *rest, code=2
    )
    for wrong in (["microbit"], ["socket://localhost"], ["host:", "--image", "m.elf"]):
        with pytest.raises(WrongUse, match=wrong[0]):
            run("hil", "--port", *wrong, *rest)
    assert "is not in the range" in run("hil", "--port", "host:", "--baud", "0", *rest, code=2)


@pytest.mark.parametrize("options", [[], ["--no-reset"]])
@pytest.mark.parametrize("command", [["hil", "m.stw", "--data", "test.npz"], ["update", "m.stw"]])
def test_no_reset_reaches_the_port(command, options, folder, monkeypatch):
    def opened(url, baud, no_reset):
        raise LinkError(f"no reset: {no_reset}")

    monkeypatch.setattr(urls, "_open", opened)
    done = CliRunner().invoke(cli, [*command, "--port", "/dev/ttyX", *options])
    assert f"no reset: {bool(options)}" in done.output + str(done.exception)


def test_page_that_cannot_be_written_costs_no_run(folder):
    with pytest.raises(OSError, match="No such file or directory"):
        run(
            "hil",
            "--port",
            "/dev/no-such-port",
            "m.stw",
            "--data",
            "test.npz",
            "--html",
            "absent/page.html",
        )
    assert "cannot be opened" in run(
        "hil", "--port", "/dev/no-such-port", "m.stw", "--data", "test.npz", code=1
    )


def test_data_with_gaps(folder, small_graph_data):
    """A model that holds what is missing takes such data on a board, too."""
    need("sim:microbit")
    graph, x = small_graph_data
    stepwell.convert(graph, x, scaler={"missing": "hold"}).save("gaps.stw")
    x = np.array(x[:2])
    x[0, 3:9, 1] = x[1, 0, :] = np.nan
    np.savez("gaps.npz", x=x)
    for port in ("host:", "sim:microbit"):
        report = json.loads(run("hil", "--port", port, "gaps.stw", "--data", "gaps.npz", "--json"))
        assert report["equal"] and report["steps"] == x.shape[0] * x.shape[1]
    with pytest.raises(SampleError, match="nan"):
        run("hil", "--port", "host:", "m.stw", "--data", "gaps.npz")


def test_emulator_is_given_an_image_of_its_board(folder, images, small_model):
    need("sim:microbit")
    image = images(small_model, "microbit").elf
    text = run(
        "hil",
        "--port",
        "sim:mps2-an386",
        "m.stw",
        "--data",
        "test.npz",
        "--image",
        str(image),
        code=1,
    )
    assert "microbit.elf is built for microbit, not for mps2-an386" in text


def test_image_of_another_interface_is_refused_by_name(folder, small_model):
    need("sim:microbit")
    image = build(small_model, "microbit", "mlperf", mlperf=True).elf
    text = run(
        "hil",
        "--port",
        "sim:microbit",
        "m.stw",
        "--data",
        "test.npz",
        "--image",
        str(image),
        code=1,
    )
    assert (
        f"{image} speaks MLPerf's text interface instead of the link: build it without --mlperf"
        in text
    )


def test_soak_repeats_the_data(folder):
    """2 sequences of 40 steps, again and again; the last one is cut."""
    report = json.loads(
        run("hil", "--port", "host:", "m.stw", "--data", "test.npz", "--steps", "1010", "--json")
    )
    assert (report["steps"], report["sequences"], report["equal"]) == (1010, 26, True)


def test_line_statistics(folder, images, small_model):
    need("sim:microbit")
    emulator = sim.start_sim(load_board("microbit"), images(small_model, "microbit").elf)
    proxy = LossyProxy(emulator.port, seed=3)
    options = ("m.stw", "--data", "test.npz", "--steps", "400", "--json")
    try:
        report = json.loads(run("hil", "--port", f"socket://127.0.0.1:{proxy.port}", *options))
    finally:
        proxy.close()
        emulator.close()
    assert report["equal"] and report["frames"] >= 400 / 30 + report["repeats"]
    assert report["retries"] > 0 and report["damaged_at_board"] + report["damaged_here"] > 0
    assert report["steps_per_second"] > 0


def test_flash_dry_run(folder, monkeypatch):
    note, *commands = run("flash", "--board", "netduinoplus2", "--dry-run").splitlines()
    # on stderr
    assert note == "stepwell: netduinoplus2.elf is not there yet: `stepwell build` writes it"
    assert [line.split(":")[0] for line in commands] == [
        "openocd",
        "pyocd",
        "st-flash",
        "dfu-util",
        "stm32loader",
    ]
    text = run(
        "flash", "--board", "microbit", "--runner", "pyocd", "--dry-run", "--json"
    ).partition("\n")[2]
    assert json.loads(text)["commands"] == {
        "pyocd": ["pyocd", "flash", "--target", "nrf51", "microbit.hex"]
    }
    monkeypatch.setattr("shutil.which", lambda program: program)
    with pytest.raises(BuildError, match=r"no microbit\.elf: run `stepwell build"):
        run("flash", "--board", "microbit")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["build", "--board", "uno2", "m.stw"], "no board 'uno2'; there are:"),
        (["flash", "--board", "mps2-an386"], "nothing to flash"),
        (["hil", "--port", "/dev/no-such-port", "m.stw", "--data", "test.npz"], "cannot be opened"),
        (
            ["hil", "--port", "host:", "m.stw", "--data", "nowhere.npz"],
            "nowhere.npz: cannot be read",
        ),
        (
            ["hil", "--port", "host:", "nowhere.stw", "--data", "test.npz"],
            "nowhere.stw: cannot be read",
        ),
    ],
)
def test_refusals(folder, arguments, words):
    with pytest.raises((StepwellError, AssertionError), match=words):
        run(*arguments)


def test_wrong_use_is_exit_code_2(folder):
    for arguments in (
        ["build", "m.stw"],
        ["hil", "m.stw"],
        ["hil", "--steps", "0", "--port", "host:", "m.stw"],
    ):
        run(*arguments, code=2)


@pytest.mark.parametrize("command", ["build", "flash", "hil", "update"])
def test_help_has_examples(command):
    _, _, examples = run(command, "--help").partition("Examples:\n")
    assert examples.split()[:2] == ["stepwell", command]
