"""nn.LSTM, nn.GRU, nn.RNN and their cells."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from stepwell.importer.torch.handlers import array, module
from stepwell.importer.torch.signals import (
    BATCH,
    Signal,
    Stack,
    StateArgument,
    StateInput,
    Walk,
    described,
)
from stepwell.layers import Concat, Gru, Lstm, Recurrent, Rnn

State = tuple[np.ndarray | None, ...]  # h0, and c0 of an LSTM


@module("LSTM", "GRU", "RNN")
def recurrent(walk: Walk, module: torch.nn.RNNBase, input: Signal, hx: Any = None) -> tuple:
    """[B, T, D] (or [T, B, D]) -> the same with n_out, and the final states."""
    signal = _sequence(walk, module, input)
    directions = 2 if module.bidirectional else 1
    call = walk.calls = walk.calls + 1
    if module.bidirectional and _handed_in(hx):
        raise walk.refuse(
            "reads the window backwards: no state can be handed on; leave it out, or train one "
            "direction"
        )
    states = _initial_states(walk, hx, call, _state_shapes(module))
    prefix = walk.name or type(module).__name__.lower()
    finals = []
    for k in range(module.num_layers):
        h0 = [
            tuple(None if s is None else s[k * directions + d] for s in states)
            for d in range(directions)
        ]
        layer = _layer(module, f"_l{k}", f"{prefix}_l{k}", h0[0])
        forward = walk.apply(layer, signal, at=2)
        finals.append(forward)
        if directions == 2:
            layer = replace(
                _layer(module, f"_l{k}_reverse", f"{prefix}_l{k}_reverse", h0[1]), reverse=True
            )
            finals.append(
                walk.apply(replace(layer, name=f"{layer.name}_final", final=True), signal, at=2)
            )
            forward = walk.apply(
                Concat(f"{prefix}_l{k}_both", (layer.n_out,) * 2),
                forward,
                walk.apply(layer, signal, at=2),
                at=2,
            )
        signal = forward
    return signal, _final_states(module, finals, call)


def _sequence(walk: Walk, module: torch.nn.RNNBase, signal: Signal) -> Signal:
    """The input, when its axes are those that the module takes."""
    walk.plain(signal)
    time, batch = (1, 0) if module.batch_first else (0, 1)
    wanted = "[batch, time, features]" if module.batch_first else "[time, batch, features]"
    if len(signal.axes) != 3 or signal.axes[batch] != "B" or signal.axes[time] not in ("T", ""):
        raise walk.refuse(
            f"batch_first={module.batch_first} takes {wanted} and is given "
            f"{walk.described_axes(signal)}"
        )
    walk.feature_axis(signal, 2, module.input_size)
    if signal.axes[time] == "" and not walk.one_step:
        raise walk.refuse(
            "runs over a single vector, not over the sequence: decoders that follow the last step "
            "are not streams"
        )
    if module.bidirectional and walk.one_step:
        raise walk.refuse("reads the window backwards: its input must be the whole window")
    return signal


def _state_shapes(module: torch.nn.RNNBase) -> list[tuple[int, ...]]:
    n_layers = module.num_layers * (2 if module.bidirectional else 1)
    shapes = [
        (n_layers, BATCH, module.proj_size or module.hidden_size),
        (n_layers, BATCH, module.hidden_size),
    ]
    return shapes if isinstance(module, torch.nn.LSTM) else shapes[1:]


def _final_states(module: torch.nn.RNNBase, finals: list[Signal], call: int) -> Any:
    """h_n, or (h_n, c_n). No cell state is an output of a layer: it can be handed on, not read."""
    time = 1 if module.batch_first else 0
    parts = tuple(replace(s, axes=(*s.axes[:time], *s.axes[time + 1 :])) for s in finals)
    h_n = Stack(parts, (call, "h"))
    return (h_n, Stack((), (call, "c"))) if isinstance(module, torch.nn.LSTM) else h_n


@module("LSTMCell", "GRUCell", "RNNCell")
def cell(walk: Walk, module: torch.nn.RNNCellBase, input: Signal, hx: Any = None) -> Any:
    """One step [B, D] -> [B, n_out]; the state handed on."""
    walk.plain(input)
    if not walk.one_step or len(input.axes) != 2 or input.axes[0] != "B":
        raise walk.refuse(
            f"a cell takes one step [batch, features] and is given {walk.described_axes(input)}: "
            "give a module whose forward is one step (x, state), or use "
            f"nn.{type(module).__name__.removesuffix('Cell')} for whole sequences"
        )
    walk.feature_axis(input, 1, module.input_size)
    call, n_states = walk.calls + 1, 2 if isinstance(module, torch.nn.LSTMCell) else 1
    _initial_states(walk, hx, call, [(BATCH, module.hidden_size)] * n_states)
    walk.calls = call
    layer = _layer(module, "", walk.name or type(module).__name__.lower(), (None,) * n_states)
    h = replace(walk.apply(layer, input, at=1), state=(call, "h"))
    return (h, Stack((), (call, "c"))) if n_states == 2 else h


# ---- states ----


def _initial_states(walk: Walk, hx: Any, call: int, shapes: list[tuple[int, ...]]) -> State:
    """h0 [layers, n_out] (and c0 [layers, H]) of a recurrent call, None for zeros."""
    if walk.one_step and not _handed_in(hx):
        raise walk.refuse(
            "starts anew in every call of one step: hand its state in as an argument of forward "
            "and return the new one"
        )
    if isinstance(hx, StateArgument) and len(shapes) == 2:
        hx = tuple(StateArgument((*hx.path, k)) for k in range(2))
    parts = (hx,) if len(shapes) == 1 else hx
    if parts is None or hx is None:
        return (None,) * len(shapes)
    if not isinstance(parts, (tuple, list)) or len(parts) != len(shapes):
        raise walk.refuse("its initial state is not the pair (h, c)")
    return tuple(
        _initial_state(walk, part, (call, kind), shape)
        for part, kind, shape in zip(parts, "hc", shapes, strict=False)
    )


def _handed_in(hx: Any) -> bool:
    return isinstance(hx, StateArgument) or (
        isinstance(hx, (tuple, list)) and all(isinstance(part, StateArgument) for part in hx)
    )


def _initial_state(
    walk: Walk, part: Any, state: tuple[int, str], shape: tuple[int, ...]
) -> np.ndarray | None:
    if isinstance(part, StateArgument):
        known = walk.state_inputs.setdefault(part.path, StateInput(state, shape))
        if known.state != state:
            raise walk.refuse(f"{described(part)} is the state of two layers: give each its own")
        return None
    if not isinstance(part, torch.Tensor):
        raise walk.refuse(
            f"its initial state is {described(part)}: encoder-decoders cannot be streamed, "
            "start from zeros, a constant or an argument of forward"
        )
    values = array(part)
    if values.shape != shape:
        raise walk.refuse(
            f"its initial state has shape {list(values.shape)}, expected {list(shape)}"
        )
    if np.ptp(values, axis=1).any():
        raise walk.refuse(
            "its initial state differs from sequence to sequence: start from zeros or from one "
            "constant"
        )
    return values[:, 0] if values.any() else None


# ---- weights ----


def _layer(module: torch.nn.Module, suffix: str, name: str, start: State) -> Recurrent:
    """The layer of the weights of one ``suffix``; gates are stacked in the graph's own order."""

    def weight(kind: str) -> np.ndarray | None:
        values = getattr(module, f"{kind}{suffix}", None)
        return None if values is None else array(values)

    w_x, w_h = weight("weight_ih"), weight("weight_hh")
    none = np.zeros(len(w_x))
    b_x, b_h = (none if b is None else b for b in (weight("bias_ih"), weight("bias_hh")))
    if isinstance(module, (torch.nn.LSTM, torch.nn.LSTMCell)):
        return Lstm(
            name, w_x, w_h, b_x + b_h, projection=weight("weight_hr"), h0=start[0], c0=start[1]
        )
    if isinstance(module, (torch.nn.GRU, torch.nn.GRUCell)):
        return Gru(name, w_x, w_h, b_x, b_h, h0=start[0])
    return Rnn(name, w_x, w_h, b_x + b_h, functions=(module.nonlinearity,), h0=start[0])
