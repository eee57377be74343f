"""What this machine's engine computes with, and many streams at once: the same bits as the reference."""

import numpy as np
import pytest
from stepwell import engine
from stepwell.errors import SampleError
from stepwell.reference import Reference
from test_cpus import SIZES, codes, sized, with_kx


@pytest.fixture(params=engine.KERNELS)
def kernel(request):
    name = engine.use_kernel(request.param)
    if request.param != "portable" and name == "portable":
        pytest.skip("this CPU has no AVX2: there is no other kernel")
    yield name
    engine.use_kernel("auto")


@pytest.mark.parametrize("precision", ["w8a16", "w8x16h8", "w8a8"])
def test_kernels_equal_the_reference(kernel, precision):
    rng = np.random.default_rng(2)
    models = [sized(*size, precision) for size in SIZES]
    models += [with_kx(models[-2], -5, 3), sized(9, 24, precision, gain=60.0)]
    for model in models:
        x = codes(rng, model)
        assert np.array_equal(model.stream().run_q(x), Reference(model).run_q(x)), model


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
        assert np.array_equal(batch.step(x), [s.step(row) for s, row in zip(streams, x, strict=True)])
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
