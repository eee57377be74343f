"""The C library through cffi equals the NumPy reference, bit for bit; state, batches and bad input."""

import os
import select
import signal

import numpy as np
import pytest
import stepwell
from shapes import random_sequences
from stepwell._engine import lib
from stepwell.reference import Reference


def test_versions_agree():
    major, minor, patch = (int(part) for part in stepwell.__version__.split("."))
    assert lib.stw_version() == major << 16 | minor << 8 | patch


@pytest.mark.parametrize("kind", ["noise", "rails", "small", "silence"])
def test_engine_equals_reference(model, kind):
    rng = np.random.default_rng(3)
    shape = (60, model.n_in)
    x_q = {
        "noise": rng.integers(-32768, 32768, shape),
        "rails": rng.choice([-32768, 32767], shape),
        "small": rng.integers(-300, 300, shape),
        "silence": np.zeros(shape),
    }[kind].astype(np.int16)
    assert np.array_equal(model.stream().run_q(x_q), model.reference().run_q(x_q))


def test_real_numbers_take_the_same_path(model):
    x = random_sequences(np.random.default_rng(4), 1, 50, model.n_in)[0] * 5
    x[0], x[1] = 1e30, -1e30  # clamps
    expected = model.reference().run(x)
    stream = model.stream()
    assert np.array_equal(stream.run(x), expected)
    stream.reset()
    assert np.array_equal(np.stack([stream.step(row) for row in x]), expected)
    stream.reset()
    assert np.array_equal(np.stack([stream.step(list(row)) for row in x]), expected)
    reference = model.reference()
    assert np.array_equal(np.stack([reference.step(row) for row in x]), expected)


def test_chunks_equal_one_run(model):
    x = random_sequences(np.random.default_rng(5), 1, 50, model.n_in)[0]
    whole, chunked = model.stream().run(x), model.stream()
    parts = [chunked.run(x[:1]), chunked.run(x[1:20]), chunked.run(x[20:20]), chunked.run(x[20:])]
    assert np.array_equal(np.concatenate(parts), whole)


def test_batch_equals_streams(model):
    x = random_sequences(np.random.default_rng(6), 5, 30, model.n_in)
    batch = model.batch(5)
    together = np.stack([batch.step(x[:, t]) for t in range(30)], axis=1)
    assert np.array_equal(together, np.stack([model.stream().run(row) for row in x]))
    batch.reset()
    assert np.array_equal(batch.step(x[:, 0]), together[:, 0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_batch_of_threads_goes_on_in_a_child_process(small_model, steps_before):
    """The threads of the parent do not exist there. Both go on from the same state, apart."""
    x = random_sequences(np.random.default_rng(6), 9, 12, 2)
    expected = np.stack([small_model.stream().run(row) for row in x], axis=1)
    batch = small_model.batch(9, threads=3)
    for t in range(steps_before):
        batch.step(x[:, t])
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # nothing here may leave: no pytest in the child
        try:
            made = np.stack([batch.step(x[:, t]) for t in range(steps_before, 12)])
            os.write(
                writer, b"right" if np.array_equal(made, expected[steps_before:]) else b"wrong"
            )
        finally:
            os._exit(0)
    os.close(writer)
    answered, _, _ = select.select([reader], [], [], 20)
    answer = os.read(reader, 5) if answered else b"hangs"
    if not answered:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader)
    assert answer == b"right"
    rest = np.stack([batch.step(x[:, t]) for t in range(steps_before, 12)])
    assert np.array_equal(rest, expected[steps_before:])


def test_save_and_load(model):
    x = random_sequences(np.random.default_rng(9), 1, 40, model.n_in)[0]
    stream = model.stream()
    stream.run(x[:20])
    snapshot, digest = stream.save(), stream.digest()
    rest = stream.run(x[20:])
    other = model.stream()
    other.load(snapshot)
    assert other.digest() == digest
    assert np.array_equal(other.run(x[20:]), rest)
    stream.reset()
    assert np.array_equal(stream.run(x[:20]), model.stream().run(x[:20]))


def test_snapshot_refused_when_damaged(small_model):
    stream = small_model.stream()
    stream.run(np.ones((5, 2)))
    snapshot, digest = stream.save(), stream.digest()
    for bit in range(8 * len(snapshot)):
        damaged = bytearray(snapshot)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(stepwell.ModelError, match="snapshot refused"):
            stream.load(bytes(damaged))
    for length in range(len(snapshot)):
        with pytest.raises(stepwell.ModelError):
            stream.load(snapshot[:length])
    assert stream.digest() == digest


def test_snapshot_of_another_model_is_named(small_model, model):
    if model.id != small_model.id:
        with pytest.raises(stepwell.ModelError, match="another model"):
            small_model.stream().load(model.stream().save())


def test_streams_do_not_share_state(small_model):
    a, b = small_model.stream(), small_model.stream()
    a.run(np.ones((10, 2)))
    assert np.array_equal(b.step([0.5, 0.5]), small_model.stream().step([0.5, 0.5]))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([1.0], "takes 2 values"),
        ([1.0, 2.0, 3.0], "takes 2 values"),
        ([1.0, float("nan")], "nan at index"),
        ([float("inf"), 1.0], "inf at index"),
        (["a", "b"], "not numeric"),
        (3.0, "takes 2 values"),
        ([[1.0, 2.0]], "expected"),
        (None, "takes 2 values|not numeric"),
    ],
)
def test_bad_step_is_refused_and_changes_nothing(small_model, x, message):
    stream = small_model.stream()
    stream.run(np.ones((3, 2)))
    digest = stream.digest()
    with pytest.raises(stepwell.SampleError, match=message):
        stream.step(x)
    assert stream.digest() == digest


