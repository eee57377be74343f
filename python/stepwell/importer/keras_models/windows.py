"""Keras layers that look back over the sequence: convolutions, pooling, attention."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from stepwell.importer.keras_models.activations import function_of
from stepwell.importer.keras_models.values import Call, Refusal, Value, numbers, numbers_or
from stepwell.importer.pooling import mean_over, pads
from stepwell.layers import Attention, Dense, MaxPool, Window

FIXED = "give the Input a fixed length: keras.Input((T, n_in))"

# ---- convolutions ----


@dataclass(frozen=True)
class Reach:
    """What a convolution or pooling layer sees: ``span`` steps from the first tap to the last."""

    taps: int
    dilation: int
    stride: int
    padding: str

    @property
    def span(self) -> int:
        return (self.taps - 1) * self.dilation + 1

    def window(self, name: str, x: Value, lowest: bool = False) -> Window:
        """The graph's layer; ``lowest``: Keras' own padding is minus infinity."""
        if (x.padded or x.behind) and self.padding != "valid":
            raise Refusal("ZeroPadding1D in front of it goes with padding='valid' only")
        made = Window(name, x.size, self.taps, self.dilation, self.stride)
        if self.padding == "causal":
            return made
        if self.padding == "valid":
            longest = max(x.padded, x.behind)
            if longest > self.span - 1:
                raise Refusal(
                    f"{longest} zeros in front of it or behind are more than the {self.span - 1} "
                    "steps beside one"
                )
            return replace(made, padding=x.padded, ahead=x.behind)
        made = replace(made, same="upper", lowest=lowest)
        if self.stride == 1:
            return replace(made.over(self.span), same="")  # whatever the length
        made = made.over(x.steps) if x.steps else made
        return made if pads(replace(made, same="")) or not x.steps else replace(made, same="")


def _reach(layer, taps, dilation=(1,)) -> Reach:
    if layer.data_format != "channels_last":
        raise Refusal("data_format must be channels_last: [batch, T, channels]")
    return Reach(int(taps[0]), int(dilation[0]), int(layer.strides[0]), layer.padding)


def _looks_ahead(call: Call, window: Window) -> Window:
    """The layer, and a note for those who let it run in mode carry."""
    if window.ahead or window.same:
        steps = window.ahead or "some"
        call.note(
            f"it looks {steps} steps ahead: in mode carry the answers of a stream come that many "
            "of its steps later"
        )
    return window


def _convolved(
    call: Call, reach: Reach, kernel: np.ndarray, bias, groups: int, function="none"
) -> Value:
    """``kernel`` [n_out, channels / groups, taps]"""
    x = call.sequence
    weight = kernel.reshape(len(kernel), -1)
    made = Dense(call.name, weight, numbers_or(bias, len(kernel)), function, groups)
    window = _looks_ahead(call, reach.window(f"{call.name}.window", x))
    index = call.put(
        made, x.index if reach.taps == reach.stride == 1 else call.put(window, x.index)
    )
    return Value(index, (len(kernel),), steps=call.shapes[0][1])


def conv(call: Call) -> Value:
    """Keras' kernel is [taps, channels / groups, n_out]."""
    layer = call.layer
    reach = _reach(layer, layer.kernel_size, layer.dilation_rate)
    kernel = numbers(layer.kernel).transpose(2, 1, 0)
    return _convolved(
        call, reach, kernel, layer.bias, int(layer.groups), function_of(layer.activation)
    )


def depthwise_conv(call: Call) -> Value:
    """Keras' kernel is [taps, channels, multiplier]."""
    layer = call.layer
    reach = _reach(layer, layer.kernel_size, layer.dilation_rate)
    return _depthwise(call, reach, layer.kernel, layer.bias, function_of(layer.activation))


def _depthwise(call: Call, reach: Reach, weight, bias, function="none") -> Value:
    kernel = numbers(weight).transpose(1, 2, 0)
    return _convolved(call, reach, kernel.reshape(-1, 1, reach.taps), bias, len(kernel), function)


def separable_conv(call: Call) -> Value:
    """A depthwise convolution and a dense layer, ``pointwise_kernel`` [1, channels * multiplier,
    n_out].
    """
    layer = call.layer
    reach = _reach(layer, layer.kernel_size, layer.dilation_rate)
    between = _depthwise(call, reach, layer.depthwise_kernel, None)
    weight = numbers(layer.pointwise_kernel)[0].T
    made = Dense(
        call.name, weight, numbers_or(layer.bias, len(weight)), function_of(layer.activation)
    )
    return replace(between, index=call.put(made, between.index), inner=(made.n_out,))


def zero_padding(call: Call) -> Value:
    before, after = (int(n) for n in call.layer.padding)
    padded, behind = call.x.padded + before, call.x.behind + after
    return replace(
        call.sequence, waits="ZeroPadding1D", padded=padded, behind=behind, steps=call.shapes[0][1]
    )


# ---- pooling ----


def max_pool(call: Call) -> Value:
    return _pooled(call, "max", _reach(call.layer, call.layer.pool_size), call.shapes[0][1])


def average_pool(call: Call) -> Value:
    return _pooled(call, "mean", _reach(call.layer, call.layer.pool_size), call.shapes[0][1])


