"""Follows the data from a graph's input to its output and collects the layers on the way.

Every value is either a constant or a *signal*. Constants, the shape plumbing of the exporters among them, are computed with the
onnx reference evaluator, dynamic dimensions standing for small numbers. A signal knows which of its axes is which (an axis is a
product of atoms: input axes, features, unit axes), so that transposes, reshapes, squeezes and flattenings are followed exactly, and
carries the chain of layers that made it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from stepwell.errors import ImportRefused
from stepwell.graph import SOFTMAX_MAX, Activation, Dense, Gru, Layer, Lstm, Recurrent, Rnn
from stepwell.importer.reader import to_array

CONSTANT_LIMIT = 1 << 24  # values: more is not shape plumbing
DYNAMIC_SIZES = (23, 29, 31)  # what dynamic dimensions 0, 1, 2 stand for: a fixed step is hardly ever the last of these
RECURRENT = ("LSTM", "GRU", "RNN")

HINTS = {
    "Loop": "the exporter wrote the recurrence as a loop: export torch.nn.LSTM with torch.onnx.export(..., dynamo=False)",
    "Scan": "the exporter wrote the recurrence as a scan: export torch.nn.LSTM with torch.onnx.export(..., dynamo=False)",
    "If": "control flow cannot be streamed: export in eval mode, with fixed options",
    "LogSoftmax": "end the model in Softmax, or in the logits",
    "ReduceMean": "it mixes timesteps, a stream has one at a time: read out the last step, or every one",
    "ArgMax": "end the model in its logits or in Softmax: the application takes the largest",
    "Clip": "clip after the model, or use ReLU or Sigmoid",
    **dict.fromkeys(
        ("LeakyRelu", "PRelu", "Elu", "Selu", "Gelu", "Erf", "HardSigmoid", "HardSwish", "Softplus", "Mish"),
        "this activation is not supported: train with ReLU, Tanh or Sigmoid",
    ),
    "Conv": "convolutions are not supported yet: recurrent and dense layers are",
    "BatchNormalization": "fold it into the neighbouring layer's weights before the export",
    "LayerNormalization": "not supported yet: recurrent and dense layers are",
    "Split": "an LSTMCell written out, or several heads: export torch.nn.LSTM instead of LSTMCell",
    "DynamicQuantizeLSTM": "export the float model: stepwell quantises it itself",
    "QuantizeLinear": "export the float model: stepwell quantises it itself",
    "DequantizeLinear": "export the float model: stepwell quantises it itself",
}


@dataclass(frozen=True)
class Atom:
    """A piece of an axis: "in0".. for axes of the model's input, "feature", or "unit" (size 1)."""

    label: str
    size: int


Axis = tuple[Atom, ...]
UNIT: Axis = (Atom("unit", 1),)


@dataclass(frozen=True)
class Signal:
    """Data on its way. ``last``: the time axis has been reduced to its last step. ``state``: a recurrent layer's final state."""

    axes: tuple[Axis, ...]
    chain: tuple[Layer, ...] = ()
    time: str = ""
    last: bool = False
    state: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(prod(atom.size for atom in axis) for axis in self.axes)

    def axis(self, index: int) -> int:
        """A non-negative axis number."""
        return index % len(self.axes)


@dataclass(frozen=True)
class StateStack:
    """Final states of several layers, concatenated along their first axis, as torch's h_n."""

    parts: tuple[Signal, ...]


Value = np.ndarray | Signal | StateStack | None


@dataclass(frozen=True)
class Walked:
    layers: tuple[Layer, ...]
    readout: str
    notes: tuple[str, ...]
    input_name: str
    output_name: str
    input_shape: tuple[int | None, ...]  # None: dynamic
    state_inputs: tuple[str, ...]
    state_outputs: tuple[str, ...]
    time: str  # label of the time axis: "in0" or "in1"
    output_axes: tuple[Axis, ...]


