"""Float graph + calibration -> integer model (w8a16 and others), with the overflow proof passed for every row.

The arithmetic this feeds is docs/numerics.md; the choices made here (formats of the values between layers) are its section
"Quantising". Recurrent layers are in cells.py, rows of weights in rows.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, floor, log2, sqrt

import numpy as np

from stepwell import proof
from stepwell.calibrate import HEADROOM, HEADROOM_8, Calibration, LayerStats, Moments
from stepwell.cells import largest, quantize_recurrent, table_of
from stepwell.errors import QuantizeError
from stepwell.functions import Function, as_function
from stepwell.graph import (
    Activation,
    Add,
    ArgMax,
    Attention,
    Concat,
    Dense,
    Embedding,
    Graph,
    Gru,
    Layer,
    LayerNorm,
    Lstm,
    MaxPool,
    Mul,
    Recurrent,
    Rnn,
    Slice,
    Window,
)
from stepwell.mode import CARRY, Mode
from stepwell.model import (
    C_FRAC,
    H_FRAC,
    ActivationLayer,
    AddLayer,
    ArgMaxLayer,
    AttentionLayer,
    ConcatLayer,
    DenseLayer,
    EmbeddingLayer,
    IntLayer,
    LayerNormLayer,
    MaxPoolLayer,
    Model,
    MulLayer,
    Rows,
    SliceLayer,
    WindowLayer,
)
from stepwell.precision import UNIFORM, W8A16, Plan, Precision
from stepwell.rows import LARGEST_RATIO, Z_SCALE, Report, multipliers, reach, scaling_row, single_rows, stacked
from stepwell.scaler import NO_SCALER, Scaler

H_SCALE = 2.0**-H_FRAC
SOFTMAX_FRAC = 16  # log2-scaled logits are Q15.16
LOG2_E = float(np.log2(np.e))
OUTPUT_BITS = 20  # the largest calibrated output gets about this many bits
UNEVEN = 1.8  # between the peaks of two halves of the sequences: within the headroom, but not by much
ENOUGH_STEPS = 2000  # of one long recording
FEW_BITS = 8  # of a value beside a larger one in a concatenation
ADD_LIMIT = 16384  # the larger of the two weights of an addition
EPSILON_MAX = 2**61 - 1
NORM_BITS = 3  # a normalised value is held up to 2^3 standard deviations
SCORE_SHIFT_MAX = 62
SMALLEST_INPUT = 1e-20  # largest input of a model: less is no measurement, and squares of scales would underflow
Y_FRAC_MAX = 30


def quantize(
    graph: Graph, calibration: Calibration, mode: Mode = CARRY, scaler: Scaler = NO_SCALER, plan: Plan = UNIFORM
) -> Model:
    """Integer model of ``graph``; ``calibration`` has seen normalised inputs.

    Raises QuantizeError, naming layer, row, gate and unit, when a row cannot be made to pass the overflow proof.
    """
    check_window(graph, mode)
    graph = graph.in_mode(mode)
    plan.check([layer.name if isinstance(layer, Recurrent) else "" for layer in graph.layers])
    q = _Quantizer(graph, calibration, plan)
    for index, layer in enumerate(graph.layers):
        q.add(index, layer)
    layers, sources, timing = list(q.layers), list(graph.sources), list(graph.timing)
    y_frac = -log2(layers[-1].y_scale)
    if y_frac != round(y_frac) or not 0 <= y_frac <= Y_FRAC_MAX:  # the output's format is a power of two
        layers.append(_rescaled(layers[-1]))
        sources.append((len(layers) - 1,))
        timing.append(timing[-1])
        y_frac = -log2(layers[-1].y_scale)
    notes = {"precision": str(plan), "repaired_rows": q.report.repaired, "warnings": q.report.warnings}
    scaler = scaler.with_channels(graph.n_in, q.scales[0])
    return Model(tuple(layers), q.scales[0], round(y_frac), notes, tuple(sources), tuple(timing), mode, scaler)


def check_window(graph: Graph, mode: Mode, trained: int | None = None) -> None:
    """QuantizeError when a mode cannot run the graph: without a window, one that reads backwards or looks ahead of an answer at
    the end; windows that end before the model's first output, or between two of them. ``trained``: steps of its windows.
    """
    steps = trained or "T"
    if graph.reads_backwards and mode.kind != "slide":
        raise QuantizeError(
            "a layer reads the sequence backwards (reverse or bidirectional), which no stream can do: give the window it was "
            f"trained on with mode='slide:{steps}' (--mode slide:{steps})"
        )
    ahead = graph.looks_ahead
    if mode.kind == "carry":
        if ahead:
            name = ahead.name.removesuffix(".window").removesuffix(".seen")
            raise QuantizeError(
                f"layer '{name}' looks ahead (padding='same', or zeros after the end), and the model answers at the end of a "
                "sequence, which a stream in mode carry does not have: give the window it was trained on with "
                f"mode='slide:{steps}' or 'tumble:{steps}' (--mode slide:{steps})"
            )
        return
    timing, end = graph.in_mode(mode).timing[-1], _end(graph, mode.window)
    if timing.first >= end:
        raise QuantizeError(
            f"mode {mode}: the model's first output comes after {timing.first + 1} steps: take a longer window"
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
            f"mode {mode}: the model gives an output every {timing.every} steps, and none at the window's last: take a window of "
            f"{' or '.join(map(str, (*below, *above)))} steps"
        )


def _end(graph: Graph, window: int) -> int:
    """Steps that a window takes, those after its end included."""
    return window + graph.in_window(window).lags[-1]


def _ends_with_output(graph: Graph, window: int) -> bool:
    """Whether an output comes with the last step of a window, or after it."""
    timing, end = graph.in_window(window).timing[-1], _end(graph, window)
    return timing.runs(end) > timing.runs(window - 1)


def in_mode(model: Model, graph: Graph, mode: Mode) -> Model:
    """The model in another mode, ``graph`` being what it was made from: layers that look ahead see other ends. QuantizeError."""
    check_window(graph, mode)
    run = graph.in_mode(mode)
    ahead = {k: layer.ahead for k, layer in enumerate(run.layers) if isinstance(layer, Window)}
    layers = [replace(layer, ahead=ahead[k]) if k in ahead else layer for k, layer in enumerate(model.layers)]
    timing = (*run.timing, *[run.timing[-1]] * (len(layers) - len(run.layers)))
    return model.replace(layers=tuple(layers), timing=timing, mode=mode)


def _rescaled(layer: IntLayer) -> ActivationLayer:
    """Codes in the next finer power of two."""
    y_scale = 2.0 ** -min(Y_FRAC_MAX, max(0, ceil(-log2(layer.y_scale))))
    row = _scaling_row("output", layer.y_scale / y_scale)
    return ActivationLayer("output", layer.n_out, row, "none", layer.y_scale, y_scale)


@dataclass
class _Place:
    """What a layer's handler needs to know about where it stands."""

    stats: LayerStats
    scales: list[float]  # of its sources
    limits: list[int]  # their largest codes
    is_last: bool
    y_scale: float | None  # demanded by a layer that reads it
    report: Report
    precision: Precision

    @property
    def x_scale(self) -> float:
        return self.scales[0]

    def peak(self, name: str) -> float:
        return self.stats.peaks.get(name, 0.0)


