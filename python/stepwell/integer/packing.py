"""How the rows of recurrent layers stand in memory: csrc/stw_layers.h and stw_pairs.h,
docs/numerics.md, "Packings".

Plain rows serve every core. Paired rows serve those with dual 16-bit multiplies (Cortex-M4, M7,
M33); the portable code runs them, too, so that the host can test the exact bytes of each target. A
packing changes no bit of any result.
"""

from __future__ import annotations

import numpy as np

from stepwell.errors import WrongUse
from stepwell.integer.fixed import Rows

PACKINGS = ("plain", "pairs")  # STW_PLAIN, STW_PAIRS
TARGETS = {"any": "plain"} | {f"cortex-m{core}": "plain" for core in ("0", "0plus", "3", "55")}
TARGETS |= {f"cortex-m{core}": "pairs" for core in ("4", "7", "33")} | {
    "rv32imac": "plain",
    "avr": "plain",
}
ROW = np.dtype([("bias", "<i4"), ("mult", "<i2"), ("kx", "i1"), ("shift", "i1")])
PAIRS_ROW = np.dtype([("bias", "<i4", 4), ("kx", "i1", 4), ("mult", "<i4", 4)])


def packing_for(target: str) -> str:
    """The packing that ``target`` is fastest with. WrongUse for an unknown one."""
    if target not in TARGETS:
        raise WrongUse(f"unknown target '{target}'; there are: {', '.join(TARGETS)}")
    return TARGETS[target]


def unit_major(gate_major: np.ndarray, n_gates: int) -> np.ndarray:
    """[G*H, ...] rows in canonical order -> [H, G, ...]: the gates of a unit side by side, as the
    kernel reads them.
    """
    return np.ascontiguousarray(
        gate_major.reshape(n_gates, -1, *gate_major.shape[1:]).swapaxes(0, 1)
    )


def gate_major(unit_major_rows: np.ndarray) -> np.ndarray:
    """The inverse of ``unit_major``."""
    rows = unit_major_rows.swapaxes(0, 1)
    return np.ascontiguousarray(rows.reshape(-1, *rows.shape[2:]))


def to_nibbles(weights: np.ndarray) -> np.ndarray:
    """int8 [..., n] of values -8..7 -> int8 [..., (n + 1) / 2]: two in a byte, the even one in the
    low half.
    """
    padded = np.concatenate(
        [weights, np.zeros((*weights.shape[:-1], weights.shape[-1] % 2), np.int8)], axis=-1
    )
    return (padded[..., ::2] & 15 | padded[..., 1::2] << 4).astype(np.int8)


def from_nibbles(packed: np.ndarray, n: int) -> np.ndarray:
    """The inverse: int8 [..., n]."""
    low = ((packed & 15) ^ 8) - 8
    return (
        np.stack([low, packed >> 4], axis=-1)
        .reshape(*packed.shape[:-1], -1)[..., :n]
        .astype(np.int8)
    )


def to_pairs(weights: np.ndarray) -> np.ndarray:
    """int8 [H, 4, n] -> int8 [H, 4 * n], two rows in a halfword: the high byte i or g, the low one
    f or o plus 128.

    Two columns make a word: that of i and f, then that of g and o. A last odd column has one word,
    i and f | g and o.
    """
    n_units, _, n = weights.shape
    high, low = (
        weights[:, ::2],
        (weights[:, 1::2].astype(np.int16) + 128).astype(np.uint8).view(np.int8),
    )
    halves = np.stack([low, high], axis=-1)  # [H, pair, n, 2]
    even = halves[:, :, : n & ~1].reshape(n_units, 2, n // 2, 4).swapaxes(1, 2).reshape(n_units, -1)
    return np.concatenate([even, halves[:, :, n & ~1 :].reshape(n_units, -1)], axis=1)


def gru_quads(weights: np.ndarray) -> np.ndarray:
    """int8 [H, 3, n] -> int8 [3 * H / 4, 4, n]: of four units r and z of two, r and z of the other
    two, n of all four.
    """
    of_four = weights.reshape(-1, 4, 3, weights.shape[-1])
    reset_update, candidates = of_four[:, :, :2], of_four[:, :, 2]
    quads = [reset_update[:, :2], reset_update[:, 2:], candidates]
    shape = (len(of_four), 4, weights.shape[-1])
    return np.stack([quad.reshape(shape) for quad in quads], axis=1).reshape(
        -1, 4, weights.shape[-1]
    )


def pairs_records(rows: Rows, n_units: int) -> np.ndarray:
    """Records of units: RQ(a, mult, shift) = RQ(a, mult * 2^(32 - shift), 32)."""
    records = np.empty(n_units, PAIRS_ROW)
    records["bias"], records["kx"] = (unit_major(field, 4) for field in (rows.bias, rows.kx))
    records["mult"] = unit_major(
        rows.mult.astype(np.int64) << (32 - rows.shift.astype(np.int64)), 4
    )
    return records


def records_of(rows: Rows) -> np.ndarray:
    """Rows as the kernel reads them, in the same order: [n_rows] of ROW."""
    records = np.empty(len(rows), ROW)
    for name in ROW.names:
        records[name] = getattr(rows, name)
    return records


def rows_of(records: np.ndarray) -> Rows:
    """The inverse of ``records_of``."""
    return Rows(
        bias=records["bias"].astype(np.int32),
        mult=records["mult"].astype(np.int16),
        kx=records["kx"].astype(np.int8),
        shift=records["shift"].astype(np.int8),
    )
