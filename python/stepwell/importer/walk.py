"""Follows the data from a graph's input to its output and collects the layers on the way.

Every value is either a constant or a *signal* (signals.py). Constants, the shape plumbing of the
exporters among them, are computed with the onnx reference evaluator, dynamic dimensions standing
for small numbers. The table of handlers at the end says which module understands which operator.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from stepwell.errors import ImportRefused
from stepwell.graph import Output
from stepwell.importer import layers, patterns, plumbing, windows
from stepwell.importer.outputs import Head, listed, outputs_of, places, readout_of, side_by_side
from stepwell.importer.reader import to_array
from stepwell.importer.recurrent import recurrent
from stepwell.importer.signals import (
    DIRECT,
    Atom,
    Axis,
    Partial,
    Signal,
    StateStack,
    Value,
    Walk,
    live_layers,
    upstream_layers,
)
from stepwell.layers import Layer, Recurrent

CONSTANT_LIMIT = 1 << 24  # values: more is not shape plumbing
# what dynamic dimensions 0, 1, 2 stand for: a fixed step is hardly ever the last of these
DYNAMIC_SIZES = (
    23,
    29,
    31,
)
RECURRENT = ("LSTM", "GRU", "RNN")

LEGACY = f"export torch models with torch.onnx.export(..., dynamo=False), or {DIRECT}"
HINTS = {
    "Loop": f"the exporter wrote the recurrence as a loop: {LEGACY}",
    "Scan": f"the exporter wrote the recurrence as a scan: {LEGACY}",
    "If": "control flow cannot be streamed: export in eval mode, with fixed options",
    "LogSoftmax": "end the model in Softmax, or in the logits",
    "ConvTranspose": "a transposed convolution makes more steps than it is given: a stream cannot",
    "InstanceNormalization": "it needs the whole sequence: use LayerNormalization or BatchNormalization",
    "GroupNormalization": "it needs the whole sequence: use LayerNormalization or BatchNormalization",
    "DynamicQuantizeLSTM": "export the float model: stepwell quantises it itself",
    "QuantizeLinear": "export the float model: stepwell quantises it itself",
    "DequantizeLinear": "export the float model: stepwell quantises it itself",
    "Attention": f"export torch.nn.LSTM models without torch.nn.MultiheadAttention, or {DIRECT}",
}


@dataclass(frozen=True)
class Walked:
    """The graph's parts, and how the source takes its input and gives its outputs."""

    layers: tuple[Layer, ...]
    sources: tuple[tuple[int, ...], ...]
    readout: str
    notes: tuple[str, ...]
    input_name: str
    named: tuple[Output, ...]  # the outputs that stand side by side
    input_shape: tuple[int | None, ...]  # None: dynamic
    state_inputs: tuple[str, ...]
    state_outputs: tuple[str, ...]
    states: tuple[str, ...]  # all outputs that are final states
    time: str  # label of the time axis: "in0", "in1"..
    features: int  # the input's axis that holds the features; -1 for tokens, which have none
    output_axes: tuple[tuple[Axis, ...] | None, ...]  # of each output; None where it is a constant


def walk(model: onnx.ModelProto, wanted: tuple[str, ...] = ()) -> Walked:
    """The layers of ``model`` that make the ``wanted`` outputs, all data outputs by default; raises
    ImportRefused.
    """
    graph = model.graph
    names = [output.name for output in graph.output]
    wanted = tuple(names[k] for k in places(names, wanted))
    w = Walk(model)
    w.values[""] = None
    for tensor in graph.initializer:
        w.values[tensor.name] = to_array(tensor)
    inputs = [value for value in graph.input if value.name not in w.values]
    data, states = _split_inputs(graph, inputs)
    w.stray_inputs = {value.name for value in inputs} - {
        data.name,
        *(state.name for state in states),
    }
    shape = _declared_shape(data)
    atoms = [Atom(f"in{k}", size or DYNAMIC_SIZES[k]) for k, size in enumerate(shape)]
    features = _feature_axis(graph, data, len(shape))
    if features >= 0:
        if shape[features] is None:
            raise ImportRefused(
                f"input '{data.name}' has a dynamic number of features: only batch and time may "
                "be dynamic"
            )
        atoms[features] = replace(atoms[features], label="feature")
    w.dynamic_axes = {f"in{k}" for k, size in enumerate(shape) if size is None}
    w.values[data.name] = Signal(tuple((atom,) for atom in atoms))
    for state in states:
        sizes = _declared_shape(state, what="initial state")
        w.values[state.name] = np.zeros(
            [size or DYNAMIC_SIZES[k] for k, size in enumerate(sizes)], np.float32
        )
        w.notes.append(
            f"input '{state.name}' is an initial state: the stream carries it, starting at zero"
        )
    needed = _upstream(graph, list(wanted or names))
    for node in graph.node:
        if not needed.isdisjoint(node.output):
            _visit(w, node)
    if wanted:
        _look_for_states(w, needed)
    return _result(w, data.name, shape, features, [state.name for state in states], wanted)


