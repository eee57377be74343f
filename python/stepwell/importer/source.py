"""The source itself, run as it was trained: whole sequences in, its answers out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx

from stepwell.errors import ImportRefused
from stepwell.importer.reader import in_float32
from stepwell.importer.signals import Axis
from stepwell.importer.walk import Walked, live_part

AT_ONCE = 256  # sequences in one call of the source
Run = Callable[[list[str], dict[str, np.ndarray]], list]  # (output names, feeds) -> outputs


@dataclass(frozen=True)
class SourceModel:
    """A trained model that can be run.

    ``run``: float [B, T, n_in] -> [B, n, n_out], n = 1 where it answers at the end only.
    ``window``: the length of the sequences that it takes, None where any will do.
    ``shapeless``: the source has no place where a window would stand (a torch module).
    """

    run: Callable[[np.ndarray], np.ndarray]
    window: int | None
    shapeless: bool = False

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The answers to ``x`` [B, T, n_in], some sequences at a time: float64 [B, n, n_out]."""
        parts = [self.run(x[at : at + AT_ONCE]) for at in range(0, len(x), AT_ONCE)]
        return np.concatenate(parts).astype(np.float64)


# ---- ONNX ----


class Session:
    """A model in onnxruntime, or in onnx itself where that is missing or cannot run it."""

    def __init__(self, model: onnx.ModelProto):
        self._types = {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
        self._ways = _ways(model)
        self._reasons: list[str] = []
        self._run: Run | None = None
        self.oracle = ""

    def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list:
        """The outputs ``names``. Raises ImportRefused when nothing can run the model."""
        typed = {name: np.asarray(value, self._dtype(name)) for name, value in feeds.items()}
        while True:
            try:
                if self._run is None:
                    self._run, self.oracle = self._next()
                return self._run(names, typed)
            except ImportError:
                continue
            except ImportRefused:
                raise
            except Exception as error:  # what one cannot run (layout = 1) the other may
                self._run = None
                self._reasons.append(f"{type(error).__name__}: {str(error)[:200]}")

    def _dtype(self, name: str) -> np.dtype:
        try:
            return onnx.helper.tensor_dtype_to_np_dtype(self._types[name])
        except KeyError:
            raise ImportRefused(
                f"input {name}: ONNX has no element type {self._types[name]}"
            ) from None

    def _next(self) -> tuple[Run, str]:
        for prepare in self._ways:
            return prepare()
        raise ImportRefused(
            f"the source itself cannot be run to compare with: {'; '.join(self._reasons)}"
        )


def _ways(model: onnx.ModelProto) -> Iterator[Callable[[], tuple[Run, str]]]:
    yield lambda: _onnxruntime(model)
    yield lambda: _reference_evaluator(model)


def _onnxruntime(model: onnx.ModelProto) -> tuple[Run, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run, f"onnxruntime {onnxruntime.__version__}"


def _reference_evaluator(model: onnx.ModelProto) -> tuple[Run, str]:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model).run, f"onnx reference evaluator {onnx.__version__}"


def zero_states(model: onnx.ModelProto, walked: Walked, sizes: list[int]) -> dict[str, np.ndarray]:
    """Zeros for every input but the data, whose axes have ``sizes``."""
    labels = input_labels(walked, len(sizes))
    batch = next(
        (
            s
            for s, label in zip(sizes, labels, strict=True)
            if label not in (walked.time, "feature")
        ),
        1,
    )
    stored = {tensor.name for tensor in model.graph.initializer} | {walked.input_name}
    return {
        value.name: np.zeros(
            [
                d.dim_value if d.HasField("dim_value") else batch
                for d in value.type.tensor_type.shape.dim
            ]
        )
        for value in model.graph.input
        if value.name not in stored
    }


def input_labels(walked: Walked, rank: int) -> list[str]:
    """A label for each axis of the data: "feature", "in0", "in1", .."""
    return ["feature" if k == walked.features else f"in{k}" for k in range(rank)]


def in_output_axes(y: np.ndarray, made: list[str], axes: tuple[Axis, ...]) -> np.ndarray:
    """``y``, its axes but the last named by ``made``, in the order of the atoms of an output of the
    source.

    Atoms of size 1 may be missing in that order.
    """
    atoms = [atom.label for axis in axes for atom in axis]
    if "direction" in atoms:
        y, made = y.reshape(*y.shape[:-1], 2, -1), [*made, "direction"]
    order = [*made, "feature"]
    wanted = [label for label in atoms if label in order]
    lost = [label for label in order if label not in wanted]
    return y.transpose([order.index(label) for label in (*lost, *wanted)])


class OnnxRun:
    """An ONNX model on sequences [B, T, n_in], whatever order of axes it wants itself."""

    def __init__(self, model: onnx.ModelProto, walked: Walked):
        self._full, self._walked = model, walked
        self._labels = input_labels(walked, len(walked.input_shape))
        self._sizes = dict(zip(self._labels, walked.input_shape, strict=True))
        known = (walked.time, "feature")
        self._batch = next((label for label in self._labels if label not in known), "")

    @property
    def window(self) -> int | None:
        """The fixed number of steps. None where it is free, or where one step is run at a time."""
        steps = self._sizes.get(self._walked.time, 1)
        return None if steps == 1 else steps

    @cached_property
    def _model(self) -> onnx.ModelProto:
        names = [output.name for output in self._walked.named]
        return in_float32(live_part(self._full, [*names, *self._walked.state_outputs]))

    @cached_property
    def _session(self) -> Session:
        return Session(self._model)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        size = self._sizes[self._batch] or len(x) if self._batch else 1
        found = []
        for at in range(0, len(x), size):
            group = x[at : at + size]
            whole = np.concatenate([group, np.repeat(group[-1:], size - len(group), axis=0)])
            found.append(self._group(whole)[: len(group)])
        return np.concatenate(found)

    def _group(self, x: np.ndarray) -> np.ndarray:
        """As many sequences as the source takes in one call. A model of one step is called again
        and again.
        """
        walked = self._walked
        n_steps = self._sizes.get(walked.time, 1) or x.shape[1]
        sizes = [
            {self._batch: len(x), walked.time: n_steps}.get(label, 1) for label in self._labels
        ]
        states, answers = zero_states(self._model, walked, sizes), []
        names = [output.name for output in walked.named]
        for at in range(0, x.shape[1], n_steps):
            feeds = {walked.input_name: self._arranged(x[:, at : at + n_steps]), **states}
            results = self._session.run([*names, *walked.state_outputs], feeds)
            states |= dict(zip(walked.state_inputs, results[len(names) :], strict=False))
            answers.append(self._side_by_side(results, len(x)))
        return answers[-1] if walked.readout == "last" else np.concatenate(answers, axis=1)

    def _arranged(self, x: np.ndarray) -> np.ndarray:
        """[B, T, n_in] in the source's axes. An axis that it lacks has size 1."""
        names = [self._batch, self._walked.time, "feature"]
        order = [names.index(label) for label in self._labels]
        lost = [axis for axis in range(3) if axis not in order]
        return x.transpose([*lost, *order]).reshape([x.shape[axis] for axis in order])

    def _side_by_side(self, results: list, n_batch: int) -> np.ndarray:
        """The outputs as one array [B, n, n_out]."""
        axes, named = self._walked.output_axes, self._walked.named
        parts = [
            None
            if a is None
            else self._canonical(np.asarray(y, np.float64), a, n_batch, output.size)
            for y, a, output in zip(results, axes, named, strict=False)
        ]
        n = next(part.shape[1] for part in parts if part is not None)
        for k, (part, output) in enumerate(zip(parts, named, strict=True)):
            if part is None:  # a constant
                row = np.asarray(results[k], np.float64).reshape(-1, output.size)[0]
                parts[k] = np.broadcast_to(row, (n_batch, n, output.size))
        return np.concatenate(parts, axis=-1)

    def _canonical(
        self, y: np.ndarray, axes: tuple[Axis, ...], n_batch: int, n_out: int
    ) -> np.ndarray:
        """One output as [B, n, n_out], by where the numbers of a stream would stand in it."""
        n = max(1, y.size // (n_batch * n_out))
        places = np.arange(n_batch * n * n_out).reshape(n_batch, n, n_out)
        timed = self._walked.readout == "every" and self._walked.time in self._labels
        made = [*([self._batch] if self._batch else []), *([self._walked.time] if timed else [])]
        shown = places if self._batch else places[0]
        arranged = in_output_axes(shown if timed else shown[..., 0, :], made, axes)
        found = np.empty(y.size)
        found[arranged.reshape(-1)] = y.reshape(-1)
        return found.reshape(n_batch, n, n_out)