class _Quantizer:
    """Layers so far, and of each value (0 the input, k the output of layer k - 1) the real value of a code and the largest code."""

    def __init__(self, graph: Graph, calibration: Calibration, plan: Plan):
        self._graph, self._calibration, self._plan = graph, calibration, plan
        self.report = Report(warnings=_calibration_warnings(calibration))
        self.layers: list[IntLayer] = []
        self.scales = [_input_scale(graph, calibration, plan.default.x_bits)]
        self._limits = [2 ** (plan.default.x_bits - 1) - 1]
        self._demanded = _demanded_scales(graph)

    def add(self, index: int, layer: Layer) -> None:
        scales, limits = ([of[value] for value in self._graph.sources[index]] for of in (self.scales, self._limits))
        is_last = index == len(self._graph.layers) - 1
        stats = self._calibration.layers[index]
        precision = self._plan.of(index, layer.name)
        place = _Place(stats, scales, limits, is_last, self._demanded.get(index + 1), self.report, precision)
        self.layers.append(HANDLERS[type(layer)](layer, place))
        self.scales.append(self.layers[-1].y_scale)
        if isinstance(layer, Recurrent):
            self._limits.append(precision.h_limit)
        else:
            self._limits.append(limits[0] if isinstance(layer, (Slice, MaxPool, Window)) else W8A16.h_limit)


def _input_scale(graph: Graph, calibration: Calibration, bits: int = 16) -> float:
    """Min-max with headroom; tokens are codes as they are."""
    readers = [layer for layer, reads in zip(graph.layers, graph.sources, strict=True) if 0 in reads]
    if any(isinstance(layer, Embedding) for layer in readers):
        if not all(isinstance(layer, Embedding) for layer in readers):
            raise QuantizeError("the input is both tokens of an embedding and numbers: give the model tokens only")
        return 1.0
    if calibration.x_peak == 0:
        raise QuantizeError("every calibration input is zero: give sample sequences that look like real data")
    if calibration.x_peak < SMALLEST_INPUT:
        raise QuantizeError(
            f"calibration inputs reach {calibration.x_peak:.3g} only: scale them up (scaler=), or check their unit"
        )
    held = calibration.x_range or HEADROOM * calibration.x_peak
    if bits == 8:
        held = min(held, HEADROOM_8 * calibration.x_peak)
    return held / (2 ** (bits - 1) - 1)