def _look_for_states(w: Walk, needed: set[str]) -> None:
    """Visit what only outputs need that are not wanted: final states may be among them, anything
    else does not matter.
    """
    notes = list(w.notes)
    for node in w.model.graph.node:
        if needed.isdisjoint(node.output):
            with contextlib.suppress(ImportRefused):
                _visit(w, node)
    w.notes = notes


def live_part(model: onnx.ModelProto, outputs: list[str]) -> onnx.ModelProto:
    """The model without what these outputs do not need: only nodes that ``walk`` has looked at may
    be run.
    """
    needed = _upstream(model.graph, outputs)
    live = onnx.ModelProto()
    live.CopyFrom(model)
    for field_name in ("node", "initializer", "sparse_initializer", "value_info", "output"):
        live.graph.ClearField(field_name)
    live.graph.output.extend(output for output in model.graph.output if output.name in outputs)
    live.graph.node.extend(node for node in model.graph.node if not needed.isdisjoint(node.output))
    live.graph.initializer.extend(
        tensor for tensor in model.graph.initializer if tensor.name in needed
    )
    return live


def _split_inputs(graph: onnx.GraphProto, inputs: list) -> tuple[onnx.ValueInfoProto, list]:
    """The data input is the one that a recurrent layer's X comes from; what leads only to initial
    states is a state input.
    """
    nodes = [node for node in graph.node if node.op_type in RECURRENT]
    if not nodes:
        raise ImportRefused(_no_recurrent_node(graph))
    to_data = _upstream(
        graph, [name for node in nodes for name in node.input[:1]], passing_states=False
    )
    to_state = _upstream(graph, [name for node in nodes for name in node.input[5:7]])
    data = [value for value in inputs if value.name in to_data]
    if len(data) != 1:
        names = [value.name for value in inputs]
        raise ImportRefused(
            "the recurrent layer's input must come from exactly one of the graph's inputs "
            f"{names}, it comes from {len(data)}"
        )
    return data[0], [value for value in inputs if value.name in to_state - to_data]


def _no_recurrent_node(graph: onnx.GraphProto) -> str:
    """Why a graph without recurrent nodes is refused: what became of its recurrence, and what would
    have worked.
    """
    found = ", ".join(sorted({node.op_type for node in graph.node}))[:300]
    hint = next(
        (
            HINTS[n.op_type]
            for n in graph.node
            if n.op_type in ("Loop", "Scan", "DynamicQuantizeLSTM")
        ),
        "",
    )
    shared = Counter(
        name
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm")
        for name in node.input[1:2]
    )
    if not hint and max(shared.values(), default=0) > 1:
        hint = f"the exporter unrolled the recurrence: {LEGACY}"
    return f"the graph has no LSTM, GRU or RNN node, only {found}. {hint or 'A model of feed-forward layers needs no stream.'}"


def _upstream(graph: onnx.GraphProto, names: list[str], passing_states: bool = True) -> set[str]:
    """All tensors that the named ones are computed from, themselves included; not by way of initial
    states if so wished.
    """
    producers = {name: node for node in graph.node for name in node.output if name}
    reached: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name and name not in reached:
            reached.add(name)
            node = producers.get(name, onnx.NodeProto())
            todo.extend(
                node.input[:5] if node.op_type in RECURRENT and not passing_states else node.input
            )
    return reached


