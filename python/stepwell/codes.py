"""Checks of what users give: numbers and codes."""

from __future__ import annotations

import numpy as np

from stepwell.errors import SampleError

Array = np.ndarray


def as_numbers(x: object) -> Array:
    """``x`` as contiguous float64. SampleError on text, complex or masked values, ragged rows."""
    try:
        array = np.asarray(x)
    except (TypeError, ValueError) as error:
        raise SampleError(f"input is not numeric: {error}") from error
    if array.dtype.kind not in "fiub" or isinstance(x, np.ma.MaskedArray):
        raise SampleError(f"input is not numeric: {type(x).__name__} of {array.dtype}")
    return np.ascontiguousarray(array, dtype=np.float64)


def check_codes(x_q: object, n_in: int) -> Array:
    """``x_q`` as contiguous int16 [..., n_in]. SampleError when it holds anything but integers of
    16 bits.
    """
    try:
        codes = np.asarray(x_q)
    except ValueError as error:
        raise SampleError(f"codes are ragged: {error}") from error
    fits = codes.dtype.kind in "iu" and (
        codes.size == 0 or (codes.min() >= -32768 and codes.max() <= 32767)
    )
    if not fits or codes.ndim == 0 or codes.shape[-1] != n_in:
        raise SampleError(
            f"expected int16 codes of shape [..., {n_in}], got {codes.dtype} {list(codes.shape)}"
        )
    return np.ascontiguousarray(codes, dtype=np.int16)


def check_input(x: Array, n_in: int, missing: bool = False) -> Array:
    """``x`` as float64 [..., n_in], or SampleError that says what is wrong with it; NaN passes
    where samples may be ``missing``.
    """
    x = as_numbers(x)
    if x.ndim == 0 or x.shape[-1] != n_in:
        raise SampleError(f"input has shape {list(x.shape)}, the model takes {n_in} values a step")
    bad = np.isinf(x) if missing else ~np.isfinite(x)
    if bad.any():
        where = [int(i) for i in np.argwhere(bad)[0]]
        raise SampleError(
            f"input has {x[tuple(where)]} at index {where}; fill or drop missing values before "
            "the step"
        )
    return x
