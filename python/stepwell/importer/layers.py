"""Nodes that become layers: products with weights, arithmetic, activations, norms, embeddings,
heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx

from stepwell.importer import patterns
from stepwell.importer.signals import (
    FEATURES,
    UNIT,
    Atom,
    Axis,
    Partial,
    Signal,
    StateStack,
    Value,
    Walk,
)
from stepwell.integer.functions import Function
from stepwell.layers import Activation, Add, ArgMax, Concat, Dense, Embedding, LayerNorm, Mul
from stepwell.layers.base import SOFTMAX_MAX

# ---- products with weights ----


def features(w: Walk, x: Value, n_in: int) -> Signal:
    """``x`` as what a dense layer of ``n_in`` inputs reads."""
    if isinstance(x, StateStack):
        raise w.refuse(
            "reads the final states of several layers: read the output, or the last layer's state "
            "(h_n[-1])"
        )
    if isinstance(x, np.ndarray):
        raise w.refuse(
            "the weights must be the second factor: constant @ data is not a dense layer"
        )
    x = w.signal(x)
    if x.state == "c":
        raise w.refuse("reads the cell state, which is not supported: read the hidden state")
    if x.feature_axis != len(x.axes) - 1 or x.n_features != n_in:
        raise w.refuse(
            f"its input of shape {list(x.shape)} does not end in {n_in} features: time or batch "
            "are mixed into them"
        )
    _not_after_softmax(w, x)
    return x


def _not_after_softmax(w: Walk, x: Signal) -> None:
    if getattr(w.layer_of(x), "activation", "") == "softmax":
        raise w.refuse("Softmax must be the last operation of the model")


def matmul(w: Walk, a: Value, b: Value) -> tuple[Value]:
    if not isinstance(a, np.ndarray) and not isinstance(b, np.ndarray):
        return (patterns.product_over_time(w, a, b),)
    weight = w.constant(b, "the second factor").astype(np.float64)
    if weight.ndim != 2:
        raise w.refuse(f"the weights have shape {list(weight.shape)}, expected [n_in, n_out]")
    x = features(w, a, weight.shape[0])
    return (w.extended(x, Dense(w.name, weight.T.copy(), np.zeros(weight.shape[1]))),)


def gemm(w: Walk, a: Value, b: Value, c: Value = None) -> tuple[Signal]:
    if w.attribute("transA", 0) and isinstance(a, Signal):
        a = replace(a, axes=a.axes[::-1])
    weight = w.constant(b, "B").astype(np.float64) * w.attribute("alpha", 1.0)
    weight = weight if w.attribute("transB", 0) else weight.T
    if weight.ndim != 2:
        raise w.refuse(f"the weights have shape {list(weight.shape)}")
    x = features(w, a, weight.shape[1])
    bias = np.zeros(len(weight))
    if c is not None:
        constant = w.constant(c, "C")
        bias = _on_last_axis(w, constant, len(weight)) * w.attribute("beta", 1.0)
    return (w.extended(x, Dense(w.name, weight.copy(), bias)),)


def _on_last_axis(w: Walk, constant: np.ndarray, n: int) -> np.ndarray:
    """A constant that broadcasts over everything but the last axis, as [n]."""
    if constant.size not in (1, n) or (
        constant.size == n and constant.ndim and constant.shape[-1] != n
    ):
        raise w.refuse(
            f"a constant of shape {list(constant.shape)} does not belong to {n} features"
        )
    return np.broadcast_to(constant.astype(np.float64).reshape(-1), (n,)).copy()


def per_feature(w: Walk, x: Signal, constant: np.ndarray) -> np.ndarray:
    """A constant that broadcasts against ``x`` along its features alone, as [n_features]."""
    n, rank = x.n_features, len(x.axes)
    if constant.size == 1:
        return np.full(n, float(constant.reshape(-1)[0]))
    sizes = (1,) * (rank - constant.ndim) + constant.shape
    spread = [k for k, size in enumerate(sizes) if size > 1]
    if (
        constant.ndim > rank
        or x.feature_axis < 0
        or spread != [x.feature_axis]
        or constant.size != n
    ):
        raise w.refuse(
            f"a constant of shape {list(constant.shape)} does not belong to {n} features"
        )
    return constant.astype(np.float64).reshape(-1).copy()


def scaled(w: Walk, x: Signal, scale: np.ndarray, offset: np.ndarray) -> Signal:
    """x * scale + offset for each feature, [n] both: folded into the layer before it where that is
    possible.
    """
    _not_after_softmax(w, x)
    if x.state == "c":
        raise w.refuse("reads the cell state, which is not supported: read the hidden state")
    layer = w.layer_of(x)
    if isinstance(layer, Dense) and layer.activation == "none":
        return w.replaced(
            x,
            replace(layer, weight=layer.weight * scale[:, None], bias=layer.bias * scale + offset),
        )
    if isinstance(layer, LayerNorm):
        return w.replaced(
            x, replace(layer, gamma=layer.gamma * scale, beta=layer.beta * scale + offset)
        )
    return replace(
        x,
        value=w.added(
            Dense(w.name, scale[:, None].copy(), offset.copy(), groups=x.n_features), x.value
        ),
        state="",
    )


# ---- arithmetic ----


def _operands(w: Walk, a: Value, b: Value) -> tuple[Signal, np.ndarray | None, bool]:
    """The data, the constant if there is one, and whether the constant came first."""
    swapped = isinstance(a, np.ndarray)
    x, other = (b, a) if swapped else (a, b)
    return w.signal(x), other if isinstance(other, np.ndarray) else None, swapped


def add(w: Walk, a: Value, b: Value) -> tuple[Value]:
    for x, k in ((a, b), (b, a)):
        if isinstance(x, Signal) and isinstance(k, np.ndarray) and k.ndim == 0 and not k:
            return (x,)
    for x, k in ((a, b), (b, a)):
        if isinstance(x, Partial) and isinstance(k, np.ndarray):
            return (patterns.with_epsilon(w, x, k),)
    if _two_signals(a, b):
        return (_added(w, a, b, (1.0, 1.0)),)
    x, constant, _ = _operands(w, a, b)
    return (scaled(w, x, np.ones(x.n_features), per_feature(w, x, w.constant(constant, "B"))),)


def subtract(w: Walk, a: Value, b: Value) -> tuple[Value]:
    if isinstance(b, Partial) and isinstance(a, Signal):
        return (patterns.centred(w, a, b),)
    if _two_signals(a, b):
        return (_added(w, a, b, (1.0, -1.0)),)
    x, constant, swapped = _operands(w, a, b)
    k = per_feature(w, x, w.constant(constant, "B"))
    one = np.ones(x.n_features)
    return (scaled(w, x, -one, k) if swapped else scaled(w, x, one, -k),)


def less(w: Walk, a: Value, b: Value) -> tuple[np.ndarray]:
    """Whether tokens are negative: they are not. Keras lets negative ones count from the table's
    end.
    """
    if not isinstance(a, Signal) or a.value or a.n_features > 1 or np.any(w.constant(b, "B")):
        raise w.refuse("compares data, which is not supported")
    return (np.zeros((), bool),)


def multiply(w: Walk, a: Value, b: Value) -> tuple[Value]:
    for x, k in ((a, b), (b, a)):
        if isinstance(x, Signal) and isinstance(k, np.ndarray) and k.ndim == 0 and k in (0, 1):
            return (x if k else k,)
    for x, other in ((a, b), (b, a)):
        if isinstance(x, Partial):
            return (patterns.multiplied(w, x, other),)
    if _two_signals(a, b):
        _check_alike(w, a, b)
        return (replace(a, value=w.added(Mul(w.name, a.n_features), a.value, b.value), state=""),)
    x, constant, _ = _operands(w, a, b)
    k = per_feature(w, x, w.constant(constant, "B"))
    return (scaled(w, x, k, np.zeros(x.n_features)),)


def divide(w: Walk, a: Value, b: Value) -> tuple[Value]:
    if isinstance(a, Partial) and isinstance(b, Partial):
        return (patterns.normalised(w, a, b),)
    if isinstance(a, np.ndarray) or not isinstance(b, np.ndarray) or not np.all(b):
        raise w.refuse("division by data or by zero")
    return multiply(w, a, 1.0 / b.astype(np.float64))


def _two_signals(a: Value, b: Value) -> bool:
    return isinstance(a, Signal) and isinstance(b, Signal)


def _check_alike(w: Walk, a: Signal, b: Signal) -> None:
    if a.labels[-len(b.labels) :] != b.labels[-len(a.labels) :] or a.n_features != b.n_features:
        raise w.refuse(
            f"its operands of shapes {list(a.shape)} and {list(b.shape)} do not have the same "
            "axes: only features of the same step can be combined"
        )
    if a.last != b.last or a.flipped != b.flipped or "c" in (a.state, b.state):
        raise w.refuse("combines a whole sequence with a last step, a turned one, or a cell state")


def _added(w: Walk, a: Signal, b: Signal, weights: tuple[float, float]) -> Signal:
    _check_alike(w, a, b)
    wide = a if len(a.axes) >= len(b.axes) else b
    return replace(
        wide, value=w.added(Add(w.name, a.n_features, weights), a.value, b.value), state=""
    )


def negate(w: Walk, x: Value) -> tuple[Signal]:
    x = w.signal(x)
    return (scaled(w, x, -np.ones(x.n_features), np.zeros(x.n_features)),)


def concatenated(w: Walk, *parts: Value) -> tuple[Value]:
    if len(parts) == 1:
        return (parts[0],)
    states = [part for part in parts if isinstance(part, Signal) and part.state]
    if len(states) == len(parts) and w.attribute("axis") == 0:
        return (StateStack(tuple(states)),)
    signals = [w.signal(part) for part in parts]
    axis = signals[0].axis(w.attribute("axis"))
    if any(s.feature_axis != axis or len(s.axes) != len(signals[0].axes) for s in signals):
        raise w.refuse(
            "concatenates along time or batch, which is not supported: concatenate features"
        )
    joined = signals[0]
    for other in signals[1:]:
        trimmed = replace(
            other, axes=tuple(joined.axes[k] if k == axis else a for k, a in enumerate(other.axes))
        )
        if (
            trimmed.labels != joined.labels
            or joined.last != other.last
            or "c" in (joined.state, other.state)
        ):
            raise w.refuse(
                "concatenates different things: a sequence with a last step, or a cell state"
            )
        layer = Concat(w.name, (joined.n_features, other.n_features))
        value = w.added(layer, joined.value, other.value)
        axes = list(joined.axes)
        axes[axis] = (Atom("feature", layer.n_out),)
        joined = replace(joined, axes=tuple(axes), value=value, state="")
    return (joined,)


# ---- activations and heads ----


def activation(kind: str, **defaults: float) -> Callable[..., tuple[Signal]]:
    """A handler for an elementwise function; ``defaults``: of the attributes that are alpha and
    beta.
    """

    def handle(w: Walk, x: Value, *_: Value) -> tuple[Signal]:
        numbers = [float(w.attribute(name, value)) for name, value in defaults.items()]
        plain = kind in ("relu", "tanh", "sigmoid", "softmax")
        return (activated(w, w.signal(x), kind if plain else Function(kind, *numbers)),)

    return handle


def activated(w: Walk, x: Signal, function: str | Function) -> Signal:
    """``x`` through an elementwise function: the layer's own where it has none yet."""
    if x.state == "c":
        raise w.refuse("reads the cell state, which is not supported")
    _not_after_softmax(w, x)
    layer = w.layer_of(x)
    if isinstance(layer, (Dense, Add, Mul)) and layer.activation == "none":
        return w.replaced(x, replace(layer, activation=function))
    if function == "relu" and getattr(layer, "activation", "") in ("relu", "sigmoid"):
        return x  # never negative as it is
    return replace(x, value=w.added(Activation(w.name, function, x.n_features), x.value), state="")