def _declared_shape(value: onnx.ValueInfoProto, what: str = "input") -> tuple[int | None, ...]:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        raise ImportRefused(
            f"{what} '{value.name}' has no declared shape: export with static sizes or dynamic_axes"
        )
    sizes = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    if not 2 <= len(sizes) <= 3 or any(size is not None and size <= 0 for size in sizes):
        raise ImportRefused(
            f"{what} '{value.name}' has shape {list(sizes)}: expected [batch, time, features] or "
            "[time, features]"
        )
    if prod(size or 1 for size in sizes) > CONSTANT_LIMIT:
        raise ImportRefused(
            f"{what} '{value.name}' has shape {list(sizes)}: more than 16 million values"
        )
    return sizes


INTEGERS = (
    onnx.TensorProto.INT64,
    onnx.TensorProto.INT32,
    onnx.TensorProto.INT16,
    onnx.TensorProto.INT8,
    onnx.TensorProto.UINT8,
)
LOOKED_THROUGH = ("Identity", "Cast", "Dropout", "Pad")


def _feature_axis(graph: onnx.GraphProto, data: onnx.ValueInfoProto, rank: int) -> int:
    """The input's axis of features: 1 where a convolution reads it as it is, none (-1) for tokens,
    else the last.
    """
    names = {data.name}
    for node in graph.node:
        if not names & set(node.input):
            continue
        if node.op_type in LOOKED_THROUGH:
            names |= set(node.output)
        elif node.op_type == "Gather" and len(node.input) > 1 and node.input[1] in names:
            return -1
        elif node.op_type in ("Conv", "BatchNormalization") and rank == 3:
            return 1
    return -1 if data.type.tensor_type.elem_type in INTEGERS and rank == 2 else rank - 1


# ---- one node ----


def _visit(w: Walk, node: onnx.NodeProto) -> None:
    """Give a node to its handler; what it refuses is an ImportRefused that names it."""
    w.node = node
    try:
        _handle(w, w.inputs())
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, ArithmeticError) as error:
        # a damaged node: wrong number of inputs, attributes of the wrong type, axes that do not
        # exist
        raise w.refuse(
            f"its inputs or attributes do not fit together ({error}): export the model again"
        ) from error


def _handle(w: Walk, inputs: list[Value]) -> None:
    node = w.node
    _check_attributes(w)
    if node.op_type == "Constant":
        outputs: tuple = (_constant_node(w),)
    elif node.op_type == "Shape" and isinstance(inputs[0], Signal):
        sizes = np.array(inputs[0].shape, np.int64)
        outputs = (sizes[w.attribute("start", 0) : w.attribute("end")],)
    elif not any(isinstance(value, (Signal, StateStack, Partial)) for value in inputs):
        outputs = _computed(w, inputs)
    elif node.op_type in HANDLERS and node.domain in ("", "ai.onnx"):
        outputs = HANDLERS[node.op_type](w, *inputs)
    else:
        advice = f"not supported (the importer knows {', '.join(sorted(HANDLERS))}): do it before or after the model"
        raise w.refuse(HINTS.get(node.op_type, advice))
    for name, value in zip(node.output, outputs, strict=False):
        w.values[name] = value
    for name in node.output[len(outputs) :]:
        w.values[name] = None


def _check_attributes(w: Walk) -> None:
    """A tensor where the operator has a number would travel on into a layer."""
    node = w.node
    if not onnx.defs.has(node.op_type, w.opset, node.domain):
        return
    known = onnx.defs.get_schema(node.op_type, w.opset, node.domain).attributes
    for attribute in node.attribute:
        if attribute.name in known and attribute.type != known[attribute.name].type.value:
            wanted = known[attribute.name].type.name.lower()
            raise w.refuse(
                f"its attribute '{attribute.name}' is not of type {wanted}: export the model again"
            )


def _constant_node(w: Walk) -> np.ndarray:
    for attribute in w.node.attribute:
        value = helper.get_attribute_value(attribute)
        return to_array(value) if attribute.name == "value" else np.asarray(value)
    raise w.refuse("it has no value")


FOLDED = frozenset(
    (
        "Add And Cast CastLike Concat ConstantOfShape Div Equal Expand Flatten Floor Gather "
        "Identity Less Max Min Mod Mul Neg Not "
        "Or Pow Range ReduceProd Reshape ScatterND Shape Size Slice Split Sqrt Squeeze Sub Tile "
        "Transpose Unsqueeze Where"
    ).split()
)
ELEMENTWISE = frozenset("Add And Div Equal Less Max Min Mod Mul Or Pow Sub Where".split())


