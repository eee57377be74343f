"""The pytest plugin, used from a project that is not ours: skips, errors, failures, JUnit
properties.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from conftest import DEMO, ROOT

from .conftest import need

USER_TEST = """
import numpy as np
import pytest

@pytest.mark.hil
def test_marked():
    pass

def test_equal(dut, hil_model):
    x = np.sin(np.arange(300).reshape(50, -1)[:, :hil_model.n_in])
    report = dut.run([x])
    assert report.steps == 50 and report.ok

def test_starts_reset(dut, hil_model):
    x = np.ones((3, hil_model.n_in))
    assert np.array_equal(dut.step(x), hil_model.stream().run(x))

def test_plain():
    pass
"""


class Project:
    """A folder with one test file; ``run`` gives the summary counts and the whole output; ``code``:
    how it exited.
    """

    def __init__(self, folder):
        self.folder, self.code = folder, 0

    def run(self, *options: str, port: str | None = None) -> tuple[dict[str, str], str]:
        environment = {key: value for key, value in os.environ.items() if key != "HIL_PORT"}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        if port:
            environment["HIL_PORT"] = port
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rsEf",
            "--junit-xml=report.xml",
            *options,
        ]
        report = self.folder / "report.xml"
        report.unlink(missing_ok=True)
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True
        )
        self.code = done.returncode
        counts = (
            dict(next(ElementTree.parse(report).iter("testsuite")).items())
            if report.exists()
            else {}
        )
        return counts, done.stdout + done.stderr

    def properties(self, test: str) -> dict[str, str]:
        case = next(
            c
            for c in ElementTree.parse(self.folder / "report.xml").iter("testcase")
            if c.get("name") == test
        )
        return {p.get("name"): p.get("value") for p in case.iter("property")}


@pytest.fixture
def project(tmp_path) -> Project:
    (tmp_path / "test_motor.py").write_text(USER_TEST)
    return Project(tmp_path)


@pytest.fixture
def saved(small_model, tmp_path) -> str:
    small_model.save(tmp_path / "motor.stw")
    return "motor.stw"


def test_without_port_everything_that_needs_one_is_skipped(project, saved):
    counts, output = project.run(f"--hil-model={saved}")
    assert (counts["tests"], counts["skipped"], counts["errors"], counts["failures"]) == (
        "4",
        "3",
        "0",
        "0",
    )
    assert (
        "no board: give --hil-port URL, qemu:BOARD, sim:BOARD, simavr:BOARD, rp2040js:BOARD or "
        "host:" in output
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--hil-required", "--hil-required, but no board: give --hil-port URL"),
        (
            "--hil-port=microbit",
            "--hil-port: microbit is no port: did you mean qemu:microbit, sim:microbit?",
        ),
        ("--hil-port=sim:microbitt", "--hil-port: no board 'microbitt'; there are:"),
        (
            "--hil-port=socket://bench",
            "--hil-port: socket://bench names no port: write socket://HOST:PORT",
        ),
        ("--hil-port=sim:microbit --hil-image=absent.elf", "--hil-image: no image absent.elf"),
        ("--hil-port=sim:microbit --hil-image=motor.stw", "--hil-image: motor.stw is no ELF file"),
        (
            "--hil-port=host: --hil-image=x.elf",
            "--hil-port: host: runs no image: only an emulator takes one",
        ),
        (
            "--hil-port=host: --hil-log=absent/board.log",
            "--hil-log absent/board.log: No such file or directory",
        ),
        ("--hil-port=host: --hil-flash=auto", "--hil-flash needs --hil-board"),
        (
            "--hil-port=host: --hil-flash=uf2 --hil-board=microbit",
            "--hil-flash: board microbit cannot be flashed by",
        ),
        ("--hil-model=absent.stw", "--hil-model absent.stw: No such file or directory"),
        ("--hil-html=absent/page.html", "--hil-html absent/page.html: No such file or directory"),
    ],
)
def test_options_that_cannot_be_right_run_nothing(project, saved, options, words):
    counts, output = project.run(*options.split())
    assert project.code == pytest.ExitCode.USAGE_ERROR and not counts
    assert f"ERROR: {words}" in output and "Traceback" not in output


def test_no_reset_reaches_the_port(project, saved):
    (project.folder / "conftest.py").write_text(
        "import stepwell.link.urls as c\n"
        "def opened(url, baud, no_reset):\n"
        "    raise c.LinkError(f'no reset: {no_reset}')\n"
        "c._open = opened\n"
    )
    for options in ([], ["--hil-no-reset"]):
        assert f"no reset: {bool(options)}" in project.run("--hil-port=/dev/ttyX", *options)[1]


def test_host(project, saved):
    counts, _ = project.run(f"--hil-model={saved}", port="host:")
    assert (counts["tests"], counts["skipped"], counts["errors"], counts["failures"]) == (
        "4",
        "0",
        "0",
        "0",
    )


def test_board_with_properties_and_log(project, saved, small_model, images):
    need("sim:microbit")
    image = images(small_model, "microbit").elf
    options = (
        f"--hil-model={saved}",
        f"--hil-image={image}",
        "--hil-board=microbit",
        "--hil-log=board.log",
    )
    options += ("--hil-html=page.html",)
    counts, output = project.run("--hil-port=sim:microbit", *options)
    assert (counts["skipped"], counts["errors"], counts["failures"]) == ("0", "0", "0"), output
    properties = project.properties("test_equal")
    assert float(properties.pop("instructions_per_step")) > 100
    assert properties == {"board": "microbit", "model": f"{small_model.id:08x}", "steps": "50"}
    assert "stepwell on microbit started" in (project.folder / "board.log").read_text()
    page = (project.folder / "page.html").read_text()
    assert (
        "test_motor.py::test_equal" in page
        and "test_plain" not in page
        and "<b>3</b>passed" in page
    )
    assert f"<td>{small_model.id:08x}</td>" in page and "<script" not in page and "http" not in page
    counts, output = project.run("--hil-port=sim:microbit", *options, "--hil-board=netduinoplus2")
    assert (
        counts["errors"] == "3" and "this is a microbit, the tests are for netduinoplus2" in output
    )


def test_port_that_fails_is_an_error(project, saved):
    counts, output = project.run(f"--hil-model={saved}", "--hil-port=/dev/no-such-port")
    assert (counts["skipped"], counts["errors"]) == ("0", "3")
    reason = "/dev/no-such-port: cannot be opened: No such file or directory"
    assert [
        line for line in output.splitlines() if "no-such-port" in line and " - " not in line
    ] == 3 * [reason]
    assert "stepwell/" not in output, "frames of ours"


def test_model_that_is_none_is_an_error(project):
    (project.folder / "broken.stw").write_text("no model")
    counts, output = project.run("--hil-model=broken.stw", "--hil-port=host:")
    assert (counts["skipped"], counts["errors"]) == ("0", "3")
    assert "\nbroken.stw: not a stepwell model" in output and "stepwell/" not in output


def test_mismatch_says_where(project, saved):
    (project.folder / "conftest.py").write_text(
        "import stepwell.link.urls as c\n"
        "class Sick(c.HostLink):\n"
        "    def step(self, x_q, progress=None):\n"
        "        y_q = super().step(x_q)\n"
        "        y_q[-1:] += len(x_q) > 20\n"
        "        return y_q\n"
        "c.HostLink = Sick\n"
    )
    counts, output = project.run(f"--hil-model={saved}", "--hil-port=host:", "--hil-html=page.html")
    assert counts["failures"] == "1"
    page = (project.folder / "page.html").read_text()
    assert (
        "<b>1</b>failed" in page
        and "host differs from the host engine in 2 values; first wrong step" in page
    )
    assert (
        "host differs from the host engine in 2 values; first wrong step" in output
        and "expected" in output
    )


def test_example_project_works_elsewhere(turbofan, tmp_path):
    """examples/hil-project, copied out of the repository, with a model and data as its README says."""
    need("sim:microbit")
    folder = shutil.copytree(ROOT / "examples" / "hil-project", tmp_path / "project")
    turbofan.save(folder / "motor.stw")
    shutil.copyfile(DEMO / "turbofan_test.npz", folder / "recorded.npz")
    example = Project(folder)
    counts, output = example.run()
    assert (counts["tests"], counts["skipped"], counts["failures"], counts["errors"]) == (
        "4",
        "3",
        "0",
        "0",
    ), output
    counts, output = example.run("--hil-port", "sim:microbit", "--hil-html", "hil.html")
    assert (counts["tests"], counts["skipped"], counts["failures"], counts["errors"]) == (
        "4",
        "0",
        "0",
        "0",
    ), output
    assert "<b>3</b>passed" in (folder / "hil.html").read_text()
    counts, output = example.run("--hil-port", "host:", "--junitxml", "report.xml", "-W", "error")
    assert (counts["tests"], counts["skipped"], counts["failures"], counts["errors"]) == (
        "4",
        "0",
        "0",
        "0",
    ), output
    assert "warning" not in output
    assert example.properties("test_a_new_sequence_forgets_the_old_one")["board"] == "host"


@pytest.mark.skipif(os.name != "posix", reason="the program that stands in is a script")
@pytest.mark.parametrize("options", [[], ["--hil-flash-port", "/dev/ttyBOOT"]])
def test_serial_bootloaders_are_given_a_port(options, project, saved, tmp_path, monkeypatch):
    """A program that writes down how it was called stands in for stm32loader."""
    need("sim:netduinoplus2")
    tools = tmp_path / "tools"
    tools.mkdir()
    script = tools / "stm32loader"
    script.write_text(f'#!/bin/sh\necho "$@" > {tools}/called\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    board = ["--hil-model", saved, "--hil-board", "netduinoplus2", "--hil-flash", "stm32loader"]
    counts, output = project.run("--hil-port", "sim:netduinoplus2", *board, *options)
    assert (counts["failures"], counts["errors"], counts["skipped"]) == ("0", "0", "0"), output
    port = options[-1] if options else "sim:netduinoplus2"
    assert f"--port {port} --family F4" in (tools / "called").read_text()
