"""The Q formats of docs/numerics.md, and the tables that stand for functions in them."""

from __future__ import annotations

from math import floor, log2

import numpy as np

from stepwell.integer.functions import Function

H_FRAC = 15  # hidden state h: int16 Q0.15
Z_FRAC = 11  # pre-activation z: int16 Q4.11
C_FRAC = 22  # cell state c: int32 Q9.22
SOFTMAX_FRAC = 16  # log2-scaled logits: int32 Q15.16
Y_FRAC_MAX = 30  # of an output

H_SCALE = 2.0**-H_FRAC
Z_SCALE = 2.0**-Z_FRAC
C_LIMIT = 2.0 ** (31 - C_FRAC)
LOG2_E = float(np.log2(np.e))
SOFTMAX_SCALE = 2.0**-SOFTMAX_FRAC / LOG2_E  # real value of one unit of a log2-scaled logit

TABLE_ENTRIES = 513
TABLE_STEP = 128  # codes of z between two entries


def frac_for(peak: float, most: int = H_FRAC, largest_code: int = 32767) -> int:
    """The finest format Q(frac) whose codes hold ``peak``. Negative for large numbers."""
    return most if peak <= 0 else min(most, floor(log2(largest_code / peak)))


def power_of_two(scale: float) -> float:
    """The next power of two that an output's code may be worth. Scales above 1 stay as they are."""
    return 2.0 ** -min(Y_FRAC_MAX, floor(-log2(scale))) if scale <= 1.0 else scale


def table_points(z_scale: float = Z_SCALE) -> np.ndarray:
    """The values of z at which a table has its entries, [513]."""
    return (np.arange(TABLE_ENTRIES) * TABLE_STEP - 32768) * z_scale


def table_of(function: Function, z_scale: float, y_scale: float) -> np.ndarray:
    """A function over the int16 range of z: int16 codes [513], limited to +-32767."""
    codes = np.floor(function(table_points(z_scale)) / y_scale + 0.5)
    return np.clip(codes, -32767, 32767).astype(np.int16)


def largest(function: Function, z_scale: float = Z_SCALE) -> float:
    """Largest magnitude of a function over the int16 range of z."""
    return float(np.abs(function(table_points(z_scale))).max())
