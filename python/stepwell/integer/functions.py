"""Elementwise functions that recurrent cells and layers apply, by the names and formulas of the
ONNX operators.

The plain ones have code of their own on the device; every other becomes a table of 513 entries
(docs/numerics.md, "Table").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import erf, sqrt

import numpy as np

PLAIN = ("none", "relu", "tanh", "sigmoid", "softmax")  # STW_NONE .. STW_SOFTMAX


def sigmoid(z: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-z)), computed by way of tanh so that no z overflows."""
    return 0.5 * (1.0 + np.tanh(0.5 * z))


def softplus(z: np.ndarray) -> np.ndarray:
    """log(1 + exp(z)) without overflow."""
    return np.logaddexp(0.0, z)


def softmax(z: np.ndarray) -> np.ndarray:
    """exp(z) / sum(exp(z)) over the last axis."""
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _elu(z: np.ndarray, alpha: float) -> np.ndarray:
    return np.where(z < 0, alpha * np.expm1(np.minimum(z, 0.0)), z)


# NumPy has none; the type is needed for arrays without values
ERF = np.vectorize(erf, otypes=[float])
SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805

FORMULAS: dict[str, Callable[[np.ndarray, float, float], np.ndarray]] = {
    "none": lambda z, a, b: z,
    "relu": lambda z, a, b: np.maximum(z, 0.0),
    "tanh": lambda z, a, b: np.tanh(z),
    "sigmoid": lambda z, a, b: sigmoid(z),
    "softmax": lambda z, a, b: softmax(z),
    "affine": lambda z, a, b: a * z + b,
    "leaky_relu": lambda z, a, b: np.where(z < 0, a * z, z),
    "thresholded_relu": lambda z, a, b: np.where(z > a, z, 0.0),
    "scaled_tanh": lambda z, a, b: a * np.tanh(b * z),
    "hard_sigmoid": lambda z, a, b: np.clip(a * z + b, 0.0, 1.0),
    "elu": lambda z, a, b: _elu(z, a),
    "celu": lambda z, a, b: np.where(z < 0, a * np.expm1(np.minimum(z, 0.0) / a), z),
    "selu": lambda z, a, b: SELU_SCALE * _elu(z, SELU_ALPHA),
    "softsign": lambda z, a, b: z / (1.0 + np.abs(z)),
    "softplus": lambda z, a, b: softplus(z),
    "swish": lambda z, a, b: z * sigmoid(a * z),
    "hard_swish": lambda z, a, b: z * np.clip(z / 6.0 + 0.5, 0.0, 1.0),
    "mish": lambda z, a, b: z * np.tanh(softplus(z)),
    "gelu": lambda z, a, b: 0.5 * z * (1.0 + ERF(z / sqrt(2.0))),
    "gelu_tanh": lambda z, a, b: (
        0.5 * z * (1.0 + np.tanh(sqrt(2.0 / np.pi) * (z + 0.044715 * z**3)))
    ),
    "clip": lambda z, a, b: np.clip(z, a, b),
    "abs": lambda z, a, b: np.abs(z),
    "erf": lambda z, a, b: ERF(z),
    "exp": lambda z, a, b: np.exp(np.minimum(z, 700.0)),
}


@dataclass(frozen=True)
class Function:
    """``y = f(z; alpha, beta)``; what alpha and beta mean is the ONNX operator's business
    (https://onnx.ai/onnx/operators/).

    ``clip``: alpha and beta are its bounds; ``swish``: alpha is the factor inside the sigmoid.
    ValueError for an unknown name.
    """

    name: str
    alpha: float = 0.0
    beta: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in FORMULAS:
            raise ValueError(f"'{self.name}' is not one of {', '.join(FORMULAS)}")

    def __call__(self, z: np.ndarray) -> np.ndarray:
        """Any shape; softmax runs over the last axis."""
        return FORMULAS[self.name](np.asarray(z, dtype=np.float64), self.alpha, self.beta)

    def __str__(self) -> str:
        values = [f"{v:g}" for v in (self.alpha, self.beta) if v]
        return f"{self.name}({', '.join(values)})" if values else self.name

    @property
    def plain(self) -> bool:
        """Whether the device has code for it."""
        return self.name in PLAIN


def as_function(activation: str | Function) -> Function:
    """A function, given it or its name."""
    return activation if isinstance(activation, Function) else Function(activation)
