"""The proof of an import: the source as a whole sequence against the graph as a stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

from stepwell.errors import ImportRefused
from stepwell.graph import Graph
from stepwell.importer.reader import in_float32
from stepwell.importer.signals import Axis
from stepwell.importer.source import Session, in_output_axes, input_labels, zero_states
from stepwell.importer.walk import Walked, live_part
from stepwell.layers import Embedding
from stepwell.stream import FloatStream

TOLERANCE = 1e-5  # of the output's range
STEPS = 17  # where time is dynamic
# where it is not: a second of a stream in NumPy, some of one with many layers
STEPS_LIMIT = 1 << 12
MISREAD = "the importer has misread this model; please report it with the file"
EVALUATOR = (
    "onnx's reference evaluator leaves out attributes of recurrent operators, their activations "
    "among them: pip install onnxruntime and convert again"
)
STREAMS = 2  # where the batch is
SINGLE_STEPS = 6  # calls of a model exported for one step, state handed on


@dataclass(frozen=True)
class Replay:
    """``error``: largest difference relative to the output's range; ``oracle``: what ran the
    source.
    """

    error: float
    oracle: str


def replay(model: onnx.ModelProto, walked: Walked, graph: Graph) -> Replay:
    """Run both on random sequences. Raises ImportRefused when they differ by more than TOLERANCE."""
    names = [output.name for output in walked.named]
    model = in_float32(live_part(model, [*names, *walked.state_outputs]))
    sizes = [
        size or (STEPS if f"in{k}" == walked.time else STREAMS)
        for k, size in enumerate(walked.input_shape)
    ]
    draw = _draws(graph)
    n_steps = sizes[int(walked.time[2:])] if walked.time.startswith("in") else 1
    if n_steps > STEPS_LIMIT:
        raise ImportRefused(
            f"the sequence has {n_steps} steps, too many to compare source and stream "
            f"({STEPS_LIMIT} at most): "
            "export with fewer timesteps, or with a dynamic number of them"
        )
    hands_state_on = walked.state_inputs and len(walked.state_inputs) == len(walked.state_outputs)
    chunks = [draw(sizes) for _ in range(SINGLE_STEPS if hands_state_on else 1)]
    wanted, oracle = _source_outputs(model, walked, chunks, zero_states(model, walked, sizes))
    pairs: list[list[tuple[np.ndarray, np.ndarray]]] = [
        [] for _ in names
    ]  # ours and the source's, of each output
    for stream in map(FloatStream, [graph] if hands_state_on else ways(graph, n_steps)):
        for x, expected in zip(chunks, wanted, strict=True):
            n_runs = _n_fresh(stream, n_steps)
            y, made = _stream_outputs(stream, walked, x)
            first = 0
            for output, axes, theirs, found in zip(
                walked.named, walked.output_axes, expected, pairs, strict=True
            ):
                ours = y[..., first : first + output.size]
                first += output.size
                if graph.readout == "every" and axes is not None:
                    theirs = _as_far(theirs, walked.time, axes, n_runs)
                if theirs.size == 0:
                    raise ImportRefused(
                        f"output {output.name} is empty after {n_steps} steps: nothing can be "
                        "compared"
                    )
                found.append((_in_axes(output.name, ours, made, axes, theirs.shape), theirs))
    error = max(relative_error(found) for found in pairs)
    if not error <= TOLERANCE:
        advice = MISREAD if oracle.startswith("onnxruntime") else EVALUATOR
        raise ImportRefused(
            f"the stream differs from the source by {error:.2e} of the output's range ({oracle}, "
            f"allowed {TOLERANCE:.0e}): {advice}"
        )
    return Replay(error, oracle)


def relative_error(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """The largest difference of one output from the source's, the second of each pair, relative to
    that one's range.

    A tenth of its magnitude counts at least: a large offset costs a float32 source more than its
    range tells.
    """
    worst = max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs)
    low, high = min(float(y.min()) for _, y in pairs), max(float(y.max()) for _, y in pairs)
    span = max(high - low, abs(low) / 10, abs(high) / 10)
    return worst / span if span > 0 else worst


def ways(graph: Graph, steps: int) -> list[Graph]:
    """How a graph is compared with its source over so many steps: as a stream, and over a window
    where its end counts.
    """
    found = [] if graph.needs_window else [graph]
    return [*found, graph.in_window(steps)] if graph.needs_window or graph.lags[-1] else found


def _draws(graph: Graph) -> Callable[[list[int]], np.ndarray]:
    """Random inputs of a shape: numbers, or tokens for an embedding."""
    rng = np.random.default_rng(20)
    tables = [layer.table for layer in graph.layers if isinstance(layer, Embedding)]
    if tables:
        return lambda sizes: rng.integers(0, min(len(table) for table in tables), sizes)
    return lambda sizes: rng.normal(size=sizes)


def _source_outputs(
    model: onnx.ModelProto, walked: Walked, chunks: list[np.ndarray], zero: dict[str, np.ndarray]
) -> tuple[list[list[np.ndarray]], str]:
    """The source's outputs for each chunk, its state handed on if it gives it, and what ran it."""
    names = [output.name for output in walked.named]
    session = Session(model)
    outputs, states = [], zero
    for x in chunks:
        results = session.run([*names, *walked.state_outputs], {walked.input_name: x, **states})
        outputs.append([np.asarray(y, dtype=np.float64) for y in results[: len(names)]])
        states = zero | dict(zip(walked.state_inputs, results[len(names) :], strict=False))
    return outputs, session.oracle


