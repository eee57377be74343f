"""Float graph + calibration -> integer model (w8a16), with the overflow proof passed for every row.

The arithmetic this feeds is docs/numerics.md; the choices made here (scales, rounding, repair) are its section "Quantising".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import log2

import numpy as np

from stepwell import proof
from stepwell.calibrate import Calibration, LayerStats, Moments
from stepwell.errors import QuantizeError
from stepwell.graph import Activation, Dense, Graph, Gru, Lstm, Recurrent
from stepwell.model import (
    C_FRAC,
    H_FRAC,
    Z_FRAC,
    ActivationLayer,
    DenseLayer,
    GruLayer,
    IntLayer,
    LstmLayer,
    Model,
    RnnLayer,
    Rows,
)

X_HEADROOM = 2.0  # the calibrated maximum fills half the int16 range
H_SCALE = 2.0**-H_FRAC
Z_SCALE = 2.0**-Z_FRAC
SOFTMAX_FRAC = 16  # log2-scaled logits are Q15.16
OUTPUT_BITS = 20  # the largest calibrated output gets about this many bits
DAMPING = 0.01
SHIFT_MAX = 46
LARGEST_RATIO = 2.0**14 - 1  # mult / 2^shift with shift = 1
KX_MAX = 15
BIAS_MAX = 2**29  # weights that are tiny against their bias are rounded coarser, so that the accumulator holds it
ENOUGH_STEPS = 2000  # of one long recording
MIN_LEVELS = 15  # a row repaired below integers of this size keeps too little of its weights


@dataclass
class Report:
    """What the quantiser has to say to the user."""

    repaired: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def quantize(graph: Graph, calibration: Calibration) -> Model:
    """Integer model of ``graph``.

    Raises QuantizeError, naming layer, row, gate and unit, when a row cannot be made to pass the overflow proof.
    """
    if calibration.x_peak == 0:
        raise QuantizeError("every calibration input is zero: give sample sequences that look like real data")
    report = Report(warnings=_calibration_warnings(calibration))
    x_scale = scale = X_HEADROOM * calibration.x_peak / 32767
    layers: list[IntLayer] = []
    y_frac = H_FRAC
    for index, (layer, stats) in enumerate(zip(graph.layers, calibration.layers, strict=True)):
        is_last = index == len(graph.layers) - 1
        if isinstance(layer, Gru):
            layers.append(_gru(layer, stats, scale, report))
        elif isinstance(layer, Recurrent):
            layers.append(_lstm_or_rnn(layer, stats, scale, report))
        elif isinstance(layer, Dense):
            layers.append(_dense(layer, stats, scale, is_last, report))
        else:
            layers.append(_activation(layer, scale, is_last))
        scale = layers[-1].y_scale
        y_frac = round(-log2(scale)) if is_last else y_frac
    notes = {"repaired_rows": report.repaired, "warnings": report.warnings}
    return Model(tuple(layers), x_scale, y_frac, notes)


def _calibration_warnings(calibration: Calibration) -> list[str]:
    warnings = []
    if calibration.n_sequences < 8 and calibration.n_steps < ENOUGH_STEPS:
        warnings.append(
            f"calibrated on {calibration.n_sequences} sequence(s): 16 to 64 are enough, fewer than 8 can cost several dB"
        )
    for index, stats in enumerate(calibration.layers):
        limit = 2.0 ** (31 - C_FRAC)
        if stats.peaks.get("c", 0.0) >= limit:
            warnings.append(
                f"layer {index}: the cell state reaches {stats.peaks['c']:.0f}; Q9.22 saturates at {limit:.0f}"
            )
    return warnings


# ---- one layer of each kind ----


def _lstm_or_rnn(layer: Recurrent, stats: LayerStats, x_scale: float, report: Report) -> LstmLayer | RnnLayer:
    q_x, q_h, rows = _joined_rows(layer, slice(None), layer.bias, stats, x_scale, report)
    kind = LstmLayer if isinstance(layer, Lstm) else RnnLayer
    return kind(layer.name, q_x, q_h, rows, x_scale)


def _gru(layer: Gru, stats: LayerStats, x_scale: float, report: Report) -> GruLayer:
    """Gates r and z like an LSTM's; the candidate's two parts are rows of their own, with a scale each."""
    gates, candidate = slice(0, 2 * layer.n_out), slice(2 * layer.n_out, None)
    q_x, q_h, rows = _joined_rows(layer, gates, (layer.bias + layer.bias_h)[gates], stats, x_scale, report)
    of_x, of_h = stats.moments.part(slice(0, layer.n_in)), stats.moments.part(slice(layer.n_in, None))

    def name_of(part: str) -> Callable[[int], str]:
        return lambda unit: f"layer '{layer.name}' unit {unit} (gate n, {part} part)"

    q_nx, rows_nx = _single_rows(
        layer.w_x[candidate], layer.bias[candidate], of_x, x_scale, Z_SCALE, 127, name_of("input"), report
    )
    q_nh, rows_nh = _single_rows(
        layer.w_h[candidate], layer.bias_h[candidate], of_h, H_SCALE, Z_SCALE, 127, name_of("hidden"), report
    )
    q_x, q_h = np.vstack([q_x, q_nx.astype(np.int8)]), np.vstack([q_h, q_nh.astype(np.int8)])
    return GruLayer(layer.name, q_x, q_h, _stacked(rows, rows_nx, rows_nh), x_scale)


def _stacked(*parts: Rows) -> Rows:
    return Rows(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("bias", "mult", "kx", "shift")))


def _joined_rows(
    layer: Recurrent, which: slice, bias: np.ndarray, stats: LayerStats, x_scale: float, report: Report
) -> tuple[np.ndarray, np.ndarray, Rows]:
    """Rows in which input and hidden sums join: int8 [R, D], int8 [R, H], rows [R]."""
    w_x, w_h = layer.w_x[which], layer.w_h[which]
    # scale of one accumulator unit by row, if inputs and hidden state each had their own
    unit_x = np.abs(w_x).max(axis=1) / 127 * x_scale
    unit_h = np.abs(w_h).max(axis=1) / 127 * H_SCALE
    energy = stats.moments.energy
    noise_x = energy[: layer.n_in].sum() / x_scale**2
    noise_h = energy[layer.n_in :].sum() / H_SCALE**2
    unit, kx = _join_scales(unit_x, unit_h, noise_x, noise_h, bias)
    weights = np.hstack([w_x, w_h])

    def rounded(rows: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        step_x = unit * 2.0 ** kx[rows] / x_scale
        steps = np.hstack([np.tile(step_x[:, None], layer.n_in), np.tile(unit[:, None] / H_SCALE, layer.n_out)])
        return _round_rows(weights[rows], bias[rows], steps, unit, stats.moments, 127)

    def row_name(row: int) -> str:
        gate, unit = layer.gates[row // layer.n_out], row % layer.n_out
        return f"layer '{layer.name}' row {row} (gate {gate}, unit {unit})"

    q, rows = _prove(rounded, unit, kx, Z_SCALE, layer.n_in, row_name, report)
    return q[:, : layer.n_in].astype(np.int8), q[:, layer.n_in :].astype(np.int8), rows


def _single_rows(
    weights: np.ndarray,
    bias: np.ndarray,
    moments: Moments,
    a_scale: float,
    v_scale: float,
    limit: int,
    row_name: Callable[[int], str],
    report: Report,
) -> tuple[np.ndarray, Rows]:
    """Rows over one vector with codes of ``a_scale``: integers up to ``limit``, as wide as the proof allows."""
    unit = np.maximum(np.abs(weights).max(axis=1) / limit * a_scale, 1.01 * _reach(weights, bias, a_scale) / 2**31)
    unit = np.maximum(np.where(unit > 0, unit, 2.0**-30), _smallest_unit(v_scale))

    def rounded(rows: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        steps = np.tile(unit[:, None] / a_scale, weights.shape[1])
        return _round_rows(weights[rows], bias[rows], steps, unit, moments, limit)

    kx = np.zeros(len(weights), int)
    return _prove(rounded, unit, kx, v_scale, weights.shape[1], row_name, report)


def _reach(weights: np.ndarray, bias: np.ndarray, a_scale: float) -> np.ndarray:
    """Largest magnitude that a row can give for any codes, [R]."""
    return 32768 * a_scale * np.abs(weights).sum(axis=1) + np.abs(bias)


def _smallest_unit(v_scale: float) -> float:
    """The accumulator unit that the largest shift with a full multiplier brings to ``v_scale``."""
    return 2.0**-SHIFT_MAX * 2**14 * v_scale


def _dense(layer: Dense, stats: LayerStats, x_scale: float, is_last: bool, report: Report) -> DenseLayer:
    reach = float(_reach(layer.weight, layer.bias, x_scale).max())
    v_scale, y_scale = _dense_formats(layer, stats, reach, is_last, report)

    def row_name(row: int) -> str:
        return f"layer '{layer.name}' row {row}"

    q, rows = _single_rows(layer.weight, layer.bias, stats.moments, x_scale, v_scale, 32767, row_name, report)
    return DenseLayer(layer.name, q.astype(np.int16), rows, layer.activation, x_scale, y_scale)


def _dense_formats(layer: Dense, stats: LayerStats, reach: float, is_last: bool, report: Report) -> tuple[float, float]:
    """Real value of one unit before the activation, and of one output code."""
    if layer.activation == "softmax":
        # the layer computes 2^z: z = logit * log2(e), so the factor goes into the row scales
        return 2.0**-SOFTMAX_FRAC / np.log2(np.e), H_SCALE
    if layer.activation in ("tanh", "sigmoid"):
        return Z_SCALE, H_SCALE
    peak = stats.peaks["y"] or 1.0
    if not is_last:
        # no finer than what the weights could produce at all: a layer that calibration found nearly dead
        scale = max(X_HEADROOM * peak / 32767, 1.02 * reach / proof.RESULT_MAX)
        return scale, scale
    # an output is int32 and never saturates: the format leaves room for all that the weights can produce
    by_range = OUTPUT_BITS - int(np.ceil(log2(peak)))
    by_proof = int(np.floor(log2(proof.RESULT_MAX / (1.02 * reach)))) if reach > 0 else 30
    y_frac = min(by_range, by_proof, 30)
    if peak * 2.0**y_frac < 1024:
        report.warnings.append(
            f"layer '{layer.name}': the largest calibrated output, {peak:.3g}, gets fewer than 10 bits: scale the output up"
        )
    if y_frac < 0:
        raise QuantizeError(
            f"layer '{layer.name}': outputs reach {reach:.3g}, beyond int32; scale the model's output down"
        )
    return 2.0**-y_frac, 2.0**-y_frac


def _activation(layer: Activation, x_scale: float, is_last: bool) -> ActivationLayer:
    keeps_scale = layer.activation == "relu" and not is_last
    scale_y = x_scale if keeps_scale else H_SCALE
    scale_v = scale_y if layer.activation == "relu" else Z_SCALE
    mult, shift = multipliers(np.array([x_scale / scale_v]))
    zero = np.zeros(1, np.int32)
    rows = Rows(zero, mult, zero.astype(np.int8), shift)
    return ActivationLayer(layer.name, layer.n_in, rows, layer.activation, x_scale, scale_y)


# ---- scales ----


def _join_scales(
    unit_x: np.ndarray, unit_h: np.ndarray, noise_x: float, noise_h: float, bias: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Give each row one accumulator unit: unit_x = unit_h * 2^kx, by widening the one that adds less rounding noise.

    ``noise_*``: sum of E[code^2], what a weight step of one unit is multiplied with. Returns (unit of the hidden sum, kx).
    """
    bare = (unit_x == 0) & (unit_h == 0)  # a row of bias alone: any scale does that holds the bias
    unit_h = np.where(bare, 2.0**-26, unit_h)
    unit_x = np.where(unit_x == 0, unit_h, unit_x)
    unit_h = np.where(unit_h == 0, unit_x, unit_h)
    ratio = np.log2(unit_x / unit_h)
    wider_x = np.clip(np.ceil(ratio), -KX_MAX, KX_MAX)
    wider_h = np.clip(np.floor(ratio), -KX_MAX, KX_MAX)
    cost_x = (unit_h * 2.0**wider_x) ** 2 * noise_x + unit_h**2 * noise_h
    cost_h = unit_x**2 * noise_x + (unit_x * 2.0**-wider_h) ** 2 * noise_h
    widen_h = ((cost_h < cost_x) & (ratio >= -KX_MAX)) | (ratio > KX_MAX)
    kx = np.where(widen_h, wider_h, wider_x)
    unit = np.where(widen_h, unit_x * 2.0**-wider_h, unit_h)
    return np.maximum(unit, np.maximum(_smallest_unit(Z_SCALE), np.abs(bias) / BIAS_MAX)), kx.astype(int)


