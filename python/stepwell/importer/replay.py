"""The proof of an import: the source as a whole sequence against the graph as a stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

from stepwell.errors import ImportRefused
from stepwell.float_stream import FloatStream
from stepwell.graph import Embedding, Graph
from stepwell.importer.reader import in_float32
from stepwell.importer.signals import Axis
from stepwell.importer.walk import Walked, live_part

TOLERANCE = 1e-5  # of the output's range
STEPS = 17  # where time is dynamic
STEPS_LIMIT = 1 << 12  # where it is not: a second of a stream in NumPy, some of one with many layers
STREAMS = 2  # where the batch is
SINGLE_STEPS = 6  # calls of a model exported for one step, state handed on
Run = Callable[[list[str], dict[str, np.ndarray]], list]  # (output names, feeds) -> outputs


@dataclass(frozen=True)
class Replay:
    """``error``: largest difference relative to the output's range; ``oracle``: what ran the source."""

    error: float
    oracle: str


def replay(model: onnx.ModelProto, walked: Walked, graph: Graph) -> Replay:
    """Run both on random sequences. Raises ImportRefused when they differ by more than TOLERANCE."""
    model = in_float32(live_part(model))
    sizes = [size or (STEPS if f"in{k}" == walked.time else STREAMS) for k, size in enumerate(walked.input_shape)]
    draw = _draws(graph)
    n_steps = sizes[int(walked.time[2:])] if walked.time.startswith("in") else 1
    if n_steps > STEPS_LIMIT:
        raise ImportRefused(
            f"the sequence has {n_steps} steps, too many to compare source and stream ({STEPS_LIMIT} at most): "
            "export with fewer timesteps, or with a dynamic number of them"
        )
    hands_state_on = walked.state_inputs and len(walked.state_inputs) == len(walked.state_outputs)
    chunks = [draw(sizes) for _ in range(SINGLE_STEPS if hands_state_on else 1)]
    wanted, oracle = _source_outputs(model, walked, chunks, _zero_states(model, walked, sizes))
    worst, low, high = 0.0, np.inf, -np.inf
    for stream in map(FloatStream, [graph] if hands_state_on else ways(graph, n_steps)):
        for x, expected in zip(chunks, wanted, strict=True):
            if graph.readout == "every":
                expected = _as_far(expected, walked, _n_fresh(stream, n_steps))
            ours = _stream_outputs(stream, walked, x, expected.shape)
            worst = max(worst, float(np.abs(ours - expected).max()))
            low, high = min(low, float(expected.min())), max(high, float(expected.max()))
    # a tenth of the magnitude at least: a large offset costs a float32 source more than its range tells
    span = max(high - low, abs(low) / 10, abs(high) / 10)
    error = worst / span if span > 0 else worst
    if not error <= TOLERANCE:
        raise ImportRefused(
            f"the stream differs from the source by {error:.2e} of the output's range ({oracle}, allowed {TOLERANCE:.0e}): "
            "the importer has misread this model; please report it with the file"
        )
    return Replay(error, oracle)


def ways(graph: Graph, steps: int) -> list[Graph]:
    """How a graph is compared with its source over so many steps: as a stream, and over a window where its end counts."""
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
) -> tuple[list[np.ndarray], str]:
    """The source's output for each chunk, its state handed on if it gives it, and what ran it: onnxruntime, else onnx itself."""
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    reasons = []
    for prepare in (_onnxruntime, _reference_evaluator):
        try:
            run, oracle = prepare(model)
            outputs, states = [], zero
            for x in chunks:
                feeds = {walked.input_name: x, **states}
                typed = {k: np.asarray(v, onnx.helper.tensor_dtype_to_np_dtype(types[k])) for k, v in feeds.items()}
                y, *states_after = run([walked.output_name, *walked.state_outputs], typed)
                outputs.append(np.asarray(y, dtype=np.float64))
                states = zero | dict(zip(walked.state_inputs, states_after, strict=False))
            return outputs, oracle
        except ImportError:
            continue
        except Exception as error:  # neither tells what it raises; what one cannot run (layout = 1) the other may
            reasons.append(f"{type(error).__name__}: {str(error)[:200]}")
    raise ImportRefused(f"the source itself cannot be run to compare with: {'; '.join(reasons)}")