def _computed(w: Walk, inputs: list[Value]) -> tuple:
    """A node of constants alone, computed by the onnx reference evaluator."""
    node = w.node
    if node.op_type not in FOLDED:
        raise w.refuse(
            HINTS.get(
                node.op_type,
                "a computation on constants that the importer does not know; fold it before the "
                "export",
            )
        )
    w.folded_values += _size_bound(node.op_type, [value for value in inputs if value is not None])
    if not w.folded_values <= CONSTANT_LIMIT:  # NaN is no number of values either
        raise w.refuse("with it the graph's constants would have more than 16 million values")
    graph = helper.make_graph(
        [node],
        "constants",
        [
            helper.make_value_info(name, onnx.TypeProto())
            for name in dict.fromkeys(node.input)
            if name
        ],
        [helper.make_value_info(name, onnx.TypeProto()) for name in node.output if name],
    )
    single = helper.make_model(graph, opset_imports=w.model.opset_import)
    feeds = {name: value for name, value in zip(node.input, inputs, strict=True) if name}
    try:
        return tuple(np.asarray(value) for value in ReferenceEvaluator(single).run(None, feeds))
    except Exception as error:
        raise w.refuse(f"cannot be computed: {type(error).__name__}: {str(error)[:200]}") from error


def _size_bound(op_type: str, inputs: list[np.ndarray]) -> float:
    """How many values the node makes at most: a file of a few bytes may ask for terabytes."""
    if op_type in ELEMENTWISE:
        return prod(np.broadcast_shapes(*(value.shape for value in inputs)))
    if op_type == "Range":
        start, stop, step = (float(value) for value in inputs)
        return abs((stop - start) / step) if step else float("inf")
    if op_type == "Gather":
        return float(inputs[0].size) * inputs[1].size
    sizes = sum(value.size for value in inputs)
    if op_type in ("ConstantOfShape", "Expand", "Tile"):
        sizes *= prod(max(abs(int(n)), 1) for n in inputs[-1].reshape(-1))
    return sizes


HANDLERS: dict[str, Callable[..., tuple]] = {
    **dict.fromkeys(RECURRENT, recurrent),
    "MatMul": layers.matmul,
    "Gemm": layers.gemm,
    "Conv": windows.convolution,
    "MaxPool": windows.max_pool,
    "AveragePool": windows.average_pool,
    "GlobalAveragePool": patterns.global_average,
    "GlobalMaxPool": patterns.global_max,
    "ReduceMean": patterns.mean,
    "ReduceMax": patterns.maximum,
    "ReduceSum": patterns.total,
    "Pad": windows.pad,
    "BatchNormalization": layers.batch_norm,
    "LayerNormalization": layers.layer_norm,
    "Add": layers.add,
    "Sub": layers.subtract,
    "Mul": layers.multiply,
    "Div": layers.divide,
    "Neg": layers.negate,
    "Pow": layers.power,
    "Sqrt": patterns.square_root,
    "Concat": layers.concatenated,
    "Less": layers.less,
    "Relu": layers.activation("relu"),
    "Tanh": layers.activation("tanh"),
    "Sigmoid": layers.activation("sigmoid"),
    "LeakyRelu": layers.activation("leaky_relu", alpha=0.01),
    "ThresholdedRelu": layers.activation("thresholded_relu", alpha=1.0),
    "Elu": layers.activation("elu", alpha=1.0),
    "Celu": layers.activation("celu", alpha=1.0),
    "Selu": layers.activation("selu"),
    "HardSigmoid": layers.activation("hard_sigmoid", alpha=0.2, beta=0.5),
    "HardSwish": layers.activation("hard_swish"),
    "Softplus": layers.activation("softplus"),
    "Softsign": layers.activation("softsign"),
    "Mish": layers.activation("mish"),
    "Abs": layers.activation("abs"),
    "Erf": layers.activation("erf"),
    "Exp": layers.activation("exp"),
    "PRelu": layers.leaky_prelu,
    "Gelu": layers.gelu,
    "Clip": layers.clip,
    "Softmax": layers.softmax,
    "ArgMax": layers.arg_max,
    "Identity": plumbing.same,
    "Dropout": plumbing.dropout,
    "Cast": layers.cast,
    "Transpose": plumbing.transpose,
    "Squeeze": plumbing.squeeze,
    "Unsqueeze": plumbing.unsqueeze,
    "Expand": plumbing.expand,
    "Reshape": plumbing.reshape,
    "Flatten": plumbing.flatten,
    "Gather": plumbing.gather,
    "Slice": plumbing.cut,
    "Split": plumbing.split,
    "ReverseSequence": plumbing.reverse_sequence,
}


