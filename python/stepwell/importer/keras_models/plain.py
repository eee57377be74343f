"""Keras layers that work step by step: dense layers, norms, merges, and what only moves values
about.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from math import prod

import numpy as np

from stepwell.importer.keras_models.activations import function_of
from stepwell.importer.keras_models.values import (
    Call,
    Refusal,
    Value,
    is_last_axis,
    numbers,
    numbers_or,
)
from stepwell.integer.functions import Function
from stepwell.layers import Activation, Add, Concat, Dense, Embedding, LayerNorm, Mul, Slice, Window

# ---- layers with weights ----


def dense(call: Call) -> Value:
    x, layer = call.x, call.layer
    if x.order is None:
        weight = numbers(layer.kernel).T
    else:
        weight = np.empty(layer.kernel.shape[::-1])
        weight[:, x.order] = numbers(layer.kernel).T
    made = Dense(
        call.name, weight, numbers_or(layer.bias, len(weight)), function_of(layer.activation)
    )
    index = call.put(made, x.index)
    return Value(index, (*x.inner[:-1], made.n_out) if x.width else (), x.timed, x.steps)


def scaled(call: Call, x: Value, scale: np.ndarray, shift: np.ndarray) -> Value:
    """scale * x + shift, each of one value or one for each feature."""
    if not {np.size(scale), np.size(shift)} <= {1, x.width}:
        raise Refusal(
            f"it scales {x.width} features by {np.size(scale)} values: one for each feature, the "
            "same at every step"
        )
    scale, shift = (
        np.broadcast_to(np.ravel(v), (x.width,)).astype(np.float64) for v in (scale, shift)
    )
    return replace(
        x, index=call.put(Dense(call.name, scale[:, None], shift, "none", x.width), x.index)
    )


def batch_norm(call: Call) -> Value:
    x, layer = call.x, call.layer
    _check_last_axis(layer.axis, x)
    scale = numbers_or(layer.gamma, x.width, 1.0) / np.sqrt(
        numbers(layer.moving_variance) + layer.epsilon
    )
    return scaled(
        call, x, scale, numbers_or(layer.beta, x.width) - scale * numbers(layer.moving_mean)
    )


def layer_norm(call: Call) -> Value:
    x, layer = call.x, call.layer
    _check_last_axis(layer.axis, x)
    if getattr(layer, "rms_scaling", False):
        raise Refusal("rms_scaling is not understood: leave it out")
    gamma, beta = numbers_or(layer.gamma, x.width, 1.0), numbers_or(layer.beta, x.width)
    return replace(
        x, index=call.put(LayerNorm(call.name, gamma, beta, float(layer.epsilon)), x.index)
    )


def _check_last_axis(axis, x: Value) -> None:
    if not is_last_axis(axis, x):
        raise Refusal(
            f"it normalises over axis {axis}: only the features, axis -1, can be in a stream"
        )


def normalization(call: Call) -> Value:
    import keras

    layer = call.layer
    mean, deviation = (
        numbers(layer.mean),
        np.maximum(np.sqrt(numbers(layer.variance)), keras.config.epsilon()),
    )
    if layer.invert:
        return scaled(call, call.x, deviation, mean)
    return scaled(call, call.x, 1 / deviation, -mean / deviation)


def rescaling(call: Call) -> Value:
    return scaled(call, call.x, np.asarray(call.layer.scale), np.asarray(call.layer.offset))


def embedding(call: Call) -> Value:
    x, layer = call.x, call.layer
    table = numbers(layer.embeddings)
    if getattr(layer, "mask_zero", False):
        call.note(
            "token 0 was masked in training (mask_zero): a stream takes it as any other, so leave "
            "such steps out"
        )
    index = call.put(Embedding(call.name, table, x.size), x.index)
    return replace(x, index=index, inner=(*x.inner, table.shape[1]))


def prelu(call: Call) -> Value:
    """x > 0 ? x : slope * x; with a slope for each feature: slope * x + (1 - slope) * relu(x)."""
    x, slope = call.x, np.ravel(numbers(call.layer.alpha))
    if np.all(slope == slope[0]):
        return replace(
            x,
            index=call.put(
                Activation(call.name, Function("leaky_relu", float(slope[0])), x.size), x.index
            ),
        )
    if len(slope) != x.width:
        raise Refusal("its slopes differ from step to step: build it with shared_axes=[1]")
    positive = call.put(Activation(f"{call.name}.relu", "relu", x.width), x.index)
    parts = ((x.index, slope, "x"), (positive, 1 - slope, "positive"))
    reads = [
        call.put(Dense(f"{call.name}.{n}", w[:, None], 0 * w, "none", len(w)), i)
        for i, w, n in parts
    ]
    return replace(x, index=call.put(Add(call.name, x.width), *reads))


# ---- several sources ----


def combined(call: Call, kind: type, inputs: tuple[Value, ...], **settings) -> Value:
    """The values one after the other through ``kind``, Add or Mul."""
    first = inputs[0]
    if len(inputs) < 2 or any((x.timed, x.inner) != (first.timed, first.inner) for x in inputs):
        shapes = [["T"] * x.timed + list(x.inner) for x in inputs]
        raise Refusal(f"it reads {shapes}: two or more tensors of one shape are understood")
    return reduce(
        lambda a, b: replace(
            a, index=call.put(kind(call.name, first.size, **settings), a.index, b.index)
        ),
        inputs,
    )


def concatenated(call: Call, inputs: tuple[Value, ...]) -> Value:
    if len({x.timed for x in inputs}) > 1:
        raise Refusal(
            "it joins a sequence with what another one ended with: take the last step of both"
        )

    def join(a: Value, b: Value) -> Value:
        return replace(
            a,
            index=call.put(Concat(call.name, (a.width, b.width)), a.index, b.index),
            inner=(a.width + b.width,),
        )

    return reduce(join, inputs)


def _constant(call: Call) -> tuple[np.ndarray, bool] | None:
    """The constant of an operation on one tensor, and whether it comes first; None where there is
    no such thing.
    """
    operands = [
        call.args[k] if k < len(call.args) else call.kwargs.get(f"x{k + 1}") for k in range(2)
    ]
    known = [
        k
        for k, operand in enumerate(operands)
        if isinstance(operand, int | float | np.ndarray | np.generic)
    ]
    return (
        (np.asarray(operands[known[0]], dtype=np.float64), known == [0])
        if len(known) == 1
        else None
    )


def add(call: Call) -> Value:
    constant = _constant(call)
    return (
        scaled(call, call.x, np.array(1.0), constant[0])
        if constant
        else combined(call, Add, call.inputs)
    )


def multiply(call: Call) -> Value:
    """The product; of the weights of an attention and its values, still to be summed over time."""
    constant = _constant(call)
    if constant:
        return scaled(call, call.x, constant[0], np.array(0.0))
    weights = [x for x in call.inputs if x.waits == "Softmax"]
    others = [x for x in call.inputs if x.waits != "Softmax"]
    if not weights:
        return combined(call, Mul, call.inputs)
    if len(weights) != 1 or len(others) != 1 or not others[0].timed:
        raise Refusal("a softmax over time is understood where it weights one sequence")
    return replace(others[0], waits="Weighted", scores=weights[0].index)


def average(call: Call) -> Value:
    total = combined(call, Add, call.inputs)
    return scaled(call, total, np.array(1 / len(call.inputs)), np.array(0.0))


def subtract(call: Call) -> Value:
    constant, first = _constant(call) or (None, False)
    if constant is not None:
        return scaled(
            call, call.x, np.array(-1.0 if first else 1.0), constant if first else -constant
        )
    if len(call.inputs) != 2:
        raise Refusal("the difference of two tensors is understood")
    return combined(call, Add, call.inputs, weights=(1.0, -1.0))


def divide(call: Call) -> Value:
    constant, first = _constant(call) or (None, True)
    if first or not constant.all():
        raise Refusal("division by a constant other than zero is understood")
    return scaled(call, call.x, 1 / constant, np.array(0.0))


def concatenate(call: Call) -> Value:
    if not is_last_axis(call.layer.axis, call.inputs[0]):
        raise Refusal(
            f"it joins along axis {call.layer.axis}: only the features, axis -1, can be joined in "
            "a stream"
        )
    return concatenated(call, call.inputs)


# ---- what only moves values about ----


def passed(call: Call) -> Value:
    return call.x


def masking(call: Call) -> Value:
    call.note(
        f"steps whose values are all {call.layer.mask_value:g} were skipped in training; a stream "
        "does not skip them unless the application leaves them out"
    )
    return call.x


def reshape(call: Call) -> Value:
    """A new shape of a step's values; a whole sequence in one row becomes a window."""
    x, shape = call.x, call.shapes[0]
    if x.timed and len(shape) == 2 and x.steps and shape[1] == x.steps * x.size:
        return _flattened(call, x)
    kept = shape[1] == x.steps if x.timed else True
    inner = shape[1 + x.timed :]
    if not kept or len(shape) < 1 + x.timed or None in inner or prod(inner) != x.size:
        raise Refusal(
            f"it turns [batch{', T' * x.timed}, {', '.join(map(str, x.inner))}] into "
            f"{list(shape)}: time must stay as it is"
            + (
                "; give the Input a fixed length, keras.Input((T, n_in))"
                if x.timed and not x.steps
                else ""
            )
        )
    return replace(x, inner=tuple(inner))