def _onnxruntime(model: onnx.ModelProto) -> tuple[Run, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run, f"onnxruntime {onnxruntime.__version__}"


def _reference_evaluator(model: onnx.ModelProto) -> tuple[Run, str]:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model).run, f"onnx reference evaluator {onnx.__version__}"


def _zero_states(model: onnx.ModelProto, walked: Walked, sizes: list[int]) -> dict[str, np.ndarray]:
    """Zeros for every input but the data."""
    labels = _input_labels(walked, len(sizes))
    batch = next((s for s, label in zip(sizes, labels, strict=True) if label not in (walked.time, "feature")), 1)
    stored = {tensor.name for tensor in model.graph.initializer} | {walked.input_name}
    return {
        value.name: np.zeros(
            [d.dim_value if d.HasField("dim_value") else batch for d in value.type.tensor_type.shape.dim]
        )
        for value in model.graph.input
        if value.name not in stored
    }


def _stream_outputs(stream: FloatStream, walked: Walked, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The graph as a stream over ``x`` in the source's axes; the result in the source's output axes, as far as a stream gets."""
    labels = _input_labels(walked, x.ndim)
    batch = [label for label in labels if label not in (walked.time, "feature")]
    timed = walked.time in labels  # a model of one step may have no time axis
    order = [*batch, *([walked.time] if timed else []), *(["feature"] if "feature" in labels else [])]
    x = x.transpose([labels.index(label) for label in order])
    x = x if "feature" in labels else x[..., None]
    x = x if timed else x[..., None, :]
    if timed and stream.graph.readout == "every":
        y, made = stream.outputs(x), [*batch, walked.time]
    else:
        y, made = stream.run(x)[..., -1, :], batch
    if any(atom.label == "direction" for axis in walked.output_axes for atom in axis):
        y = y.reshape(*y.shape[:-1], 2, -1)
        made = [*made, "direction"]
    arranged = _arranged(y, [*made, "feature"], walked.output_axes)
    if arranged.size != np.prod(shape):
        raise ImportRefused(
            f"the source gives {list(shape)} for an input of {list(x.shape)}, the stream {arranged.size} values: "
            "its readout depends on the length of the sequence; read out every step or the last one"
        )
    return arranged.reshape(shape)


def _input_labels(walked: Walked, rank: int) -> list[str]:
    return ["feature" if k == walked.features else f"in{k}" for k in range(rank)]


def _n_fresh(stream: FloatStream, n_steps: int) -> int:
    """How many outputs the stream makes in its next steps, those after a window's end included."""
    graph, before = stream.graph, stream.steps
    end = before + n_steps
    return graph.timing[-1].runs(end + (graph.lags[-1] if graph.window == end else 0)) - graph.timing[-1].runs(before)


def _as_far(expected: np.ndarray, walked: Walked, n_runs: int) -> np.ndarray:
    """The source's output without the steps that come after the stream's last: those of a convolution that looks ahead."""
    for axis, atoms in enumerate(walked.output_axes):
        if [atom.label for atom in atoms if atom.label != "unit"] == [walked.time] and expected.ndim == len(
            walked.output_axes
        ):
            return expected.take(range(min(n_runs, expected.shape[axis])), axis=axis)
    return expected


def _arranged(outputs: np.ndarray, order: list[str], axes: tuple[Axis, ...]) -> np.ndarray:
    """Transpose from ``order`` to the order of the atoms in ``axes``; atoms of size 1 may be missing there."""
    wanted = [atom.label for axis in axes for atom in axis if atom.label in order]
    lost = [label for label in order if label not in wanted]
    return outputs.transpose([order.index(label) for label in (*lost, *wanted)])
