"""LSTM, GRU and RNN nodes, as https://onnx.ai/onnx/operators/ specifies them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from stepwell.importer.signals import UNIT, Atom, Axis, Signal, Value, Walk
from stepwell.integer.functions import Function
from stepwell.layers import Concat, Gru, Lstm, Recurrent, Rnn

# number of gates, default activations, arguments of the node after its weights
N_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
# ONNX's name -> ours, default alpha and beta
FUNCTIONS = {
    "affine": ("affine", 1.0, 0.0),
    "relu": ("relu", 0.0, 0.0),
    "leakyrelu": ("leaky_relu", 0.01, 0.0),
    "thresholdedrelu": ("thresholded_relu", 1.0, 0.0),
    "tanh": ("tanh", 0.0, 0.0),
    "scaledtanh": ("scaled_tanh", 1.0, 1.0),
    "sigmoid": ("sigmoid", 0.0, 0.0),
    "hardsigmoid": ("hard_sigmoid", 0.2, 0.5),
    "elu": ("elu", 1.0, 0.0),
    "softsign": ("softsign", 0.0, 0.0),
    "softplus": ("softplus", 0.0, 0.0),
}
WITH_ALPHA = ("affine", "leakyrelu", "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu")
WITH_BETA = ("affine", "scaledtanh", "hardsigmoid")
WINDOW_NOTE = "a layer reads the sequence backwards: convert with the window it was trained on, --mode slide:T (mode='slide:T')"


def recurrent(w: Walk, x: Value, weights: Value, recurrent_weights: Value, *rest: Value) -> tuple:
    bias, lengths, h0, c0, peepholes = (*rest, None, None, None, None, None)[:5]
    if not isinstance(x, Signal):
        raise w.refuse("its input X is not the data")
    kind = w.node.op_type
    _check_input(w, x)
    matrix, square = (
        _floats(w, value, name) for value, name in ((weights, "W"), (recurrent_weights, "R"))
    )
    directions = _directions(w)
    n = w.attribute("hidden_size") or square.shape[-1]
    rows = N_GATES[kind] * n
    if matrix.shape != (len(directions), rows, x.n_features) or square.shape != (
        len(directions),
        rows,
        n,
    ):
        raise w.refuse(
            f"W {list(matrix.shape)} and R {list(square.shape)} do not fit hidden_size {n} and "
            f"{x.n_features} inputs: "
            "a projection (proj_size) cannot be written as an ONNX LSTM; give stepwell.convert the "
            "torch module itself"
        )
    both = np.zeros((len(directions), 2 * rows)) if bias is None else _floats(w, bias, "B")
    if both.shape != (len(directions), 2 * rows):
        raise w.refuse(f"B has shape {list(both.shape)}, expected {[len(directions), 2 * rows]}")
    _check_lengths(w, lengths, x)
    starts = [
        _start(w, value, name, len(directions), n)
        for value, name in ((h0, "initial_h"), (c0, "initial_c"))
    ]
    peephole = None if peepholes is None else _floats(w, peepholes, "P")
    if peephole is not None and peephole.shape != (len(directions), 3 * n):
        raise w.refuse(f"P has shape {list(peephole.shape)}, expected {[len(directions), 3 * n]}")
    layers = []
    for k, backwards in enumerate(directions):
        h, c = (None if start is None else start[k] for start in starts)
        options = {
            "functions": _functions(w, k, len(directions)),
            "clip": w.attribute("clip", 0.0) or np.inf,
            "h0": h,
        }
        extra = _lstm_options(w, peephole, c, k) if kind == "LSTM" else {}
        made = MAKERS[kind](w, matrix[k], square[k], *np.split(both[k], 2))
        layers.append(replace(made, **options, **extra, reverse=backwards != x.flipped))
    return _outputs(w, x, layers)[: 3 if kind == "LSTM" else 2]


def _floats(w: Walk, value: Value, what: str) -> np.ndarray:
    return w.constant(value, what).astype(np.float64)


def _check_input(w: Walk, x: Signal) -> None:
    if len(x.axes) != 3 or x.feature_axis != 2:
        raise w.refuse(
            f"its input must have axes time, batch, features; it has shape {list(x.shape)}"
        )
    if x.state == "c":
        raise w.refuse("reads the cell state, which is not supported: read the hidden state")


def _directions(w: Walk) -> list[bool]:
    """For each direction whether it runs backwards."""
    direction = w.attribute("direction", b"forward").decode()
    known = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
    if direction not in known:
        raise w.refuse(f"direction '{direction}' is not one of {', '.join(known)}")
    return known[direction]


def _check_lengths(w: Walk, lengths: Value, x: Signal) -> None:
    steps = x.shape[1 if w.attribute("layout", 0) else 0]
    if lengths is not None and np.any(w.constant(lengths, "sequence_lens") != steps):
        raise w.refuse(
            "sequence_lens shorter than the sequence are not supported: a stream has no length; "
            "cut the sequences before the model"
        )


def _start(w: Walk, value: Value, what: str, n_directions: int, n: int) -> np.ndarray | None:
    """Initial states [directions, n] that are the same for every sequence; None for zeros."""
    if value is None:
        return None
    if not isinstance(value, np.ndarray):
        raise w.refuse(
            f"{what} is computed from the data: a stream starts from a state that is known "
            "beforehand"
        )
    if value.shape[-1:] != (n,):
        raise w.refuse(
            f"{what} has shape {list(value.shape)}, the layer {n} units: a projection "
            "(proj_size), which torch exports wrongly: give stepwell.convert the torch module "
            "itself"
        )
    if not np.any(value):
        return None
    states = w.constant(value, what).astype(np.float64)
    states = states if w.attribute("layout", 0) == 0 else states.swapaxes(0, 1)
    if states.ndim != 3 or len(states) != n_directions or np.any(states != states[:, :1]):
        raise w.refuse(f"{what} differs from sequence to sequence: a stream starts from one state")
    return states[:, 0]


def _functions(w: Walk, direction: int, n_directions: int) -> tuple[str | Function, ...]:
    """The activations of one direction; alphas and betas are given for those that take one, in
    order.
    """
    default = ACTIVATIONS[w.node.op_type]
    names = [name.decode().lower() for name in w.attribute("activations", [])] or [
        n.lower() for n in default
    ] * n_directions
    if len(names) != len(default) * n_directions or not set(names) <= set(FUNCTIONS):
        raise w.refuse(
            f"activations {names} are not {len(default) * n_directions} of {', '.join(FUNCTIONS)}"
        )
    alphas, betas = (
        list(w.attribute("activation_alpha", [])),
        list(w.attribute("activation_beta", [])),
    )
    functions: list[str | Function] = []
    for name in names:
        kind, alpha, beta = FUNCTIONS[name]
        alpha = alphas.pop(0) if name in WITH_ALPHA and alphas else alpha
        beta = betas.pop(0) if name in WITH_BETA and betas else beta
        functions.append(
            kind
            if kind in ("relu", "tanh", "sigmoid")
            else Function(kind, float(alpha), float(beta))
        )
    return tuple(functions[direction * len(default) : (direction + 1) * len(default)])


def _lstm_options(
    w: Walk, peephole: np.ndarray | None, c0: np.ndarray | None, direction: int
) -> dict[str, object]:
    """The operator's peepholes are in the order i, o, f."""
    i, o, f = np.split(peephole[direction], 3) if peephole is not None else (None, None, None)
    return {
        "c0": c0,
        "coupled": bool(w.attribute("input_forget", 0)),
        "peephole": None if i is None else np.concatenate([i, f, o]),
    }


