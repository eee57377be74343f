"""From a model's inputs to its output: each call of a layer goes to the layer's handler."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from stepwell.errors import ImportRefused
from stepwell.importer.keras_models import activations, plain, recurrent, windows
from stepwell.importer.keras_models.values import Builder, Call, Handler, Refusal, Value
from stepwell.importer.outputs import Head, places, side_by_side, unique_names
from stepwell.text import printable

HANDLERS: dict[str, Handler] = {
    **plain.HANDLERS,
    **activations.HANDLERS,
    **recurrent.HANDLERS,
    **windows.HANDLERS,
}
WAITED_FOR = {  # what may follow a value that waits
    "ZeroPadding1D": (
        "Conv1D",
        "DepthwiseConv1D",
        "SeparableConv1D",
        "ZeroPadding1D",
        "MaxPooling1D",
        "AveragePooling1D",
    ),
    "Flatten": ("Dense", *plain.DROPPED),
    "Softmax": ("Dot", "Multiply", *plain.DROPPED),
    "Weighted": ("Sum",),
}
WAITING = {
    "ZeroPadding1D": "zeros around a sequence",
    "Flatten": "a whole sequence in one row",
    "Softmax": "a softmax over time",
    "Weighted": "a sequence weighted by a softmax over time",
}
HINTS = {
    "Lambda": "it holds Python code: use layers or keras.ops instead",
    "RepeatVector": "a decoder begins when the sequence has ended: a stream cannot run it; export the encoder by itself",
    "MultiHeadAttention": "use keras.layers.Attention or AdditiveAttention, of one head",
    "UpSampling1D": "a stream gives one output a step: leave it out",
    "Permute": "a stream keeps [batch, T, features] in this order",
    "Transpose": "a stream keeps [batch, T, features] in this order",
    "Conv2D": "use Conv1D over time, or wrap nothing in TimeDistributed but step by step layers",
    "ConvLSTM1D": "use Conv1D in front of an LSTM",
    "Minimum": "use Add, Multiply or Concatenate",
    "Conv1DTranspose": "a stream gives one output a step: leave it out",
    "Maximum": "use Add, Multiply or Concatenate",
}


@dataclass
class Walked(Builder):
    """The layers, before they are tidied, and the model's outputs, side by side in the value
    ``output``.

    ``places``: where each output is among the tensors that a call of the model gives, flattened.
    """

    output: Value | None = None
    heads: list[Head] = field(default_factory=list)
    places: list[int] = field(default_factory=list)


def walk(model, wanted: tuple[str, ...] = ()) -> Walked:
    """Collect the layers of a Functional or Sequential model that make the ``wanted`` outputs, or
    all that are data.
    """
    walked, outputs = Walked(), _outputs(model)
    names = [output.name for output in outputs]
    chosen = [outputs[k] for k in places(names, wanted or data_names(model))]
    values = _run(walked, model, (_input(model.inputs[0]),), [output.tensor for output in chosen])
    for output, value in zip(chosen, values, strict=True):
        what = (
            f"model '{printable(model.name)}'" if len(outputs) == 1 else f"output '{output.name}'"
        )
        if value is None:
            raise ImportRefused(
                f"{what} ends with a state of a layer with return_state: end it with the layer's "
                "output"
            )
        if value.waits:
            raise ImportRefused(f"{what} ends with {_waiting(value)}")
        walked.heads.append(Head(output.name, value.index, value.size, not value.timed))
        walked.places.append(output.place)
    walked.output = values[0]
    if len(values) > 1:
        index = side_by_side(walked.layers, walked.sources, walked.heads)
        walked.output = replace(
            values[0], index=index, inner=(sum(head.size for head in walked.heads),)
        )
    return walked


@dataclass(frozen=True, eq=False)
class _Output:
    """An output tensor of a model, its place among those that a call gives, and whether it is a
    state of its layer.
    """

    name: str
    tensor: object
    place: int
    is_state: bool


def _outputs(model) -> list[_Output]:
    """In the order in which the model gives them, dicts as they were written."""
    functional = getattr(model, "_functional", None) or model
    place = {id(tensor): k for k, tensor in enumerate(functional.outputs)}
    leaves = list(_leaves(functional._outputs_struct, ""))
    names = unique_names(name for name, _ in leaves)
    return [
        _Output(name, tensor, place[id(tensor)], _is_state(tensor))
        for name, (_, tensor) in zip(names, leaves, strict=True)
    ]


def _leaves(struct, key: str) -> Iterator[tuple[str, object]]:
    """Each tensor with its key in a dict, or with its layer's name."""
    if isinstance(struct, dict):
        for name, part in struct.items():
            yield from _leaves(part, f"{key}.{name}" if key else str(name))
    elif isinstance(struct, list | tuple):
        for k, part in enumerate(struct):
            yield from _leaves(part, f"{key}.{k}" if key else "")
    else:
        yield key or struct._keras_history.operation.name, struct


def _is_state(tensor) -> bool:
    """Whether a layer with return_state gives it after its outputs."""
    layer, _, place = tensor._keras_history
    n_outputs = 2 if getattr(layer, "merge_mode", "concat") is None else 1
    return bool(getattr(layer, "return_state", False)) and place >= n_outputs


