"""Fixtures and options shared by all tests. The graphs are in shapes.py."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import stepwell
from shapes import SHAPES, graph_of, has_rows, random_dense, random_lstm, random_sequences
from stepwell.graph import Graph

ROOT = Path(__file__).resolve().parent.parent
NO_SKIP = bool(os.environ.get("STEPWELL_NO_SKIP"))
# What may be missing all the same: packages without a build for some Python, and files that stand
# outside of the repository.
MAY_BE_MISSING = (
    "torch",
    "keras",
    "onnxruntime",
    "onnxscript",
    "sklearn",
    "ml_dtypes",
    "pandas",
    "atheris",
    "not part of the repository",
    "zig does not compile for",
)

# a C file of an image that takes updates
SIGNED = """
#include "board.h"
#include "stw_bytes.h"
#include "stepwell.h"

/* A stand-in for a signature scheme, so that every byte counts: the CRC-32 with a secret start, 4 bytes. */
int board_verify_signature(const uint8_t *message, size_t n, const uint8_t *signature, size_t signature_bytes)
{
    return signature_bytes == 4 && stw_get32(signature) == stw_crc32(77, message, n) ? 0 : 1;
}
"""


def pytest_addoption(parser):
    parser.addoption(
        "--all",
        action="store_true",
        help="with the tests marked `full`: matrices, fuzzers, the long soak",
    )


LEFT_OUT = pytest.StashKey[int]()  # tests that this run leaves out
MOST_CASES = 8  # of one test, in a run of everything without --all


def pytest_collection_modifyitems(config, items):
    """Without --all the tests marked `full` are left out.

    Where no file is named, a test of many cases keeps MOST_CASES of them, evenly spread.
    """
    if config.getoption("--all"):
        return
    kept = [item for item in items if not item.get_closest_marker("full")]
    if _runs_everything(config):
        cases: dict[str, list] = {}
        for item in kept:
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
        some = {item for group in cases.values() for item in spread(group, MOST_CASES)}
        kept = [item for item in kept if item in some]
    stay = set(kept)
    left_out = [item for item in items if item not in stay]
    config.stash[LEFT_OUT] = len(left_out)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


def spread(values: list, most: int) -> list:
    """``most`` of the values, evenly spread, the first and the last among them."""
    n = len(values)
    return values if n <= most else [values[k * (n - 1) // (most - 1)] for k in range(most)]


def _runs_everything(config) -> bool:
    """Whether no file, folder or test was named. Processes of pytest-xdist are told."""
    if hasattr(config, "workerinput"):
        return config.workerinput["runs_everything"]
    return config.args_source != pytest.Config.ArgsSource.ARGS


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    node.workerinput["runs_everything"] = _runs_everything(node.config)


def pytest_sessionfinish(session):
    """A process of pytest-xdist tells its count to the one that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(terminalreporter, config):
    if n := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"{n} longer tests were left out: pytest --all runs them, too")


def full(values: Iterable, *kept) -> list:
    """Values of a matrix for parametrize, a tuple for several arguments: each run takes ``kept``,
    `pytest --all` all.

    ValueError: a kept value is not among them.
    """
    values = list(values)
    if missing := [value for value in kept if value not in values]:
        raise ValueError(f"not in the matrix: {missing}")
    return [
        value
        if value in kept
        else pytest.param(
            *(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.full
        )
        for value in values
    ]


def skip_for(reason: str | None) -> None:
    """Skip the test when there is a reason, which tells what to install."""
    if reason:
        pytest.skip(reason)


def need(program: str, install: str) -> None:
    """Skip the test when ``program`` is not installed; ``install`` is the line that installs it."""
    skip_for(None if shutil.which(program) else f"{program} is not installed: {install}")


def _missing(reason: str) -> bool:
    return NO_SKIP and bool(reason) and not any(word in reason.lower() for word in MAY_BE_MISSING)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """With STEPWELL_NO_SKIP=1 a skip is a failure: where every tool is installed it would be a
    proof that is missing.
    """
    report = (yield).get_result()
    is_skip = (
        report.skipped and call.excinfo and isinstance(call.excinfo.value, pytest.skip.Exception)
    )
    reason = str(call.excinfo.value) if is_skip else ""
    if _missing(reason):
        report.outcome, report.longrepr = "failed", f"STEPWELL_NO_SKIP is set, but: {reason}"


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    """The same for a file that skips as a whole."""
    report = (yield).get_result()
    reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
    if _missing(reason):
        report.outcome, report.longrepr = "failed", f"STEPWELL_NO_SKIP is set, but: {reason}"


DEMO = ROOT / "python" / "stepwell" / "demo"


@pytest.fixture(params=[name for name in SHAPES if has_rows(name)], scope="session")
def graph(request) -> Graph:
    return graph_of(request.param)


@pytest.fixture(scope="session")
def model(graph) -> stepwell.Model:
    rng = np.random.default_rng(8)
    return stepwell.convert(graph, random_sequences(rng, 16, 40, graph.n_in))


@pytest.fixture(scope="session")
def turbofan() -> stepwell.Model:
    """The demo's model, converted from its real ONNX export."""
    return stepwell.convert(DEMO / "turbofan.onnx", DEMO / "turbofan_calib.npz")


@pytest.fixture(scope="session")
def small_model() -> stepwell.Model:
    """A model of a few hundred bytes: for tests that touch every bit."""
    graph = Graph(
        (random_lstm(np.random.default_rng(1), 2, 3), random_dense(np.random.default_rng(2), 3, 2))
    )
    return stepwell.convert(graph, random_sequences(np.random.default_rng(3), 8, 20, 2))
