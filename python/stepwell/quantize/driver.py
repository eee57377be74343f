"""Float graph + calibration -> integer model, with the overflow proof passed for every row.

The arithmetic that this feeds is docs/numerics.md. Its section "Quantising" tells the choices made
here. What a layer becomes is in its own file (layers/).
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil, log2

from stepwell.errors import QuantizeError
from stepwell.graph import Graph
from stepwell.integer.formats import C_LIMIT, Y_FRAC_MAX, Z_SCALE
from stepwell.integer.precision import UNIFORM, Plan
from stepwell.integer.rows import Report
from stepwell.layers import ActivationLayer, Add, Attention, Dense, IntLayer, Layer
from stepwell.layers.place import HEADROOM, HEADROOM_8, Place, checked_scaling_row
from stepwell.model import Model
from stepwell.quantize.calibrate import Calibration
from stepwell.scaler import NO_SCALER, Scaler
from stepwell.windowing import CARRY, Mode

# between the peaks of two halves of the sequences: within the headroom, but not by much
UNEVEN = 1.8
ENOUGH_STEPS = 2000  # of one long recording
# largest input of a model: less is no measurement, and squares of scales would underflow
SMALLEST_INPUT = 1e-20


def quantize(
    graph: Graph,
    calibration: Calibration,
    mode: Mode = CARRY,
    scaler: Scaler = NO_SCALER,
    plan: Plan = UNIFORM,
) -> Model:
    """Integer model of ``graph``; ``calibration`` has seen normalised inputs.

    Raises QuantizeError, naming layer, row, gate and unit, when a row cannot be made to pass the
    overflow proof.
    """
    check_window(graph, mode)
    graph = graph.in_mode(mode)
    plan.check([layer.name if layer.is_recurrent else "" for layer in graph.layers])
    q = _Quantizer(graph, calibration, plan)
    for index, layer in enumerate(graph.layers):
        q.add(index, layer)
    layers, sources, timing = list(q.layers), list(graph.sources), list(graph.timing)
    y_frac = -log2(layers[-1].y_scale)
    if (
        y_frac != round(y_frac) or not 0 <= y_frac <= Y_FRAC_MAX
    ):  # the output's format is a power of two
        layers.append(_rescaled(layers[-1]))
        sources.append((len(layers) - 1,))
        timing.append(timing[-1])
        y_frac = -log2(layers[-1].y_scale)
    notes = {
        "precision": str(plan),
        "repaired_rows": q.report.repaired,
        "warnings": q.report.warnings,
    }
    scaler = scaler.with_channels(graph.n_in, q.scales[0])
    return Model(
        tuple(layers),
        q.scales[0],
        round(y_frac),
        notes,
        tuple(sources),
        tuple(timing),
        mode,
        scaler,
    )


def check_window(graph: Graph, mode: Mode, trained: int | None = None) -> None:
    """QuantizeError when a mode cannot run the graph: without a window, one that reads backwards or
    looks ahead of an answer at the end; windows that end before the model's first output, or
    between two of them. ``trained``: steps of its windows.
    """
    steps = trained or "T"
    if graph.reads_backwards and mode.kind != "slide":
        raise QuantizeError(
            "a layer reads the sequence backwards (reverse or bidirectional), which no stream can "
            "do: give the window it was "
            f"trained on with mode='slide:{steps}' (--mode slide:{steps})"
        )
    ahead = graph.looks_ahead
    if mode.kind == "carry":
        if ahead:
            name = ahead.name.removesuffix(".window").removesuffix(".seen")
            raise QuantizeError(
                f"layer '{name}' looks ahead (padding='same', or zeros after the end), and the "
                "model answers at the end of a sequence, which a stream in mode carry does not "
                f"have: give the window it was trained on with mode='slide:{steps}' or "
                f"'tumble:{steps}' (--mode slide:{steps})"
            )
        return
    timing, end = graph.in_mode(mode).timing[-1], _end(graph, mode.window)
    if timing.first >= end:
        raise QuantizeError(
            f"mode {mode}: the model's first output comes after {timing.first + 1} steps: take a "
            "longer window"
        )
    at_the_end = mode.kind == "stagger" or (mode.kind == "tumble" and mode.stride > 1)
    if at_the_end and not _ends_with_output(graph, mode.window):
        below, above = (
            [n for n in near if _ends_with_output(graph, n)][:1]
            for near in (
                range(mode.window - 1, max(0, mode.window - timing.every), -1),
                range(mode.window + 1, mode.window + timing.every + 1),
            )
        )
        raise QuantizeError(
            f"mode {mode}: the model gives an output every {timing.every} steps, and none at the "
            f"window's last: take a window of {' or '.join(map(str, (*below, *above)))} steps"
        )


def _end(graph: Graph, window: int) -> int:
    """Steps that a window takes, those after its end included."""
    return window + graph.in_window(window).lags[-1]


def _ends_with_output(graph: Graph, window: int) -> bool:
    """Whether an output comes with the last step of a window, or after it."""
    timing, end = graph.in_window(window).timing[-1], _end(graph, window)
    return timing.runs(end) > timing.runs(window - 1)


def in_mode(model: Model, graph: Graph, mode: Mode) -> Model:
    """The model in another mode, ``graph`` being what it was made from: layers that look ahead see
    other ends. QuantizeError.
    """
    check_window(graph, mode)
    run = graph.in_mode(mode)
    layers = list(model.layers)
    for k, layer in enumerate(run.layers):
        if layer.ahead != layers[k].ahead:
            layers[k] = replace(layers[k], ahead=layer.ahead)
    timing = (*run.timing, *[run.timing[-1]] * (len(layers) - len(run.layers)))
    return model.replace(layers=tuple(layers), timing=timing, mode=mode)


def _rescaled(layer: IntLayer) -> ActivationLayer:
    """Codes in the next finer power of two."""
    y_scale = 2.0 ** -min(Y_FRAC_MAX, max(0, ceil(-log2(layer.y_scale))))
    row = checked_scaling_row("output", layer.y_scale / y_scale)
    return ActivationLayer("output", layer.n_out, row, "none", layer.y_scale, y_scale)


class _Quantizer:
    """Layers so far, and of each value (0 the input, k the output of layer k - 1) the real value of
    a code and the largest code.
    """

    def __init__(self, graph: Graph, calibration: Calibration, plan: Plan):
        self._graph, self._calibration, self._plan = graph, calibration, plan
        self.report = Report(warnings=_calibration_warnings(calibration))
        self.layers: list[IntLayer] = []
        self.scales = [_input_scale(graph, calibration, plan.default.x_bits)]
        self._limits = [2 ** (plan.default.x_bits - 1) - 1]
        self._demanded = _demanded_scales(graph)

    def add(self, index: int, layer: Layer) -> None:
        scales, limits = (
            [of[value] for value in self._graph.sources[index]]
            for of in (self.scales, self._limits)
        )
        is_last = index == len(self._graph.layers) - 1
        stats = self._calibration.layers[index]
        precision = self._plan.of(index, layer.name)
        place = Place(
            layer.name,
            stats,
            scales,
            limits,
            is_last,
            self._demanded.get(index + 1),
            self.report,
            precision,
        )
        self.layers.append(layer.quantized(place))
        self.scales.append(self.layers[-1].y_scale)
        self._limits.append(layer.code_limit(precision, limits))


def _input_scale(graph: Graph, calibration: Calibration, bits: int = 16) -> float:
    """Min-max with headroom; tokens are codes as they are."""
    readers = [
        layer for layer, reads in zip(graph.layers, graph.sources, strict=True) if 0 in reads
    ]
    if any(layer.takes_tokens for layer in readers):
        if not all(layer.takes_tokens for layer in readers):
            raise QuantizeError(
                "the input is both tokens of an embedding and numbers: give the model tokens only"
            )
        return 1.0
    if calibration.x_peak == 0:
        raise QuantizeError(
            "every calibration input is zero: give sample sequences that look like real data"
        )
    if calibration.x_peak < SMALLEST_INPUT:
        raise QuantizeError(
            f"calibration inputs reach {calibration.x_peak:.3g} only: scale them up (scaler=), or "
            "check their unit"
        )
    held = calibration.x_range or HEADROOM * calibration.x_peak
    if bits == 8:
        held = min(held, HEADROOM_8 * calibration.x_peak)
    return held / (2 ** (bits - 1) - 1)


def _demanded_scales(graph: Graph) -> dict[int, float]:
    """Formats that a value must have because of who reads it: additive attention adds query and key
    in Q4.11.
    """
    demanded: dict[int, float] = {}
    for layer, reads in zip(graph.layers, graph.sources, strict=True):
        if isinstance(layer, Attention) and layer.adds_query_and_key:
            for value in reads[:2]:
                if (
                    value == 0
                    or not isinstance(graph.layers[value - 1], (Dense, Add))
                    or value == reads[2]
                ):
                    raise QuantizeError(
                        f"layer '{layer.name}': query and key must each come from a dense layer "
                        "of their own"
                    )
                demanded[value] = Z_SCALE
    return demanded


def _calibration_warnings(calibration: Calibration) -> list[str]:
    warnings = []
    if calibration.n_sequences < 8 and calibration.n_steps < ENOUGH_STEPS:
        warnings.append(
            f"calibrated on {calibration.n_sequences} sequence(s): 16 to 64 are enough, fewer "
            "than 8 can cost several dB"
        )
    low, high = sorted(calibration.x_halves)
    if low and high > UNEVEN * low:
        warnings.append(
            f"the sequences do not cover the inputs' range: half of them reach {high:.3g}, the "
            f"others {low:.3g} only: give more"
        )
    for index, stats in enumerate(calibration.layers):
        if stats.peaks.get("c", 0.0) >= C_LIMIT:
            warnings.append(
                f"layer {index}: the cell state reaches {stats.peaks['c']:.0f}; Q9.22 saturates at "
                f"{C_LIMIT:.0f}"
            )
    grown = [
        (index, *pair)
        for index, stats in enumerate(calibration.layers)
        for pair in stats.grown.values()
    ]
    if grown:
        index, within, carried = max(grown, key=lambda g: g[2] / (g[1] or 1e-300))
        warnings.append(
            f"layer {index}: its state reaches {carried:.3g} when the calibration sequences run "
            f"on without a reset, and {within:.3g} within them: they are short for mode carry, "
            "give longer ones or run the model in windows (mode=, --mode)"
        )
    return warnings
