"""Linear, convolution, pooling, norms and embedding: as modules and as functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from stepwell.importer.pooling import mean_over
from stepwell.importer.torch.handlers import array, module, operation
from stepwell.importer.torch.signals import Signal, Walk, described
from stepwell.layers import Dense, Embedding, LayerNorm, MaxPool, Window

# ---- what eval semantics drops ----


@operation(
    "dropout",
    "alpha_dropout",
    "feature_alpha_dropout",
    "contiguous",
    "clone",
    "detach",
    "to",
    "type",
    "type_as",
)
@operation("float", "double", "half", "cpu", "cuda", "requires_grad", "long", "int")
def same(walk: Walk, input: Any, *args: Any, **options: Any) -> Any:
    return input


@module("Dropout", "Dropout1d", "AlphaDropout", "FeatureAlphaDropout", "Identity")
def same_module(walk: Walk, module: torch.nn.Module, input: Any) -> Any:
    return input


# ---- products ----


@operation("linear")
def linear(
    walk: Walk, input: Signal, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> Signal:
    """``weight`` [n_out, n_in] on the last axis."""
    w, b = constants(walk, weight, bias)
    b = np.zeros(len(w)) if b is None else b
    if (
        isinstance(input, Signal)
        and input.pending
        and input.pending.stage == "tanh"
        and len(w) == 1
    ):
        pending = replace(input.pending, stage="scores", weight=w[0])  # the bias changes no softmax
        return replace(input, pending=pending, width=1)
    walk.plain(input)
    if input.axes and input.axes[-1] in (("T",) if input.width == 1 else ("TF", "FT")):
        return _linear_over_window(walk, input, w, b)
    at = walk.feature_axis(input, -1, w.shape[1])
    return walk.apply(Dense(walk.name, w, b), input, at=at)


def _linear_over_window(walk: Walk, signal: Signal, w: np.ndarray, b: np.ndarray) -> Signal:
    """A Linear on the flattened sequence: the last ``steps`` steps and their features at once."""
    taps = w.shape[1] // signal.width
    if walk.steps is None or signal.length * signal.width != w.shape[1]:
        raise walk.refuse(
            f"reads a flattened window of {taps} steps at once: give its length, steps={taps}, or "
            "read out the last step"
        )
    if signal.axes[-1] == "TF":
        w = w.reshape(len(w), taps, signal.width).swapaxes(1, 2).reshape(len(w), -1)
    at = len(signal.axes) - 1
    seen = last_steps(walk, signal, at)
    seen = replace(seen, axes=(*seen.axes[:at], "F", *seen.axes[at:]))
    return walk.apply(Dense(walk.name, w, b), seen, at=at)


def last_steps(walk: Walk, signal: Signal, at: int) -> Signal:
    """All of a window of fixed length [width * steps, channel by channel] at its last step; axis
    ``at`` (time) is gone.
    """
    steps = signal.length
    walk.note(
        f"{walk.where} reads all {steps} steps of the window: in the stream the last {steps}, "
        "zeros before a reset"
    )
    return walk.take_last(walk.window(signal, steps, left=steps - 1), at)


@module("Linear")
def linear_module(walk: Walk, module: torch.nn.Linear, input: Signal) -> Signal:
    return linear(walk, input, module.weight, module.bias)


@operation("conv1d")
def conv1d(
    walk: Walk,
    input: Signal,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Signal:
    """``weight`` [n_out, n_in / groups, taps] on [B, n_in, T]."""
    w, b = constants(walk, weight, bias)
    taps, stride, dilation = w.shape[2], one(stride), one(dilation)
    walk.plain(input, may_lead=True)
    walk.time_axis(input, 2)
    at = walk.feature_axis(input, 1, w.shape[1] * groups)
    total = (taps - 1) * dilation
    if isinstance(padding, str):
        left, right = (total // 2, total - total // 2) if padding == "same" else (0, 0)
    else:
        left = right = one(padding)
    seen = walk.window(input, taps, stride, dilation, left, right)
    b = np.zeros(len(w)) if b is None else b
    return walk.apply(Dense(walk.name, w.reshape(len(w), -1), b, groups=groups), seen, at=at)


@module("Conv1d")
def conv1d_module(walk: Walk, module: torch.nn.Conv1d, input: Signal) -> Signal:
    if module.padding_mode != "zeros" and module.padding not in ((0,), "valid"):
        raise walk.refuse(
            f"padding_mode '{module.padding_mode}' needs steps that a stream does not have: pad "
            "zeros"
        )
    options = module.stride, module.padding, module.dilation, module.groups
    return conv1d(walk, input, module.weight, module.bias, *options)


# ---- pooling over time ----


def _pooled(
    walk: Walk, signal: Signal, kernel: Any, stride: Any, padding: Any, dilation: Any = 1
) -> tuple[Window, Signal]:
    walk.plain(signal, may_lead=True)
    walk.time_axis(signal, 2)
    walk.feature_axis(signal, 1)
    pad, stride = one(padding), one(kernel if stride in (None, ()) else stride)
    return walk.looking(signal, one(kernel), stride, one(dilation), pad, pad)


def _largest(walk: Walk, signal: Signal, width: int, taps: int) -> Signal:
    return replace(walk.apply(MaxPool(walk.name, width * taps, taps), signal), width=width)


def _mean(walk: Walk, signal: Signal, width: int, taps: int, scale: float) -> Signal:
    layer = Dense(walk.name, np.full((width, taps), scale), np.zeros(width), groups=width)
    return walk.apply(layer, signal)


@operation("max_pool1d")
def max_pool1d(
    walk: Walk,
    input: Signal,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Signal:
    if ceil_mode or return_indices:
        raise walk.refuse("ceil_mode and return_indices cannot be streamed: leave them out")
    if one(padding) and (input.lead or input.trail):
        raise walk.refuse("pads with minus infinity what zeros were padded to before: pad once")
    window, seen = _pooled(walk, input, kernel_size, stride, padding, dilation)
    if one(padding):
        window = replace(window, lowest=True, least=window.span if window.dilation > 1 else 1)
    value = walk.emit(window, input.value)
    return _largest(walk, replace(seen, value=value), input.width, window.taps)


@module("MaxPool1d")
def max_pool1d_module(walk: Walk, module: torch.nn.MaxPool1d, input: Signal) -> Signal:
    options = module.kernel_size, module.stride, module.padding, module.dilation
    return max_pool1d(walk, input, *options, module.ceil_mode, module.return_indices)


@operation("avg_pool1d")
def avg_pool1d(
    walk: Walk,
    input: Signal,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Signal:
    if ceil_mode:
        raise walk.refuse("ceil_mode cannot be streamed: leave it out")
    if one(padding) and not count_include_pad and (input.lead or input.trail):
        raise walk.refuse(
            "leaves its own padding out of the mean and counts the zeros padded before: pad once"
        )
    window, seen = _pooled(walk, input, kernel_size, stride, padding)
    counts = count_include_pad or not one(padding)
    return replace(seen, value=mean_over(walk.emit, walk.name, input.value, window, counts))


@module("AvgPool1d")
def avg_pool1d_module(walk: Walk, module: torch.nn.AvgPool1d, input: Signal) -> Signal:
    options = module.kernel_size, module.stride, module.padding
    return avg_pool1d(walk, input, *options, module.ceil_mode, module.count_include_pad)


def over_time(walk: Walk, signal: Signal, at: int, kind: str, keepdim: bool) -> Signal:
    """The mean, sum or largest value over all of a window of fixed length."""
    walk.plain(signal)
    if walk.steps is None:
        raise walk.refuse(
            f"{kind} over all of time needs windows of a fixed length: give it (steps=), or read "
            "out the last step"
        )
    axes = (*signal.axes[:at], *([""] if keepdim else []), *signal.axes[at + 1 :])
    seen = last_steps(walk, signal, at)
    if kind == "max":
        y = _largest(walk, seen, signal.width, signal.length)
    else:
        y = _mean(
            walk, seen, signal.width, signal.length, 1.0 / signal.length if kind == "mean" else 1.0
        )
    return replace(y, axes=axes, width=signal.width)


def _adaptive(kind: str) -> Callable:
    def pool(walk: Walk, input: Signal, output_size: Any, return_indices: bool = False) -> Signal:
        if one(output_size) != 1 or return_indices:
            raise walk.refuse(
                "adaptive pooling to more than one step cannot be streamed: use MaxPool1d or "
                "AvgPool1d"
            )
        return over_time(walk, input, walk.time_axis(input, 2), kind, keepdim=True)

    return pool


def _adaptive_module(kind: str) -> Callable:
    def pool(walk: Walk, module: torch.nn.Module, input: Signal) -> Signal:
        return _adaptive(kind)(walk, input, module.output_size)

    return pool


operation("adaptive_avg_pool1d")(_adaptive("mean"))
operation("adaptive_max_pool1d")(_adaptive("max"))
module("AdaptiveAvgPool1d")(_adaptive_module("mean"))
module("AdaptiveMaxPool1d")(_adaptive_module("max"))


# ---- padding ----


@operation("pad")
def pad(
    walk: Walk, input: Signal, pad: Any, mode: str = "constant", value: float | None = None
) -> Signal:
    """Zeros before or after the sequence, for the convolution that follows; a negative one at the
    end crops.
    """
    walk.plain(input, may_lead=True)
    pads = [tuple(pad[k : k + 2]) for k in range(0, len(pad), 2)]
    moved = [(len(input.axes) - 1 - k, amounts) for k, amounts in enumerate(pads) if any(amounts)]
    if not moved:
        return input
    if mode != "constant" or value not in (None, 0) or len(moved) > 1:
        raise walk.refuse("only zeros, and only along time, can be padded in a stream")
    axis, (left, right) = moved[0]
    walk.time_axis(input, axis)
    if left < 0:
        raise walk.refuse("it cuts timesteps off, which a stream cannot")
    input = walk.cropped(input, -right) if right < 0 else replace(input, trail=input.trail + right)
    length = input.length + left + max(right, 0)
    return replace(input, length=length, lead=input.lead + left, state=None)


@module("ConstantPad1d", "ZeroPad1d")
def pad_module(walk: Walk, module: torch.nn.ConstantPad1d, input: Signal) -> Signal:
    return pad(walk, input, module.padding, value=getattr(module, "value", 0))


# ---- norms, embedding ----


@operation("batch_norm")
def batch_norm(
    walk: Walk,
    input: Signal,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Signal:
    """On [B, C] or [B, C, T], with the running statistics."""
    if running_mean is None or running_var is None:
        raise walk.refuse(
            "normalises by the batch at hand, which a stream does not have: "
            "track_running_stats=True"
        )
    mean, var, gamma, beta = constants(walk, running_mean, running_var, weight, bias)
    walk.feature_axis(walk.plain(input), 1, len(mean))
    scale = (1.0 if gamma is None else gamma) / np.sqrt(var + eps)
    return walk.scaled(input, scale, (0.0 if beta is None else beta) - mean * scale)


@module("BatchNorm1d")
def batch_norm_module(walk: Walk, module: torch.nn.BatchNorm1d, input: Signal) -> Signal:
    return batch_norm(
        walk,
        input,
        module.running_mean,
        module.running_var,
        module.weight,
        module.bias,
        eps=module.eps,
    )


@operation("layer_norm")
def layer_norm(
    walk: Walk,
    input: Signal,
    normalized_shape: Any,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> Signal:
    if len(normalized_shape) != 1:
        raise walk.refuse("normalises over time: over the features of one step is supported")
    n = normalized_shape[0]
    walk.feature_axis(walk.plain(input), -1, n)
    gamma, beta = constants(walk, weight, bias)
    layer = LayerNorm(
        walk.name,
        np.ones(n) if gamma is None else gamma,
        np.zeros(n) if beta is None else beta,
        eps,
    )
    return walk.apply(layer, input)


@module("LayerNorm")
def layer_norm_module(walk: Walk, module: torch.nn.LayerNorm, input: Signal) -> Signal:
    return layer_norm(walk, input, module.normalized_shape, module.weight, module.bias, module.eps)


@operation("embedding")
def embedding(
    walk: Walk, input: Signal, weight: torch.Tensor, padding_idx: int | None = None, *options: Any
) -> Signal:
    """[B, T] tokens -> [B, T, width]."""
    (table,) = constants(walk, weight)
    walk.plain(input)
    if input.value != 0:
        raise walk.refuse("an embedding must read the model's input, the tokens")
    if input.width != 1:
        raise walk.refuse("takes one token at each step: give the module tokens [batch, time]")
    at = len(input.axes)
    return walk.apply(Embedding(walk.name, table), replace(input, axes=(*input.axes, "")), at=at)


@module("Embedding")
def embedding_module(walk: Walk, module: torch.nn.Embedding, input: Signal) -> Signal:
    if module.max_norm is not None:
        raise walk.refuse("max_norm changes the table while it runs: leave it out")
    return embedding(walk, input, module.weight)


def constants(walk: Walk, *tensors: Any) -> list[np.ndarray | None]:
    """Weights as arrays."""
    for tensor in tensors:
        if tensor is not None and not isinstance(tensor, torch.Tensor):
            raise walk.refuse(f"{described(tensor)} is used as a weight: weights must be constants")
    return [None if tensor is None else array(tensor) for tensor in tensors]


def one(size: Any) -> int:
    """(3,) or 3 -> 3"""
    return int(size[0] if isinstance(size, (tuple, list)) else size)