def data_names(model) -> tuple[str, ...]:
    """The outputs that are no states; the first one where all are."""
    outputs = _outputs(model)
    return tuple(output.name for output in outputs if not output.is_state) or (outputs[0].name,)


def _input(tensor) -> Value:
    """[batch, T, *inner]; T alone for tokens."""
    if len(tensor.shape) < 2 or None in tensor.shape[2:]:
        raise ImportRefused(
            f"the input is {list(tensor.shape)}: expected [batch, T, n_in], or [batch, T] of tokens"
        )
    return Value(0, tuple(tensor.shape[2:]), steps=tensor.shape[1])


def _run(
    walked: Walked, model, inputs: tuple[Value, ...], outputs: list | None = None
) -> list[Value | None]:
    """The outputs of a model, or of one within it; all of them, or some."""
    functional = getattr(model, "_functional", None) or model
    outputs = functional.outputs if outputs is None else outputs
    values = dict(zip(map(id, functional.inputs), inputs, strict=True))
    for node in _needed_nodes(functional, outputs):
        made = _node(walked, node, tuple(values[id(tensor)] for tensor in _read_by(node)))
        values.update(zip(map(id, node.outputs), made, strict=True))
    return [values[id(tensor)] for tensor in outputs]


def _needed_nodes(functional, outputs: list) -> list:
    """The calls that the outputs need, sources first; what only makes masks is not among them."""
    by_depth = functional._nodes_by_depth
    nodes = [
        node
        for depth in sorted(by_depth, reverse=True)
        for node in by_depth[depth]
        if not node.is_input
    ]
    wanted = set(map(id, outputs))
    needed = []
    for node in reversed(nodes):
        if wanted & set(map(id, node.outputs)):
            needed.append(node)
            wanted |= set(map(id, _read_by(node)))
    return needed[::-1]


def _read_by(node) -> list:
    """The tensors that a call reads, but for masks: Keras hands them on by itself."""
    import keras

    named = {name: value for name, value in node.arguments.kwargs.items() if name != "mask"}
    return [
        leaf
        for leaf in keras.tree.flatten((node.arguments.args, named))
        if isinstance(leaf, keras.KerasTensor)
    ]


def _node(walked: Walked, node, inputs: tuple[Value | None, ...]) -> list[Value | None]:
    args, kwargs = node.arguments.args, node.arguments.kwargs
    if kwargs.get("initial_state") is not None or (
        len(args) > 1 and hasattr(node.operation, "cell")
    ):
        raise ImportRefused(
            f"{_named(node.operation)}: its initial_state comes from another layer, but a stream "
            "begins with its own: leave it out"
        )
    shapes = tuple(tuple(tensor.shape) for tensor in node.outputs)
    return _apply(walked, node.operation, inputs, shapes, args, kwargs)


def _apply(walked: Walked, layer, inputs, shapes, args=(), kwargs=None) -> list[Value | None]:
    """What a layer makes of its inputs."""
    if hasattr(layer, "_nodes_by_depth") or getattr(layer, "_functional", None):
        return _run(walked, layer, inputs)
    try:
        _check(layer, inputs)
        call = Call(walked, layer, inputs, shapes, partial(_apply, walked), args, kwargs or {})
        made = HANDLERS[type(layer).__name__](call)
        return made if isinstance(made, list) else [made]
    except Refusal as reason:
        raise ImportRefused(f"{_named(layer)}: {reason}") from None
    except ImportRefused:
        raise
    except Exception as error:  # settings that no version of the layer that we know has
        raise ImportRefused(
            f"{_named(layer)} is not understood as it is set ({type(error).__name__}: "
            f"{str(error)[:200]})"
        ) from error


def _known() -> list[str]:
    import keras

    return sorted(name for name in HANDLERS if hasattr(keras.layers, name))


def _waiting(x: Value) -> str:
    return (
        f"{WAITING[x.waits]}, which is only understood in front of {', '.join(WAITED_FOR[x.waits])}"
    )


def _named(layer) -> str:
    return f"layer '{printable(layer.name)}' ({type(layer).__name__})"


def _check(layer, inputs: tuple[Value | None, ...]) -> None:
    kind = type(layer).__name__
    if kind not in HANDLERS or not type(layer).__module__.startswith("keras."):
        raise Refusal(
            HINTS.get(kind) or f"not one of the layers that can be streamed: {', '.join(_known())}"
        )
    if None in inputs:
        raise Refusal(
            "it reads a state of a layer with return_state: only the hidden state of one cell can "
            "be read"
        )
    for x in inputs:
        if x.waits and kind not in WAITED_FOR[x.waits]:
            raise Refusal(f"it reads {_waiting(x)}")
    policy = getattr(layer, "compute_dtype", "float32")
    if (
        policy not in ("float32", "float64")
        and "int" not in policy
        and getattr(layer, "weights", None)
    ):
        raise Refusal(
            f"it computes in {policy}: build the model with dtype='float32' and load its weights "
            "into that"
        )
    if getattr(layer, "quantization_mode", None):
        raise Refusal(
            "its weights are quantised already: import the model from before model.quantize()"
        )