def _stream_outputs(
    stream: FloatStream, walked: Walked, x: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """The graph as a stream over ``x`` in the source's axes: its outputs side by side in the last
    axis, and what the others are.
    """
    labels = input_labels(walked, x.ndim)
    batch = [label for label in labels if label not in (walked.time, "feature")]
    timed = walked.time in labels  # a model of one step may have no time axis
    order = [
        *batch,
        *([walked.time] if timed else []),
        *(["feature"] if "feature" in labels else []),
    ]
    x = x.transpose([labels.index(label) for label in order])
    x = x if "feature" in labels else x[..., None]
    x = x if timed else x[..., None, :]
    if timed and stream.graph.readout == "every":
        return stream.outputs(x), [*batch, walked.time]
    return stream.run(x)[..., -1, :], batch


def _in_axes(
    name: str, y: np.ndarray, made: list[str], axes: tuple[Axis, ...] | None, shape: tuple[int, ...]
) -> np.ndarray:
    """One output of the stream, its axes but the last named by ``made``, in the source's axes and
    shape.
    """
    n = y.shape[-1]
    if axes is None:  # a constant, whose shape tells nothing
        arranged = np.broadcast_to(y.reshape(-1, n)[:1], (int(np.prod(shape)) // n, n))
    else:
        arranged = in_output_axes(y, made, axes)
    if arranged.size != np.prod(shape):
        raise ImportRefused(
            f"the source gives {list(shape)} as output '{name}', the stream {arranged.size} "
            "values: its readout depends on the length of the sequence; read out every step or "
            "the last one"
        )
    return arranged.reshape(shape)


def _n_fresh(stream: FloatStream, n_steps: int) -> int:
    """How many outputs the stream makes in its next steps, those after a window's end included."""
    graph, before = stream.graph, stream.steps
    end = before + n_steps
    return graph.timing[-1].runs(
        end + (graph.lags[-1] if graph.window == end else 0)
    ) - graph.timing[-1].runs(before)


def _as_far(expected: np.ndarray, time: str, axes: tuple[Axis, ...], n_runs: int) -> np.ndarray:
    """The source's output without the steps that come after the stream's last: those of a
    convolution that looks ahead.
    """
    for axis, atoms in enumerate(axes):
        if [atom.label for atom in atoms if atom.label != "unit"] == [
            time
        ] and expected.ndim == len(axes):
            return expected.take(range(min(n_runs, expected.shape[axis])), axis=axis)
    return expected