def _demanded_scales(graph: Graph) -> dict[int, float]:
    """Formats that a value must have because of who reads it: additive attention adds query and key in Q4.11."""
    demanded: dict[int, float] = {}
    for layer, reads in zip(graph.layers, graph.sources, strict=True):
        if isinstance(layer, Attention) and layer.form == "additive":
            for value in reads[:2]:
                if value == 0 or not isinstance(graph.layers[value - 1], (Dense, Add)) or value == reads[2]:
                    raise QuantizeError(
                        f"layer '{layer.name}': query and key must each come from a dense layer of their own"
                    )
                demanded[value] = Z_SCALE
    return demanded


def _calibration_warnings(calibration: Calibration) -> list[str]:
    warnings = []
    if calibration.n_sequences < 8 and calibration.n_steps < ENOUGH_STEPS:
        warnings.append(
            f"calibrated on {calibration.n_sequences} sequence(s): 16 to 64 are enough, fewer than 8 can cost several dB"
        )
    low, high = sorted(calibration.x_halves)
    if low and high > UNEVEN * low:
        warnings.append(
            f"the sequences do not cover the inputs' range: half of them reach {high:.3g}, the others {low:.3g} only: give more"
        )
    for index, stats in enumerate(calibration.layers):
        limit = 2.0 ** (31 - C_FRAC)
        if stats.peaks.get("c", 0.0) >= limit:
            warnings.append(
                f"layer {index}: the cell state reaches {stats.peaks['c']:.0f}; Q9.22 saturates at {limit:.0f}"
            )
    grown = [(index, *pair) for index, stats in enumerate(calibration.layers) for pair in stats.grown.values()]
    if grown:
        index, within, carried = max(grown, key=lambda g: g[2] / (g[1] or 1e-300))
        warnings.append(
            f"layer {index}: its state reaches {carried:.3g} when the calibration sequences run on without a reset, and "
            f"{within:.3g} within them: they are short for mode carry, give longer ones or run the model in windows "
            "(mode=, --mode)"
        )
    return warnings


# ---- formats of values ----


def _int16_scale(place: _Place, peak: float, highest: float) -> float:
    """Scale of an int16 value that calibration saw up to ``peak`` and that can never pass ``highest``."""
    if place.y_scale:
        return place.y_scale
    span = min(HEADROOM * peak, highest) or HEADROOM
    scale = max(span / 32767, 1.02 * highest / proof.RESULT_MAX)
    return _power_of_two(scale) if place.is_last else scale


def _power_of_two(scale: float) -> float:
    """The next power of two that a code of an output may be worth; scales above 1 are left to ``_rescaled``."""
    return 2.0 ** -min(Y_FRAC_MAX, floor(-log2(scale))) if scale <= 1.0 else scale


def _scaling_row(name: str, ratio: float, largest_code: float = 32768.0) -> Rows:
    """A row without weights and bias. QuantizeError, naming the layer, when its result can leave int32."""
    if ratio >= LARGEST_RATIO or largest_code * ratio > proof.RESULT_MAX:
        raise QuantizeError(
            f"layer '{name}': its values are too large for what follows: normalise the inputs, or scale the model down"
        )
    return scaling_row(ratio)


def _output_scale(layer: Layer, peak: float, highest: float, place: _Place) -> float:
    """An output is int32 and never saturates: the format leaves room for all that the weights can produce."""
    by_range = max(0, OUTPUT_BITS - ceil(log2(peak or 1.0)))
    by_proof = floor(log2(proof.RESULT_MAX / (1.02 * highest))) if highest > 0 else 30
    y_frac = min(by_range, by_proof, 30)
    if (peak or 1.0) * 2.0**y_frac < 1024:
        place.report.warnings.append(
            f"layer '{layer.name}': the largest calibrated output, {peak:.3g}, gets fewer than 10 bits: scale the output up"
        )
    if y_frac < 0:
        raise QuantizeError(
            f"layer '{layer.name}': outputs reach {highest:.3g}, beyond int32; scale the model's output down"
        )
    return 2.0**-y_frac