def leaky_prelu(w: Walk, x: Value, slope: Value) -> tuple[Signal]:
    slopes = w.constant(slope, "slope").reshape(-1)
    if len(slopes) == 0 or np.any(slopes != slopes[0]):
        raise w.refuse(
            "a slope for each feature is not supported: train with one slope, or LeakyReLU"
        )
    return (activated(w, w.signal(x), Function("leaky_relu", float(slopes[0]))),)


def clip(w: Walk, x: Value, low: Value = None, high: Value = None) -> tuple[Signal]:
    ends = []
    for name, value, default in (("min", low, -3.0e38), ("max", high, 3.0e38)):
        ends.append(
            w.attribute(name, default)
            if value is None
            else float(w.constant(value, name).reshape(-1)[0])
        )
    if not ends[0] <= ends[1]:
        raise w.refuse(f"clips to {ends[0]} .. {ends[1]}")
    return (activated(w, w.signal(x), Function("clip", *ends)),)


def gelu(w: Walk, x: Value) -> tuple[Signal]:
    kind = "gelu_tanh" if w.attribute("approximate", b"none") == b"tanh" else "gelu"
    return (activated(w, w.signal(x), Function(kind)),)


def power(w: Walk, x: Value, exponent: Value) -> tuple[Value]:
    number = w.constant(exponent, "the exponent").reshape(-1)
    if isinstance(x, Partial) and len(number) == 1 and number[0] == 2:
        return (patterns.squared(w, x),)
    raise w.refuse("powers of data are not supported, but inside a LayerNorm")


