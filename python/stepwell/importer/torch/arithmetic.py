"""Sums, products, reductions, and the attention that is made of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from stepwell.importer.torch.activations import argmax
from stepwell.importer.torch.handlers import array, operation
from stepwell.importer.torch.layers import linear, over_time
from stepwell.importer.torch.plumbing import Largest, permute, unsqueeze
from stepwell.importer.torch.signals import Pending, Signal, Walk
from stepwell.layers import Add, Attention, Dense, MaxPool, Mul

# ---- sums ----


@operation("add", "iadd", "radd")
def add(walk: Walk, input: Any, other: Any, alpha: float = 1) -> Signal:
    return _sum(walk, input, other, (1.0, float(alpha)))


@operation("sub", "isub", "subtract")
def sub(walk: Walk, input: Any, other: Any, alpha: float = 1) -> Signal:
    return _sum(walk, input, other, (1.0, -float(alpha)))


@operation("rsub")
def rsub(walk: Walk, input: Any, other: Any, alpha: float = 1) -> Signal:
    return _sum(walk, other, input, (1.0, -float(alpha)))


def _sum(walk: Walk, a: Any, b: Any, weights: tuple[float, float]) -> Signal:
    """weights[0] * a + weights[1] * b, either may be a constant."""
    if not isinstance(a, Signal):
        return _shifted(walk, b, a, weights[1], weights[0])
    if not isinstance(b, Signal):
        return _shifted(walk, a, b, weights[0], weights[1])
    sum_over_time = _query_and_keys(walk, a, b, "sum") if weights == (1.0, 1.0) else None
    if sum_over_time:
        return sum_over_time
    a, b = _aligned(walk, a, b)
    return walk.apply(Add(walk.name, a.width, weights), a, b)


def _shifted(walk: Walk, signal: Signal, constant: Any, scale: float, weight: float) -> Signal:
    if (
        getattr(signal, "pending", None)
        and signal.pending.stage == "scores"
        and _constant(walk, constant).size == 1
    ):
        return signal  # a constant changes no softmax
    signal, values = _with_constant(walk, signal, constant)
    return walk.scaled(signal, scale, weight * values)


# ---- products ----


@operation("mul", "imul", "rmul", "multiply")
def mul(walk: Walk, input: Any, other: Any) -> Signal:
    if not isinstance(input, Signal):
        input, other = other, input
    if not isinstance(other, Signal):
        return _scaled(walk, input, other)
    product = _weighted(walk, input, other) or _weighted(walk, other, input)
    product = product or _query_and_keys(walk, input, other, "product")
    if product:
        return product
    a, b = _aligned(walk, input, other)
    return walk.apply(Mul(walk.name, a.width), a, b)


@operation("div", "truediv", "itruediv", "divide", "true_divide")
def div(walk: Walk, input: Any, other: Any, rounding_mode: str | None = None) -> Signal:
    if rounding_mode:
        raise walk.refuse("rounds: leave rounding_mode out")
    if isinstance(input, Signal) and not isinstance(other, Signal):
        divisor = _constant(walk, other)
        if not divisor.all():
            raise walk.refuse("divides by zero")
        return _scaled(walk, input, 1.0 / divisor)
    raise walk.refuse(
        "divides by data: a device has no division; multiply by a constant, or use softmax or "
        "sigmoid"
    )


@operation("neg", "negative")
def neg(walk: Walk, input: Signal) -> Signal:
    return walk.scaled(input, -1.0)


@operation("pow", "ipow")
def power(walk: Walk, input: Signal, exponent: Any) -> Signal:
    if exponent != 2 or not isinstance(input, Signal):
        raise walk.refuse(f"to the power of {exponent}: squares are supported")
    return walk.apply(Mul(walk.name, input.width), input, input)


@operation("square")
def square(walk: Walk, input: Signal) -> Signal:
    return power(walk, input, 2)


def _scaled(walk: Walk, signal: Signal, constant: Any) -> Signal:
    pending = getattr(signal, "pending", None)
    values = _constant(walk, constant)
    if pending and pending.stage == "scores" and values.size == 1:
        return replace(signal, pending=replace(pending, scale=pending.scale * values.item()))
    signal, values = _with_constant(walk, signal, constant)
    return walk.scaled(signal, values)


@operation("matmul", "mm", "bmm")
def matmul(walk: Walk, input: Any, other: Any) -> Signal:
    """A signal times a constant matrix; or the products of an attention."""
    if isinstance(input, Signal) and isinstance(other, torch.Tensor) and other.ndim == 2:
        return linear(walk, input, other.mT)
    if isinstance(input, Signal) and isinstance(other, Signal):
        product = _context(walk, input, other) or _dot(walk, input, other)
        if product:
            return product
        turned = [_turned(walk, signal) for signal in (other, input)]
        product = _context(walk, *turned) or _dot(walk, *turned)
        if product:
            return _turned(walk, product)
    raise walk.refuse(
        "a product of two signals that is no attention with one query: weights over time [batch, "
        "1, time] times values, "
        "or the last state times keys"
    )


@operation("rmatmul")
def rmatmul(walk: Walk, input: Any, other: Any) -> Signal:
    return matmul(walk, other, input)


def _turned(walk: Walk, signal: Signal) -> Signal:
    axes = signal.axes
    return (
        permute(walk, signal, [*range(len(axes) - 2), len(axes) - 1, len(axes) - 2])
        if len(axes) > 1
        else signal
    )


# ---- bringing two operands together ----


def _constant(walk: Walk, value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        return array(value)
    if isinstance(value, (int, float, np.ndarray, np.number)):
        return np.asarray(value, np.float64)
    walk.plain(value)
    raise walk.refuse(f"arithmetic with a {type(value).__name__}")


def _with_constant(walk: Walk, signal: Signal, constant: Any) -> tuple[Signal, np.ndarray]:
    """The signal, as wide as both, and the constant's value for each feature (or one for all)."""
    walk.plain(signal)
    values = _constant(walk, constant)
    if values.size == 1:
        return signal, values.reshape(())
    if values.ndim > len(signal.axes):
        raise walk.refuse(
            f"arithmetic of {walk.described_axes(signal)} with a constant {list(values.shape)}"
        )
    offset = len(signal.axes) - values.ndim
    at = None
    for k in range(values.ndim):
        axis, size = signal.axes[k + offset], values.shape[k]
        if size == 1:
            continue
        if axis not in ("", "F") or at is not None:
            if np.ptp(values, axis=k).any():
                raise walk.refuse(
                    "a constant that changes over time or batch: only over the features"
                )
            values = values.take([0], axis=k)
        else:
            at = k + offset
    if at is not None and signal.width == 1:
        signal = _replicated(walk, signal, values.size, at)
    if values.size not in (1, signal.width):
        walk.width_differs(signal, values.size)
    return signal, values.reshape(-1) if values.size > 1 else values.reshape(())


