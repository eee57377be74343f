"""The numbers of the report: by place, by layer, over a long run; what a curve needs is kept beside them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from stepwell import proof
from stepwell.calibrate import Progress
from stepwell.check import compare, float_outputs, sqnr_db, warm_up
from stepwell.dequantize import float_layer
from stepwell.float_stream import FloatStream, run_in_mode
from stepwell.graph import Graph, Recurrent
from stepwell.metrics import Metric
from stepwell.model import C_FRAC, Model, RecurrentLayer
from stepwell.reference import Reference
from stepwell.samples import Samples
from stepwell.scaler import fold_outputs

BLOCKS = 100  # pieces into which a long run is cut
GROWS = 2.0  # error of the last quarter of a long run against the second
CLIMBS = 4.0  # a cell's peak in a long run against that within the sequences
C_LIMIT = 2.0 ** (31 - C_FRAC)
SHOWN_STEPS = 300
COSTLY_DB = 6.0  # a layer so far below the others is pointed out
ENOUGH_DB = 45.0  # unless it is as good as that
# Nordic nRF52840 product specification, CoreMark from flash with DC/DC: 52 uA/MHz at 3 V
ENERGY = {"core": "Cortex-M4", "cycles_per_instruction": 1.3, "nanojoules_per_cycle": 0.156}
# instructions per multiply-accumulate, more for weights of 4 bits, per recurrent unit, and in all: fitted to emulated runs of LSTMs
# from 4 x 16 to 32 x 56, which they give within 1 % (GRUs within 3 %)
COST = {"Cortex-M4": (2.75, 4.6, 514.0, 362.0), "Cortex-M0": (5.5, 7.9, 695.0, 493.0)}


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
    """Measure ``model`` against ``graph`` on ``samples``, and over a run of ``steps`` steps made of them end to end.

    Raises SampleError and ModelError as ``check.compare``.
    """
    folded = fold_outputs(graph, model.scaler)
    curves: dict[str, Any] = {}
    facts = {
        "info": model.info(),
        "check": compare(model, graph, samples, progress, metric),
        "warm_up": warm_up(model, samples.sequences),
        "places": _places(model, folded, samples),
        "layers": _layers(model, folded, samples),
        "long_run": _long_run(model, folded, samples, steps, curves),
        "cost": _cost(model),
    }
    curves |= {
        "outputs": (float_outputs(model, graph, samples)[0], model.stream().run(samples.sequences[0])),
        "all": (float_outputs(model, graph, samples), [model.stream().run(x) for x in samples.sequences]),
        "targets": samples.targets,
        "weights": {layer.name: np.concatenate([layer.w_x, layer.w_h], axis=1) for layer in _recurrent(model)},
        "limits": {layer.name: 2 ** (layer.weight_bits - 1) - 1 for layer in _recurrent(model)},
        "margins": {layer.name: proof.margin_bits(layer) for layer in model.layers if hasattr(layer, "rows")},
    }
    facts["advice"] = _advice(model, facts)
    return Analysis(facts, curves)


def _recurrent(model: Model) -> list[RecurrentLayer]:
    return [layer for layer in model.layers if isinstance(layer, RecurrentLayer)]


# ---- by place ----


def _places(model: Model, graph: Graph, samples: Samples) -> list[dict[str, Any]]:
    """SQNR and range of each gate's pre-activation, of cells and hidden states, over all steps of the sequences."""
    exact, integer = _seen(model, graph, samples.sequences)
    found = []
    for (index, name), values in exact.items():
        layer = model.layers[index]
        scale, limit = _format(layer, name)
        a, b = values, integer[index, name] * scale
        error = float(np.sqrt(np.mean((a - b) ** 2)))
        found.append(
            {
                "layer": layer.name,
                "place": name,
                "sqnr_db": sqnr_db(a, b),
                "rms_error": error,
                "largest": float(np.abs(a).max()),
                "limit": limit,
                "headroom_bits": float(np.log2(limit / (np.abs(a).max() or limit))),
                "saturated": int((np.abs(b) >= limit * (1 - 2.0**-15)).sum()),
                "values": int(b.size),
            }
        )
    return found


