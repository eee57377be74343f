"""100,000 steps without a reset: the integer stream stays as close to the float one at the end as
it was near the start.
"""

import numpy as np
import pytest
import stepwell
from conftest import DEMO
from stepwell.importer import import_file
from stepwell.stream import FloatStream

STEPS = 100_000
QUARTERS = 4  # of the same input: what differs between them is the state's doing
PRECISIONS = {
    "w8a16": 0.004,
    "w8x16h8": 0.02,
    "w8a8": 0.03,
    "w4a16": 0.2,
}  # largest error of an output of about 1


@pytest.fixture(scope="module")
def run() -> tuple[np.ndarray, np.ndarray]:
    """Flights of the demo's engines end to end, and what the float model makes of them."""
    data = np.load(DEMO / "turbofan_test.npz")
    flights = np.concatenate(
        [x[:n] for x, n in zip(data["x"], data["lengths"], strict=True)]
    ).astype(float)
    quarter = np.tile(flights, (STEPS // QUARTERS // len(flights) + 1, 1))[: STEPS // QUARTERS]
    x = np.tile(quarter, (QUARTERS, 1))
    return x, FloatStream(import_file(DEMO / "turbofan.onnx", verify=False).graph).run(x)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_error_does_not_grow(precision, run):
    x, exact = run
    model = stepwell.convert(
        DEMO / "turbofan.onnx", DEMO / "turbofan_calib.npz", precision=precision
    )
    error = np.abs(model.stream().run(x) - exact)
    _, second, _, last = error.reshape(QUARTERS, -1)
    assert np.sqrt((last**2).mean()) <= 1.05 * np.sqrt((second**2).mean()) > 0
    assert error.max() < PRECISIONS[precision]