# ---- the end ----


def _result(
    w: Walk,
    data: str,
    shape: tuple[int | None, ...],
    features: int,
    state_inputs: list[str],
    wanted: tuple[str, ...],
) -> Walked:
    names = [output.name for output in w.model.graph.output]
    missing = [name for name in wanted or names if name not in w.values]
    if missing:
        raise ImportRefused(f"output '{missing[0]}' is not made by any node")
    states = _final_states({name: w.values.get(name) for name in names}, bool(state_inputs))
    chosen = wanted or tuple(name for name in names if name not in states) or (names[0],)
    values = [_checked_output(name, w.values[name]) for name in chosen]
    signals = [y for y in values if isinstance(y, Signal)]
    if signals and not any(_is_recurrent(w, y) for y in signals):
        raise ImportRefused(f"output {listed(chosen)} does not come from a recurrent layer")
    heads = [_head(name, y) for name, y in zip(chosen, values, strict=True)]
    last = side_by_side(w.layers, w.sources, heads)
    readout, time = readout_of(heads), next((y.time for y in signals if y.time), "")
    left = [name for name in states if name not in chosen]
    if left:
        w.notes.append(f"outputs {', '.join(left)} are final states: the stream keeps them")
    chain, sources = live_layers(w, last)
    axes = tuple(y.axes if isinstance(y, Signal) else None for y in values)
    labels = (data, outputs_of(heads), shape, tuple(state_inputs), tuple(left), tuple(states))
    return Walked(chain, sources, readout, tuple(w.notes), *labels, time, features, axes)


def _final_states(values: dict[str, Value], takes_states: bool) -> list[str]:
    """The outputs that hand the state on. A hidden state is data where no other output is, where a
    later output is the same state, and where it is the last layer's, taken out of h_n.
    """
    states = [
        name for name, y in values.items() if isinstance(y, StateStack) or getattr(y, "state", "")
    ]
    hidden = [name for name in states if getattr(values[name], "state", "") == "h"]
    if hidden and len(states) == len(values):
        return [name for name in states if name != hidden[0]]
    has_cells = len(hidden) < len(states)

    def is_data(name: str) -> bool:
        later = hidden[hidden.index(name) + 1 :]
        taken_out = not takes_states and not has_cells and len(values[name].axes) < 3
        return taken_out or any(values[other].value == values[name].value for other in later)

    return [name for name in states if name not in hidden or not is_data(name)]


def _checked_output(name: str, y: Value) -> Signal | np.ndarray:
    if isinstance(y, StateStack):
        raise ImportRefused(
            f"output '{name}' holds the final states of several layers: give the last layer's, "
            "h_n[-1]"
        )
    if not isinstance(y, (Signal, np.ndarray)):
        raise ImportRefused(f"output '{name}' does not come from a recurrent layer")
    if isinstance(y, Signal) and y.state == "c":
        raise ImportRefused(
            f"output '{name}' is a cell state: make the hidden state or a dense layer the first "
            "output"
        )
    if isinstance(y, Signal) and y.flipped:
        raise ImportRefused(f"output '{name}' runs backwards in time: turn it round")
    return y


def _is_recurrent(w: Walk, y: Signal) -> bool:
    return any(isinstance(layer, Recurrent) for layer in upstream_layers(w, y.value))


def _head(name: str, y: Signal | np.ndarray) -> Head:
    if isinstance(y, Signal):
        return Head(name, y.value, y.n_features, y.last)
    rows = y.reshape(-1, y.shape[-1] if y.ndim else 1) if y.size else y
    if y.dtype.kind != "f" or not y.size or (rows != rows[0]).any():
        raise ImportRefused(
            f"output '{name}' is a constant that is no row of numbers: it does not depend on the "
            "input"
        )
    return Head(name, 0, rows.shape[1], False, rows[0].astype(np.float64))