def _flattened(call: Call, x: Value) -> Value:
    """[batch, T * n], step by step, where the graph's window has it channel by channel."""
    order = np.arange(x.size * x.steps).reshape(x.size, x.steps).T.ravel()
    index = call.put(Window(call.name, x.size, x.steps, padding=0), x.index)
    return replace(x.ended(), index=index, inner=(len(order),), waits="Flatten", order=order)


def get_item(call: Call) -> Value:
    """x[:, -1], x[:, -1:], x[..., a:b] and the like."""
    x = call.x
    key = call.kwargs.get("key", call.args[1] if len(call.args) > 1 else None)
    parts = list(key) if isinstance(key, tuple | list) else [key]
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (x.rank - len(parts) + 1)
    parts += [slice(None)] * (x.rank - len(parts))
    whole = slice(None)
    last = x.timed and parts[1] in (-1, slice(-1, None))
    if len(parts) != x.rank or parts[0] != whole or (x.timed and not last and parts[1] != whole):
        raise Refusal(f"index {key}: the last step, x[:, -1], or a range of features is understood")
    value = _features(call, x, parts[1 + x.timed :])
    if not last:
        return value
    return replace(value.ended(), inner=(1, *value.inner) if parts[1] != -1 else value.inner)


def _features(call: Call, x: Value, parts: list) -> Value:
    if all(part == slice(None) for part in parts):
        return x
    if len(parts) != 1 or not isinstance(parts[0], slice) or parts[0].step not in (None, 1):
        raise Refusal(f"index {parts}: one range of features, x[..., a:b], is understood")
    start, stop, _ = parts[0].indices(x.width)
    return replace(
        x,
        index=call.put(Slice(call.name, x.width, start, stop - start), x.index),
        inner=(stop - start,),
    )


DROPPED = (
    "Dropout SpatialDropout1D GaussianNoise GaussianDropout AlphaDropout ActivityRegularization "
    "Identity InputLayer"
).split()

HANDLERS = {
    "Dense": dense,
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "Normalization": normalization,
    "Rescaling": rescaling,
    "Embedding": embedding,
    "PReLU": prelu,
    "Add": add,
    "Subtract": subtract,
    "Multiply": multiply,
    "Divide": divide,
    "TrueDivide": divide,
    "Average": average,
    "Concatenate": concatenate,
    "Masking": masking,
    "Flatten": reshape,
    "Reshape": reshape,
    "ExpandDims": reshape,
    "Squeeze": reshape,
    "GetItem": get_item,
    **dict.fromkeys(DROPPED, passed),
}
