"""The specification itself: tables, rounding, activation errors, and golden values that may never
change.
"""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import stepwell
from conftest import ROOT
from stepwell.integer import fixed as ref

ALL_Z = np.arange(-32768, 32768, dtype=np.int64)


def test_sigmoid_table_is_the_one_of_the_specification():
    digest = hashlib.sha256(ref.sigmoid_table().astype("<u2").tobytes()).hexdigest()
    assert digest == "7427db7b494af32776851d7b86e90f1e9c81eb1bc9373605d4c5ea12757ae306"


def test_c_tables_are_what_the_tool_writes():
    subprocess.run([sys.executable, ROOT / "tools" / "make_tables.py", "--check"], check=True)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 30])
def test_rsh_rounds_half_up(n):
    x = np.array([-(2**31), -3, -2, -1, 0, 1, 2, 3, 2**31 - 1], np.int64)
    assert (ref.rsh(x, n) == np.floor(x / 2.0**n + (0.5 if n else 0)).astype(np.int64)).all()


@pytest.mark.parametrize(
    ("integer", "exact", "bound"),
    [(ref.sig, lambda z: 1 / (1 + np.exp(-z)), 1.02), (ref.tanh, np.tanh, 1.47)],
    ids=["sigmoid", "tanh"],
)
def test_activations_are_monotone_and_close(integer, exact, bound):
    y = integer(ALL_Z)
    assert (np.diff(y) >= 0).all()
    assert np.abs(y - 32768 * exact(ALL_Z / 2048)).max() < bound
    assert y.min() >= -32767 and y.max() == 32767


def test_tanh_is_odd():
    assert (ref.tanh(-ALL_Z[1:]) == -ref.tanh(ALL_Z[1:])).all()


@pytest.mark.parametrize("n", [1, 2, 10, 512])
def test_softmax_error(n):
    rng = np.random.default_rng(n)
    logits = rng.normal(size=(2000, n)) * rng.choice([0.1, 1, 5, 30], size=(2000, 1))
    z = np.floor(logits * np.log2(np.e) * 65536 + 0.5).astype(np.int64)
    exact = 2.0 ** ((z - z.max(axis=1, keepdims=True)) / 65536)
    exact /= exact.sum(axis=1, keepdims=True)
    p = ref.softmax(z)
    assert np.abs(p / 32768 - exact).max() < 1e-4
    assert np.abs(p.sum(axis=1) - 32768).max() <= max(1, n / 2)


def test_golden_values():
    """Outputs of committed models for committed inputs: written by tools/make_golden.py, never
    edited.
    """
    for path in sorted((ROOT / "tests" / "golden").glob("*.stw")):
        model = stepwell.load(path)
        golden = json.loads(path.with_suffix(".json").read_text())
        x_q = np.array(golden["x_q"], np.int16)
        assert f"{model.id:08x}" == golden["id"]
        for runner in (model.reference(), model.stream()):
            assert runner.run_q(x_q).tolist() == golden["y_q"]
        stream = model.stream()
        stream.run_q(x_q)
        assert stream.digest() == golden["digest"]
    assert path, "no golden models found"
