"""What a task counts: accuracy, F1, RMSE, MAE, R2, cosine similarity, or a function of the user's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stepwell.errors import SampleError, UnknownMetric

Values = Sequence[np.ndarray]


@dataclass(frozen=True)
class Metric:
    """``score(targets, outputs)``: one array for each sequence, [n_out] or [T, n_out], or class
    labels as targets.

    ``higher_is_better`` None: unknown, any change counts as a loss.
    """

    name: str
    score: Callable[[Values, Values], float]
    higher_is_better: bool | None = None

    def drop_percent(self, exact: float, other: float) -> float | None:
        """How much worse ``other`` is, relative to ``exact``; negative when it is better. None when
        that is zero.
        """
        if exact == 0:
            return 0.0 if other == 0 else None
        change = 100 * (other - exact) / abs(exact)
        return (
            abs(change)
            if self.higher_is_better is None
            else -change
            if self.higher_is_better
            else change
        )


def _pairs(targets: Values, outputs: Values) -> tuple[np.ndarray, np.ndarray]:
    """All numbers of both, side by side."""
    for target, y in zip(targets, outputs, strict=True):
        if np.size(target) != np.size(y):
            raise SampleError(
                f"a target has {np.size(target)} values, the model's output {np.size(y)}"
            )
    t, y = (np.concatenate([np.ravel(v) for v in values]) for values in (targets, outputs))
    return t.astype(np.float64), y


def classes(targets: Values, outputs: Values) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions; an output of one value is a probability when it stays within 0 .. 1,
    else a logit.
    """
    labels = np.concatenate([np.ravel(t) for t in targets])
    if not np.array_equal(labels, np.round(labels)):
        raise SampleError("the targets are no class labels: use rmse, mae, r2 or cosine")
    y = np.concatenate([np.reshape(o, (-1, np.shape(o)[-1])) for o in outputs])
    if len(labels) != len(y):
        raise SampleError(
            f"{len(labels)} labels for {len(y)} outputs: give a label a sequence, or one a step"
        )
    if y.shape[1] > 1:
        return labels, y.argmax(axis=1)
    is_probability = y.min() >= 0 and y.max() <= 1
    return labels, (y[:, 0] > (0.5 if is_probability else 0.0)).astype(int)


def rmse(targets: Values, outputs: Values) -> float:
    t, y = _pairs(targets, outputs)
    return float(np.sqrt(np.mean((t - y) ** 2)))


def mae(targets: Values, outputs: Values) -> float:
    t, y = _pairs(targets, outputs)
    return float(np.mean(np.abs(t - y)))


def r2(targets: Values, outputs: Values) -> float:
    """1 - residual variance / variance of the targets."""
    t, y = _pairs(targets, outputs)
    return float(1 - np.sum((t - y) ** 2) / (np.sum((t - t.mean()) ** 2) or 1.0))


def cosine(targets: Values, outputs: Values) -> float:
    """Cosine of the angle between all targets and all outputs."""
    t, y = _pairs(targets, outputs)
    return float(t @ y / (np.linalg.norm(t) * np.linalg.norm(y) or 1.0))


def accuracy(targets: Values, outputs: Values) -> float:
    labels, predicted = classes(targets, outputs)
    return float(np.mean(labels == predicted))


def f1(targets: Values, outputs: Values) -> float:
    """Of class 1 where there are two classes, else the mean over classes."""
    labels, predicted = classes(targets, outputs)
    known = np.union1d(labels, predicted)
    wanted = [1] if set(known) <= {0, 1} else known
    scores = []
    for label in wanted:
        hits = np.sum((labels == label) & (predicted == label))
        scores.append(2 * hits / max(1, np.sum(labels == label) + np.sum(predicted == label)))
    return float(np.mean(scores))


METRICS = {
    metric.name: metric
    for metric in (
        *(Metric(function.__name__, function, True) for function in (accuracy, f1, r2, cosine)),
        *(Metric(function.__name__, function, False) for function in (rmse, mae)),
    )
}
HELP = f"{', '.join(METRICS)}, or FILE.py:FUNCTION(targets, outputs)"


def find_metric(given: str | Metric | Callable[[Values, Values], float]) -> Metric:
    """By name, from a file of the user's, or made from a function. UnknownMetric, or SampleError on
    a bad file.
    """
    if isinstance(given, Metric):
        return given
    if callable(given):
        return Metric(getattr(given, "__name__", "metric"), given)
    if given in METRICS:
        return METRICS[given]
    file, _, name = str(given).rpartition(":")
    if not file.endswith(".py"):
        raise UnknownMetric(f"metric '{given}' is not one of {HELP}")
    if not Path(file).is_file():
        raise SampleError(f"metric: {file}: no such file")
    spec = importlib.util.spec_from_file_location("users_metric", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # it is the user's code
        raise SampleError(f"metric: {file}: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, name, None)):
        raise SampleError(f"metric: {file} has no function {name}")
    return Metric(name, getattr(module, name))


def usual_metric(first_target: np.ndarray, n_out: int) -> Metric:
    """Accuracy for labels, else RMSE."""
    is_label = (
        np.issubdtype(np.asarray(first_target).dtype, np.integer)
        and np.size(first_target) == 1
        and n_out > 1
    )
    return METRICS["accuracy" if is_label else "rmse"]


def sqnr_db(exact: np.ndarray, approximate: np.ndarray) -> float | None:
    """10 log10(signal power / error power); None when the error is zero."""
    error = float(np.sum((exact - approximate) ** 2))
    # a silent output that is wrong is very bad, not exact
    signal = max(float(np.sum(exact**2)), 1e-300)
    return float(10 * np.log10(signal / error)) if error > 0 else None