@pytest.mark.parametrize(
    "x", ["12", b"12", ["1", "2"], [1j, 2.0], np.ma.masked_array([1.0, 2.0], [True, False])]
)
def test_values_that_only_look_like_numbers(small_model, x):
    for runner in (small_model.stream(), small_model.reference()):
        with pytest.raises(stepwell.SampleError):
            runner.step(x)


@pytest.mark.parametrize(
    "x_q", [[40000, 0], [0.5, 0], ["1", "2"], [1, 2, 3], 7, None, [[1], [1, 2]]]
)
def test_bad_codes(small_model, x_q):
    for runner in (small_model.stream(), small_model.reference()):
        with pytest.raises(stepwell.SampleError):
            runner.step_q(x_q)
        with pytest.raises(stepwell.SampleError):
            runner.run_q([x_q])


def test_empty_runs(small_model):
    for runner in (small_model.stream(), small_model.reference()):
        assert runner.run(np.empty((0, 2))).shape == (0, 2)


@pytest.mark.parametrize(
    "call", [lambda m: m.stream().load(None), lambda m: stepwell.loads("x"), lambda m: m.batch(2.5)]
)
def test_wrong_types(small_model, call):
    with pytest.raises(stepwell.StepwellError):
        call(small_model)


def test_bad_runs_and_batches_are_refused(small_model):
    stream, batch = small_model.stream(), small_model.batch(3)
    x = np.ones((4, 2))
    x[2, 1] = np.nan
    with pytest.raises(stepwell.SampleError, match=r"nan at index \[2, 1\]"):
        stream.run(x)
    assert stream.digest() == small_model.stream().digest()
    with pytest.raises(stepwell.SampleError, match="3 streams"):
        batch.step(np.ones((2, 2)))
    with pytest.raises(stepwell.SampleError, match="expected"):
        stream.run(np.ones((4, 3)))
    with pytest.raises(stepwell.SampleError, match="int16"):
        stream.step_q([40000, 0])
    with pytest.raises(stepwell.SampleError, match="int16"):
        stream.step_q([0.5, 0])
    with pytest.raises(stepwell.SampleError, match="at least one"):
        small_model.batch(0)


def test_probe_shows_the_gates_of_the_next_step(turbofan):
    seen = {}
    reference = Reference(
        turbofan, lambda index, name, values: seen.update({(index, name): values[-1]})
    )
    stream = turbofan.stream()
    x_q = np.random.default_rng(0).integers(-3000, 3000, (10, turbofan.n_in)).astype(np.int16)
    stream.run_q(x_q[:9])
    reference.run_q(x_q)
    digest = stream.digest()
    n = turbofan.layers[0].n_out
    for unit in range(n):
        probed = stream.probe(0, x_q[9], unit)
        assert probed["z"] == seen[0, "z"][unit::n].tolist()
        assert probed["gates"] == seen[0, "gates"][:, unit].tolist()
        assert (probed["c"], probed["h"]) == (seen[0, "c"][unit], seen[0, "h_new"][unit])
    assert stream.digest() == digest
    with pytest.raises(stepwell.SampleError):
        stream.probe(0, x_q[9], n)