def _formats(layer: Layer, place: _Place, highest: float) -> tuple[float, float, str, np.ndarray | None]:
    """For a layer with an activation whose sum stays within ``highest``: the real value of one unit before the activation and
    of one output code, the activation's name on the device, and its table.
    """
    activation = layer.activation
    if isinstance(activation, Function):
        return _table_formats(activation, place, highest)
    if activation == "softmax":
        # the layer computes 2^z: z = logit * log2(e), so the factor goes into the row scales
        return 2.0**-SOFTMAX_FRAC / LOG2_E, H_SCALE, activation, None
    if activation in ("tanh", "sigmoid"):
        if place.y_scale:  # a format that only a table can give
            return _table_formats(as_function(activation), place, highest)
        return Z_SCALE, H_SCALE, activation, None
    if place.is_last and not isinstance(layer, Activation):
        scale = _output_scale(layer, place.peak("y"), highest, place)
    else:
        scale = _int16_scale(place, place.peak("y"), highest)
    return scale, scale, activation, None


def _table_formats(function: Function, place: _Place, highest: float) -> tuple[float, float, str, np.ndarray]:
    """The table spans what calibration saw of the sum, with headroom; its values fill int16."""
    v_scale = max(min(HEADROOM * place.peak("v"), highest) / 32767, 1.02 * highest / proof.RESULT_MAX, 2.0**-30)
    top = largest(function, v_scale) or 1.0
    y_scale = place.y_scale or top / 32767
    if place.is_last:
        y_scale = _power_of_two(y_scale)
    return v_scale, y_scale, "table", table_of(function, v_scale, y_scale)


# ---- one layer of each kind ----


def _recurrent(layer: Lstm | Gru | Rnn, place: _Place) -> IntLayer:
    return quantize_recurrent(layer, place.stats, place.x_scale, place.report, place.precision)


def _dense(layer: Dense, place: _Place) -> DenseLayer:
    highest = float(reach(layer.weight, layer.bias, place.x_scale).max())
    v_scale, y_scale, activation, table = _formats(layer, place, highest)
    n_rows, n_columns = layer.n_out // layer.groups, layer.weight.shape[1]
    parts = []
    for group in range(layer.groups):
        rows = slice(group * n_rows, (group + 1) * n_rows)
        moments = place.stats.moments.part(slice(group * n_columns, (group + 1) * n_columns))

        def row_name(row: int, first: int = rows.start) -> str:
            return f"layer '{layer.name}' row {first + row}"

        weights, bias = layer.weight[rows], layer.bias[rows]
        parts.append(single_rows(weights, bias, moments, place.x_scale, v_scale, 32767, row_name, place.report))
    q, rows = np.vstack([part for part, _ in parts]), stacked(*(r for _, r in parts))
    return DenseLayer(layer.name, q.astype(np.int16), rows, activation, place.x_scale, y_scale, layer.groups, table)


def _activation(layer: Activation, place: _Place) -> ActivationLayer:
    if layer.activation == "relu":
        y_scale = place.x_scale if not place.is_last else _power_of_two(place.x_scale)
        v_scale, name, table = y_scale, "relu", None
    else:
        v_scale, y_scale, name, table = _formats(layer, place, 32768 * place.x_scale)
    return ActivationLayer(
        layer.name, layer.n_in, _scaling_row(layer.name, place.x_scale / v_scale), name, place.x_scale, y_scale, table
    )


def _add(layer: Add, place: _Place) -> AddLayer:
    parts = [weight * scale for weight, scale in zip(layer.weights, place.scales, strict=True)]
    highest = 32768 * sum(abs(part) for part in parts)
    v_scale, y_scale, activation, table = _formats(layer, place, highest)
    unit = max(abs(part) for part in parts) / ADD_LIMIT
    weights = np.array([floor(part / unit + 0.5) for part in parts], np.int16)
    row = _scaling_row(layer.name, unit / v_scale, 32768.0 * float(np.abs(weights.astype(int)).sum()))
    return AddLayer(layer.name, layer.n_in, weights, row, activation, place.x_scale, y_scale, table)


def _mul(layer: Mul, place: _Place) -> MulLayer:
    unit = place.scales[0] * place.scales[1]
    v_scale, y_scale, activation, table = _formats(layer, place, 2.0**30 * unit)
    row = _scaling_row(layer.name, unit / v_scale, 2.0**30)
    return MulLayer(layer.name, layer.n_in, row, activation, place.x_scale, y_scale, table)


