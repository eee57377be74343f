"""Rows of real weights -> integers with a bias, a multiplier and a shift, the overflow proof
passed.

The choices made here (scales, rounding, repair) are the section "Quantising" of docs/numerics.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from stepwell.errors import QuantizeError
from stepwell.integer import proof
from stepwell.integer.fixed import Rows
from stepwell.integer.formats import Z_SCALE

DAMPING = 0.01
SHIFT_MAX = 46
LARGEST_RATIO = 2.0**14 - 1  # mult / 2^shift with shift = 1
KX_MAX = 15
# weights that are tiny against their bias are rounded coarser, so that the accumulator holds it
BIAS_MAX = 2**29
FEW_LEVELS = 15  # up to so large integers, clipping weights is tried
CLIPPINGS = np.linspace(1.0, 0.5, 11)
FEW_CODES = 32  # of the largest weight of a row: fewer are worth a warning
MIN_LEVELS = 15  # a row repaired below integers of this size keeps too little of its weights


@dataclass(frozen=True, eq=False)
class Moments:
    """Statistics of the vector a layer multiplies with its weights: x, or [x; h] for a recurrent
    layer.

    ``mean`` [K], ``covariance`` [K, K].
    """

    mean: np.ndarray
    covariance: np.ndarray

    @property
    def energy(self) -> np.ndarray:
        """E[a_j^2], [K]."""
        return np.diag(self.covariance) + self.mean**2

    def part(self, columns: slice) -> Moments:
        """The statistics of some of the columns."""
        return Moments(self.mean[columns], self.covariance[columns, columns])


@dataclass
class Report:
    """What the quantiser has to say to the user."""

    repaired: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def scaling_row(ratio: float) -> Rows:
    """A row without weights and bias: v = code * ratio."""
    zero = np.zeros(1, np.int32)
    mult, shift = multipliers(np.array([ratio]))
    return Rows(zero, mult, zero.astype(np.int8), shift)


def joined_rows(
    weights: tuple[np.ndarray, np.ndarray],
    bias: np.ndarray,
    moments: Moments,
    scales: tuple[float, float, float],
    row_name: Callable[[int], str],
    report: Report,
    limit: int = 127,
) -> tuple[np.ndarray, np.ndarray, Rows]:
    """Rows in which input and hidden sums join: int8 [R, D], int8 [R, H] up to ``limit``, rows [R].

    ``weights`` real [R, D] and [R, H]; ``scales``: real value of a code of x, of h, and of the
    result.
    """
    (w_x, w_h), (x_scale, h_scale, z_scale) = weights, scales
    n_in = w_x.shape[1]
    # scale of one accumulator unit by row, if inputs and hidden state each had their own
    unit_x = steps_of(w_x, moments.energy[:n_in], limit) * x_scale
    unit_h = steps_of(w_h, moments.energy[n_in:], limit) * h_scale
    noise_x = moments.energy[:n_in].sum() / x_scale**2
    noise_h = moments.energy[n_in:].sum() / h_scale**2
    # a hidden step so fine that the inputs' sum would leave the accumulator is widened first: it is
    # below the inputs' noise
    least = 1.01 * (reach(w_x, bias, x_scale) + reach(w_h, 0 * bias, h_scale)) / 2**31
    for row in np.flatnonzero(
        least > np.maximum(unit_x, unit_h)
    ):  # the whole row is wider than the accumulator
        wider = least[row] / max(unit_x[row], unit_h[row], 1e-300)
        report.repaired.append(f"{row_name(row)}: scale times {wider:.2g}")
    unit_h = np.where(unit_h > 0, np.maximum(unit_h, least), 0.0)
    unit, kx = join_scales(unit_x, unit_h, noise_x, noise_h, bias, z_scale)
    both = np.hstack([w_x, w_h])

    def rounded(rows: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        step_x = unit * 2.0 ** kx[rows] / x_scale
        steps = np.hstack(
            [np.tile(step_x[:, None], n_in), np.tile(unit[:, None] / h_scale, w_h.shape[1])]
        )
        return round_rows(both[rows], bias[rows], steps, unit, moments, limit)

    q, rows = prove(rounded, unit, kx, z_scale, n_in, row_name, report)
    for what, w, codes, scale in (
        ("input", w_x, q[:, :n_in], x_scale),
        ("hidden", w_h, q[:, n_in:], h_scale),
    ):
        counts = reach(w, 0 * bias, scale) > z_scale  # the others never move a code of z
        _warn_of_few_codes(what, codes, counts, limit, row_name, report)
    return q[:, :n_in].astype(np.int8), q[:, n_in:].astype(np.int8), rows


def _warn_of_few_codes(
    what: str,
    codes: np.ndarray,
    counts: np.ndarray,
    limit: int,
    row_name: Callable[[int], str],
    report: Report,
) -> None:
    """A warning when rows that count keep few codes for one kind of weights, because the other
    needs the row's scale.
    """
    largest = np.abs(codes).max(axis=1)
    few = np.flatnonzero(counts & (largest < FEW_CODES))
    if limit < FEW_CODES or len(few) == 0:
        return
    worst = few[np.argmin(largest[few])]
    more = f", {len(few)} of {len(codes)} rows keep fewer than {FEW_CODES}" if len(few) > 1 else ""
    report.warnings.append(
        f"{row_name(int(worst))}: its {what} weights keep {largest[worst]} codes of "
        f"{limit}{more}: the other weights take the rows' scale. Normalise the inputs (scaler=, "
        "--scaler), or try --precision w8x16h8"
    )


def single_rows(
    weights: np.ndarray,
    bias: np.ndarray,
    moments: Moments,
    a_scale: float,
    v_scale: float,
    limit: int,
    row_name: Callable[[int], str],
    report: Report,
) -> tuple[np.ndarray, Rows]:
    """Rows over one vector with codes of ``a_scale``: integers up to ``limit``, as wide as the
    proof allows.
    """
    unit = np.maximum(
        steps_of(weights, moments.energy, limit) * a_scale,
        1.01 * reach(weights, bias, a_scale) / 2**31,
    )
    unit = np.maximum(np.where(unit > 0, unit, 2.0**-30), _smallest_unit(v_scale))

    def rounded(rows: np.ndarray, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        steps = np.tile(unit[:, None] / a_scale, weights.shape[1])
        return round_rows(weights[rows], bias[rows], steps, unit, moments, limit)

    kx = np.zeros(len(weights), int)
    return prove(rounded, unit, kx, v_scale, weights.shape[1], row_name, report)


def steps_of(weights: np.ndarray, energy: np.ndarray, limit: int) -> np.ndarray:
    """Real value of one integer of each row, [R]: the largest weight fills ``limit``. With few
    levels it is better to clip the largest weights: then the step with the smallest error on the
    calibration data.
    """
    full = np.abs(weights).max(axis=1) / limit
    if limit > FEW_LEVELS:
        return full
    best, least = full, np.full(len(full), np.inf)
    for part in CLIPPINGS:
        step = np.maximum(full * part, 1e-300)[:, None]
        q = np.clip(np.floor(weights / step + 0.5), -limit, limit)
        error = ((weights - q * step) ** 2 * energy).sum(axis=1)
        best, least = np.where(error < least, step[:, 0], best), np.minimum(error, least)
    return np.where(full > 0, best, 0.0)


def reach(weights: np.ndarray, bias: np.ndarray, a_scale: float) -> np.ndarray:
    """Largest magnitude that a row can give for any codes, [R]."""
    return 32768 * a_scale * np.abs(weights).sum(axis=1) + np.abs(bias)


def _smallest_unit(v_scale: float) -> float:
    """The accumulator unit that the largest shift with a full multiplier brings to ``v_scale``."""
    return 2.0**-SHIFT_MAX * 2**14 * v_scale


# ---- scales ----


def join_scales(
    unit_x: np.ndarray,
    unit_h: np.ndarray,
    noise_x: float,
    noise_h: float,
    bias: np.ndarray,
    z_scale: float = Z_SCALE,
) -> tuple[np.ndarray, np.ndarray]:
    """Give each row one accumulator unit: unit_x = unit_h * 2^kx, by widening the one that adds
    less rounding noise.

    ``noise_*``: sum of E[code^2], what a weight step of one unit is multiplied with. Returns (unit
    of the hidden sum, kx).
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
    return np.maximum(
        unit, np.maximum(_smallest_unit(z_scale), np.abs(bias) / BIAS_MAX)
    ), kx.astype(int)