def multipliers(ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``ratio`` < LARGEST_RATIO, ~ mult * 2^-shift with mult in 2^14..2^15-1: int16 and int8 arrays of ratio's shape."""
    shift = 14 - np.floor(np.log2(ratio)).astype(int)
    mult = np.floor(ratio * 2.0**shift + 0.5).astype(int)
    carried = mult == 2**15
    mult, shift = np.where(carried, 2**14, mult), np.where(carried, shift - 1, shift)
    # a ratio too small for the largest shift gives a smaller multiplier, down to 1
    tiny = shift > SHIFT_MAX
    mult = np.where(tiny, np.maximum(1, np.floor(ratio * 2.0**SHIFT_MAX + 0.5)).astype(int), mult)
    shift = np.where(tiny, SHIFT_MAX, shift)
    return mult.astype(np.int16), shift.astype(np.int8)


# ---- rounding ----


def _round_rows(
    weights: np.ndarray, bias: np.ndarray, steps: np.ndarray, unit: np.ndarray, moments: Moments, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Integers for rows of real weights, and the integer bias that takes up the mean of what rounding left.

    ``weights`` and ``steps`` (real value of one integer) [R, K]; ``unit`` [R]. Returns int64 [R, K] and int64 [R].
    """
    q = round_compensated(weights, steps, moments.covariance, limit)
    left = weights - q * steps
    b = np.floor((bias + left @ moments.mean) / unit + 0.5)
    return q, np.clip(b, -(2.0**40), 2.0**40).astype(np.int64)


def round_compensated(weights: np.ndarray, steps: np.ndarray, covariance: np.ndarray, limit: int) -> np.ndarray:
    """Round column by column; what a column loses, the columns after it make up as far as the data is correlated.

    GPTQ (Frantar et al. 2022, arXiv:2210.17323, the Cholesky form) with the covariance of the calibration activations as
    Hessian: their mean is left to the bias correction. Columns with the most energy go first. Columns are taken in units of
    their steps, so that neither the order nor the damping depends on the unit of an input.
    """
    n = covariance.shape[0]
    size = steps.mean(axis=0)
    covariance, weights, steps = covariance * np.outer(size, size), weights / size, steps / size
    order = np.argsort(-np.diag(covariance), kind="stable")
    hessian = covariance[np.ix_(order, order)]
    damping = DAMPING * float(np.mean(np.diag(hessian))) or 1.0
    inverse = np.linalg.inv(hessian + damping * np.eye(n))
    upper = np.linalg.cholesky((inverse + inverse.T) / 2).T
    remaining, steps = weights[:, order].astype(np.float64), steps[:, order]
    q = np.empty(weights.shape, np.int64)
    for j in range(n):
        column = np.clip(np.floor(remaining[:, j] / steps[:, j] + 0.5), -limit, limit)
        q[:, order[j]] = column
        error = (remaining[:, j] - column * steps[:, j]) / upper[j, j]
        remaining[:, j + 1 :] -= np.outer(error, upper[j, j + 1 :])
    return q


# ---- proof and repair ----


def _prove(rounded, unit, kx, scale_v, n_x, row_name, report) -> tuple[np.ndarray, Rows]:
    """Round all rows, then double the scale of the rows that fail the overflow proof until they pass.

    ``rounded(rows, unit)`` gives integers and bias of those rows; ``n_x`` columns belong to the input, the rest to h.
    """
    start, unit = unit, unit.copy()
    _check_scales(unit / scale_v, row_name)
    q, bias = rounded(np.arange(len(unit)), unit)
    while True:
        mult, shift = multipliers(unit / scale_v)
        rows = Rows(bias, mult, kx.astype(np.int8), shift)
        sums = proof.abs_sum(q[:, :n_x]), proof.abs_sum(q[:, n_x:])
        failing = proof.failing_rows(*sums, rows)
        if len(failing) == 0:
            break
        _, total, result = proof.bounds(*sums, rows)
        for row in failing:
            coarse = np.abs(q[row]).max() < 2 * MIN_LEVELS and abs(bias[row]) < BIAS_MAX // 2
            if coarse or (total[row] <= proof.INT32_MAX and result[row] > proof.RESULT_MAX):
                raise QuantizeError(
                    f"{row_name(row)} cannot pass the overflow proof: its weights or bias are too large; "
                    "retrain with weight decay or gradient clipping, or normalise the inputs"
                )
        unit[failing] *= 2
        _check_scales(unit / scale_v, row_name)
        q[failing], bias[failing] = rounded(failing, unit[failing])
    for row in np.flatnonzero(unit > start):
        report.repaired.append(f"{row_name(row)}: scale times {unit[row] / start[row]:.0f}")
    return q, Rows(bias.astype(np.int32), mult, rows.kx, shift)


def _check_scales(ratio: np.ndarray, row_name: Callable[[int], str]) -> None:
    if ratio.max() >= LARGEST_RATIO:
        raise QuantizeError(
            f"{row_name(int(np.argmax(ratio)))}: weights too large for the format: scale the model down"
        )
