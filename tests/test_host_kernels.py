"""What this machine's engine computes with, and many streams at once: the same bits as the
reference.
"""

import numpy as np
import pytest
import stepwell
from shapes import random_dense, random_gru, random_lstm, random_sequences
from stepwell import engine
from stepwell.errors import SampleError
from stepwell.graph import Graph
from stepwell.reference import Reference
from test_cpus import SIZES, codes, sized, with_kx, with_small_shifts


def kernels() -> list[str]:
    """Those that this CPU has."""
    found = [name for name in engine.KERNELS[1:] if engine.use_kernel(name) == name]
    engine.use_kernel("auto")
    return found


@pytest.fixture(params=kernels())
def kernel(request):
    assert engine.use_kernel(request.param) == request.param
    yield request.param
    engine.use_kernel("auto")


@pytest.mark.parametrize("precision", ["w8a16", "w8x16h8", "w8a8"])
def test_kernels_equal_the_reference(kernel, precision):
    rng = np.random.default_rng(2)
    models = [sized(*size, precision) for size in SIZES]
    models += [with_kx(models[-2], -5, 3), sized(9, 24, precision, gain=60.0)]
    for model in models:
        x = codes(rng, model)
        assert np.array_equal(model.stream().run_q(x), Reference(model).run_q(x)), model


@pytest.mark.parametrize("precision", ["w8a16", "w8x16h8", "w8a8"])
@pytest.mark.parametrize("cell", [random_lstm, random_gru])
def test_many_streams_equal_the_reference(kernel, cell, precision):
    """Blocks that are full, not full and too small to go side by side; layers of odd sizes, one
    behind the other.
    """
    rng = np.random.default_rng(3)
    for n_in, n_units, gain in [(1, 1, 2.0), (3, 5, 2.0), (16, 9, 60.0), (19, 33, 2.0)]:
        layers = (cell(rng, n_in, n_units, gain), cell(rng, n_units, 7), random_dense(rng, 7, 2))
        calibration = random_sequences(rng, 2, 30, n_in)
        model = stepwell.convert(
            Graph(layers[: rng.integers(1, 4)]), calibration, precision=precision
        )
        for n in (3, 4, 39):
            batch, x = model.batch(n), rng.normal(size=(5, n, n_in)) * 4
            y = np.stack([batch.step(row) for row in x])
            for k in (0, n // 2, n - 1):
                codes = model.quantize(x[:, k])
                assert np.array_equal(y[:, k] * 2**model.y_frac, Reference(model).run_q(codes)), (
                    model,
                    k,
                )


def test_many_streams_with_coarse_rows(kernel):
    for model in (
        with_small_shifts(sized(5, 24), 13),
        with_kx(sized(9, 16), -7, 4),
        sized(5, 24, gain=60.0),
    ):
        batch, references, rng = (
            model.batch(33),
            [Reference(model) for _ in range(33)],
            np.random.default_rng(1),
        )
        for _ in range(4):
            rows = rng.normal(size=(33, model.n_in)) * 3  # a block that is full, and a stream alone
            assert np.array_equal(
                batch.step(rows), [r.step(row) for r, row in zip(references, rows, strict=True)]
            )


def test_the_kernel_is_named():
    assert engine.use_kernel("portable") == "portable"
    assert engine.use_kernel("auto") == engine.kernel
    with pytest.raises(SampleError, match="unknown kernel 'gpu'; there are: auto, portable"):
        engine.use_kernel("gpu")


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [1, 5, 67])
def test_batch_by_threads_equals_streams(n, threads):
    model = sized(3, 9)
    rng = np.random.default_rng(n)
    batch, streams = model.batch(n, threads), [model.stream() for _ in range(n)]
    for _ in range(6):
        x = rng.normal(size=(n, 3))
        assert np.array_equal(
            batch.step(x), [s.step(row) for s, row in zip(streams, x, strict=True)]
        )
    bad = rng.normal(size=(n, 3))
    bad[-1, 2] = np.nan
    with pytest.raises(SampleError):
        batch.step(bad)
    x = rng.normal(size=(n, 3))  # no stream has moved
    assert np.array_equal(batch.step(x), [s.step(row) for s, row in zip(streams, x, strict=True)])
    with pytest.raises(SampleError, match="whole number of threads, at least one, got 0"):
        model.batch(n, 0)


def test_advance_is_a_step_in_place():
    model = sized(4, 16)
    rng = np.random.default_rng(1)
    one, two = model.stream(), model.stream()
    for _ in range(5):
        row = rng.normal(size=4)
        one.x[:] = row
        one.advance()
        assert np.array_equal(one.y, two.step(row))
    digest = one.digest()
    one.x[2] = np.inf
    with pytest.raises(SampleError, match="inf"):
        one.advance()
    assert one.digest() == digest
