"""What a layer's ``quantized`` is told: statistics, scales of its sources, and the formats it may
choose.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, floor, log2

import numpy as np

from stepwell.errors import QuantizeError
from stepwell.integer import proof
from stepwell.integer.fixed import Rows
from stepwell.integer.formats import (
    H_SCALE,
    SOFTMAX_SCALE,
    Z_SCALE,
    largest,
    power_of_two,
    table_of,
)
from stepwell.integer.functions import Function, as_function
from stepwell.integer.precision import Precision
from stepwell.integer.rows import LARGEST_RATIO, Moments, Report, scaling_row

HEADROOM = 2.0  # the calibrated maximum fills half of what a format holds
HEADROOM_8 = 1.25  # with codes of 8 bits: a bit more of them is worth more than room
OUTPUT_BITS = 20  # the largest calibrated output gets about this many bits


@dataclass(frozen=True, eq=False)
class LayerStats:
    """``peaks``: largest magnitude seen of x and, by layer kind, of h, z, c (recurrent) or y
    (dense: after the activation). ``flat``: the share of a recurrent layer's pre-activations at
    which its gates stand at their ends. ``grown``: (peak within the sequences, peak in all) of
    those that only a stream reaches which is not reset between them.
    """

    moments: Moments
    peaks: dict[str, float]
    flat: float = 0.0
    grown: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass
class Place:
    """Where a layer stands. ``scales`` and ``limits``: of its sources' codes, and the largest
    codes.

    ``y_scale``: demanded by a layer that reads this one, else None.
    """

    name: str
    stats: LayerStats
    scales: list[float]
    limits: list[int]
    is_last: bool
    y_scale: float | None
    report: Report
    precision: Precision

    @property
    def x_scale(self) -> float:
        return self.scales[0]

    def peak(self, name: str) -> float:
        """The largest magnitude of a quantity that calibration saw."""
        return self.stats.peaks.get(name, 0.0)

    def int16_scale(self, highest: float) -> float:
        """Scale of int16 outputs that can never pass ``highest``."""
        if self.y_scale:
            return self.y_scale
        span = min(HEADROOM * self.peak("y"), highest) or HEADROOM
        scale = max(span / 32767, 1.02 * highest / proof.RESULT_MAX)
        return power_of_two(scale) if self.is_last else scale

    def output_scale(self, highest: float) -> float:
        """Scale of int32 outputs, which never saturate: it leaves room for all that weights can
        make.
        """
        peak = self.peak("y") or 1.0
        by_range = max(0, OUTPUT_BITS - ceil(log2(peak)))
        by_proof = floor(log2(proof.RESULT_MAX / (1.02 * highest))) if highest > 0 else 30
        y_frac = min(by_range, by_proof, 30)
        if peak * 2.0**y_frac < 1024:
            self.report.warnings.append(
                f"layer '{self.name}': the largest calibrated output, {self.peak('y'):.3g}, gets "
                "fewer than 10 bits: scale the output up"
            )
        if y_frac < 0:
            raise QuantizeError(
                f"layer '{self.name}': outputs reach {highest:.3g}, beyond int32; scale the "
                "model's output down"
            )
        return 2.0**-y_frac

    def formats(
        self, activation: str | Function, highest: float, is_sum: bool = True
    ) -> tuple[float, float, str, np.ndarray | None]:
        """For an activation of values within ``highest``: the real value of one unit before it and
        of one output code, its name on the device, and its table.

        ``is_sum``: the values are sums of 32 bits, so that outputs of the model may be, too.
        """
        if isinstance(activation, Function):
            return self._table_formats(activation, highest)
        if activation == "softmax":
            # the layer computes 2^z: z = logit * log2(e), so the factor goes into the row scales
            return SOFTMAX_SCALE, H_SCALE, activation, None
        if activation in ("tanh", "sigmoid"):
            if self.y_scale:  # a format that only a table can give
                return self._table_formats(as_function(activation), highest)
            return Z_SCALE, H_SCALE, activation, None
        is_output = self.is_last and is_sum
        scale = self.output_scale(highest) if is_output else self.int16_scale(highest)
        return scale, scale, activation, None

    def _table_formats(
        self, function: Function, highest: float
    ) -> tuple[float, float, str, np.ndarray]:
        """The table spans what calibration saw of the sum, with headroom. Its values fill int16."""
        span = min(HEADROOM * self.peak("v"), highest) / 32767
        v_scale = max(span, 1.02 * highest / proof.RESULT_MAX, 2.0**-30)
        y_scale = self.y_scale or (largest(function, v_scale) or 1.0) / 32767
        if self.is_last:
            y_scale = power_of_two(y_scale)
        return v_scale, y_scale, "table", table_of(function, v_scale, y_scale)

    def scaling_row(self, ratio: float, largest_code: float = 32768.0) -> Rows:
        """A row without weights and bias. QuantizeError when its result can leave int32."""
        return checked_scaling_row(self.name, ratio, largest_code)


def checked_scaling_row(name: str, ratio: float, largest_code: float = 32768.0) -> Rows:
    """The row that multiplies a code by ``ratio``. QuantizeError, naming the layer, beyond int32."""
    if ratio >= LARGEST_RATIO or largest_code * ratio > proof.RESULT_MAX:
        raise QuantizeError(
            f"layer '{name}': its values are too large for what follows: normalise the inputs, or "
            "scale the model down"
        )
    return scaling_row(ratio)
