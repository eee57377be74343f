"""The proof of an import: Keras on whole sequences against the graph as a stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from stepwell.errors import ImportRefused
from stepwell.graph import Graph
from stepwell.importer.keras_models.walk import Walked
from stepwell.importer.replay import STEPS, STREAMS, TOLERANCE, Replay, relative_error, ways
from stepwell.layers import Dense, Embedding
from stepwell.stream import FloatStream
from stepwell.text import printable


def replay(model, walked: Walked, graph: Graph) -> Replay:
    """Run both on random sequences and compare where the stream has a new output. Raises
    ImportRefused where they differ.
    """
    import keras

    x = _sample(model, graph)
    expected = _keras_output(model, walked, x)
    flat = x.reshape(*x.shape[:2], -1)
    found = [_compared(way, flat, expected) for way in ways(graph, x.shape[1])]
    ours, expected = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    if not ours.size or ours.shape != expected.shape:
        raise ImportRefused(
            f"model '{printable(model.name)}' gives {list(expected.shape)} for {list(x.shape)}, "
            f"the stream {list(ours.shape)}: "
            f"sequences of {x.shape[1]} steps are too short for a first output"
        )
    ends = np.cumsum([head.size for head in walked.heads])[:-1]
    parts = (np.split(y, ends, axis=-1) for y in (ours, expected))
    error = max(relative_error([pair]) for pair in zip(*parts, strict=True))
    oracle = f"keras {keras.__version__} ({keras.backend.backend()})"
    if not error <= TOLERANCE:
        raise ImportRefused(
            f"the stream differs from model '{printable(model.name)}' by {error:.2e} of the "
            f"output's range ({oracle}, allowed {TOLERANCE:.0e}): the importer has misread a "
            "layer; please report it with the model's get_config()"
        )
    return Replay(error, oracle)


def _sample(model, graph: Graph) -> np.ndarray:
    """Random input as the model takes it: [batch, T, ...], long enough for some outputs where T is
    free.
    """
    spec = model.inputs[0]
    timing = graph.timing[-1]
    free = (STREAMS, STEPS + timing.first + 4 * (timing.every - 1))
    sizes = [size or free[k] for k, size in enumerate(spec.shape)]
    rng = np.random.default_rng(20)
    readers = [
        layer for layer, reads in zip(graph.layers, graph.sources, strict=True) if 0 in reads
    ]
    tokens = [len(layer.table) for layer in readers if isinstance(layer, Embedding)]
    if tokens:
        return rng.integers(min(1, min(tokens) - 1), min(tokens), size=sizes).astype(spec.dtype)
    return _unscaled(rng.normal(size=sizes), readers).astype(spec.dtype)


def _unscaled(x: np.ndarray, readers: list) -> np.ndarray:
    """Where the model begins by scaling, what it scales to x: a trained model's own range."""
    first = readers[0]
    if (
        len(readers) != 1
        or not isinstance(first, Dense)
        or first.groups != first.n_in
        or not first.weight.all()
    ):
        return x
    flat = x.reshape(*x.shape[:2], -1)
    return (
        ((flat - first.bias) / first.weight[:, 0]).reshape(x.shape)
        if first.n_out == first.n_in
        else x
    )


def _keras_output(model, walked: Walked, x: np.ndarray) -> np.ndarray:
    """The outputs side by side: [batch, T, n_out], or [batch, n_out] after the last step."""
    import keras

    n_axes = 2 if walked.output.timed else 1
    try:
        with _from_zero_state(model):
            made = keras.tree.flatten(model(keras.ops.convert_to_tensor(x), training=False))
            found = [
                np.asarray(keras.ops.convert_to_numpy(made[k]), dtype=np.float64)
                for k in walked.places
            ]
        return np.concatenate([y.reshape(*y.shape[:n_axes], -1) for y in found], axis=-1)
    except Exception as error:  # nobody tells what a backend raises
        raise ImportRefused(
            f"model '{printable(model.name)}' itself cannot be run to compare with: "
            f"{type(error).__name__}: {str(error)[:300]}"
        ) from error


def answers(model, walked: Walked, x: np.ndarray) -> np.ndarray:
    """Keras on sequences: float [B, T, n_in] -> float64 [B, n, n_out], n = 1 where it answers at
    the end.
    """
    spec = model.inputs[0]
    fixed = spec.shape[0] or len(x)  # a batch of fixed size is filled up
    found = []
    for at in range(0, len(x), fixed):
        group = x[at : at + fixed]
        whole = np.concatenate([group, np.repeat(group[-1:], fixed - len(group), axis=0)])
        whole = whole.reshape(*whole.shape[:2], *spec.shape[2:]).astype(spec.dtype)
        found.append(_keras_output(model, walked, whole)[: len(group)])
    y = np.concatenate(found)
    return y if walked.output.timed else y[:, None]


@contextlib.contextmanager
def _from_zero_state(model) -> Iterator[None]:
    """Stateful layers begin at zero and have their own state back afterwards."""
    import keras

    states = [
        state
        for layer in model._flatten_layers()
        for state in keras.tree.flatten(getattr(layer, "states", None))
    ]
    held = [(state, keras.ops.copy(state.value)) for state in states if state is not None]
    try:
        for state, value in held:
            state.assign(keras.ops.zeros_like(value))
        yield
    finally:
        for state, value in held:
            state.assign(value)


def _compared(graph: Graph, x: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the graph and Keras give, [batch, n, ..] each: all that both have, or the last of it. In
    two stretches where it can.
    """
    stream, cut = FloatStream(graph), 0 if graph.window else x.shape[1] // 2
    parts = [part for part in (x[:, :cut], x[:, cut:]) if part.size]
    ours = np.concatenate([stream.outputs(part) for part in parts], axis=1)
    if graph.readout == "every":
        return ours, expected[:, : None if graph.window else ours.shape[1]]
    return ours[:, -1:], expected[:, None]
