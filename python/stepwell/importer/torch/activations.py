"""Elementwise activations, softmax and what else picks or gates: as modules and as functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from stepwell.importer.torch.handlers import module, operation
from stepwell.importer.torch.signals import Pending, Signal, Walk
from stepwell.integer.functions import Function
from stepwell.layers import ArgMax, Mul, Slice

SIXTH = 1.0 / 6.0


def _gelu(approximate: str = "none") -> Function:
    return Function("gelu_tanh" if approximate == "tanh" else "gelu")


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Function:
    if beta != 1 or threshold < 15:
        raise ValueError(f"softplus with beta={beta}, threshold={threshold}: use the default ones")
    return Function("softplus")


def _threshold(threshold: float, value: float) -> Function:
    if value != 0:
        raise ValueError(f"threshold to the value {value}: use 0")
    return Function("thresholded_relu", float(threshold))


def _prelu(weight: torch.Tensor) -> Function:
    if weight.numel() != 1:
        raise ValueError(f"PReLU with {weight.numel()} slopes: use one (num_parameters=1)")
    return Function("leaky_relu", float(weight))


def _clip(min: float | None = None, max: float | None = None) -> str | Function:
    if max is None and min == 0:
        return "relu"
    if not isinstance(min, (int, float)) or not isinstance(max, (int, float)):
        raise ValueError("clamp needs two numbers as its bounds")
    return Function("clip", float(min), float(max))


# options under the names that they have in torch.nn.functional and as attributes of the modules, in
# their order
ACTIVATIONS: dict[str, Callable[..., str | Function]] = {
    "relu": lambda: "relu",
    "tanh": lambda: "tanh",
    "sigmoid": lambda: "sigmoid",
    "leaky_relu": lambda negative_slope=0.01: Function("leaky_relu", negative_slope),
    "elu": lambda alpha=1.0: Function("elu", alpha),
    "celu": lambda alpha=1.0: Function("celu", alpha),
    "selu": lambda: Function("selu"),
    "gelu": _gelu,
    "silu": lambda: Function("swish", 1.0),
    "hardsigmoid": lambda: Function("hard_sigmoid", SIXTH, 0.5),
    "hardswish": lambda: Function("hard_swish"),
    "softplus": _softplus,
    "softsign": lambda: Function("softsign"),
    "relu6": lambda: Function("clip", 0.0, 6.0),
    "mish": lambda: Function("mish"),
    "threshold": _threshold,
    "hardtanh": lambda min_val=-1.0, max_val=1.0: Function("clip", float(min_val), float(max_val)),
    "prelu": _prelu,
    "rrelu": lambda lower=0.125, upper=1 / 3: Function("leaky_relu", (lower + upper) / 2),
    "clamp": _clip,
    "clip": _clip,
    "abs": lambda: Function("abs"),
    "erf": lambda: Function("erf"),
    "exp": lambda: Function("exp"),
}
ACTIVATION_MODULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ReLU": ("relu", ()),
    "Tanh": ("tanh", ()),
    "Sigmoid": ("sigmoid", ()),
    "LeakyReLU": ("leaky_relu", ("negative_slope",)),
    "ELU": ("elu", ("alpha",)),
    "CELU": ("celu", ("alpha",)),
    "SELU": ("selu", ()),
    "GELU": ("gelu", ("approximate",)),
    "SiLU": ("silu", ()),
    "Hardsigmoid": ("hardsigmoid", ()),
    "Hardswish": ("hardswish", ()),
    "Softplus": ("softplus", ("beta", "threshold")),
    "Softsign": ("softsign", ()),
    "ReLU6": ("relu6", ()),
    "Mish": ("mish", ()),
    "Threshold": ("threshold", ("threshold", "value")),
    "Hardtanh": ("hardtanh", ("min_val", "max_val")),
    "PReLU": ("prelu", ("weight",)),
    "RReLU": ("rrelu", ("lower", "upper")),
}


def _activation(name: str) -> Callable:
    def activation(
        walk: Walk,
        input: Signal,
        *args: Any,
        inplace: bool = False,
        training: bool = False,
        **options,
    ) -> Any:
        pending = getattr(input, "pending", None)
        if pending and (name, pending.stage) == ("tanh", "sum"):
            return replace(input, pending=replace(pending, stage="tanh"))
        walk.plain(input)
        try:
            function = ACTIVATIONS[name](*args, **options)
        except (TypeError, ValueError) as error:
            raise walk.refuse(str(error)) from error
        return walk.activate(input, function)

    return activation


def _activation_module(name: str, attributes: tuple[str, ...]) -> Callable:
    def activation(walk: Walk, module: torch.nn.Module, input: Signal) -> Signal:
        return _activation(name)(
            walk, input, **{attribute: getattr(module, attribute) for attribute in attributes}
        )

    return activation


for _name in ACTIVATIONS:
    operation(_name, "absolute" if _name == "abs" else _name)(_activation(_name))
for _class, (_name, _attributes) in ACTIVATION_MODULES.items():
    module(_class)(_activation_module(_name, _attributes))


@operation("softmax")
def softmax(
    walk: Walk, input: Signal, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Signal:
    """Over the features: an activation; over time: the weights of an attention."""
    if dim is None:
        raise walk.refuse("its axis is not given: say dim=")
    if "T" in getattr(input, "axes", ()) and input.axes[dim % len(input.axes)] == "T":
        return _time_weights(walk, input)
    walk.feature_axis(walk.plain(input), dim)
    return walk.scaled(input, 1.0, activation="softmax")


def _time_weights(walk: Walk, signal: Signal) -> Signal:
    pending = signal.pending
    if pending is None:
        walk.plain(signal)
        if signal.width != 1:
            raise walk.refuse(
                f"softmax over time of {signal.width} scores a step: one is supported"
            )
        pending = Pending("score", "scores", (signal.value,))
    if pending.stage != "scores":
        raise walk.refuse("softmax over time of something that is not one score a step")
    return replace(signal, pending=replace(pending, stage="weights"), state=None)


@module("Softmax")
def softmax_module(walk: Walk, module: torch.nn.Softmax, input: Signal) -> Signal:
    return softmax(walk, input, module.dim)


@operation("argmax")
def argmax(walk: Walk, input: Signal, dim: int | None = None, keepdim: bool = False) -> Signal:
    if dim is None:
        raise walk.refuse("over all axes at once: say dim=-1")
    at = walk.feature_axis(walk.plain(input), dim)
    y = walk.apply(ArgMax(walk.name, input.width), input)
    return y if keepdim else replace(y, axes=(*y.axes[:at], *y.axes[at + 1 :]))


@operation("glu")
def glu(walk: Walk, input: Signal, dim: int = -1) -> Signal:
    """The first half of the features, gated by the sigmoid of the second."""
    at, half = walk.feature_axis(input, dim), input.width // 2
    first, second = (
        walk.apply(Slice(f"{walk.name}.{k}", input.width, k * half, half), input, at=at)
        for k in range(2)
    )
    return walk.apply(Mul(walk.name, half), first, walk.activate(second, "sigmoid"))


@module("GLU")
def glu_module(walk: Walk, module: torch.nn.GLU, input: Signal) -> Signal:
    return glu(walk, input, module.dim)
