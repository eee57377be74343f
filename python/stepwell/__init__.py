"""stepwell: a trained LSTM as int8 fixed-point C, one timestep at a time, with the same bits everywhere.

    import stepwell

    model = stepwell.convert("motor.onnx", calib="sequences.npz")
    model.save("motor.stw")
    stream = model.stream()
    y = stream.step(x)

Importing the package is cheap; onnx is imported when a model is converted.
"""

from stepwell._version import __version__
from stepwell.api import convert, load, loads, smallest
from stepwell.errors import (
    BuildError,
    ImportRefused,
    LinkError,
    ModelError,
    QuantizeError,
    SampleError,
    StepwellError,
)
from stepwell.model import Model

__all__ = [
    "BuildError",
    "ImportRefused",
    "LinkError",
    "Model",
    "ModelError",
    "QuantizeError",
    "SampleError",
    "StepwellError",
    "__version__",
    "convert",
    "load",
    "loads",
    "smallest",
]
