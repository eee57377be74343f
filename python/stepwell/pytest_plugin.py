"""pytest plugin: tests that run on a board, an emulator, or the host engine, chosen on the command
line.

    def test_motor(dut):
        report = dut.run([recorded_x])       # equal to the host engine in every bit, or the test fails and says where
        assert report.stack_bytes < 512

    pytest --hil-port /dev/ttyACM0 --hil-model motor.stw
    pytest --hil-port sim:microbit --hil-model motor.stw

Without a port the tests that need one are skipped, with the reason; with a port that does not work
they are errors. Options that cannot be right end pytest before it runs a test.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import pytest

if TYPE_CHECKING:
    import numpy as np

    from stepwell.link import HostLink, Link
    from stepwell.link.hil import HilReport
    from stepwell.model import Model
    from stepwell.report.hil_page import Run

NO_PORT = "no board: give --hil-port URL, qemu:BOARD, sim:BOARD, simavr:BOARD, rp2040js:BOARD or host: (or set HIL_PORT)"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("stepwell", "hardware in the loop (stepwell)")
    group.addoption(
        "--hil-port",
        metavar="URL",
        help="Serial port, pyserial URL, qemu:BOARD, sim:BOARD, simavr:BOARD, rp2040js:BOARD or host: [HIL_PORT]",
    )
    group.addoption(
        "--hil-baud", type=int, default=115200, help="Baud rate of a serial port (default: 115200)"
    )
    group.addoption(
        "--hil-no-reset",
        action="store_true",
        help="Open the serial port with DTR and RTS low: an ESP runs on; for an Arduino see docs/hil.md",
    )
    group.addoption(
        "--hil-board", metavar="NAME", help="The board must be this one, by its own words"
    )
    group.addoption(
        "--hil-image", metavar="ELF", help="Image for an emulator (default: built from the model)"
    )
    group.addoption(
        "--hil-model", metavar="FILE", help="The .stw file of the model that the board must run"
    )
    group.addoption(
        "--hil-flash",
        metavar="RUNNER",
        help="First build --hil-model for --hil-board and flash it ('auto': first runner)",
    )
    group.addoption(
        "--hil-flash-port",
        metavar="PORT",
        help="Port or probe for the runner (default: --hil-port)",
    )
    group.addoption(
        "--hil-required", action="store_true", help="Missing --hil-port is an error, not a skip"
    )
    group.addoption(
        "--hil-log", metavar="FILE", help="Append the board's own messages to this file"
    )
    group.addoption(
        "--hil-html", metavar="FILE", help="Write the results of the tests on the board as a page"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "hil: needs a board or emulator (--hil-port)")
    if hasattr(config, "workerinput"):  # of xdist: its controller does the rest
        return
    _check_files(config)
    if _port(config):
        _check_port(config)
    elif config.getoption("--hil-required"):
        raise pytest.UsageError(f"--hil-required, but {NO_PORT}")
    if config.getoption("--hil-html"):
        config.pluginmanager.register(_Page(config))


@contextmanager
def _usage(option: str) -> Iterator[None]:
    """What stepwell or the system says inside is a UsageError of ``option``."""
    from stepwell.errors import StepwellError

    try:
        yield
    except StepwellError as error:
        raise pytest.UsageError(f"{option}: {error}") from error
    except OSError as error:
        raise pytest.UsageError(f"{option} {error.filename}: {error.strerror}") from error


def _check_files(config: pytest.Config) -> None:
    """UsageError when --hil-model is not there or --hil-html cannot be written."""
    from stepwell.files import check_can_write

    for name, check in (("--hil-model", os.stat), ("--hil-html", check_can_write)):
        if config.getoption(name):
            with _usage(name):
                check(config.getoption(name))


def _check_port(config: pytest.Config) -> None:
    """UsageError when the options for the port cannot be right; whether a board is there is seen
    later.
    """
    from stepwell.boards import load_board
    from stepwell.boards.flash import choose
    from stepwell.link.urls import check_image, check_url

    option, port = config.getoption, _port(config)
    image, board, runner = option("--hil-image"), option("--hil-board"), option("--hil-flash")
    with _usage("--hil-port"):
        check_url(port, image)
    if option("--hil-log"):
        with _usage("--hil-log"):
            _appended(option("--hil-log")).close()
    if image:
        with _usage("--hil-image"):
            check_image(load_board(port.partition(":")[2]), Path(image))
    if runner and not board:
        raise pytest.UsageError("--hil-flash needs --hil-board")
    if runner:
        with _usage("--hil-flash"):
            choose(load_board(board), None if runner == "auto" else runner)


class _Page:
    """Collects the tests that are marked ``hil`` for --hil-html."""

    def __init__(self, config: pytest.Config):
        self._path = config.getoption("--hil-html")
        self._title = config.rootpath.name
        self._tests: dict[str, list[pytest.TestReport]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if "hil" in report.keywords:
            self._tests.setdefault(report.nodeid, []).append(report)

    def pytest_sessionfinish(self) -> None:
        from stepwell.report.hil_page import write_page

        write_page(
            self._path,
            self._title,
            [self._run(name, phases) for name, phases in self._tests.items()],
        )

    def _run(self, name: str, phases: list[pytest.TestReport]) -> Run:
        from stepwell.report.hil_page import Run

        bad = next((phase for phase in phases if phase.failed), None)
        skipped = next((phase for phase in phases if phase.skipped), None)
        outcome = (
            ("failed" if bad.when == "call" else "error")
            if bad
            else "skipped"
            if skipped
            else "passed"
        )
        seconds = {"seconds": f"{sum(phase.duration for phase in phases):.1f}"}
        facts = {key.replace("_", " "): str(value) for key, value in phases[-1].user_properties}
        return Run(name, outcome, facts | seconds, bad.longreprtext if bad else "")


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that ask for a board are marked, so that -m hil finds them."""
    for item in items:
        if "hil_link" in getattr(item, "fixturenames", ()):
            item.add_marker("hil")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Marked tests are skipped without a port, even when they use none of the fixtures, and fail
    with a port that is dead.
    """
    if item.get_closest_marker("hil"):
        _need_port(item.config)
        if "hil_link" not in item.fixturenames:
            item.fixturenames.append("hil_link")


def _port(config: pytest.Config) -> str:
    """Empty when none is given."""
    return config.getoption("--hil-port") or os.environ.get("HIL_PORT", "")


def _need_port(config: pytest.Config) -> str:
    if not _port(config):
        pytest.skip(NO_PORT)
    return _port(config)


@contextmanager
def _without_frames() -> Iterator[None]:
    """An error that stepwell raises on purpose says what there is to say: pytest shows it without
    our frames.
    """
    from stepwell.errors import StepwellError

    try:
        yield
    except (StepwellError, OSError) as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


@pytest.fixture(scope="session")
def hil_model(request: pytest.FixtureRequest) -> Model | None:
    """The model of --hil-model; override this fixture to take it from elsewhere. None: whatever the
    board runs.
    """
    import stepwell

    path = request.config.getoption("--hil-model")
    with _without_frames():
        return stepwell.load(path) if path else None


def _flash(model: Model | None, board: str, runner: str, port: str, flash_port: str | None) -> None:
    """Build the model's image and write it to the board; the port that is opened next must then run
    it.
    """
    import tempfile

    from stepwell.boards import load_board
    from stepwell.boards.build import build
    from stepwell.boards.flash import NEED_PORT, Files, choose, flash
    from stepwell.errors import WrongUse

    if model is None:
        raise WrongUse("--hil-flash needs --hil-model")
    facts = load_board(board)
    with tempfile.TemporaryDirectory(prefix="stepwell-") as folder:
        image = build(model, facts, folder)
        chosen = choose(facts, None if runner == "auto" else runner)
        flash(
            facts, Files(image.elf), chosen, flash_port or (port if chosen in NEED_PORT else None)
        )


def _appended(path: str) -> TextIO:
    return open(path, "a", encoding="utf-8")


def _connect(config: pytest.Config, model: Model | None, at_end: ExitStack) -> Link | HostLink:
    """The connection as the options want it, flashed before if they say so; ``at_end`` closes it."""
    from stepwell.errors import LinkError
    from stepwell.link import connect

    option, port = config.getoption, _need_port(config)
    if option("--hil-flash"):
        _flash(
            model, option("--hil-board"), option("--hil-flash"), port, option("--hil-flash-port")
        )
    log = at_end.enter_context(_appended(option("--hil-log"))) if option("--hil-log") else None
    line = {"baud": option("--hil-baud"), "no_reset": option("--hil-no-reset")}
    link = at_end.enter_context(
        connect(port, model=model, image=option("--hil-image"), log=log, **line)
    )
    found, wanted = link.info().board, option("--hil-board")
    if wanted and found != wanted:
        raise LinkError(f"{port}: this is a {found}, the tests are for {wanted} (--hil-board)")
    return link


@pytest.fixture(scope="session")
def hil_link(request: pytest.FixtureRequest, hil_model: Model | None) -> Iterator[Link | HostLink]:
    """The connection of this session. No port: skip. A port that fails, another board, another
    model: error.
    """
    with ExitStack() as at_end:
        with _without_frames():
            link = _connect(request.config, hil_model, at_end)
        yield link


class Dut:
    """The device under test: one model on one board, reset before each test."""

    def __init__(self, link: Link | HostLink, model: Model | None):
        self.link, self._model = link, model
        self.steps = 0

    @property
    def model(self) -> Model:
        """The model of --hil-model; without one the test cannot know scales or expected values."""
        if self._model is None:
            pytest.fail(
                "give --hil-model FILE.stw (or override the hil_model fixture)", pytrace=False
            )
        return self._model

    def reset(self) -> None:
        """A new sequence."""
        self.link.reset()

    def step_q(self, x_q: np.ndarray) -> np.ndarray:
        """Codes int16 [n, n_in] -> int32 [n, n_out]."""
        y_q = self.link.step(x_q)
        self.steps += len(y_q)
        return y_q

    def step(self, x: np.ndarray) -> np.ndarray:
        """Real numbers [n, n_in], or a DataFrame, -> [n, n_out]."""
        return self.model.dequantize(self.step_q(self.model.quantize(x)))

    def run(self, sequences: Sequence[np.ndarray]) -> HilReport:
        """Stream float sequences [T_i, n_in], or DataFrames, and compare every bit with the host
        engine.

        The test fails on a difference.
        """
        from stepwell.link.hil import run_hil
        from stepwell.text import printable

        report = run_hil(self.link, self.model, sequences)
        self.steps += report.steps
        if not report.ok:
            said = f"{report.board} differs from the host engine in {report.mismatches} values; {report.first}"
            pytest.fail(printable(said), pytrace=False)
        return report


@pytest.fixture
def dut(
    request: pytest.FixtureRequest, hil_link: Link | HostLink, hil_model: Model | None
) -> Iterator[Dut]:
    """The device under test after a reset. Board, model, steps and cost go into the JUnit report."""
    with _without_frames():
        info = hil_link.info()
        hil_link.reset()
    device = Dut(hil_link, hil_model)
    yield device
    facts = {"board": info.board, "model": f"{info.model_id:08x}", "steps": device.steps}
    if hil_link.cost_unit:
        facts[f"{hil_link.cost_unit}_per_step"] = hil_link.cost_per_step
    request.node.user_properties.extend(facts.items())  # what record_property does, and warns of