@dataclass
class _Walk:
    model: onnx.ModelProto
    values: dict[str, Value] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    stray_inputs: set[str] = field(default_factory=set)  # graph inputs that are neither data nor state
    node: onnx.NodeProto | None = None
    folded_values: float = 0  # made by computing constants, so far

    def refuse(self, reason: str) -> ImportRefused:
        """The error for the node at hand."""
        node = self.node
        assert node is not None
        name = f"node '{node.name}'" if node.name else f"the node that makes '{node.output[0]}'"
        return ImportRefused(f"{name} ({node.op_type}): {reason}")

    def attribute(self, name: str, default: Any = None) -> Any:
        for attribute in self.node.attribute:
            if attribute.name == name:
                return helper.get_attribute_value(attribute)
        return default

    def inputs(self) -> list[Value]:
        found = []
        for name in self.node.input:
            if name in self.stray_inputs:
                raise self.refuse(
                    f"it reads '{name}', an input of the graph that is neither the data nor an initial state: "
                    "store weights in the file"
                )
            if name and name not in self.values:
                raise self.refuse(
                    f"its input '{name}' does not exist or is made later: the graph has a cycle or is not sorted"
                )
            found.append(self.values[name] if name else None)
        return found

    def constant(self, value: Value, what: str) -> np.ndarray:
        if not isinstance(value, np.ndarray):
            raise self.refuse(f"{what} must be a constant: store it as an initializer")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise self.refuse(f"{what} holds NaN or infinity: the training has diverged")
        return value


def walk(model: onnx.ModelProto) -> Walked:
    """The chain of layers of ``model``; raises ImportRefused."""
    graph = model.graph
    w = _Walk(model)
    w.values[""] = None
    for tensor in graph.initializer:
        w.values[tensor.name] = to_array(tensor)
    inputs = [value for value in graph.input if value.name not in w.values]
    data, states = _split_inputs(graph, inputs)
    w.stray_inputs = {value.name for value in inputs} - {data.name, *(state.name for state in states)}
    shape = _declared_shape(data)
    atoms = [Atom(f"in{k}", size or DYNAMIC_SIZES[k]) for k, size in enumerate(shape)]
    atoms[-1] = replace(atoms[-1], label="feature")
    w.values[data.name] = Signal(tuple((atom,) for atom in atoms))
    for state in states:
        sizes = _declared_shape(state, what="initial state")
        w.values[state.name] = np.zeros([size or DYNAMIC_SIZES[k] for k, size in enumerate(sizes)], np.float32)
        w.notes.append(f"input '{state.name}' is an initial state: the stream carries it, starting at zero")
    needed = _upstream(graph, [output.name for output in graph.output])
    for node in graph.node:
        if not needed.isdisjoint(node.output):
            w.node = node
            try:
                _visit(w, w.inputs())
            except (ValueError, TypeError, IndexError, KeyError, AttributeError, ArithmeticError) as error:
                # a damaged node: wrong number of inputs, attributes of the wrong type, axes that do not exist
                raise w.refuse(
                    f"its inputs or attributes do not fit together ({error}): export the model again"
                ) from error
    return _result(w, data.name, shape, [state.name for state in states])