# ---- weights: gates in our order ----


def _lstm(w: Walk, w_x: np.ndarray, w_h: np.ndarray, b_x: np.ndarray, b_h: np.ndarray) -> Lstm:
    """The operator's gate order is i, o, f, c."""
    order = (0, 2, 3, 1)
    return Lstm(w.name, _gates(w_x, order), _gates(w_h, order), _gates(b_x + b_h, order))


def _gru(w: Walk, w_x: np.ndarray, w_h: np.ndarray, b_x: np.ndarray, b_h: np.ndarray) -> Gru:
    """The operator's gate order is z, r, h."""
    arrays = (_gates(array, (1, 0, 2)) for array in (w_x, w_h, b_x, b_h))
    return Gru(w.name, *arrays, reset_after=bool(w.attribute("linear_before_reset", 0)))


def _rnn(w: Walk, w_x: np.ndarray, w_h: np.ndarray, b_x: np.ndarray, b_h: np.ndarray) -> Rnn:
    return Rnn(w.name, w_x, w_h, b_x + b_h)


MAKERS: dict[str, Callable[..., Recurrent]] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}


def _gates(rows: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Rows stacked gate by gate, in another order of gates."""
    parts = np.split(rows, len(order))
    return np.concatenate([parts[k] for k in order])


# ---- outputs ----


def _outputs(w: Walk, x: Signal, layers: list[Recurrent]) -> tuple[Signal, Signal, Signal]:
    """Y [T, D, B, H], Y_h and Y_c [D, B, H]; with layout 1 the batch comes first: Y [B, T, D, H],
    Y_h [B, D, H].
    """
    layout = w.attribute("layout", 0)
    time, batch = (x.axes[1], x.axes[0]) if layout else (x.axes[0], x.axes[1])
    label = _time_label(w, x, time)
    direction: Axis = (Atom("direction", len(layers)),) if len(layers) > 1 else UNIT
    feature: Axis = (Atom("feature", layers[0].n_out),)
    made = replace(x, time=label, flipped=False, state="", value=_both(w, x, layers))
    y = replace(
        made,
        axes=(batch, time, direction, feature) if layout else (time, direction, batch, feature),
    )
    if x.flipped:  # a sequence that was turned round comes out turned round
        y = replace(y, flipped=True)
    if any(layer.reverse for layer in layers):
        if WINDOW_NOTE not in w.notes:
            w.notes.append(WINDOW_NOTE)
        made = replace(
            made, value=_both(w, x, [replace(layer, final=layer.reverse) for layer in layers])
        )
    final = replace(
        made, axes=(batch, direction, feature) if layout else (direction, batch, feature), last=True
    )
    return y, replace(final, state="h"), replace(final, state="c")


def _time_label(w: Walk, x: Signal, time: Axis) -> str:
    if x.last:
        raise w.refuse(
            "it runs over the last step only: a recurrent layer after a last-step readout is not "
            "a sequence"
        )
    labels = [atom.label for atom in time if atom.label != "unit"]
    label = x.time or (labels[0] if labels else "unit")
    if len(labels) > 1 or (labels and labels[0] != label):
        raise w.refuse(
            "its time axis is not the time axis of the layers before it: check batch_first and "
            "the transposes"
        )
    return label


def _both(w: Walk, x: Signal, layers: list[Recurrent]) -> int:
    """The value of one direction, or of both side by side."""
    values = [w.added(layer, x.value) for layer in layers]
    if len(values) == 1:
        return values[0]
    return w.added(Concat(w.name, (layers[0].n_out, layers[1].n_out)), *values)
