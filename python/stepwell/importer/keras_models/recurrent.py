"""Keras' recurrent layers: one graph layer for each cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from stepwell.importer.keras_models.activations import function_of
from stepwell.importer.keras_models.plain import combined, concatenated
from stepwell.importer.keras_models.values import Call, Refusal, Value, numbers, numbers_or
from stepwell.layers import Add, Gru, Lstm, Mul, Recurrent, Rnn


def _lstm(cell, name: str, **settings) -> Lstm:
    """Keras' gates i, f, c, o are the graph's i, f, g, o."""
    gate, other = function_of(cell.recurrent_activation), function_of(cell.activation)
    bias = numbers_or(cell.bias, 4 * cell.units)
    w_x, w_h = numbers(cell.kernel).T, numbers(cell.recurrent_kernel).T
    return Lstm(name, w_x, w_h, bias, (gate, other, other), **settings)


def _gru(cell, name: str, **settings) -> Gru:
    """Keras' gates z, r, h are the graph's z, r, n; ``bias`` is [2, 3H] where the reset comes
    after, else [3H].
    """
    both = np.zeros((2, 3 * cell.units))
    if cell.bias is not None:
        bias = numbers(cell.bias)
        both[: bias.ndim] = bias
    order = np.r_[cell.units : 2 * cell.units, : cell.units, 2 * cell.units : 3 * cell.units]
    functions = (function_of(cell.recurrent_activation), function_of(cell.activation))
    w_x, w_h = (numbers(w).T[order] for w in (cell.kernel, cell.recurrent_kernel))
    return Gru(
        name,
        w_x,
        w_h,
        both[0][order],
        both[1][order],
        functions,
        reset_after=bool(cell.reset_after),
        **settings,
    )


def _rnn(cell, name: str, **settings) -> Rnn:
    w_x, w_h = numbers(cell.kernel).T, numbers(cell.recurrent_kernel).T
    return Rnn(
        name,
        w_x,
        w_h,
        numbers_or(cell.bias, cell.units),
        (function_of(cell.activation),),
        **settings,
    )


CELLS: dict[str, Callable[..., Recurrent]] = {
    "LSTMCell": _lstm,
    "GRUCell": _gru,
    "SimpleRNNCell": _rnn,
}


def recurrent(call: Call) -> list[Value | None]:
    """The outputs of an RNN layer, and with return_state the hidden state at the end; None for
    states that nothing can read.
    """
    layer = call.layer
    if layer.go_backwards and layer.return_sequences:
        raise Refusal(
            "go_backwards with return_sequences gives the last step first: use "
            "keras.layers.Bidirectional, or "
            "return_sequences=False"
        )
    y = _one_way(call, layer)
    states: list[Value | None] = [None] * (len(call.shapes) - 1)
    if states and len(_cells(layer)) == 1:
        states[0] = y.ended()
    return [y, *states]


def bidirectional(call: Call) -> list[Value | None]:
    layer = call.layer
    if layer.forward_layer.go_backwards:
        raise Refusal("its forward layer has go_backwards: exchange the two layers")
    ways = tuple(_one_way(call, part) for part in (layer.forward_layer, layer.backward_layer))
    made = MERGES[layer.merge_mode](call, ways)
    made = made if isinstance(made, list) else [made]
    return [*made, *[None] * (len(call.shapes) - len(made))]


MERGES: dict[str | None, Callable[[Call, tuple[Value, ...]], Value | list[Value]]] = {
    "concat": concatenated,
    "sum": lambda call, ways: combined(call, Add, ways),
    "ave": lambda call, ways: combined(call, Add, ways, weights=(0.5, 0.5)),
    "mul": lambda call, ways: combined(call, Mul, ways),
    None: lambda call, ways: list(ways),
}


def _cells(layer) -> list:
    return (
        list(layer.cell.cells) if type(layer.cell).__name__ == "StackedRNNCells" else [layer.cell]
    )


def _one_way(call: Call, layer) -> Value:
    """The output of one RNN layer: a sequence with return_sequences, else what its last step, or
    its first one, gives.
    """
    x, cells = call.sequence, _cells(layer)
    if layer.stateful:
        call.note("it is stateful: as there, the stream's state runs on until it is reset")
    for k, cell in enumerate(cells):
        kind = type(cell).__name__
        if kind not in CELLS or not type(cell).__module__.startswith("keras."):
            raise Refusal(f"cell {kind} is not one of Keras' own: {', '.join(CELLS)}")
        final = layer.go_backwards and not layer.return_sequences and k == len(cells) - 1
        name = layer.name if len(cells) == 1 else f"{layer.name}.{k}"
        made = CELLS[kind](cell, name, reverse=bool(layer.go_backwards), final=bool(final))
        x = replace(x, index=call.put(made, x.index), inner=(made.n_out,))
    return x if layer.return_sequences else x.ended()


def time_distributed(call: Call) -> Value:
    """The layer within, for which the values of a step are all there is."""
    if not call.x.timed:
        raise Refusal("it needs a sequence")
    shapes = tuple((shape[0], *shape[2:]) for shape in call.shapes)
    (y,) = call.run(call.layer.layer, (call.x.ended(),), shapes)
    return replace(y, timed=True, steps=call.x.steps)


HANDLERS = {
    **dict.fromkeys(("LSTM", "GRU", "SimpleRNN", "RNN"), recurrent),
    "Bidirectional": bidirectional,
    "TimeDistributed": time_distributed,
}