def _pooled(call: Call, how: str, reach: Reach, steps: int | None) -> Value:
    x = call.sequence
    window = _looks_ahead(call, reach.window(f"{call.name}.window", x, lowest=how == "max"))
    if how == "max":
        index = call.put(MaxPool(call.name, window.n_out, reach.taps), call.put(window, x.index))
    elif how == "sum":
        made = Dense(call.name, np.ones((x.size, reach.taps)), np.zeros(x.size), "none", x.size)
        index = call.put(made, call.put(window, x.index))
    else:
        if reach.padding == "same":
            _check_backend(window)
        index = mean_over(
            call.put, call.name, x.index, window, counts_padding=reach.padding != "same"
        )
    return Value(index, x.inner, steps=steps)


def _check_backend(window: Window) -> None:
    """Keras' torch backend pads a mean with copies of the edges when it pads both sides by
    different amounts.
    """
    import keras

    symmetric = window.padding is not None and window.padding == window.ahead
    if keras.backend.backend() == "torch" and not symmetric:
        raise Refusal(
            "padding='same' that is not the same on both sides is a mean without the padding under "
            "TensorFlow and JAX, and a mean "
            "with copies of the sequence's edges under torch: set KERAS_BACKEND to the one it was "
            "trained with (tensorflow or "
            "jax), give the Input a length that needs no padding, or use padding='valid'"
        )


def _over_sequence(how: str):
    """A handler for the largest, the mean or the sum over the whole sequence, by a layer or by an
    operation with axis=1.
    """

    def handler(call: Call) -> Value:
        axis = getattr(call.layer, "axis", 1)
        if axis not in (1, [1], (1,)):
            raise Refusal(f"over axis {axis}: only over the whole sequence, axis 1, is understood")
        if call.x.waits == "Weighted":
            y = _attention(call, "score", call.x, (call.x.scores, call.x.index), call.x.size)
        elif not call.sequence.steps:
            raise Refusal(f"it runs over the whole sequence: {FIXED}")
        else:
            y = _pooled(call, how, Reach(call.x.steps, 1, 1, "valid"), None)
        return replace(y.ended(), inner=call.shapes[0][1:])

    return handler


# ---- attention ----


def attention(call: Call) -> Value:
    """[query, value] or [query, value, key]: one query after the whole sequence, or causal, one at
    each step.
    """
    if call.kwargs.get("return_attention_scores"):
        raise Refusal("return_attention_scores: a stream gives no scores, leave it out")
    query, value, key = call.inputs if len(call.inputs) == 3 else (*call.inputs, call.inputs[-1])
    if query.timed and not call.kwargs.get("use_causal_mask"):
        raise Refusal(
            "every step attends to the whole sequence, the future included: call it with "
            "use_causal_mask=True, or take the last "
            "state as its query"
        )
    if not (value.timed and key.timed):
        raise Refusal("its value and key must be sequences: [batch, T, features]")
    if query.width != key.width:
        raise Refusal(f"a query of {query.width} values and keys of {key.width}")
    form, settings = _score(call.layer, key.width)
    y = _attention(call, form, value, (query.index, key.index, value.index), key.width, **settings)
    return replace(y, timed=query.timed, steps=query.steps, inner=(*query.inner[:-1], value.width))


def _score(layer, width: int) -> tuple[str, dict]:
    scale = None if layer.scale is None else numbers(layer.scale)
    if type(layer).__name__ == "AdditiveAttention":
        return "additive", {"weight": np.ones(width) if scale is None else scale}
    if layer.score_mode == "dot":
        return "dot", {"scale": 1.0 if scale is None else float(scale)}
    if scale is not None:
        raise Refusal(
            "score_mode='concat' with use_scale is not understood: leave use_scale out, or use "
            "AdditiveAttention"
        )
    return "additive", {"weight": np.full(width, float(numbers(layer.concat_score_weight)))}


def dot(call: Call) -> Value:
    """The weights of an attention, [batch, T, 1] after a softmax over time, and its values: their
    weighted sum.
    """
    weights = [x for x in call.inputs if x.waits == "Softmax"]
    values = [x for x in call.inputs if not x.waits and x.timed]
    if (
        len(weights) != 1
        or len(values) != 1
        or call.layer.axes not in (1, [1, 1], (1, 1))
        or call.layer.normalize
    ):
        raise Refusal(
            "only the sum over time, axes=1, of a softmax over time and a sequence is understood"
        )
    y = _attention(call, "score", values[0], (weights[0].index, values[0].index), values[0].width)
    return replace(y.ended(), inner=call.shapes[0][1:])


def _attention(
    call: Call, form: str, value: Value, reads: tuple[int, ...], key_width: int, **settings
) -> Value:
    if not value.steps:
        raise Refusal(f"it attends to the whole sequence: {FIXED}")
    made = Attention(call.name, form, value.steps, key_width, value.width, **settings)
    return replace(value, index=call.put(made, *reads), waits="", scores=0)


HANDLERS = {
    "Conv1D": conv,
    "DepthwiseConv1D": depthwise_conv,
    "SeparableConv1D": separable_conv,
    "ZeroPadding1D": zero_padding,
    "MaxPooling1D": max_pool,
    "AveragePooling1D": average_pool,
    "GlobalMaxPooling1D": _over_sequence("max"),
    "GlobalAveragePooling1D": _over_sequence("mean"),
    "Max": _over_sequence("max"),
    "Mean": _over_sequence("mean"),
    "Sum": _over_sequence("sum"),
    "Attention": attention,
    "AdditiveAttention": attention,
    "Dot": dot,
}