def softmax(w: Walk, x: Value) -> tuple[Value]:
    if isinstance(x, Partial):
        return (patterns.softened(w, x),)
    x = w.signal(x)
    axis = x.axis(w.attribute("axis", -1 if w.opset >= 13 else 1))
    if axis == x.time_axis and x.n_features == 1:
        return (patterns.weights_of(w, x),)
    if axis != x.feature_axis or (w.opset < 13 and axis != len(x.axes) - 1):
        raise w.refuse(
            "Softmax must run over the features (the last axis), or over time as attention does"
        )
    if x.n_features > SOFTMAX_MAX:
        raise w.refuse(f"Softmax over {x.n_features} classes: {SOFTMAX_MAX} at most")
    layer = w.layer_of(x)
    if not isinstance(layer, Dense) or layer.activation != "none":
        n = x.n_features
        x = replace(
            x, value=w.added(Dense(w.name, np.ones((n, 1)), np.zeros(n), groups=n), x.value)
        )
    return (activated(w, x, "softmax"),)


def arg_max(w: Walk, x: Value) -> tuple[Signal]:
    x = w.signal(x)
    if x.axis(w.attribute("axis", 0)) != x.feature_axis or w.attribute("select_last_index", 0):
        raise w.refuse("ArgMax must run over the features and take the first of equals")
    layer = w.layer_of(x)
    if (
        getattr(layer, "activation", "") == "softmax"
    ):  # the largest probability is that of the largest logit
        x = w.replaced(x, replace(layer, activation="none"))
    keep: list[Axis] = list(x.axes)
    keep[x.feature_axis] = (Atom("feature", 1),)
    axes = (
        keep
        if w.attribute("keepdims", 1)
        else [a for k, a in enumerate(keep) if k != x.feature_axis]
    )
    return (replace(x, axes=tuple(axes), value=w.added(ArgMax(w.name, x.n_features), x.value)),)