def _seen(model: Model, graph: Graph, sequences: Sequence[np.ndarray]):
    """Values of every place, float and integer: {(layer, place): [steps of all sequences, width]}."""
    exact: dict[tuple[int, str], list] = defaultdict(list)
    integer: dict[tuple[int, str], list] = defaultdict(list)

    def into(kept: dict, cell: str) -> Callable[[int, str, np.ndarray], None]:
        def observe(index: int, name: str, values: np.ndarray) -> None:
            layer = model.layers[index] if index < len(model.layers) else None
            if not isinstance(layer, RecurrentLayer):
                return
            if name == "z":
                for gate, part in zip(layer.records, np.split(values, len(layer.records), axis=-1), strict=True):
                    kept[index, f"z of gate {gate}"].append(part.reshape(-1, part.shape[-1]))
            elif name == "c" and layer.has_cell:
                kept[index, "cell state c" if layer.kind == "lstm" else "state S"].append(
                    values.reshape(-1, values.shape[-1])
                )
            elif name == cell:
                kept[index, "hidden state h"].append(values.reshape(-1, values.shape[-1]))

        return observe

    for x in sequences:
        run_x = x if model.scaler.is_identity else model.scaler.normalise(x)
        if model.mode.kind == "carry":
            FloatStream(graph, into(exact, "y")).run(run_x)
            Reference(model, into(integer, "h_new")).run(x)
        else:  # by place a mode is a run from reset over its window
            window = slice(0, model.mode.window)
            FloatStream(graph, into(exact, "y")).run(run_x[window])
            carried = model.replace(mode=type(model.mode)())
            if not graph.needs_window:
                Reference(carried, into(integer, "h_new")).run(x[window])
    shared = [key for key in exact if key in integer]
    return ({k: np.concatenate(exact[k]) for k in shared}, {k: np.concatenate(integer[k]) for k in shared})


def _format(layer: RecurrentLayer, place: str) -> tuple[float, float]:
    """Real value of a code there, and the largest magnitude its format holds."""
    if place.startswith("z of"):
        return 2.0**-11, 16.0
    if place in ("cell state c", "state S"):
        return 2.0**-C_FRAC, C_LIMIT
    return layer.y_scale, layer.y_scale * 2 ** (layer.cell.h_bits - 1)


# ---- by layer ----


def _layers(model: Model, graph: Graph, samples: Samples) -> list[dict[str, Any]]:
    """SQNR of the output when only that layer's weights are the quantised ones, all else exact: what the layer costs."""
    sequences = [model.scaler.normalise(x) for x in samples.sequences]
    exact = np.concatenate([run_in_mode(graph, model.mode, x) for x in sequences])
    found = []
    for index, (layer, source) in enumerate(zip(model.layers, graph.layers, strict=False)):
        changed = float_layer(layer, source)
        if changed is None:
            continue
        layers = (*graph.layers[:index], changed, *graph.layers[index + 1 :])
        y = np.concatenate([run_in_mode(replace(graph, layers=layers), model.mode, x) for x in sequences])
        described = model.info()["layers"][index]
        bits = layer.weight_bits if isinstance(layer, RecurrentLayer) else 16
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


# ---- a long run ----


