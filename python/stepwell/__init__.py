"""stepwell: a trained LSTM as int8 fixed-point C, one timestep at a time, with the same bits
everywhere.

    import stepwell

    model = stepwell.convert("motor.onnx", calib="sequences.npz")
    model.save("motor.stw")
    stream = model.stream()
    y = stream.step(x)

Importing the package is cheap: numpy and the engine are imported with the first name that needs
them, onnx when a model is converted.
"""

from __future__ import annotations

from stepwell._version import __version__
from stepwell.errors import (
    BuildError,
    FidelityWarning,
    ImportRefused,
    LinkError,
    ModelError,
    QuantizeError,
    SampleError,
    StepwellError,
)

TYPE_CHECKING = False  # as typing's, without importing that
if TYPE_CHECKING:
    from stepwell.api import convert, load, loads, smallest
    from stepwell.model import Model

__all__ = [
    "BuildError",
    "FidelityWarning",
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


if not TYPE_CHECKING:  # to type checkers only the names above exist

    def __getattr__(name: str) -> object:
        """The names of ``__all__`` that were not imported yet."""
        from importlib import import_module

        if name not in __all__:
            raise AttributeError(f"module 'stepwell' has no attribute '{name}'")
        found = getattr(import_module("stepwell.api"), name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
