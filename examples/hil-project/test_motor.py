"""The model in motor.stw on the board of --hil-port: the bits, the time and the memory that this
product needs.
"""

import numpy as np
import pytest

INSTRUCTIONS_OR_CYCLES_A_STEP = 200_000
STACK_BYTES = 1024


@pytest.fixture(scope="session")
def recorded():
    """Sequences [T, n_in] as the sensors gave them."""
    with np.load("recorded.npz") as file:
        lengths = file["lengths"] if "lengths" in file else [None] * len(file["x"])
        return [x[:length] for x, length in zip(file["x"], lengths, strict=True)][:3]


def test_board_computes_what_this_machine_computes(dut, recorded):
    report = dut.run(recorded)  # fails with the first wrong step, layer, gate and unit
    assert report.cost_per_step is None or report.cost_per_step < INSTRUCTIONS_OR_CYCLES_A_STEP
    assert report.stack_bytes is None or report.stack_bytes < STACK_BYTES


def test_a_new_sequence_forgets_the_old_one(dut, recorded):
    first = dut.step(recorded[0])
    dut.reset()
    assert np.array_equal(dut.step(recorded[0]), first)


def test_state_survives_sleep(dut, recorded):
    """A snapshot taken in the middle goes on where it was."""
    half = len(recorded[0]) // 2
    dut.step(recorded[0][:half])
    asleep = dut.link.get_state()
    expected = dut.step(recorded[0][half:])
    dut.reset()
    dut.link.set_state(asleep)
    assert np.array_equal(dut.step(recorded[0][half:]), expected)


def test_answers_make_sense(hil_model, recorded):
    """Needs no board: this machine computes the same bits."""
    y = hil_model.stream().run(recorded[0])
    assert np.isfinite(y).all()
