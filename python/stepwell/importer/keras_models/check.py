"""The proof of an import: Keras on whole sequences against the graph as a stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from stepwell.errors import ImportRefused
from stepwell.float_stream import FloatStream
from stepwell.graph import Dense, Embedding, Graph
from stepwell.importer.keras_models.walk import Walked
from stepwell.importer.replay import STEPS, STREAMS, TOLERANCE, Replay, ways


def replay(model, walked: Walked, graph: Graph) -> Replay:
    """Run both on random sequences and compare where the stream has a new output. Raises ImportRefused where they differ."""
    import keras

    x = _sample(model, graph)
    expected = _keras_output(model, x)
    flat = x.reshape(*x.shape[:2], -1)
    pairs = [_compared(way, flat, expected) for way in ways(graph, x.shape[1])]
    ours, expected = (np.concatenate(parts, axis=1) for parts in zip(*pairs, strict=True))
    if not ours.size or ours.size != expected.size:
        raise ImportRefused(
            f"model '{model.name}' gives {list(expected.shape)} for {list(x.shape)}, the stream {list(ours.shape)}: sequences "
            f"of {x.shape[1]} steps are too short for a first output"
        )
    error = _relative_error(ours.reshape(expected.shape), expected)
    oracle = f"keras {keras.__version__} ({keras.backend.backend()})"
    if not error <= TOLERANCE:
        raise ImportRefused(
            f"the stream differs from model '{model.name}' by {error:.2e} of the output's range ({oracle}, allowed "
            f"{TOLERANCE:.0e}): the importer has misread a layer; please report it with the model's get_config()"
        )
    return Replay(error, oracle)


def _relative_error(ours: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, of the output's range; of a tenth of its magnitude where that is more."""
    span = max(np.ptp(expected), np.abs(expected).max() / 10)
    worst = float(np.abs(ours - expected).max())
    return worst / float(span) if span > 0 else worst


def _sample(model, graph: Graph) -> np.ndarray:
    """Random input as the model takes it: [batch, T, ...], long enough for some outputs where T is free."""
    spec = model.inputs[0]
    timing = graph.timing[-1]
    free = (STREAMS, STEPS + timing.first + 4 * (timing.every - 1))
    sizes = [size or free[k] for k, size in enumerate(spec.shape)]
    rng = np.random.default_rng(20)
    readers = [layer for layer, reads in zip(graph.layers, graph.sources, strict=True) if 0 in reads]
    tokens = [len(layer.table) for layer in readers if isinstance(layer, Embedding)]
    if tokens:
        return rng.integers(min(1, min(tokens) - 1), min(tokens), size=sizes).astype(spec.dtype)
    return _unscaled(rng.normal(size=sizes), readers).astype(spec.dtype)


def _unscaled(x: np.ndarray, readers: list) -> np.ndarray:
    """Where the model begins by scaling, what it scales to x: a trained model's own range."""
    first = readers[0]
    if len(readers) != 1 or not isinstance(first, Dense) or first.groups != first.n_in or not first.weight.all():
        return x
    flat = x.reshape(*x.shape[:2], -1)
    return ((flat - first.bias) / first.weight[:, 0]).reshape(x.shape) if first.n_out == first.n_in else x


def _keras_output(model, x: np.ndarray) -> np.ndarray:
    import keras

    try:
        with _from_zero_state(model):
            (y,) = keras.tree.flatten(model(keras.ops.convert_to_tensor(x), training=False))
            return np.asarray(keras.ops.convert_to_numpy(y), dtype=np.float64)
    except Exception as error:  # nobody tells what a backend raises
        raise ImportRefused(
            f"model '{model.name}' itself cannot be run to compare with: {type(error).__name__}: {str(error)[:300]}"
        ) from error


@contextlib.contextmanager
def _from_zero_state(model) -> Iterator[None]:
    """Stateful layers begin at zero and have their own state back afterwards."""
    import keras

    states = [
        state for layer in model._flatten_layers() for state in keras.tree.flatten(getattr(layer, "states", None))
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
    """What the graph and Keras give, [batch, n, ..] each: all that both have, or the last of it. In two stretches where it can."""
    stream, cut = FloatStream(graph), 0 if graph.window else x.shape[1] // 2
    parts = [part for part in (x[:, :cut], x[:, cut:]) if part.size]
    ours = np.concatenate([stream.outputs(part) for part in parts], axis=1)
    if graph.readout == "every":
        return ours, expected[:, : None if graph.window else ours.shape[1]]
    return ours[:, -1:], expected[:, None]
