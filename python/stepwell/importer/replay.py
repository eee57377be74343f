"""The proof of an import: the source as a whole sequence against the graph as a stream."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from stepwell.errors import ImportRefused
from stepwell.graph import FloatStream, Graph
from stepwell.importer.walk import Axis, Walked

TOLERANCE = 1e-5  # of the output's range
STEPS = 17  # where time is dynamic
STREAMS = 2  # where the batch is
SINGLE_STEPS = 6  # calls of a model exported for one step, state handed on
ORT_TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}


@dataclass(frozen=True)
class Replay:
    """``error``: largest difference relative to the output's range; ``oracle``: what ran the source."""

    error: float
    oracle: str


def replay(model: onnx.ModelProto, walked: Walked, graph: Graph) -> Replay:
    """Run both on random sequences. Raises ImportRefused when they differ by more than TOLERANCE."""
    run, oracle = _oracle(model)
    sizes = [size or (STEPS if f"in{k}" == walked.time else STREAMS) for k, size in enumerate(walked.input_shape)]
    rng = np.random.default_rng(20)
    n_calls = SINGLE_STEPS if walked.state_inputs and len(walked.state_inputs) == len(walked.state_outputs) else 1
    stream = FloatStream(graph)
    states = _zero_states(model, walked, sizes)
    worst, span = 0.0, 0.0
    for _ in range(n_calls):
        x = rng.normal(size=sizes)
        outputs = run({walked.input_name: x, **states}, [walked.output_name, *walked.state_outputs])
        states = dict(zip(walked.state_inputs, outputs[1:], strict=False)) if n_calls > 1 else states
        expected = np.asarray(outputs[0], dtype=np.float64)
        ours = _stream_outputs(stream, walked, x, expected.shape)
        worst = max(worst, float(np.abs(ours - expected).max()))
        span = max(span, float(np.abs(expected).max()))
    error = worst / span if span > 0 else worst
    if not error <= TOLERANCE:
        raise ImportRefused(
            f"the stream differs from the source by {error:.2e} of the output's range ({oracle}, allowed {TOLERANCE:.0e}): "
            "the importer has misread this model; please report it with the file"
        )
    return Replay(error, oracle)


def _oracle(model: onnx.ModelProto):
    """A function (feeds, output names) -> outputs, and its name: onnxruntime when installed, else onnx's reference evaluator."""
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}

    def typed(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: np.asarray(v, onnx.helper.tensor_dtype_to_np_dtype(types[name])) for name, v in feeds.items()}

    layout = any(a.name == "layout" and a.i for node in model.graph.node for a in node.attribute)
    try:
        import onnxruntime
    except ImportError:
        onnxruntime = None
    if onnxruntime is not None and not layout:  # onnxruntime refuses layout = 1
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            return lambda feeds, names: session.run(names, typed(feeds)), f"onnxruntime {onnxruntime.__version__}"
        except Exception:  # a model it cannot load: the reference evaluator decides
            pass
    try:
        evaluator = onnx.reference.ReferenceEvaluator(model)
    except Exception as error:
        raise ImportRefused(
            f"the source cannot be run to compare with: {type(error).__name__}: {str(error)[:200]}"
        ) from error

    def run(feeds: dict[str, np.ndarray], names: list[str]) -> list:
        try:
            return evaluator.run(names, typed(feeds))
        except Exception as error:
            raise ImportRefused(f"the source cannot be run: {type(error).__name__}: {str(error)[:200]}") from error

    return run, f"onnx reference evaluator {onnx.__version__}"


def _zero_states(model: onnx.ModelProto, walked: Walked, sizes: list[int]) -> dict[str, np.ndarray]:
    batch = next((s for k, s in enumerate(sizes[:-1]) if f"in{k}" != walked.time), 1)
    declared = {value.name: value.type.tensor_type.shape.dim for value in model.graph.input}
    return {
        name: np.zeros([dim.dim_value if dim.HasField("dim_value") else batch for dim in declared[name]])
        for name in walked.state_inputs
    }


def _stream_outputs(stream: FloatStream, walked: Walked, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The graph as a stream over ``x`` in the source's axes; the result in the source's output axes."""
    labels = [f"in{k}" for k in range(x.ndim - 1)]
    timed = walked.time in labels  # a model of one step may have no time axis
    steps = np.moveaxis(x, labels.index(walked.time), 0) if timed else x[None]
    outputs = np.stack([stream.step(step) for step in steps])  # [T, batch, n_out]
    order = [label for label in labels if label != walked.time]
    if timed and stream.graph.readout == "every":
        order = [walked.time, *order]
    else:
        outputs = outputs[-1]
    return _arranged(outputs, [*order, "feature"], walked.output_axes).reshape(shape)


def _arranged(outputs: np.ndarray, order: list[str], axes: tuple[Axis, ...]) -> np.ndarray:
    """Transpose from ``order`` to the order of the atoms in ``axes``; atoms of size 1 may be missing there."""
    wanted = [atom.label for axis in axes for atom in axis if atom.label in order]
    lost = [label for label in order if label not in wanted]
    return outputs.transpose([order.index(label) for label in (*lost, *wanted)])
