"""What moves data without computing: axes, shapes, slices, concatenation."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch

from stepwell.importer.torch.handlers import array, module, operation
from stepwell.importer.torch.signals import BATCH, Signal, Stack, StateArgument, Walk
from stepwell.layers import Concat, Slice

# ---- what a tensor tells about itself ----


@operation("getattr")
def attribute(walk: Walk, input: Any, name: str) -> Any:
    if name in ("shape", "ndim"):
        shape = size(walk, input)
        return shape if name == "shape" else len(shape)
    if name in ("T", "mT"):
        return transpose(walk, input, -1, -2)
    if name in ("data", "real"):
        return input
    return {"dtype": torch.float64, "device": torch.device("cpu")}.get(name, False)


@operation("size")
def size(walk: Walk, input: Any, dim: int | None = None) -> Any:
    if isinstance(input, StateArgument):
        raise walk.refuse(f"the size of argument '{input.path[0]}' is not known: take the input's")
    shape = torch.Size(_stack_shape(walk, input) if isinstance(input, Stack) else input.shape)
    return shape if dim is None else shape[dim]


@operation("dim", "ndimension")
def rank(walk: Walk, input: Any) -> int:
    return len(size(walk, input))


@operation("numel", "nelement")
def numel(walk: Walk, input: Any) -> int:
    return prod(size(walk, input))


@operation("is_floating_point")
def is_floating_point(walk: Walk, input: Any) -> bool:
    return True


@operation("get_device")
def get_device(walk: Walk, input: Any) -> int:
    return -1


def _new(name: str) -> None:
    @operation(f"new_{name}", f"{name}_like")
    def make(walk: Walk, input: Any, *shape: Any, **options: Any) -> torch.Tensor:
        if not shape:
            shape = (size(walk, input),)
        return getattr(torch, name)(*shape)


for _name in ("zeros", "ones"):
    _new(_name)


# ---- axes ----


@operation("transpose", "swapaxes", "swapdims")
def transpose(walk: Walk, input: Any, dim0: int, dim1: int) -> Any:
    order = list(range(rank(walk, input)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return permute(walk, input, order)


@operation("permute")
def permute(walk: Walk, input: Any, *dims: Any) -> Any:
    n_axes = rank(walk, input)
    order = [d % n_axes for d in _flat(dims)]
    if isinstance(input, Stack):
        if order == [0, 1, 2]:
            return input
        if order != [1, 0, 2] or input.grid:
            raise walk.refuse(
                "the final states of several layers in an order that is not known: take h_n[-1]"
            )
        return replace(input, turned=not input.turned, state=None)
    return replace(_signal(walk, input), axes=tuple(input.axes[d] for d in order), state=None)


@operation("t")
def t(walk: Walk, input: Any) -> Any:
    return transpose(walk, input, 0, 1)


@operation("movedim", "moveaxis")
def movedim(walk: Walk, input: Any, source: int, destination: int) -> Any:
    order = [d for d in range(rank(walk, input)) if d != source % rank(walk, input)]
    order.insert(destination % rank(walk, input), source % rank(walk, input))
    return permute(walk, input, order)


@operation("squeeze")
def squeeze(walk: Walk, input: Any, dim: Any = None) -> Any:
    if isinstance(input, Stack):
        return pick(walk, input, 0) if len(input.parts) == 1 and dim in (0, None) else input
    wanted = (
        range(len(_signal(walk, input).axes))
        if dim is None
        else [d % len(input.axes) for d in _flat((dim,))]
    )
    axes = tuple(axis for k, axis in enumerate(input.axes) if axis or k not in wanted)
    return replace(input, axes=axes, state=None)


@operation("unsqueeze")
def unsqueeze(walk: Walk, input: Signal, dim: int) -> Signal:
    axes = list(_signal(walk, input).axes)
    axes.insert(dim % (len(axes) + 1), "")
    return replace(input, axes=tuple(axes), state=None)


@operation("view", "reshape", "view_as", "reshape_as")
def view(walk: Walk, input: Any, *shape: Any) -> Any:
    shape = list(_flat(shape))
    if len(shape) == 1 and isinstance(shape[0], torch.dtype):
        return input
    if isinstance(input, Stack):
        return _view_of_stack(walk, input, shape)
    _signal(walk, input)
    total = prod(input.shape)
    if -1 in shape:
        shape[shape.index(-1)] = total // max(-prod(shape), 1)
    if prod(shape) != total:
        raise walk.refuse(_cut(walk, input, shape))
    atoms = list("".join(input.axes))
    axes = []
    for wanted in shape:
        taken = ""
        while atoms and input.size_of(taken) < wanted:
            taken += atoms.pop(0)
        if input.size_of(taken) != wanted:
            raise walk.refuse(_cut(walk, input, shape))
        axes.append(taken)
    return replace(input, axes=tuple(axes), state=None)


def _cut(walk: Walk, signal: Signal, shape: list[int]) -> str:
    return (
        f"a view of {walk.described_axes(signal)} {list(signal.shape)} as {shape} cuts through an "
        "axis: use slices or torch.chunk over the features; where it holds the length of the "
        "window, give steps="
    )


@operation("flatten")
def flatten(walk: Walk, input: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    shape = list(size(walk, input))
    start, end = start_dim % len(shape), end_dim % len(shape)
    return view(walk, input, [*shape[:start], prod(shape[start : end + 1]), *shape[end + 1 :]])


@module("Flatten")
def flatten_module(walk: Walk, module: torch.nn.Flatten, input: Any) -> Any:
    return flatten(walk, input, module.start_dim, module.end_dim)


@operation("expand", "broadcast_to", "repeat", "expand_as")
def expand(walk: Walk, input: Signal, *shape: Any) -> Signal:
    sizes = _flat(shape)
    _signal(walk, input)
    if all(wanted in (-1, 1, have) for wanted, have in zip(sizes, input.shape, strict=False)):
        return input
    raise walk.refuse(
        "repeats a vector over an axis: where it is an attention's query, let it broadcast instead"
    )


# ---- slices ----


@operation("getitem")
def getitem(walk: Walk, input: Any, index: Any) -> Any:
    if isinstance(input, StateArgument):
        if not isinstance(index, (int, str)):
            raise walk.refuse(
                f"argument '{input.path[0]}' is sliced: hand in each layer's state by itself"
            )
        return StateArgument((*input.path, index))
    index = list(index) if isinstance(index, tuple) else [index]
    if isinstance(input, Stack):
        return _item_of_stack(walk, input, index)
    signal, at = _signal(walk, input), 0
    for item in _without_ellipsis(index, len(signal.axes)):
        if item is None:
            signal, at = unsqueeze(walk, signal, at), at + 1
        elif isinstance(item, slice):
            signal, at = _sliced(walk, signal, at, item), at + 1
        elif isinstance(item, int):
            signal = _picked(walk, signal, at, item)
        else:
            raise walk.refuse(f"an index that is {type(item).__name__}: use integers and slices")
    return signal


def _without_ellipsis(index: list, n_axes: int) -> list:
    if not any(item is Ellipsis for item in index):
        return index
    place = next(k for k, item in enumerate(index) if item is Ellipsis)
    n_named = sum(item is not None and item is not Ellipsis for item in index)
    return [*index[:place], *[slice(None)] * (n_axes - n_named), *index[place + 1 :]]


def _picked(walk: Walk, signal: Signal, at: int, item: int) -> Signal:
    """One place of an axis, which disappears."""
    if at >= len(signal.axes):
        raise walk.refuse(f"more indices than {walk.described_axes(signal)} has axes")
    axis, length = signal.axes[at], signal.shape[at]
    if not -length <= item < length:
        raise walk.refuse(
            f"index {item} of an axis of {length}: where it depends on the window's length, give "
            "steps="
        )
    if axis == "T" and item % length == length - 1:
        return walk.take_last(signal, at)
    if axis == "T":
        raise walk.refuse(
            f"takes timestep {item} out of the sequence: a stream can read every step or the last "
            "one; write loops over time as nn.LSTM / nn.GRU / nn.RNN, or give a module whose "
            "forward is one step (x, state)"
        )
    if axis == "F":
        signal = walk.apply(Slice(walk.name, signal.width, item % length, 1), signal)
    elif axis:
        raise walk.refuse(
            f"takes item {item} out of {walk.described_axes(signal)}, axis {at}: only time and "
            "features"
        )
    return replace(signal, axes=(*signal.axes[:at], *signal.axes[at + 1 :]), state=None)


def _sliced(walk: Walk, signal: Signal, at: int, item: slice) -> Signal:
    if at >= len(signal.axes):
        raise walk.refuse(f"more indices than {walk.described_axes(signal)} has axes")
    axis, length = signal.axes[at], signal.shape[at]
    start, stop, step = item.indices(length)
    if (start, stop, step) == (0, length, 1):
        return signal
    if step != 1 or stop <= start:
        raise walk.refuse(f"slice {start}:{stop}:{step} of {length}: only contiguous ones")
    if axis == "F":
        return walk.apply(Slice(walk.name, length, start, stop - start), signal, at=at)
    if axis == "T" and (start, stop) == (length - 1, length):
        last = walk.take_last(signal, None)
        return replace(last, axes=(*signal.axes[:at], "", *signal.axes[at + 1 :]))
    if axis == "T" and start == 0:
        return walk.cropped(signal, length - stop)
    raise walk.refuse(
        f"cuts {start}:{stop} out of {walk.described_axes(signal)}, axis {at}: a stream reads "
        "every step or the last one"
    )


@operation("select")
def select(walk: Walk, input: Any, dim: int, index: int) -> Any:
    return getitem(walk, input, (*[slice(None)] * (dim % rank(walk, input)), index))


@operation("narrow")
def narrow(walk: Walk, input: Any, dim: int, start: int, length: int) -> Any:
    return getitem(
        walk, input, (*[slice(None)] * (dim % rank(walk, input)), slice(start, start + length))
    )


@operation("chunk")
def chunk(walk: Walk, input: Signal, chunks: int, dim: int = 0) -> tuple:
    return split(walk, input, -(-size(walk, input, dim) // chunks), dim)


@operation("split", "split_with_sizes", "tensor_split")
def split(walk: Walk, tensor: Signal, split_size_or_sections: Any, dim: int = 0) -> tuple:
    total, sizes = size(walk, tensor, dim), split_size_or_sections
    if isinstance(sizes, int):
        sizes = [min(sizes, total - start) for start in range(0, total, sizes)]
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    return tuple(
        narrow(walk, tensor, dim, start, n) for start, n in zip(starts, sizes, strict=True)
    )


@operation("unbind")
def unbind(walk: Walk, input: Any, dim: int = 0) -> tuple:
    return tuple(select(walk, input, dim, k) for k in range(size(walk, input, dim)))


# ---- concatenation ----


@operation("cat", "concat", "concatenate", "hstack")
def cat(walk: Walk, tensors: Any, dim: int = 0, axis: int | None = None) -> Signal:
    """Over the features; zeros before a sequence are a padding."""
    dim = dim if axis is None else axis
    first, *others = tensors
    if isinstance(first, torch.Tensor) and len(others) == 1 and not array(first).any():
        return _zeros_before(walk, others[0], first, dim)
    for signal in tensors:
        walk.feature_axis(walk.plain(signal), dim)
    at = dim % len(first.axes)
    for signal in others:
        frames = [(*s.axes[:at], *s.axes[at + 1 :]) for s in (first, signal)]
        if frames[0] != frames[1] or (first.length, first.last) != (signal.length, signal.last):
            raise walk.refuse(
                f"joins {walk.described_axes(first)} and {walk.described_axes(signal)}: all at "
                "every step, or all at the last"
            )
        first = walk.apply(Concat(walk.name, (first.width, signal.width)), first, signal, at=at)
    return first


def _zeros_before(walk: Walk, signal: Signal, zeros: torch.Tensor, dim: int) -> Signal:
    walk.plain(signal, may_lead=True)
    walk.time_axis(signal, dim)
    n = zeros.shape[dim]
    return replace(signal, length=signal.length + n, lead=signal.lead + n, state=None)


# ---- the final states of several layers ----


def pick(walk: Walk, stack: Stack, index: int) -> Signal:
    """One of them, as [B, H] after the last step."""
    if not stack.parts:
        raise walk.refuse("reads a cell state, which no layer gives as its output: read h_n")
    if not -len(stack.parts) <= index < len(stack.parts):
        raise walk.refuse(f"state {index} of {len(stack.parts)}")
    return walk.take_last(stack.parts[index], None)


def _stack_shape(walk: Walk, stack: Stack) -> tuple[int, ...]:
    if not stack.parts:
        raise walk.refuse("reads a cell state, which no layer gives as its output: read h_n")
    lead = stack.grid or (len(stack.parts),)
    own = (BATCH, stack.parts[0].width)
    return (own[0], *lead, own[1]) if stack.turned else (*lead, *own)


def _item_of_stack(walk: Walk, stack: Stack, index: list) -> Any:
    index = _without_ellipsis(index, len(_stack_shape(walk, stack)))
    first, *others = index
    if stack.turned:
        if first != slice(None) or not others:
            raise walk.refuse("takes one sequence out of the batch")
        first, others = others[0], [slice(None), *others[1:]]
    parts = np.empty(len(stack.parts), object)
    parts[:] = stack.parts
    chosen = parts.reshape(stack.grid or -1)[first]
    if isinstance(chosen, Signal):
        return getitem(walk, walk.take_last(chosen, None), tuple(others))
    rest = Stack(
        tuple(chosen.ravel()), grid=chosen.shape if chosen.ndim > 1 else (), turned=stack.turned
    )
    return (
        getitem(walk, rest, tuple(others)) if any(item != slice(None) for item in others) else rest
    )


def _view_of_stack(walk: Walk, stack: Stack, shape: list[int]) -> Any:
    """[layers * directions, B, H] as [layers, directions, B, H]; [B, layers, H] as [B, layers * H];
    one layer as [B, H].
    """
    own = list(_stack_shape(walk, stack))
    total = prod(own)
    if -1 in shape:
        shape[shape.index(-1)] = total // max(-prod(shape), 1)
    if shape == own:
        return stack
    if len(stack.parts) == 1 and shape == [BATCH, own[-1]]:
        return pick(walk, stack, 0)
    if stack.turned and shape == [BATCH, total // BATCH]:
        return cat(walk, [pick(walk, stack, k) for k in range(len(stack.parts))], 1)
    if not stack.turned and shape[-2:] == own[-2:] and prod(shape[:-2]) == len(stack.parts):
        return replace(stack, grid=tuple(shape[:-2]), state=None)
    raise walk.refuse(
        f"a view of the final states {own} as {shape} is not understood: take h_n[-1], or join "
        "them by cat"
    )


# ---- small things ----


def _signal(walk: Walk, value: Any) -> Signal:
    if not isinstance(value, Signal):
        walk.plain(value)
    return value


def _flat(values: Any) -> tuple:
    """(2, 3) and ((2, 3),) -> (2, 3)"""
    return (
        tuple(values[0])
        if len(values) == 1 and isinstance(values[0], (tuple, list))
        else tuple(values)
    )


Largest = namedtuple("Largest", "values indices")