def multipliers(ratio: np.ndarray, shift_max: int = SHIFT_MAX) -> tuple[np.ndarray, np.ndarray]:
    """``ratio`` < LARGEST_RATIO, ~ mult * 2^-shift with mult in 2^14..2^15-1: int16 and int8 arrays
    of ratio's shape.
    """
    shift = 14 - np.floor(np.log2(ratio)).astype(int)
    mult = np.floor(ratio * 2.0**shift + 0.5).astype(int)
    carried = mult == 2**15
    mult, shift = np.where(carried, 2**14, mult), np.where(carried, shift - 1, shift)
    # a ratio too small for the largest shift gives a smaller multiplier, down to 1
    tiny = shift > shift_max
    mult = np.where(
        tiny,
        np.maximum(1, np.floor(np.minimum(ratio * 2.0**shift_max, 2.0**15) + 0.5)).astype(int),
        mult,
    )
    shift = np.where(tiny, shift_max, shift)
    return mult.astype(np.int16), shift.astype(np.int8)


# ---- rounding ----


def round_rows(
    weights: np.ndarray,
    bias: np.ndarray,
    steps: np.ndarray,
    unit: np.ndarray,
    moments: Moments,
    limit: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Integers for rows of real weights, and the integer bias that takes up the mean of what
    rounding left.

    ``weights`` and ``steps`` (real value of one integer) [R, K]; ``unit`` [R]. Returns int64 [R, K]
    and int64 [R].
    """
    q = round_compensated(weights, steps, moments.covariance, limit)
    left = weights - q * steps
    b = np.floor((bias + left @ moments.mean) / unit + 0.5)
    return q, np.clip(b, -(2.0**40), 2.0**40).astype(np.int64)


def round_compensated(
    weights: np.ndarray, steps: np.ndarray, covariance: np.ndarray, limit: int
) -> np.ndarray:
    """Round column by column; what a column loses, the columns after it make up as far as the data
    is correlated.

    GPTQ (Frantar et al. 2022, arXiv:2210.17323, the Cholesky form) with the covariance of the
    calibration activations as Hessian: their mean is left to the bias correction. Columns with the
    most energy go first. Columns are taken in units of their steps, so that neither the order nor
    the damping depends on the unit of an input.
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


def prove(rounded, unit, kx, scale_v, n_x, row_name, report) -> tuple[np.ndarray, Rows]:
    """Round all rows, then double the scale of the rows that fail the overflow proof until they
    pass.

    ``rounded(rows, unit)`` gives integers and bias of those rows; ``n_x`` columns belong to the
    input, the rest to h.
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
                    f"{row_name(row)} cannot pass the overflow proof: its weights or bias are too "
                    "large; retrain with weight decay or gradient clipping, or normalise the "
                    "inputs"
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
            f"{row_name(int(np.argmax(ratio)))}: weights too large for the format: scale the "
            "model down"
        )