def live_part(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without what its outputs do not need: only nodes that ``walk`` has looked at may be run."""
    needed = _upstream(model.graph, [output.name for output in model.graph.output])
    live = onnx.ModelProto()
    live.CopyFrom(model)
    for field_name in ("node", "initializer", "sparse_initializer", "value_info"):
        live.graph.ClearField(field_name)
    live.graph.node.extend(node for node in model.graph.node if not needed.isdisjoint(node.output))
    live.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in needed)
    return live


def _split_inputs(graph: onnx.GraphProto, inputs: list) -> tuple[onnx.ValueInfoProto, list]:
    """The data input is the one that a recurrent layer's X comes from; what leads only to initial states is a state input."""
    recurrent = [node for node in graph.node if node.op_type in RECURRENT]
    if not recurrent:
        found = ", ".join(sorted({node.op_type for node in graph.node}))[:300]
        hint = next(
            (HINTS[n.op_type] for n in graph.node if n.op_type in ("Loop", "Scan", "Split", "DynamicQuantizeLSTM")), ""
        )
        raise ImportRefused(
            f"the graph has no LSTM, GRU or RNN node, only {found}. {hint or 'Is the recurrence unrolled?'}"
        )
    to_data = _upstream(graph, [name for node in recurrent for name in node.input[:1]], passing_states=False)
    to_state = _upstream(graph, [name for node in recurrent for name in node.input[5:7]])
    data = [value for value in inputs if value.name in to_data]
    if len(data) != 1:
        names = [value.name for value in inputs]
        raise ImportRefused(
            f"the recurrent layer's input must come from exactly one of the graph's inputs {names}, it comes from {len(data)}"
        )
    return data[0], [value for value in inputs if value.name in to_state - to_data]


def _upstream(graph: onnx.GraphProto, names: list[str], passing_states: bool = True) -> set[str]:
    """All tensors that the named ones are computed from, themselves included; not by way of initial states if so wished."""
    producers = {name: node for node in graph.node for name in node.output if name}
    reached: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name and name not in reached:
            reached.add(name)
            node = producers.get(name, onnx.NodeProto())
            todo.extend(node.input[:5] if node.op_type in RECURRENT and not passing_states else node.input)
    return reached


def _declared_shape(value: onnx.ValueInfoProto, what: str = "input") -> tuple[int | None, ...]:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        raise ImportRefused(f"{what} '{value.name}' has no declared shape: export with static sizes or dynamic_axes")
    sizes = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    if not 2 <= len(sizes) <= 3 or any(size is not None and size <= 0 for size in sizes):
        raise ImportRefused(
            f"{what} '{value.name}' has shape {list(sizes)}: expected [batch, time, features] or [time, features]"
        )
    if prod(size or 1 for size in sizes) > CONSTANT_LIMIT:
        raise ImportRefused(f"{what} '{value.name}' has shape {list(sizes)}: more than 16 million values")
    if what == "input" and sizes[-1] is None:
        raise ImportRefused(
            f"{what} '{value.name}' has a dynamic number of features: only batch and time may be dynamic"
        )
    return sizes


# ---- one node ----


def _visit(w: _Walk, inputs: list[Value]) -> None:
    node = w.node
    if node.op_type == "Constant":
        outputs: tuple = (_constant_node(w),)
    elif node.op_type == "Shape" and isinstance(inputs[0], Signal):
        sizes = np.array(inputs[0].shape, np.int64)
        outputs = (sizes[w.attribute("start", 0) : w.attribute("end")],)
    elif not any(isinstance(value, (Signal, StateStack)) for value in inputs):
        outputs = _computed(w, inputs)
    elif node.op_type in HANDLERS and node.domain in ("", "ai.onnx"):
        outputs = HANDLERS[node.op_type](w, *inputs)
    else:
        known = "LSTM, GRU, RNN, Gemm, MatMul, Add, Relu, Tanh, Sigmoid, Softmax and shape operators"
        advice = f"this operator is not supported (the importer knows {known}): do it before or after the model"
        raise w.refuse(HINTS.get(node.op_type, advice))
    for name, value in zip(node.output, outputs, strict=False):
        w.values[name] = value
    for name in node.output[len(outputs) :]:
        w.values[name] = None


def _constant_node(w: _Walk) -> np.ndarray:
    for attribute in w.node.attribute:
        value = helper.get_attribute_value(attribute)
        return to_array(value) if attribute.name == "value" else np.asarray(value)
    raise w.refuse("it has no value")


FOLDED = frozenset(
    (
        "Add And Cast CastLike Concat ConstantOfShape Div Equal Expand Flatten Floor Gather Identity Less Max Min Mod Mul Neg Not "
        "Or Pow Range ReduceProd Reshape ScatterND Shape Size Slice Split Sqrt Squeeze Sub Tile Transpose Unsqueeze Where"
    ).split()
)
ELEMENTWISE = frozenset("Add And Div Equal Less Max Min Mod Mul Or Pow Sub Where".split())


def _computed(w: _Walk, inputs: list[Value]) -> tuple:
    """A node of constants alone, computed by the onnx reference evaluator."""
    node = w.node
    if node.op_type not in FOLDED:
        raise w.refuse(
            HINTS.get(
                node.op_type, "a computation on constants that the importer does not know; fold it before the export"
            )
        )
    w.folded_values += _size_bound(node.op_type, [value for value in inputs if value is not None])
    if w.folded_values > CONSTANT_LIMIT:
        raise w.refuse("with it the graph's constants would have more than 16 million values")
    graph = helper.make_graph(
        [node],
        "constants",
        [helper.make_value_info(name, onnx.TypeProto()) for name in dict.fromkeys(node.input) if name],
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


# ---- recurrent layers ----


ACTIVATIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}
N_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def _recurrent(w: _Walk, x: Value, weights: Value, recurrent: Value, *rest: Value) -> tuple:
    bias, lengths, h0, c0, peepholes = (*rest, None, None, None, None, None)[:5]
    if not isinstance(x, Signal):
        raise w.refuse("its input X is not the data")
    _check_recurrent(w, x)
    kind = w.node.op_type
    n_gates = N_GATES[kind]
    matrix = w.constant(weights, "W").astype(np.float64)
    square = w.constant(recurrent, "R").astype(np.float64)
    n = w.attribute("hidden_size") or square.shape[-1]
    n_in = x.shape[2]
    if matrix.shape != (1, n_gates * n, n_in) or square.shape != (1, n_gates * n, n):
        raise w.refuse(
            f"W {list(matrix.shape)} and R {list(square.shape)} do not fit hidden_size {n} and {n_in} inputs"
        )
    both = np.zeros((1, 2 * n_gates * n)) if bias is None else w.constant(bias, "B").astype(np.float64)
    if both.shape != (1, 2 * n_gates * n):
        raise w.refuse(f"B has shape {list(both.shape)}, expected [1, {2 * n_gates * n}]")
    _check_states(w, lengths, h0, c0, peepholes, x, n)
    name = w.node.name or w.node.output[0] or kind.lower()
    layer = MAKERS[kind](name, matrix[0], square[0], *np.split(both[0], 2))
    return _recurrent_outputs(w, x, layer)[: 3 if kind == "LSTM" else 2]


def _make_lstm(name: str, w_x: np.ndarray, w_h: np.ndarray, b_x: np.ndarray, b_h: np.ndarray) -> Lstm:
    """The ONNX operator's gate order is i, o, f, c."""
    order = (0, 2, 3, 1)
    return Lstm(name, _gates(w_x, order), _gates(w_h, order), _gates(b_x + b_h, order))


def _make_gru(name: str, w_x: np.ndarray, w_h: np.ndarray, b_x: np.ndarray, b_h: np.ndarray) -> Gru:
    """The ONNX operator's gate order is z, r, h."""
    return Gru(name, *(_gates(array, (1, 0, 2)) for array in (w_x, w_h, b_x, b_h)))


def _make_rnn(name: str, w_x: np.ndarray, w_h: np.ndarray, b_x: np.ndarray, b_h: np.ndarray) -> Rnn:
    return Rnn(name, w_x, w_h, b_x + b_h)


MAKERS = {"LSTM": _make_lstm, "GRU": _make_gru, "RNN": _make_rnn}


def _gates(rows: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Rows stacked gate by gate, in another order of gates."""
    parts = np.split(rows, len(order))
    return np.concatenate([parts[k] for k in order])


def _check_recurrent(w: _Walk, x: Signal) -> None:
    kind = w.node.op_type
    direction = w.attribute("direction", b"forward").decode()
    if direction != "forward":
        raise w.refuse(
            f"direction '{direction}' needs the whole sequence and cannot be streamed: train a forward {kind}"
        )
    activations = [name.decode().lower() for name in w.attribute("activations", [])]
    if activations not in ([], ACTIVATIONS[kind]):
        raise w.refuse(f"activations {activations} are not supported: use the default {ACTIVATIONS[kind]}")
    if w.attribute("clip", 0.0):
        raise w.refuse("cell clipping is not supported: export without clip")
    if w.attribute("input_forget", 0):
        raise w.refuse("coupled input and forget gates (input_forget) are not supported")
    if kind == "GRU" and not w.attribute("linear_before_reset", 0):
        raise w.refuse(
            "the reset gate before the recurrent product (linear_before_reset = 0) is not supported: "
            "torch.nn.GRU and Keras' GRU(reset_after=True) apply it after"
        )
    if len(x.axes) != 3 or len(x.axes[2]) != 1 or x.axes[2][0].label != "feature":
        raise w.refuse(f"its input must have axes time, batch, features; it has shape {list(x.shape)}")


def _check_states(w: _Walk, lengths: Value, h0: Value, c0: Value, peepholes: Value, x: Signal, n: int) -> None:
    for what, value in (("initial_h", h0), ("initial_c", c0)):
        if value is None:
            continue
        if not isinstance(value, np.ndarray):
            raise w.refuse(f"{what} is computed from the data: a stream starts from a state that is known beforehand")
        if value.shape[-1:] != (n,):
            raise w.refuse(
                f"{what} has shape {list(value.shape)}, the layer {n} units: a projection (proj_size), which torch exports "
                "wrongly, is not supported: train without it"
            )
        if np.any(value):
            raise w.refuse(f"{what} is a constant other than zero, which is not supported: start from zero")
    if peepholes is not None and np.any(w.constant(peepholes, "P")):
        raise w.refuse("peephole weights are not supported: train without them")
    if lengths is not None:
        steps = x.shape[1 if w.attribute("layout", 0) else 0]
        if np.any(w.constant(lengths, "sequence_lens") != steps):
            raise w.refuse("sequence_lens shorter than the sequence are not supported: a stream has no length")


def _recurrent_outputs(w: _Walk, x: Signal, layer: Recurrent) -> tuple[Signal, Signal, Signal]:
    """Y [T, 1, B, H], Y_h and Y_c [1, B, H]; with layout 1 the batch comes first: Y [B, T, 1, H], Y_h [B, 1, H]."""
    layout = w.attribute("layout", 0)
    time, batch = (x.axes[1], x.axes[0]) if layout else (x.axes[0], x.axes[1])
    if x.last:
        raise w.refuse("it runs over the last step only: a recurrent layer after a last-step readout is not a sequence")
    labels = [atom.label for atom in time if atom.label != "unit"]
    label = x.time or (labels[0] if labels else "unit")
    if len(labels) > 1 or (labels and labels[0] != label):
        raise w.refuse(
            "its time axis is not the time axis of the layers before it: check batch_first and the transposes"
        )
    feature: Axis = (Atom("feature", layer.n_out),)
    made = replace(x, chain=(*x.chain, layer), time=label)
    y = replace(made, axes=(batch, time, UNIT, feature) if layout else (time, UNIT, batch, feature))
    final = replace(made, axes=(batch, UNIT, feature) if layout else (UNIT, batch, feature), last=True)
    return y, replace(final, state="h"), replace(final, state="c")


# ---- dense layers and activations ----


def _features(w: _Walk, x: Value, n_in: int) -> Signal:
    if isinstance(x, StateStack):
        raise w.refuse("reads the final states of several layers: read the output, or the last layer's state (h_n[-1])")
    if not isinstance(x, Signal):
        raise w.refuse("the weights must be the second factor: constant @ data is not a dense layer")
    if x.state == "c":
        raise w.refuse("reads the cell state, which is not supported: read the hidden state")
    if len(x.axes[-1]) != 1 or x.axes[-1][0] != Atom("feature", n_in):
        raise w.refuse(
            f"its input of shape {list(x.shape)} does not end in {n_in} features: time or batch are mixed into them"
        )
    _not_after_softmax(w, x)
    return x


def _not_after_softmax(w: _Walk, x: Signal) -> None:
    if x.chain and getattr(x.chain[-1], "activation", "") == "softmax":
        raise w.refuse("Softmax must be the last operation of the model")


def _extended(x: Signal, layer: Layer) -> Signal:
    return replace(x, axes=(*x.axes[:-1], (Atom("feature", layer.n_out),)), chain=(*x.chain, layer), state="")


def _with_last_layer(x: Signal, layer: Layer) -> Signal:
    return replace(x, chain=(*x.chain[:-1], layer))


def _matmul(w: _Walk, a: Value, b: Value) -> tuple[Signal]:
    weight = w.constant(b, "the second factor").astype(np.float64)
    if weight.ndim != 2:
        raise w.refuse(f"the weights have shape {list(weight.shape)}, expected [n_in, n_out]")
    x = _features(w, a, weight.shape[0])
    name = w.node.name or w.node.output[0]
    return (_extended(x, Dense(name, weight.T.copy(), np.zeros(weight.shape[1]))),)


def _gemm(w: _Walk, a: Value, b: Value, c: Value = None) -> tuple[Signal]:
    if w.attribute("transA", 0) and isinstance(a, Signal):
        a = replace(a, axes=a.axes[::-1])
    weight = w.constant(b, "B").astype(np.float64) * w.attribute("alpha", 1.0)
    weight = weight if w.attribute("transB", 0) else weight.T
    if weight.ndim != 2:
        raise w.refuse(f"the weights have shape {list(weight.shape)}")
    x = _features(w, a, weight.shape[1])
    bias = np.zeros(len(weight))
    if c is not None:
        bias = _per_feature(w, w.constant(c, "C"), len(weight)) * w.attribute("beta", 1.0)
    return (_extended(x, Dense(w.node.name or w.node.output[0], weight.copy(), bias)),)


def _per_feature(w: _Walk, constant: np.ndarray, n: int) -> np.ndarray:
    """A constant that broadcasts over everything but the features, as [n]."""
    if constant.size not in (1, n) or (constant.size == n and constant.ndim and constant.shape[-1] != n):
        raise w.refuse(f"a constant of shape {list(constant.shape)} does not belong to {n} features")
    return np.broadcast_to(constant.astype(np.float64).reshape(-1), (n,)).copy()


def _open_dense(w: _Walk, x: Signal) -> Dense:
    """The dense layer that ``x`` comes straight from: constants after it fold into its weights."""
    layer = x.chain[-1] if x.chain else None
    if not isinstance(layer, Dense) or layer.activation != "none":
        where = "the model's input" if layer is None else "a recurrent layer or an activation"
        raise w.refuse(
            f"arithmetic with a constant straight after {where} is not supported, only after a dense layer: do it outside the model"
        )
    return layer


def _arithmetic(apply: Callable[[Dense, np.ndarray, bool], Dense]) -> Callable[[_Walk, Value, Value], tuple[Signal]]:
    def handle(w: _Walk, a: Value, b: Value) -> tuple[Signal]:
        swapped = isinstance(a, np.ndarray)
        x, constant = (b, a) if swapped else (a, b)
        if not isinstance(x, Signal) or not isinstance(constant, np.ndarray):
            raise w.refuse("both operands are data: residual connections and gates written out are not supported")
        layer = _open_dense(w, x)
        return (_with_last_layer(x, apply(layer, _per_feature(w, constant, layer.n_out), swapped)),)

    return handle


def _add(layer: Dense, k: np.ndarray, swapped: bool) -> Dense:
    return replace(layer, bias=layer.bias + k)


def _subtract(layer: Dense, k: np.ndarray, swapped: bool) -> Dense:
    return _multiply(_add(layer, -k, False), -np.ones(1), False) if swapped else _add(layer, -k, False)


def _multiply(layer: Dense, k: np.ndarray, swapped: bool) -> Dense:
    return replace(layer, weight=layer.weight * k[:, None], bias=layer.bias * k)


def _divide(w: _Walk, a: Value, b: Value) -> tuple[Signal]:
    if isinstance(a, np.ndarray) or (isinstance(b, np.ndarray) and not np.all(b)):
        raise w.refuse("division by data or by zero")
    return _arithmetic(lambda layer, k, swapped: _multiply(layer, 1 / k, False))(w, a, b)


def _activation(kind: str) -> Callable[[_Walk, Value], tuple[Signal]]:
    def handle(w: _Walk, x: Value) -> tuple[Signal]:
        if not isinstance(x, Signal) or not x.chain:
            raise w.refuse("an activation of the raw input is not supported: apply it before the model")
        if x.state == "c":
            raise w.refuse("reads the cell state, which is not supported")
        _not_after_softmax(w, x)
        layer = x.chain[-1]
        if isinstance(layer, Dense) and layer.activation == "none":
            return (_with_last_layer(x, replace(layer, activation=kind)),)
        if kind == "relu" and getattr(layer, "activation", "") in ("relu", "sigmoid"):
            return (x,)  # never negative as it is
        name = w.node.name or w.node.output[0]
        return (_extended(x, Activation(name, kind, layer.n_out)),)

    return handle


def _softmax(w: _Walk, x: Value) -> tuple[Signal]:
    opset = next(entry.version for entry in w.model.opset_import if entry.domain in ("", "ai.onnx"))
    if isinstance(x, Signal):
        default = -1 if opset >= 13 else 1
        if x.axis(w.attribute("axis", default)) != len(x.axes) - 1:
            raise w.refuse("Softmax must run over the features (the last axis)")
        if not x.chain or not isinstance(x.chain[-1], Dense) or x.chain[-1].activation != "none":
            raise w.refuse("Softmax must follow a dense layer")
        if x.chain[-1].n_out > SOFTMAX_MAX:
            raise w.refuse(f"Softmax over {x.chain[-1].n_out} classes: {SOFTMAX_MAX} at most")
    return _activation("softmax")(w, x)


# ---- plumbing ----


def _same(w: _Walk, x: Value, *rest: Value) -> tuple[Value]:
    return (x,)


def _dropout(w: _Walk, x: Value, ratio: Value = None, training: Value = None) -> tuple[Value]:
    if training is not None and np.any(w.constant(training, "training_mode")):
        raise w.refuse("it is in training mode: export with model.eval()")
    return (x,)


def _cast(w: _Walk, x: Value) -> tuple[Value]:
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    if w.attribute("to") not in floats:
        raise w.refuse("casts the data to an integer type, which is not supported")
    return (x,)


def _transpose(w: _Walk, x: Value) -> tuple[Signal]:
    x = _signal(w, x)
    order = w.attribute("perm") or list(range(len(x.axes)))[::-1]
    return (replace(x, axes=tuple(x.axes[k] for k in order)),)


def _signal(w: _Walk, x: Value) -> Signal:
    if not isinstance(x, Signal):
        raise w.refuse("final states of several layers are mixed here: read the output or the last layer's state")
    return x


def _axes_given(w: _Walk, given: Value) -> list[int] | None:
    """Axes as an attribute (opset < 13) or as an input."""
    if given is not None:
        return [int(k) for k in w.constant(given, "axes").reshape(-1)]
    axes = w.attribute("axes")
    return None if axes is None else list(axes)


def _squeeze(w: _Walk, x: Value, given: Value = None) -> tuple[Signal]:
    x = _signal(w, x)
    axes = _axes_given(w, given)
    drop = {x.axis(k) for k in axes} if axes is not None else {k for k, size in enumerate(x.shape) if size == 1}
    if any(x.shape[k] != 1 for k in drop):
        raise w.refuse(f"squeezes an axis of shape {list(x.shape)} that is not 1")
    return (replace(x, axes=tuple(axis for k, axis in enumerate(x.axes) if k not in drop)),)


def _unsqueeze(w: _Walk, x: Value, given: Value = None) -> tuple[Signal]:
    x = _signal(w, x)
    new = _axes_given(w, given) or []
    rank = len(x.axes) + len(new)
    places = {k % rank for k in new}
    old = iter(x.axes)
    return (replace(x, axes=tuple(UNIT if k in places else next(old) for k in range(rank))),)


def _reshape(w: _Walk, x: Value, target: Value) -> tuple[Signal]:
    x = _signal(w, x)
    sizes = [int(v) for v in w.constant(target, "the shape").reshape(-1)]
    sizes = [x.shape[k] if size == 0 and k < len(x.axes) else size for k, size in enumerate(sizes)]
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = prod(x.shape) // max(1, prod(size for size in sizes if size != -1))
    return (_regrouped(w, x, sizes),)


def _flatten(w: _Walk, x: Value) -> tuple[Signal]:
    x = _signal(w, x)
    axis = w.attribute("axis", 1)
    axis = axis if axis >= 0 else len(x.axes) + axis
    return (_regrouped(w, x, [prod(x.shape[:axis]), prod(x.shape[axis:])]),)


def _regrouped(w: _Walk, x: Signal, sizes: list[int]) -> Signal:
    """Axes are cut between atoms only; unit atoms may appear and vanish anywhere."""
    atoms = [atom for axis in x.axes for atom in axis if atom.size != 1]
    keep = {atom.label: atom for axis in x.axes for atom in axis if atom.size == 1 and atom.label != "unit"}
    axes: list[Axis] = []
    for size in sizes:
        axis: list[Atom] = []
        while prod(atom.size for atom in axis) < size and atoms:
            axis.append(atoms.pop(0))
        if prod(atom.size for atom in axis) != size:
            raise w.refuse(
                f"reshapes {list(x.shape)} to {sizes}, which mixes or cuts time, batch and features: do it after the model"
            )
        axes.append(tuple(axis) or UNIT)
    if atoms:
        raise w.refuse(f"reshapes {list(x.shape)} to {sizes}, which does not hold all values")
    return replace(x, axes=_named_units(axes, keep))


def _named_units(axes: list[Axis], keep: dict[str, Atom]) -> tuple[Axis, ...]:
    """A feature axis of one value is still the features: it is the last axis."""
    if "feature" in keep and axes and axes[-1] == UNIT:
        axes[-1] = (keep["feature"],)
    return tuple(axes)


def _gather(w: _Walk, x: Value, indices: Value) -> tuple[Signal]:
    index = w.constant(indices, "the index")
    if isinstance(x, StateStack):
        return (_from_stack(w, x, index),)
    x = _signal(w, x)
    axis = x.axis(w.attribute("axis", 0))
    if index.size != 1 or index.ndim > 1:
        raise w.refuse("picks several entries of the data, which is not supported: take the last step, or every one")
    position = int(index.reshape(-1)[0])
    picked = _picked(w, x, axis, position, position + 1 or x.shape[axis])
    axes = picked.axes if index.ndim else tuple(a for k, a in enumerate(picked.axes) if k != axis)
    return (replace(picked, axes=axes),)


def _slice(
    w: _Walk, x: Value, starts: Value = None, ends: Value = None, axes: Value = None, steps: Value = None
) -> tuple[Signal]:
    def numbers(value: Value, name: str) -> list[int] | None:
        if value is not None:
            return [int(v) for v in w.constant(value, name).reshape(-1)]
        return list(w.attribute(name)) if w.attribute(name) is not None else None

    first, end, along, by = (
        numbers(v, n) for v, n in ((starts, "starts"), (ends, "ends"), (axes, "axes"), (steps, "steps"))
    )
    along = along if along is not None else list(range(len(first)))
    if by is not None and any(step != 1 for step in by):
        raise w.refuse("strides and reversal cannot be streamed")
    if isinstance(x, StateStack):
        index = np.arange(len(x.parts))[first[0] : end[0]]
        if along != [0] or len(index) != 1:
            raise w.refuse("takes several layers' final states")
        return (_from_stack(w, x, index),)
    x = _signal(w, x)
    for start, stop, axis in zip(first, end, along, strict=True):
        x = _picked(w, x, x.axis(axis), start, stop)
    return (x,)


def _picked(w: _Walk, x: Signal, axis: int, start: int, stop: int) -> Signal:
    """``x`` with the range start:stop of one axis: all of it, or the last step of time."""
    size = x.shape[axis]
    wanted = range(size)[start:stop]
    if len(wanted) == size:
        return x
    atoms = [atom for atom in x.axes[axis] if atom.label != "unit"]
    if len(atoms) == 1 and x.chain and atoms[0].label == x.time:
        if list(wanted) != [size - 1]:
            raise w.refuse(
                f"takes steps {wanted.start}:{wanted.stop} of {size}: only the last step, or every one, can be read from a stream"
            )
        return replace(x, axes=(*x.axes[:axis], UNIT, *x.axes[axis + 1 :]), last=True)
    what = "time before any recurrent layer" if not x.chain else "features" if axis == len(x.axes) - 1 else "the batch"
    raise w.refuse(f"takes a part ({wanted.start}:{wanted.stop} of {size}) of {what}: do it before or after the model")


def _concat(w: _Walk, *parts: Value) -> tuple[Value]:
    if len(parts) == 1:
        return (parts[0],)
    states = [part for part in parts if isinstance(part, Signal) and part.state]
    if len(states) == len(parts) and w.attribute("axis") == 0:
        return (StateStack(tuple(states)),)
    raise w.refuse("concatenates data, which is not supported")


def _from_stack(w: _Walk, stack: StateStack, index: np.ndarray) -> Signal:
    if w.node.op_type == "Gather" and w.attribute("axis", 0) != 0:
        raise w.refuse("mixes the final states of several layers")
    part = stack.parts[int(index.reshape(-1)[0])]
    return part if index.ndim else replace(part, axes=part.axes[1:])


HANDLERS: dict[str, Callable[..., tuple]] = {
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Add": _arithmetic(_add),
    "Sub": _arithmetic(_subtract),
    "Mul": _arithmetic(_multiply),
    "Div": _divide,
    "Relu": _activation("relu"),
    "Tanh": _activation("tanh"),
    "Sigmoid": _activation("sigmoid"),
    "Softmax": _softmax,
    "Identity": _same,
    "Dropout": _dropout,
    "Cast": _cast,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
}


# ---- the end ----


def _result(w: _Walk, data: str, shape: tuple[int | None, ...], states: list[str]) -> Walked:
    names = [output.name for output in w.model.graph.output]
    missing = [name for name in names if name not in w.values]
    if missing:
        raise ImportRefused(f"output '{missing[0]}' is not made by any node")
    main, *others = names
    y = w.values[main]
    if not isinstance(y, Signal) or not any(isinstance(layer, Recurrent) for layer in y.chain):
        raise ImportRefused(f"output '{main}' does not come from a recurrent layer")
    if y.state == "c":
        raise ImportRefused(f"output '{main}' is a cell state: make the hidden state or a dense layer the first output")
    extra = [
        name for name in others if not (isinstance(w.values[name], StateStack) or getattr(w.values[name], "state", ""))
    ]
    if extra:
        raise ImportRefused(f"outputs {[main, *extra]}: a stream has one output: export the model with one")
    if others:
        w.notes.append(f"outputs {', '.join(others)} are final states: the stream keeps them")
    readout = "last" if y.last else "every"
    window = next((size for k, size in enumerate(shape) if f"in{k}" == y.time), None)
    if readout == "last" and window:
        w.notes.append(
            f"the source reads windows of {window} steps from a zero state, the stream remembers everything since its reset: "
            "reset it where a window starts to get the same outputs"
        )
    labels = (data, main, shape, tuple(states), tuple(others))
    return Walked(y.chain, readout, tuple(w.notes), *labels, y.time, y.axes)
