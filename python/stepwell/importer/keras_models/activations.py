"""Keras' activations as functions of the graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from stepwell.importer.keras_models.values import Call, Refusal, Value, is_last_axis
from stepwell.integer.functions import Function
from stepwell.layers import Activation, Dense

FUNCTIONS: dict[str, str | Function] = {  # keras.activations
    "linear": "none",
    "relu": "relu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "softmax": "softmax",
    "relu6": Function("clip", 0.0, 6.0),
    "leaky_relu": Function("leaky_relu", 0.2),
    "elu": Function("elu", 1.0),
    "selu": Function("selu"),
    "celu": Function("celu", 1.0),
    "softplus": Function("softplus"),
    "softsign": Function("softsign"),
    "silu": Function("swish", 1.0),
    "gelu": Function("gelu"),
    "mish": Function("mish"),
    "hard_sigmoid": Function("hard_sigmoid", 1 / 6, 0.5),
    "hard_silu": Function("hard_swish"),
    "hard_tanh": Function("clip", -1.0, 1.0),
    "exponential": Function("exp"),
}


def _relu(layer) -> str | Function:
    slope, largest, threshold = float(layer.negative_slope), layer.max_value, float(layer.threshold)
    settings = (bool(slope), largest is not None, bool(threshold))
    made = {
        (False, False, False): lambda: "relu",
        (True, False, False): lambda: Function("leaky_relu", slope),
        (False, True, False): lambda: Function("clip", 0.0, float(largest)),
        (False, False, True): lambda: Function("thresholded_relu", threshold),
    }
    if settings not in made:
        raise Refusal("only one of negative_slope, max_value and threshold can be set")
    return made[settings]()


LAYER_FUNCTIONS: dict[
    str, Callable[[object], str | Function]
] = {  # layers that are a function of each value
    "Activation": lambda layer: function_of(layer.activation),
    "ReLU": _relu,
    "LeakyReLU": lambda layer: Function("leaky_relu", float(layer.negative_slope)),
    "ELU": lambda layer: Function("elu", float(layer.alpha)),
    "Relu": lambda op: "relu",
    "Tanh": lambda op: "tanh",
    "Sigmoid": lambda op: "sigmoid",
}


def keras_2_hard_sigmoid(x):
    """Keras' hard_sigmoid before version 3."""
    import keras

    return keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0)


def function_of(activation) -> str | Function:
    """The function for what a layer holds as its ``activation``: a function of keras.activations,
    or a layer.
    """
    import keras

    if isinstance(activation, keras.layers.Layer) and type(activation).__name__ in LAYER_FUNCTIONS:
        return LAYER_FUNCTIONS[type(activation).__name__](activation)
    if activation is keras_2_hard_sigmoid:
        return Function("hard_sigmoid", 0.2, 0.5)
    name = getattr(activation, "__name__", type(activation).__name__)
    if name in FUNCTIONS and getattr(keras.activations, name, None) is activation:
        return FUNCTIONS[name]
    raise Refusal(f"activation '{name}' is not one of keras.activations.{{{', '.join(FUNCTIONS)}}}")


def activated(call: Call, x: Value, function: str | Function) -> int:
    """Apply a function to a value; softmax, which is a dense layer's, gets one that changes
    nothing.
    """
    if function == "none":
        return x.index
    if function == "softmax":
        return call.put(
            Dense(call.name, np.ones((x.size, 1)), np.zeros(x.size), function, x.size), x.index
        )
    return call.put(Activation(call.name, function, x.size), x.index)


def activation(call: Call) -> Value:
    """A layer that applies a function to each value, or softmax over the features."""
    function = LAYER_FUNCTIONS[type(call.layer).__name__](call.layer)
    if function == "softmax":
        call.x.width  # noqa: B018  (refuses several rows)
    return replace(call.x, index=activated(call, call.x, function))


def softmax(call: Call) -> Value:
    """Softmax over the features, or over time: the weights of an attention."""
    axis = getattr(call.layer, "axis", -1)
    if call.x.timed and axis in (1, [1], (1,)) and call.x.size == 1:
        return replace(call.x, waits="Softmax")
    if not is_last_axis(axis, call.x) or not call.x.inner:
        raise Refusal(
            f"softmax over axis {axis}: over the features, or over time of one value a step, is "
            "understood"
        )
    return replace(call.x, index=activated(call, call.x, "softmax"))


HANDLERS = {"Softmax": softmax, **dict.fromkeys(LAYER_FUNCTIONS, activation)}