# ---- norms and embeddings ----


def batch_norm(w: Walk, x: Value, *parameters: Value) -> tuple[Signal]:
    """y = scale * (x - mean) / sqrt(var + epsilon) + bias over axis 1
    (https://onnx.ai/onnx/operators/onnx__BatchNormalization.html).
    """
    x = w.signal(x)
    if w.attribute("training_mode", 0):
        raise w.refuse("it is in training mode: export with model.eval()")
    names = ("scale", "B", "mean", "var")
    scale, bias, mean, var = (
        w.constant(p, n).astype(np.float64) for p, n in zip(parameters, names, strict=True)
    )
    if x.feature_axis != 1 or len(scale) != x.n_features:
        raise w.refuse(f"normalises axis 1 of {list(x.shape)}, which is not the features")
    factor = scale / np.sqrt(var + w.attribute("epsilon", 1e-5))
    return (scaled(w, x, factor, bias - mean * factor),)


def layer_norm(w: Walk, x: Value, scale: Value, bias: Value = None) -> tuple[Signal]:
    x = w.signal(x)
    if x.axis(w.attribute("axis", -1)) != x.feature_axis or x.feature_axis != len(x.axes) - 1:
        raise w.refuse("normalises over more than the features of a step")
    n = x.n_features
    gamma = _on_last_axis(w, w.constant(scale, "Scale"), n)
    beta = np.zeros(n) if bias is None else _on_last_axis(w, w.constant(bias, "B"), n)
    return (w.extended(x, LayerNorm(w.name, gamma, beta, float(w.attribute("epsilon", 1e-5)))),)


def embedding(w: Walk, table: np.ndarray, tokens: Signal) -> tuple[Signal]:
    """Gather of a constant table by the model's input."""
    table = w.constant(table, "the table").astype(np.float64)
    if tokens.value != 0 or table.ndim != 2 or w.attribute("axis", 0) != 0:
        raise w.refuse(
            "picks rows of a table by something that is not the model's input: only an embedding "
            "of the input is supported"
        )
    if any(set(labels) & set(FEATURES) for labels in tokens.labels) and tokens.n_features > 1:
        raise w.refuse("embeds several tokens a step: give the model one")
    axes = tuple(
        UNIT if set(labels) & set(FEATURES) else axis
        for axis, labels in zip(tokens.axes, tokens.labels, strict=True)
    )
    layer = Embedding(w.name, table, 1)
    return (
        replace(tokens, axes=(*axes, (Atom("feature", layer.n_out),)), value=w.added(layer, 0)),
    )


FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
)


def cast(w: Walk, x: Value) -> tuple[Value]:
    tokens = isinstance(x, Signal) and x.value == 0
    classes = isinstance(x, Signal) and isinstance(w.layer_of(x), ArgMax)
    if w.attribute("to") not in FLOATS and not tokens and not classes:
        raise w.refuse("casts the data to an integer type, which is not supported")
    return (x,)
