"""The proof of an import: the torch module on whole sequences against the graph as a stream."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from stepwell.errors import ImportRefused
from stepwell.graph import Graph, Output
from stepwell.importer.replay import (
    SINGLE_STEPS,
    STEPS,
    STREAMS,
    TOLERANCE,
    Replay,
    relative_error,
    ways,
)
from stepwell.importer.torch.signals import BATCH, Path, Signal, Walk
from stepwell.layers import Attention, Embedding, Window
from stepwell.stream import FloatStream

MOST_LENGTHS = 8


@dataclass(frozen=True, eq=False)
class Part:
    """One output: where it is in what forward returns, and its signal, or its values [size] where
    it is a constant.
    """

    path: Path
    content: Signal | np.ndarray


@dataclass(frozen=True, eq=False)
class Outputs:
    """What forward returns: ``signal`` all ``parts`` side by side, their names where they have
    some, and where each (call, "h" or "c") state is.
    """

    signal: Signal
    parts: tuple[Part, ...]
    named: tuple[Output, ...]
    states: dict[tuple[int, str], Path]


def replay(module: torch.nn.Module, walk: Walk, outputs: Outputs, graph: Graph) -> Replay:
    """Run both on random sequences. Raises ImportRefused when they differ by more than TOLERANCE."""
    chunks = _chunks(walk, graph)
    try:
        wanted, kind = _source_outputs(module, walk, outputs, chunks)
    except ImportRefused:
        raise
    except Exception as error:
        raise ImportRefused(
            f"{type(module).__name__} itself cannot be run to compare with "
            f"({type(error).__name__}: {str(error)[:300]}): "
            "where it expects windows of a fixed length, give it (steps=)"
        ) from error
    stream, pairs = FloatStream(graph), []
    for x, y in zip(chunks, wanted, strict=True):
        handed_on = walk.state_inputs and not graph.needs_window
        for way in [stream] if handed_on else map(FloatStream, ways(graph, x.shape[1])):
            ours = _fresh(way, x)
            pairs.append((ours, y if way.graph.window else y[:, : ours.shape[1]]))
    for ours, theirs in pairs:
        if ours.shape != theirs.shape:
            raise ImportRefused(
                f"the module gives {list(theirs.shape)} [batch, steps, outputs], the stream "
                f"{list(ours.shape)}: "
                "what it reads out depends on the length of the sequence; read out every step or "
                "the last one"
            )
    error = _error(pairs, outputs)
    oracle = f"torch {torch.__version__} ({kind})"
    if not error <= TOLERANCE:
        raise ImportRefused(
            f"the stream differs from the module by {error:.2e} of the output's range ({oracle}, "
            f"allowed {TOLERANCE:.0e}): "
            "the importer has misread it, its forward changes tensors in place, or what it reads "
            "out depends on the "
            "sequence's length (padding with a stride); otherwise please report it with the module"
        )
    return Replay(error, oracle)


def _error(pairs: list[tuple[np.ndarray, np.ndarray]], outputs: Outputs) -> float:
    """The largest difference of an output, relative to its range."""
    ends = np.cumsum([_size(part) for part in outputs.parts])[:-1]
    split = [[np.split(y, ends, axis=-1) for y in pair] for pair in pairs]
    return max(
        relative_error([(ours[k], theirs[k]) for ours, theirs in split])
        for k in range(len(outputs.parts))
    )


def _size(part: Part) -> int:
    return part.content.width if isinstance(part.content, Signal) else len(part.content)


# ---- the source ----


def _chunks(walk: Walk, graph: Graph) -> list[np.ndarray]:
    """Random input [STREAMS, steps, n_in] for each call."""
    rng = np.random.default_rng(20)
    tokens = min(
        (len(layer.table) for layer in graph.layers if isinstance(layer, Embedding)), default=0
    )
    sizes = [(STREAMS, n_steps, graph.n_in) for n_steps in _lengths(walk, graph)]
    return [rng.integers(0, tokens, size) if tokens else rng.normal(size=size) for size in sizes]


def _lengths(walk: Walk, graph: Graph) -> list[int]:
    """Steps of each call: several calls where the state is handed on, or where a stride treats
    lengths differently.
    """
    timing = graph.timing[-1]
    n_steps = 1 if walk.one_step else walk.steps or max(STEPS, timing.first + 4 * timing.every + 1)
    if walk.state_inputs and not any(
        isinstance(layer, (Attention, Window)) for layer in graph.layers
    ):
        return [n_steps] * (SINGLE_STEPS if walk.one_step else 2)
    if walk.steps or walk.state_inputs:
        return [n_steps]
    return [n_steps + k for k in range(min(timing.every, MOST_LENGTHS))]


def _source_outputs(
    module: torch.nn.Module, walk: Walk, outputs: Outputs, chunks: list[np.ndarray]
) -> tuple[list[np.ndarray], str]:
    """The module's output [STREAMS, steps, n_out] for each chunk; in float64, or in float32 where
    it insists on that.
    """
    try:
        return _run(module, walk, outputs, chunks, torch.float64), "float64"
    except RuntimeError:
        torch.set_default_dtype(torch.float32)
        try:
            return _run(module.float(), walk, outputs, chunks, torch.float32), "float32"
        finally:
            torch.set_default_dtype(torch.float64)
            module.double()


def answers(
    module: torch.nn.Module, walk: Walk, outputs: Outputs, graph: Graph, x: np.ndarray
) -> np.ndarray:
    """The module on sequences: float [B, T, n_in] -> float64 [B, n, n_out].

    n = 1 where it answers at the end. A module of one step is called again and again, its state
    handed on.
    """
    tokens = any(isinstance(layer, Embedding) for layer in graph.layers)
    x = x.astype(np.int64) if tokens else x
    stretches = [x[:, t : t + 1] for t in range(x.shape[1])] if walk.one_step else [x]
    found, _ = _source_outputs(module, walk, outputs, stretches)
    return found[-1] if outputs.signal.last else np.concatenate(found, axis=1)


def _run(
    module: torch.nn.Module,
    walk: Walk,
    outputs: Outputs,
    chunks: list[np.ndarray],
    dtype: torch.dtype,
) -> list[np.ndarray]:
    n_batch = len(chunks[0])
    states = {
        path: torch.zeros([n_batch if n == BATCH else n for n in entry.shape], dtype=dtype)
        for path, entry in walk.state_inputs.items()
    }
    found = []
    for x in chunks:
        data = torch.as_tensor(x, dtype=torch.int64 if x.dtype.kind == "i" else dtype)
        result = module(_arranged(data, walk.axes), **_arguments(states))
        found.append(_side_by_side(result, outputs, n_batch))
        states = {path: _state_after(walk, outputs, result, path) for path in states}
    return found


def _state_after(walk: Walk, outputs: Outputs, result: Any, path: Path) -> torch.Tensor:
    state = walk.state_inputs[path].state
    if state not in outputs.states:
        raise ImportRefused(
            f"argument '{path[0]}' hands a state in, and forward does not return the new one: "
            "return (output, state)"
        )
    return _at(result, outputs.states[state])


def _side_by_side(result: Any, outputs: Outputs, n_batch: int) -> np.ndarray:
    """All outputs [B, steps, n_out] of a call."""
    found = [(_at(result, part.path), part.content) for part in outputs.parts]
    data = [
        _canonical(y, content, n_batch) if isinstance(content, Signal) else None
        for y, content in found
    ]
    leading = next(y.shape[:2] for y in data if y is not None)
    constants = (
        y.detach().to(torch.float64).reshape(-1, y.shape[-1] if y.dim() else 1)[0].numpy()
        for y, _ in found
    )
    whole = zip(data, constants, strict=True)
    return np.concatenate(
        [np.broadcast_to(k, (*leading, len(k))) if y is None else y for y, k in whole], axis=-1
    )


def _at(result: Any, path: Path) -> torch.Tensor:
    for key in path:
        is_field = isinstance(key, str) and not isinstance(result, dict)
        result = getattr(result, key) if is_field else result[key]
    return result


def _arguments(states: dict[Path, torch.Tensor]) -> dict[str, Any]:
    """{("s", 0, 1): h, ..} -> {"s": ((.., h), ..)}"""
    arguments = {}
    for name in dict.fromkeys(path[0] for path in states):
        arguments[name] = _nested(
            {path[1:]: value for path, value in states.items() if path[0] == name}
        )
    return arguments


def _nested(entries: dict[Path, torch.Tensor]) -> Any:
    if () in entries:
        return entries[()]
    keys = list(dict.fromkeys(path[0] for path in entries))
    parts = {key: _nested({p[1:]: v for p, v in entries.items() if p[0] == key}) for key in keys}
    if any(isinstance(key, str) for key in keys):
        return parts
    return tuple(parts.get(k) for k in range(max(keys) + 1))


# ---- axes ----


def _arranged(x: torch.Tensor, axes: tuple[str, ...]) -> torch.Tensor:
    """[B, T, F] in the order in which the module takes it."""
    order = [atom for axis in axes for atom in axis]
    lost = [atom for atom in "BTF" if atom not in order]  # of size 1
    x = x.permute(["BTF".index(atom) for atom in (*lost, *order)])
    return x.reshape(
        [prod(x.shape[len(lost) + order.index(atom)] for atom in axis) for axis in axes]
    )


def _canonical(y: torch.Tensor, signal: Signal, n_batch: int) -> np.ndarray:
    """The module's output as [B, steps, n_out]; one step where time is gone."""
    order = [atom for axis in signal.axes for atom in axis]
    sizes = {"B": n_batch, "T": -1, "F": signal.width}
    y = y.detach().to(torch.float64).reshape([sizes[atom] for atom in order])
    y = y.permute([order.index(atom) for atom in "BTF" if atom in order])
    n_steps = y.shape[1] if "T" in order else 1
    return y.reshape(n_batch, n_steps, signal.width).numpy()


def _fresh(stream: FloatStream, x: np.ndarray) -> np.ndarray:
    """The stream's outputs [B, steps, n_out] at the steps at which it makes one; the last one only
    where that is the readout.
    """
    return stream.run(x)[:, -1:] if stream.graph.readout == "last" else stream.outputs(x)
