"""Window: the last values of each channel. A causal convolution or a pooling looks at them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from stepwell.integer.precision import Precision
from stepwell.layers.base import WIDTH_MAX, Array, Fields, IntLayer, Layer, Packed, Timing, Turn
from stepwell.layers.place import Place

AHEAD_MAX = 32767
SAME = ("", "upper", "lower")
PADS_LOWEST = 1 << 15  # in the third parameter


class _Taps:
    """``taps`` values of each of ``n_in`` channels, ``dilation`` steps apart."""

    n_in: int
    taps: int
    dilation: int

    @property
    def n_out(self) -> int:
        return self.n_in * self.taps

    @property
    def span(self) -> int:
        """Steps it remembers, the current one included."""
        return (self.taps - 1) * self.dilation + 1


@dataclass(frozen=True)
class Window(_Taps, Layer):
    """The last values of each channel, channel by channel, oldest first: what a causal convolution
    or a pooling looks at.

    y[c * taps + k] = x_c of ``dilation * (taps - 1 - k)`` steps ago. ``padding``: how many zeros
    the source puts before a sequence (None: as many as make the first step count); fewer, and the
    first outputs come later. ``stride``: one output every so many steps; everything after it runs
    at that rate.

    ``ahead``: how many zeros follow the sequence, 0 .. span - 1. Only a window has an end: a stream
    runs without them. ``same``: "upper" or "lower" where both depend on the sequence's length n, so
    that ceil(n / stride) outputs come; an odd zero stands after the sequence or before it.
    ``padding`` None then means that n is not known yet. ``lowest``: the largest value is sought:
    minus infinity stands in place of the zeros, and a MaxPool must follow. ``least``: the fewest
    steps of a sequence for which what follows is right.
    """

    name: str
    n_in: int
    taps: int
    dilation: int = 1
    stride: int = 1
    padding: int | None = None
    ahead: int = 0
    same: str = ""
    lowest: bool = False
    least: int = 1

    @property
    def delay(self) -> int:
        """Steps of its source before its first output."""
        return 0 if self.padding is None else self.span - 1 - self.padding

    @property
    def edge(self) -> float:
        """What stands before and after the sequence."""
        return -np.inf if self.lowest else 0.0

    @property
    def needs_length(self) -> bool:
        return bool(self.same) and self.padding is None

    def timing(self, before: Timing) -> Timing:
        first = before.first + self.delay * before.every
        return Timing(first, before.every * max(self.stride, 1))

    def over(self, n: int) -> Window:
        if not self.same:
            return self
        both = max(0, (-(-n // self.stride) - 1) * self.stride + self.span - n)
        before = both // 2 if self.same == "upper" else both - both // 2
        return replace(self, padding=before, ahead=both - before)

    def over_stream(self) -> Window:
        return replace(self, ahead=0, same="")

    def length_fault(self, n: int) -> str:
        return f"leave it {n}, it pools over {self.span}" if n < self.least else ""

    def runs(self, n: int) -> int:
        return max(0, (n + self.ahead - self.delay - 1) // self.stride + 1)

    def fault(self) -> str:
        if min(self.taps, self.dilation, self.stride) < 1:
            return f"taps {self.taps}, dilation {self.dilation} and stride {self.stride} must be positive"
        if self.span > WIDTH_MAX:
            return f"looks back over {self.span} steps, {WIDTH_MAX} at most"
        if not 0 <= self.ahead < min(self.span, AHEAD_MAX + 1) or self.same not in SAME:
            return f"looks {self.ahead} steps ahead, more than its span of {self.span} or {AHEAD_MAX}, or same '{self.same}'"
        return (
            ""
            if 0 <= self.delay < self.span
            else f"padding {self.padding} does not fit a span of {self.span}"
        )

    def run(self, turn: Turn, x: Array) -> Array:
        return _windows(self, turn, x)

    def quantized(self, place: Place) -> WindowLayer:
        scales = place.x_scale, place.x_scale
        ends = self.ahead, self.lowest
        return WindowLayer(self.name, self.n_in, self.taps, self.dilation, *scales, *ends)

    def code_limit(self, precision: Precision, limits: list[int]) -> int:
        return limits[0]


def _windows(layer: Window | WindowLayer, turn: Turn, x: Array) -> Array:
    """[..., steps, n_in] -> [..., runs, n_in * taps], and what the next stretch needs of this one."""
    lead, past = x.shape[:-2], layer.span - 1
    (before,) = turn.state or (np.full((*lead, past, layer.n_in), layer.edge, x.dtype),)
    after = np.full((*lead, layer.ahead if turn.ends else 0, layer.n_in), layer.edge, x.dtype)
    known = np.concatenate([before, x, after], axis=-2)
    n_runs = known.shape[-2] - past
    turn.state = (known[..., n_runs:, :],)
    starts = [k for k in range(n_runs) if turn.due(k)]
    taps = np.array(starts, int)[:, None] + layer.dilation * np.arange(layer.taps)
    return known[..., taps, :].swapaxes(-1, -2).reshape(*lead, len(starts), layer.n_out)


@dataclass(frozen=True)
class WindowLayer(_Taps, IntLayer):
    """The last ``taps`` values of each channel, ``dilation`` steps apart.

    ``ahead``: how many zeros follow a window's end, 0 in mode carry.
    ``lowest``: the lowest code stands in place of zeros.
    """

    name: str
    n_in: int
    taps: int
    dilation: int
    x_scale: float
    y_scale: float
    ahead: int = 0
    lowest: bool = False

    kind = "window"
    number = 7
    knob = "WINDOW"
    activation: ClassVar[str] = "none"

    @property
    def edge(self) -> int:
        """The code before and after a sequence."""
        return -32768 if self.lowest else 0

    @property
    def n_hidden(self) -> int:
        return self.n_in * self.span

    @property
    def in_state(self) -> bool:
        return self.dilation == 1

    def described(self) -> dict[str, Any]:
        facts = {"looks_back": self.span - 1}
        return facts | ({"looks_ahead": self.ahead} if self.ahead else {})

    def run(self, turn: Turn, x: Array) -> Array:
        """docs/numerics.md, "Windows"."""
        return _windows(self, turn, x)

    def restored(self, c: Array, h: Array) -> tuple[Array]:
        return (h.reshape(self.n_in, self.span).T[1:],)

    def packed(self, packing: str = "plain") -> Packed:
        return Packed(p=(self.taps, self.dilation, self.ahead + PADS_LOWEST * self.lowest))

    @classmethod
    def unpacked(cls, f: Fields) -> WindowLayer:
        taps, dilation, ends = f.p
        scales = f.x_scale, f.y_scale
        return cls(f.name, f.n_in, taps, dilation, *scales, ends % PADS_LOWEST, ends >= PADS_LOWEST)