def _replicated(walk: Walk, signal: Signal, width: int, at: int) -> Signal:
    """One value, ``width`` times."""
    layer = Dense(f"{walk.name}.repeat", np.ones((width, 1)), np.zeros(width))
    return walk.apply(layer, signal, at=at)


def _aligned(walk: Walk, a: Signal, b: Signal) -> tuple[Signal, Signal]:
    """Both with the same axes and width."""
    a, b = (walk.plain(signal) for signal in (a, b))
    a, b = _same_rank(walk, a, b)
    for k in range(len(a.axes)):
        if (a.axes[k], b.axes[k]) == ("F", "") and b.width == 1:
            b = _replicated(walk, b, a.width, k)
        if (a.axes[k], b.axes[k]) == ("", "F") and a.width == 1:
            a = _replicated(walk, a, b.width, k)
    if a.width != b.width and not walk.n_in_known:
        walk.width_differs(max(a, b, key=lambda signal: signal.width), min(a.width, b.width))
    if a.axes != b.axes or a.width != b.width:
        raise walk.refuse(
            f"joins {walk.described_axes(a)} and {walk.described_axes(b)} of {a.width} and "
            f"{b.width} values: "
            "both at every step or both at the last, and equally wide"
        )
    if (a.length, a.last) != (b.length, b.last):
        raise walk.refuse("joins timesteps that are shifted against each other")
    return a, b


def _same_rank(walk: Walk, a: Signal, b: Signal) -> tuple[Signal, Signal]:
    while len(a.axes) < len(b.axes):
        a = unsqueeze(walk, a, 0)
    while len(b.axes) < len(a.axes):
        b = unsqueeze(walk, b, 0)
    return a, b


# ---- reductions ----