def _concat(layer: Concat, place: _Place) -> ConcatLayer:
    # codes of 8 bits get finer ones, so that they do not coarsen what stands beside them
    fills = [scale * (limit / W8A16.h_limit) for scale, limit in zip(place.scales, place.limits, strict=True)]
    y_scale = max(fills)
    kept = 15 + log2(min(fills) / y_scale)
    if kept < FEW_BITS:
        place.report.warnings.append(
            f"layer '{layer.name}': its inputs differ in size, and the smaller keeps {max(0.0, kept):.0f} bits beside the larger: "
            "bring them to the same size before they meet (LayerNorm, tanh)"
        )
    rows = stacked(*(scaling_row(scale / y_scale) for scale in place.scales))
    return ConcatLayer(layer.name, layer.parts, rows, place.x_scale, y_scale)


def _slice(layer: Slice, place: _Place) -> SliceLayer:
    return SliceLayer(layer.name, layer.n_in, layer.start, layer.n_out, place.x_scale, place.x_scale)


def _max_pool(layer: MaxPool, place: _Place) -> MaxPoolLayer:
    return MaxPoolLayer(layer.name, layer.n_in, layer.taps, place.x_scale, place.x_scale)


def _window(layer: Window, place: _Place) -> WindowLayer:
    scales = place.x_scale, place.x_scale
    return WindowLayer(layer.name, layer.n_in, layer.taps, layer.dilation, *scales, layer.ahead, layer.lowest)


def _layer_norm(layer: LayerNorm, place: _Place) -> LayerNormLayer:
    n = layer.n_in
    exponent = max(0, floor(log2(n) / 2) - NORM_BITS)
    q_scale = sqrt(n) * 2.0 ** -(15 + exponent)  # of a normalised value
    highest = float(reach(layer.gamma[:, None], layer.beta, q_scale).max())
    y_scale = _int16_scale(place, place.peak("y"), highest)
    epsilon = max(1, round(layer.epsilon / place.x_scale**2 * n**3))
    if epsilon > EPSILON_MAX:
        raise QuantizeError(
            f"layer '{layer.name}': its inputs, at most {place.peak('x'):.3g}, are too small against epsilon "
            f"{layer.epsilon:.3g}: scale them up"
        )

    def row_name(row: int) -> str:
        return f"layer '{layer.name}' value {row}"

    single = Moments(np.zeros(1), np.ones((1, 1)))
    q, rows = single_rows(layer.gamma[:, None], layer.beta, single, q_scale, y_scale, 32767, row_name, place.report)
    return LayerNormLayer(layer.name, q[:, 0].astype(np.int16), rows, epsilon, exponent, place.x_scale, y_scale)


def _embedding(layer: Embedding, place: _Place) -> EmbeddingLayer:
    y_scale = float(np.abs(layer.table).max() or 1.0) / 32767
    table = np.floor(layer.table / y_scale + 0.5).astype(np.int16)
    return EmbeddingLayer(layer.name, table, layer.n_in, place.x_scale, y_scale)


def _arg_max(layer: ArgMax, place: _Place) -> ArgMaxLayer:
    return ArgMaxLayer(layer.name, layer.n_in, place.x_scale)


def _attention(layer: Attention, place: _Place) -> AttentionLayer:
    """Scores are log2-scaled logits in Q15.16, like those of a softmax layer."""
    unit = layer.scale * LOG2_E * 2.0**SOFTMAX_FRAC
    weight = None
    if layer.form == "additive":
        top = float(np.abs(layer.weight).max() or 1.0) / 32767
        weight = np.floor(layer.weight / top + 0.5).astype(np.int16)
        unit *= top * H_SCALE
    else:
        unit *= place.scales[0] * (place.scales[1] if layer.form == "dot" else 1.0)
    if not 2.0**-SCORE_SHIFT_MAX < unit < 2.0**14:
        raise QuantizeError(
            f"layer '{layer.name}': a score's scale of {layer.scale:.3g} has no place in the format: scale the scores"
        )
    row = scaling_row(1.0)
    row.mult[:], row.shift[:] = multipliers(np.array([unit]), SCORE_SHIFT_MAX)
    y_scale = place.scales[-1]
    return AttentionLayer(
        layer.name, layer.form, layer.steps, layer.widths[0], layer.n_out, weight, row, place.x_scale, y_scale
    )


HANDLERS: dict[type, Callable[[Layer, _Place], IntLayer]] = {
    Lstm: _recurrent,
    Gru: _recurrent,
    Rnn: _recurrent,
    Dense: _dense,
    Activation: _activation,
    Add: _add,
    Mul: _mul,
    Concat: _concat,
    Slice: _slice,
    MaxPool: _max_pool,
    LayerNorm: _layer_norm,
    Embedding: _embedding,
    ArgMax: _arg_max,
    Window: _window,
    Attention: _attention,
}
