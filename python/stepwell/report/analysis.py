"""The numbers of the report: by place, by layer, over a long run; what a curve needs is kept beside
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stepwell.check import compare, float_outputs, warm_up
from stepwell.graph import Graph
from stepwell.layers import RecurrentLayer
from stepwell.metrics import Metric, sqnr_db
from stepwell.model import Model
from stepwell.quantize.calibrate import Progress
from stepwell.quantize.dequantize import float_layer
from stepwell.quantize.fidelity import texts
from stepwell.quantize.folding import float_side
from stepwell.report import cost
from stepwell.report.long_run import long_run
from stepwell.report.places import C_LIMIT, GATE, measured
from stepwell.samples import Samples
from stepwell.stream import run_in_mode

COSTLY_DB = 6.0  # a layer so far below the others is pointed out
FAITHFUL_DB = 30.0  # of the output: less is said first
ENOUGH_DB = 45.0  # unless it is as good as that
NAMED = 3  # units of each kind that the advice names
RAILS = 0.01  # of a gate's values at the ends of their format
# Nordic nRF52840 product specification, CoreMark from flash with DC/DC: 52 uA/MHz at 3 V
ENERGY = {"core": "cortex-m4", "cycles_per_instruction": 1.3, "nanojoules_per_cycle": 0.156}


@dataclass(frozen=True, eq=False)
class Analysis:
    """``facts``: JSON types, all that is said. ``curves``: arrays for the pictures."""

    facts: dict[str, Any]
    curves: dict[str, Any]


def analyse(
    model: Model,
    graph: Graph,
    samples: Samples,
    steps: int = 10_000,
    metric: Metric | None = None,
    progress: Progress | None = None,
) -> Analysis:
    """Measure ``model`` against ``graph`` on ``samples``, and over a run of ``steps`` steps made of
    them end to end.

    Raises SampleError and ModelError as ``check.compare``.
    """
    folded = float_side(graph, model.scaler)
    curves: dict[str, Any] = {}
    facts = {
        "info": model.info(),
        "check": compare(model, graph, samples, progress, metric),
        "warm_up": warm_up(model, samples.sequences),
        "places": measured(model, folded, samples, curves),
        "layers": _layers(model, folded, samples),
        "long_run": long_run(model, folded, samples, steps, curves, progress),
        "cost": _cost(model),
    }
    curves |= {
        "outputs": (
            float_outputs(model, graph, samples)[0],
            model.stream().run(samples.sequences[0]),
        ),
        "all": (
            float_outputs(model, graph, samples),
            [model.stream().run(x) for x in samples.sequences],
        ),
        "targets": samples.targets,
        "weights": {
            layer.name: np.concatenate([layer.w_x, layer.w_h], axis=1)
            for layer in _recurrent(model)
        },
        "limits": {layer.name: 2 ** (layer.weight_bits - 1) - 1 for layer in _recurrent(model)},
        "margins": {
            layer.name: layer.margin_bits() for layer in model.layers if hasattr(layer, "rows")
        },
    }
    facts["advice"] = _advice(facts, texts(model))
    return Analysis(facts, curves)


def _recurrent(model: Model) -> list[RecurrentLayer]:
    return [layer for layer in model.layers if layer.is_recurrent]


# ---- by layer ----


def _layers(model: Model, graph: Graph, samples: Samples) -> list[dict[str, Any]]:
    """SQNR of the output when only that layer's weights are the quantised ones, all else exact:
    what the layer costs.
    """
    sequences = [model.scaler.normalise(x) for x in samples.sequences]
    exact = np.concatenate([run_in_mode(graph, model.mode, x) for x in sequences])
    found = []
    for index, (layer, source) in enumerate(zip(model.layers, graph.layers, strict=False)):
        changed = float_layer(layer, source)
        if changed is None:
            continue
        layers = (*graph.layers[:index], changed, *graph.layers[index + 1 :])
        y = np.concatenate(
            [run_in_mode(replace(graph, layers=layers), model.mode, x) for x in sequences]
        )
        described = model.info()["layers"][index]
        bits = layer.weight_bits if layer.is_recurrent else 16
        found.append(
            {
                "layer": layer.name,
                "kind": layer.kind,
                "weight_bits": bits,
                "sqnr_db": sqnr_db(exact, y),
                "flash_bytes": described["flash_bytes"],
                "macs": described["macs"],
                "overflow_margin_bits": described["overflow_margin_bits"],
            }
        )
    return found


# ---- cost ----


def _cost(model: Model) -> list[dict[str, Any]]:
    """Estimated instructions a step; energy from them, with its assumptions."""
    found = []
    for core in cost.cores():
        instructions = cost.instructions_per_step(model, core)
        found.append({"core": core, "instructions_per_step": instructions, "how": "estimated"})
        if core == ENERGY["core"]:
            cycles = instructions * ENERGY["cycles_per_instruction"]
            found[-1]["microjoules_per_step"] = cycles * ENERGY["nanojoules_per_cycle"] / 1000
    return found


# ---- advice ----


def _advice(facts: dict[str, Any], of_source: Sequence[str] = ()) -> list[str]:
    """What to do, said of the layer and the place it is about; ``of_source``: what convert has
    measured against the source.
    """
    said = [
        *of_source,
        *_of_sqnr(facts["check"]["sqnr_db"]),
        *(_of_long_run(facts["long_run"]) if facts["long_run"] else []),
        *_of_layers([layer for layer in facts["layers"] if layer["sqnr_db"] is not None]),
        *_of_rails(facts["places"], facts["check"]["saturation"].get("input")),
    ]
    if said or facts["info"]["notes"].get("warnings"):
        return said
    return ["nothing stands out: no knob needs turning"]


def _of_sqnr(sqnr: float | None) -> Iterator[str]:
    if sqnr is not None and sqnr < FAITHFUL_DB:
        yield (
            f"the output's SQNR is {sqnr:.1f} dB, below {FAITHFUL_DB:.0f}: the integers are not "
            "the model that was trained. Look at the inputs' units (--scaler), the calibration "
            "data (--calib) and the precision (--precision w8a16)"
        )


def _of_long_run(run: dict[str, Any]) -> Iterator[str]:
    climbing = sorted(run["climbing"], key=lambda cell: -cell["long_run"])
    for cell in climbing[:NAMED]:
        ends = f", the end of its format ({C_LIMIT:.0f})" if cell["saturates"] else ""
        yield (
            f"layer '{cell['layer']}' unit {cell['unit']}: its cell climbs to "
            f"{cell['long_run']:.3g} in the long run{ends}; within the sequences it reaches "
            f"{cell['within_sequences']:.3g}. Run the model in windows (--mode tumble:T or "
            "slide:T), reset it now and then, or train on longer sequences"
        )
    if len(climbing) > NAMED:
        yield f"and {len(climbing) - NAMED} more cells climb (--json names them all)"
    for unit in run["stuck"][:NAMED]:
        yield (
            f"layer '{unit['layer']}' unit {unit['unit']}: its hidden state stands still in the "
            "second half of the long run, where the float one moves by "
            f"{unit['float_moves']:.3g}: raise the layer's precision (--precision w8a16)"
        )
    if run["grows"]:
        yield (
            f"the error grows over {run['steps']} steps, from {run['rms_error_early']:.3g} to "
            f"{run['rms_error_late']:.3g}: run the "
            "model in windows (--mode), or raise the precision"
        )


def _of_layers(layers: list[dict[str, Any]]) -> Iterator[str]:
    if len(layers) < 2:
        return
    worst, second, *_ = sorted(layers, key=lambda layer: layer["sqnr_db"])
    if worst["sqnr_db"] < ENOUGH_DB and second["sqnr_db"] - worst["sqnr_db"] > COSTLY_DB:
        repair = ": give it 8 bits (--precision)" if worst["weight_bits"] == 4 else ""
        yield (
            f"layer '{worst['layer']}' costs most: {worst['sqnr_db']:.1f} dB alone, the next "
            f"'{second['layer']}' "
            f"{second['sqnr_db']:.1f} dB{repair}"
        )


def _of_rails(places: list[dict[str, Any]], inputs: dict[str, int] | None) -> Iterator[str]:
    for place in places:
        if place["saturated"] > RAILS * place["values"] and place["place"].startswith(GATE):
            yield (
                f"layer '{place['layer']}', {place['place']}: "
                f"{100 * place['saturated'] / place['values']:.1f} % of the values "
                "are at the rails of +-16, where the gate is flat: harmless unless the float model "
                "tells them apart"
            )
    if inputs and inputs["saturated"]:
        yield (
            f"{inputs['saturated']} of {inputs['values']} inputs are clipped: they are beyond "
            "what calibration made room for; give --calib sequences that cover them"
        )
