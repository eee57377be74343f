"""The smallest precision that keeps the user's metric: weights of 4 or 8 bits, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from stepwell.check import float_outputs, task_metric
from stepwell.errors import QuantizeError
from stepwell.graph import Graph
from stepwell.info import flash_bytes
from stepwell.integer.precision import PRECISIONS, W8A16, Plan
from stepwell.metrics import Metric, sqnr_db
from stepwell.model import Model
from stepwell.quantize.folding import float_side
from stepwell.samples import Samples

ALL_CHOICES_UP_TO = 6  # recurrent layers; with more, one layer after the other is narrowed
W4A16 = PRECISIONS["w4a16"]


@dataclass(frozen=True)
class Trial:
    """One precision on the user's data. ``drop_percent``: loss of the metric, or without targets
    the relative RMS error.
    """

    plan: Plan
    flash_bytes: int | None
    sqnr_db: float | None
    drop_percent: float | None
    fits: bool
    refused: str = ""

    def to_json(self) -> dict[str, object]:
        kept = {
            name: getattr(self, name)
            for name in ("flash_bytes", "sqnr_db", "drop_percent", "fits", "refused")
        }
        return {"precision": str(self.plan), **kept}


def search(
    make: Callable[[Plan], Model],
    graph: Graph,
    samples: Samples,
    max_drop: float,
    max_flash: int | None = None,
    metric: Metric | None = None,
    progress: Callable[[Trial], None] | None = None,
) -> tuple[Model, list[Trial]]:
    """The smallest model of ``graph`` whose metric on ``samples`` drops by at most ``max_drop``
    percent, and all that was tried.

    ``make`` quantises by a plan. Without targets the drop is 100 * RMS error / RMS of the output.
    Raises QuantizeError when none fits, or the smallest that does has more than ``max_flash`` bytes
    of constants; it says what came closest.
    """
    first = make(Plan())
    exact = float_outputs(first, graph, samples)
    tried: list[Trial] = []

    def attempt(plan: Plan) -> Model | None:
        try:
            model = make(plan)
        except QuantizeError as error:
            tried.append(Trial(plan, None, None, None, False, str(error)))
            return None
        outputs = [model.stream().run(x) for x in samples.sequences]
        sqnr = sqnr_db(np.concatenate(exact), np.concatenate(outputs))
        drop = _drop(samples, exact, outputs, metric, sqnr)
        fits = (
            drop is not None
            and drop <= max_drop
            and (max_flash is None or flash_bytes(model) <= max_flash)
        )
        tried.append(Trial(plan, flash_bytes(model), sqnr, drop, fits))
        return model if fits else None

    for plan in _plans(float_side(graph, first.scaler), tried):
        model = attempt(plan)
        if progress:
            progress(tried[-1])
        if model is not None:
            return model, tried
    raise QuantizeError(_none_fits(tried, max_drop, max_flash))


def _drop(
    samples: Samples, exact: list, outputs: list, metric: Metric | None, sqnr: float | None
) -> float | None:
    if samples.targets is None and metric is None:
        return 0.0 if sqnr is None else 100 * 10 ** (-sqnr / 20)
    return task_metric(samples.targets, exact, outputs, metric)["drop_percent"]


def _plans(graph: Graph, tried: list[Trial]) -> Iterator[Plan]:
    """From the smallest model to w8a16. With many layers: all of 4 bits, then with the largest
    layers at 8 bits again.
    """
    layers = [index for index, layer in enumerate(graph.layers) if layer.is_recurrent]
    weights = {
        index: graph.layers[index].w_x.size + graph.layers[index].w_h.size for index in layers
    }
    if len(layers) <= ALL_CHOICES_UP_TO:
        choices = product((True, False), repeat=len(layers))
        narrowed = [
            [index for index, narrow in zip(layers, choice, strict=True) if narrow]
            for choice in choices
        ]
    else:
        order = sorted(layers, key=weights.__getitem__)
        narrowed = [order[k:] for k in range(len(order) + 1)]
    for some in sorted(narrowed, key=lambda some: -sum(weights[index] for index in some)):
        if len(some) == len(layers):
            yield Plan(W4A16)
        else:
            yield Plan(W8A16, tuple((str(index), W4A16) for index in some))


def _none_fits(tried: list[Trial], max_drop: float, max_flash: int | None) -> str:
    measured = [trial for trial in tried if trial.drop_percent is not None]
    if not measured:
        return f"no precision can be quantised: {tried[-1].refused}"
    best = min(measured, key=lambda trial: trial.drop_percent)
    limit = "" if max_flash is None else f" within {max_flash} bytes of constants"
    return (
        f"no precision keeps the drop at {max_drop:g} %{limit}; the best is {best.plan} with "
        f"{best.drop_percent:.3g} % in {best.flash_bytes} bytes: allow more, train a smaller "
        "model, or fine-tune with stepwell.qat"
    )