def _long_run(model: Model, graph: Graph, samples: Samples, steps: int, curves: dict) -> dict[str, Any] | None:
    """Error over time when the stream never ends: sequences end to end, no reset."""
    if model.mode.kind == "slide":
        return None  # every output starts anew: nothing can drift
    x = np.concatenate(list(samples.sequences))
    x = np.tile(x, (-(-steps // len(x)), 1))[:steps]
    normal = x if model.scaler.is_identity else model.scaler.normalise(x)
    float_c: dict[int, np.ndarray] = {}

    def observe(index: int, name: str, values: np.ndarray) -> None:
        if name == "c" and isinstance(graph.layers[index], Recurrent):
            float_c[index] = values.reshape(-1, values.shape[-1])

    carries = model.mode.kind == "carry"
    exact = FloatStream(graph, observe).run(normal) if carries else run_in_mode(graph, model.mode, normal)
    error = np.abs(exact - model.stream().run(x)).max(axis=-1)
    edges = np.linspace(0, steps, BLOCKS + 1).astype(int)
    blocks = [error[a:b] for a, b in pairwise(edges) if b > a]
    rms = np.array([np.sqrt(np.mean(block**2)) for block in blocks])
    curves["long_run"] = (edges[1:][: len(blocks)], rms, np.array([block.max() for block in blocks]))
    quarter = max(1, len(rms) // 4)
    early, late = float(np.mean(rms[quarter : 2 * quarter])), float(np.mean(rms[-quarter:]))
    return {
        "steps": steps,
        "rms_error_early": early,
        "rms_error_late": late,
        "largest_error": float(error.max()),
        "grows": late > GROWS * max(early, 2.0**-model.y_frac),
        "climbing": _climbing(model, graph, samples, float_c),
    }


def _climbing(model: Model, graph: Graph, samples: Samples, float_c: dict[int, np.ndarray]) -> list[dict[str, Any]]:
    """Cells that climb in a long run far beyond what they reach within the sequences, or to the end of their format."""
    within: dict[int, np.ndarray] = {}

    def observe(index: int, name: str, values: np.ndarray) -> None:
        if name == "c" and index in float_c:
            peak = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0)
            within[index] = np.maximum(within.get(index, 0.0), peak)

    for x in samples.sequences:
        FloatStream(graph, observe).run(x if model.scaler.is_identity else model.scaler.normalise(x))
    found = []
    for index, values in float_c.items():
        peaks = np.abs(values).max(axis=0)
        for unit in np.flatnonzero((peaks > CLIMBS * within[index]) | (peaks >= C_LIMIT)):
            if peaks[unit] > 1.0:
                found.append(
                    {
                        "layer": model.layers[index].name,
                        "unit": int(unit),
                        "within_sequences": float(within[index][unit]),
                        "long_run": float(peaks[unit]),
                        "saturates": bool(peaks[unit] >= C_LIMIT),
                    }
                )
    return found


# ---- cost ----


def _cost(model: Model) -> list[dict[str, Any]]:
    """Estimated instructions a step, by multiply-accumulates and recurrent units; energy from them, with its assumptions."""
    info = model.info()
    n_units = sum(layer.n_units for layer in _recurrent(model))
    once = sum(layer["macs"] for layer in info["layers"])
    turns = info["macs_per_step"] / max(1, once)
    narrow = sum(layer.w_x.size + layer.w_h.size for layer in _recurrent(model) if layer.weight_bits == 4)
    found = []
    for core, (per_mac, more, per_unit, always) in COST.items():
        instructions = round(turns * (per_mac * once + more * narrow + per_unit * n_units) + always)
        found.append({"core": core, "instructions_per_step": instructions, "how": "estimated"})
    cycles = found[0]["instructions_per_step"] * ENERGY["cycles_per_instruction"]
    found[0]["microjoules_per_step"] = cycles * ENERGY["nanojoules_per_cycle"] / 1000
    return found


# ---- advice ----


def _advice(model: Model, facts: dict[str, Any]) -> list[str]:
    """What to do, said of the layer and the place it is about."""
    said = []
    run = facts["long_run"]
    for cell in run["climbing"] if run else []:
        ends = f", the end of its format ({C_LIMIT:.0f})" if cell["saturates"] else ""
        said.append(
            f"layer '{cell['layer']}' unit {cell['unit']}: its cell climbs to {cell['long_run']:.3g} in a long run{ends}; "
            f"sequences it reaches {cell['within_sequences']:.3g}. Run it in windows (--mode tumble:T or slide:T), or train on "
            "longer sequences"
        )
    if run and run["grows"]:
        said.append(
            f"the error grows over {run['steps']} steps, from {run['rms_error_early']:.3g} to {run['rms_error_late']:.3g}: run the "
            "model in windows (--mode), or raise the precision"
        )
    measured = [layer for layer in facts["layers"] if layer["sqnr_db"] is not None]
    if len(measured) > 1:
        worst, *others = sorted(measured, key=lambda layer: layer["sqnr_db"])
        if worst["sqnr_db"] < ENOUGH_DB and others[0]["sqnr_db"] - worst["sqnr_db"] > COSTLY_DB:
            said.append(
                f"layer '{worst['layer']}' costs most ({worst['sqnr_db']:.1f} dB alone, the next {others[0]['sqnr_db']:.1f} dB)"
                + (": give it 8 bits (--precision)" if worst["weight_bits"] == 4 else "")
            )
    for place in facts["places"]:
        if place["saturated"] > 0.01 * place["values"] and place["place"].startswith("z of"):
            said.append(
                f"layer '{place['layer']}', {place['place']}: {100 * place['saturated'] / place['values']:.1f} % of the values "
                "are at the rails of +-16, where the gate is flat: harmless unless the float model tells them apart"
            )
    inputs = facts["check"]["saturation"].get("input", {"saturated": 0, "values": 1})
    if inputs["saturated"]:
        said.append(
            f"{inputs['saturated']} of {inputs['values']} inputs are clipped: they are beyond twice what calibration saw; give "
            "--calib sequences that cover them"
        )
    return said or ["nothing stands out: no knob needs turning"]