@operation("mean")
def mean(
    walk: Walk, input: Signal, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Signal:
    return _reduced(walk, input, dim, keepdim, "mean")


@operation("sum")
def total(
    walk: Walk, input: Signal, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Signal:
    return _reduced(walk, input, dim, keepdim, "sum")


@operation("amax")
def amax(walk: Walk, input: Signal, dim: Any = None, keepdim: bool = False) -> Signal:
    return _reduced(walk, input, dim, keepdim, "max")


@operation("max")
def largest(walk: Walk, input: Signal, dim: Any = None, keepdim: bool = False) -> Largest:
    values = _reduced(walk, input, dim, keepdim, "max")
    over_features = input.axes[dim % len(input.axes)] != "T"
    return Largest(values, argmax(walk, input, dim, keepdim) if over_features else None)


def _reduced(walk: Walk, signal: Any, dim: Any, keepdim: bool, kind: str) -> Signal:
    if isinstance(dim, (tuple, list)) and len(dim) == 1:
        dim = dim[0]
    if not isinstance(signal, Signal) or not isinstance(dim, int):
        raise walk.refuse(
            f"{kind} over several axes at once, or of what is not data: reduce one axis, dim="
        )
    dim %= len(signal.axes)
    axes = (*signal.axes[:dim], *([""] if keepdim else []), *signal.axes[dim + 1 :])
    if signal.pending:
        return _reduced_pending(walk, signal, dim, axes, kind)
    if signal.axes[dim] == "T":
        return over_time(walk, signal, dim, kind, keepdim)
    walk.feature_axis(signal, dim)
    n = signal.width
    if kind == "max":
        return replace(walk.apply(MaxPool(walk.name, n, n), signal), axes=axes)
    weight = np.full((1, n), 1.0 / n if kind == "mean" else 1.0)
    return replace(walk.apply(Dense(walk.name, weight, np.zeros(1)), signal), axes=axes)


# ---- attention: scores -> softmax over time -> weighted sum ----


def _reduced_pending(
    walk: Walk, signal: Signal, dim: int, axes: tuple[str, ...], kind: str
) -> Signal:
    pending, along = signal.pending, signal.axes[dim]
    if (kind, pending.stage, along) == ("sum", "weighted", "T"):
        return replace(_attention(walk, signal), axes=axes)
    if (kind, pending.stage, along) == ("sum", "product", "F"):
        return replace(signal, pending=replace(pending, stage="scores"), width=1, axes=axes)
    return walk.plain(signal)


def _attention(walk: Walk, signal: Signal) -> Signal:
    """The layer, once the weighted values are summed: the context at the last step."""
    if walk.steps is None:
        raise walk.refuse("attends to the whole window: give its length, steps=")
    pending = signal.pending
    layer = Attention(
        walk.name,
        pending.form,
        signal.length,
        pending.key_width,
        signal.width,
        pending.scale,
        pending.weight,
    )
    value = walk.emit(layer, *pending.values)
    return replace(signal, value=value, pending=None, last=not walk.one_step, state=None)


def _weighted(walk: Walk, weights: Signal, values: Signal) -> Signal | None:
    """weights [B, T, 1] * values [B, T, F]"""
    if not weights.pending or weights.pending.stage != "weights" or values.pending:
        return None
    weights, values = _same_rank(walk, weights, walk.plain(values))
    shapes = tuple(axis.replace("F", "") for axis in values.axes)
    if weights.axes != shapes or weights.length != values.length:
        return None
    pending = weights.pending
    pending = replace(pending, stage="weighted", values=(*pending.values, values.value))
    return replace(values, pending=pending, state=None)


def _context(walk: Walk, weights: Signal, values: Signal) -> Signal | None:
    """weights [B, 1, T] @ values [B, T, F] -> [B, 1, F]"""
    if not weights.pending or weights.pending.stage != "weights" or values.pending:
        return None
    if weights.axes[-1:] != ("T",) or values.axes[-2:-1] != ("T",):
        return None
    rows = [axis for axis in weights.axes[:-1] if axis != "B"]
    weights = replace(weights, axes=values.axes if values.width == 1 else (*values.axes[:-1], ""))
    if any(rows):
        return None
    weighted = _weighted(walk, weights, values)
    if weighted is None:
        return None
    summed = _attention(walk, weighted)
    return replace(summed, axes=(*values.axes[:-2], "", values.axes[-1]))


def _query_and_keys(walk: Walk, a: Signal, b: Signal, stage: str) -> Signal | None:
    """The last state [B, 1, F] with a sequence [B, T, F]: the beginning of additive or of
    dot-product attention.
    """
    a, b = _same_rank(walk, a, b)
    query, keys = (a, b) if "T" in b.axes else (b, a)
    if query.pending or keys.pending or not query.last or keys.last or query.width != keys.width:
        return None
    if tuple(axis.replace("T", "") for axis in keys.axes) != query.axes:
        return None
    values = (walk.plain(query).value, walk.plain(keys).value)
    pending = Pending("additive" if stage == "sum" else "dot", stage, values, keys.width)
    return replace(keys, pending=pending, state=None)


def _dot(walk: Walk, query: Signal, keys: Signal) -> Signal | None:
    """query [B, 1, F] @ keys [B, F, T] -> scores [B, 1, T]"""
    if (
        not query.last
        or keys.last
        or len(query.axes) != len(keys.axes)
        or query.pending
        or keys.pending
    ):
        return None
    if query.axes[-1] != "F" or keys.axes[-2:] != ("F", "T") or query.axes[-2] != "":
        return None
    if query.axes[:-2] != keys.axes[:-2] or query.width != keys.width:
        return None
    pending = Pending(
        "dot", "scores", (walk.plain(query).value, walk.plain(keys).value), keys.width
    )
    return replace(keys, pending=pending, width=1, axes=(*keys.axes[:-2], "", "T"), state=None)
