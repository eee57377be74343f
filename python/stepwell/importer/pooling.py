"""Means over time whose padding does not count, from layers that every graph has: for all
importers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from stepwell.layers import Dense, Mul, Window

Put = Callable[..., int]  # (layer, values that it reads) -> the value that it makes


def mean_over(put: Put, name: str, value: int, window: Window, counts_padding: bool) -> int:
    """The mean of each channel of ``value`` over the steps that ``window`` sees; with
    ``counts_padding`` its zeros are steps, too.

    ValueError when a mean would leave out more steps than there are.
    """
    n, taps = window.n_in, window.taps
    mean = Dense(name, np.full((n, taps), 1.0 / taps), np.zeros(n), groups=n)
    if counts_padding or not pads(window):
        return put(mean, put(window, value))
    weights = _factor(window)
    window = replace(window, least=window.span - 1)  # no mean leaves out steps at both ends
    # 1 at a step of the sequence, 0 outside
    there = put(Dense(f"{name}.there", np.zeros((1, n)), np.ones(1)), value)
    seen = put(replace(window, name=f"{name}.seen", n_in=1), there)
    factor = put(
        Dense(f"{name}.factor", np.tile(weights, (n, 1)), np.full(n, 1.0 - weights.sum())), seen
    )
    return put(Mul(name, n), put(replace(mean, name=f"{name}.sum"), put(window, value)), factor)


def pads(window: Window) -> bool:
    """Whether anything stands before or after the sequence, or may, where that depends on its
    length.
    """
    before = window.span - 1 if window.padding is None else window.padding
    return bool(before or window.ahead or window.same)


def _factor(window: Window) -> np.ndarray:
    """Weights w [taps] for which 1 - sum(w) + w @ m is taps / sum(m), m being 1 for a tap inside
    the sequence, else 0.

    The first i taps may be outside, or the last i: sum(w) of them is 1 - taps / (taps - i).
    """
    taps, both = window.taps, window.span - 1
    before, after = (
        (both // 2, both - both // 2)
        if window.same
        else (both if window.padding is None else window.padding, window.ahead)
    )
    if window.same == "lower":
        before, after = after, before
    before, after = (-(-steps // window.dilation) for steps in (before, after))
    if before + after > taps:
        raise ValueError(f"pads {before} and {after} of its {taps} steps")
    sums = np.array([1.0 - taps / (taps - i) for i in range(taps)])
    weights = np.zeros(taps)
    weights[:before] = np.diff(sums[: before + 1])
    if after:
        weights[-after:] = np.diff(sums[: after + 1])[::-1]
    return weights
