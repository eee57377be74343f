"""What happens to the user's numbers before they are codes: normalisation, clamping, missing
samples, raw integers.

A device with a raw-integer model does all of it in ``stw_step_raw`` with one multiplication a
channel (docs/numerics.md, "Raw input").
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stepwell.errors import SampleError
from stepwell.memory import DAMAGED, Npz

MISSING = ("refuse", "hold", "fill")  # STW_MISSING_REFUSE ..
RAW = {"": None, "int16": (-(2**15), 2**15 - 1), "int32": (-(2**31) + 1, 2**31 - 1)}
MISSING_RAW = -(2**31)  # INT32_MIN: a missing sample on the device
MULT_BITS = 30
SHIFT_MAX = 62


@dataclass(frozen=True, eq=False)
class Channels:
    """Integer adapter (docs/numerics.md, "Raw input"): an array [n_in] for each field of
    stw_channel.
    """

    low: np.ndarray
    high: np.ndarray
    offset: np.ndarray
    mult: np.ndarray
    bias: np.ndarray
    shift: np.ndarray
    fill: np.ndarray

    def codes(self, raw: np.ndarray) -> np.ndarray:
        """int32 [..., n_in] -> int16 codes; a missing sample gives its fill code."""
        raw = np.asarray(raw, np.int64)
        v = (np.clip(raw, self.low, self.high) - self.offset) * self.mult.astype(
            np.int64
        ) + self.bias
        v = ((v >> (self.shift.astype(np.int64) - 1)) + 1) >> 1
        return np.where(raw == MISSING_RAW, self.fill, np.clip(v, -32768, 32767)).astype(np.int16)


ARRAYS = ("mean", "std", "low", "high", "fill", "y_mean", "y_std", "source_mean", "source_std")
NOT_GIVEN = {"source_mean", "source_std", "channels"}  # fields that convert fills in


@dataclass(frozen=True, eq=False)
class Scaler:
    """Per channel: normalised = (clamp(x, low, high) - mean) / std. Arrays [n_in], or None for the
    identity.

    ``missing``: what a NaN becomes - "refuse" (an error), "hold" (the channel's last value) or
    "fill" (``fill`` [n_in], in the user's units; default the mean). ``raw``: "int16" or "int32"
    when the device is given raw counts of that type in the user's units. ``y_mean``, ``y_std``
    [n_out]: outputs are y * y_std + y_mean; they are folded into the model's last layer.
    ``source_mean``, ``source_std``: the mean and std that belong to the source, where convert has
    folded more into the model's weights (folding.py); None where it has not.
    """

    mean: np.ndarray | None = None
    std: np.ndarray | None = None
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    missing: str = "refuse"
    fill: np.ndarray | None = None
    raw: str = ""
    y_mean: np.ndarray | None = None
    y_std: np.ndarray | None = None
    source_mean: np.ndarray | None = None
    source_std: np.ndarray | None = None
    channels: Channels | None = None

    def __post_init__(self) -> None:
        """SampleError when a field makes no sense."""
        if self.missing not in MISSING:
            raise SampleError(f"missing '{self.missing}' is not one of {', '.join(MISSING)}")
        if self.raw not in RAW:
            raise SampleError(f"raw '{self.raw}' is not int16 or int32")
        for name in ARRAYS:
            value = getattr(self, name)
            if value is None:
                continue
            try:
                value = np.atleast_1d(np.asarray(value, np.float64))
            except (TypeError, ValueError) as error:
                raise SampleError(
                    f"scaler: {name} must be numbers, one a channel: {error}"
                ) from error
            endless = name in ("low", "high")
            if (
                value.ndim != 1
                or np.isnan(value).any()
                or not (endless or np.isfinite(value).all())
            ):
                raise SampleError(f"scaler: {name} must be one finite number a channel")
            if name.endswith("std") and not np.all(value > 0):
                where = int(np.argmin(value > 0))
                why = (
                    "a constant channel has no scale, drop it"
                    if value[where] == 0
                    else "it must be positive (min below max)"
                )
                raise SampleError(f"scaler: {name} of channel {where} is {value[where]}: {why}")
            object.__setattr__(self, name, value)
        if self.low is not None and self.high is not None and np.any(self.low > self.high):
            raise SampleError("scaler: low is above high")
        parts = (self.source_mean, self.source_std, self.mean, self.std)
        if any(part is not None for part in parts[:2]) and any(part is None for part in parts):
            raise SampleError(
                "scaler: source_mean and source_std belong together, beside mean and std"
            )

    @property
    def is_identity(self) -> bool:
        """Whether nothing happens to inputs."""
        given = (self.mean, self.std, self.low, self.high, self.fill, self.channels)
        return all(value is None for value in given) and self.missing == "refuse" and not self.raw

    def check(self, n_in: int, n_out: int) -> None:
        """SampleError when an array has another length than the model's channels."""
        for name in ARRAYS:
            value, n = getattr(self, name), n_out if name.startswith("y_") else n_in
            if (
                value is not None
                and len(value) != n
                and (len(value) != 1 or name.startswith("source_"))
            ):
                raise SampleError(f"scaler: {name} has {len(value)} values, the model {n} channels")

    def field(self, name: str, n_in: int) -> np.ndarray:
        """An input field as [n_in], defaults filled in."""
        default = {"mean": 0.0, "std": 1.0, "low": -np.inf, "high": np.inf}.get(name, 0.0)
        value = getattr(self, name)
        if value is None and name == "fill":
            value = self.field("mean", n_in)
        return np.broadcast_to(default if value is None else value, (n_in,)).astype(np.float64)

    def normalise(self, x: np.ndarray) -> np.ndarray:
        """The user's numbers [..., T, n_in] -> what the float graph takes; NaN as by ``missing``,
        held along T.
        """
        x = np.asarray(x, np.float64)
        n = x.shape[-1]
        if self.missing != "refuse":
            x = self._filled(x, hold=self.missing == "hold")
        x = np.clip(x, self.field("low", n), self.field("high", n))
        return (x - self.field("mean", n)) / self.field("std", n)

    def then(self, mean: np.ndarray, std: np.ndarray) -> Scaler:
        """The scaler that gives (v - mean) / std of what this one gives, [n_in] each; missing
        samples stay as they are.
        """
        n = len(mean)
        own_mean, own_std = self.field("mean", n), self.field("std", n)
        source = self if self.source_std is not None else None
        changes = {
            "mean": own_mean + own_std * mean,
            "std": own_std * std,
            "fill": self.field("fill", n) if self.missing != "refuse" else self.fill,
            "source_mean": source.source_mean if source else own_mean,
            "source_std": source.source_std if source else own_std,
        }
        return Scaler(**self._fields() | changes)

    @property
    def of_source(self) -> Scaler:
        """The part that the source needs: without what has been folded into the weights."""
        if self.source_std is None:
            return self
        changes = {
            "mean": self.source_mean,
            "std": self.source_std,
            "source_mean": None,
            "source_std": None,
        }
        return Scaler(**self._fields() | changes | {"channels": None})

    @property
    def folded(self) -> tuple[np.ndarray, np.ndarray]:
        """(mean, std) [n_in] of what has been folded: normalise(x) = (of_source.normalise(x) -
        mean) / std.
        """
        return (self.mean - self.source_mean) / self.source_std, self.std / self.source_std

    def _filled(self, x: np.ndarray, hold: bool) -> np.ndarray:
        fill = self.field("fill", x.shape[-1])
        x = x.copy()
        last = fill
        for t in range(x.shape[-2]):
            now = x[..., t, :]
            now[...] = np.where(np.isnan(now), last if hold else fill, now)
            last = now
        return x

    def codes(self, x: np.ndarray, x_scale: float) -> np.ndarray:
        """int16 codes of [..., n_in] numbers in the user's units; NaN gives the fill code."""
        x = np.asarray(x, np.float64)
        n = x.shape[-1]
        if self.channels is not None:
            bound = 2.0**31 - 1
            return self.channels.codes(
                np.where(np.isnan(x), MISSING_RAW, np.floor(np.clip(x, -bound, bound) + 0.5))
            )
        low, high = self.field("low", n), self.field("high", n)
        x = np.where(np.isnan(x), self.field("fill", n), x)
        codes = np.floor(
            (np.clip(x, low, high) - self.field("mean", n)) * self.factors(n, x_scale) + 0.5
        )
        return np.clip(codes, -32768, 32767).astype(np.int16)

    def factors(self, n_in: int, x_scale: float) -> np.ndarray:
        """Codes per unit of input, [n_in]."""
        return 1.0 / (self.field("std", n_in) * x_scale)

    def range(self, n_in: int, x_scale: float) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest input of each channel that a code stands for, in the user's units:
        [n_in] each.
        """
        unit = 1.0 / self.factors(n_in, x_scale)
        mean = self.field("mean", n_in)
        return mean - 32768 * unit, mean + 32767 * unit

    def with_channels(self, n_in: int, x_scale: float) -> Scaler:
        """The same with the integer adapter for ``raw``. SampleError when a channel's scale does
        not fit it.
        """
        if not self.raw:
            return self
        lowest, highest = RAW[self.raw]
        mean = self.field("mean", n_in)
        offset = np.floor(mean + 0.5)
        if np.abs(offset).max() >= 2**31:
            raise SampleError(
                f"scaler: a mean of {offset[np.argmax(np.abs(offset))]:.3g} counts is beyond int32"
            )
        factor = self.factors(n_in, x_scale)
        shift = np.minimum(MULT_BITS - 1 - np.floor(np.log2(factor)).astype(int), SHIFT_MAX)
        fits = (shift >= 1) & (factor * 2.0**shift >= 2**14)
        if not fits.all():
            where = int(np.argmin(fits))
            raise SampleError(
                f"scaler: a raw count of channel {where} is {factor[where]:.3g} codes: it cannot "
                "be scaled to 16 bits"
            )
        mult = np.minimum(np.floor(factor * 2.0**shift + 0.5), 2**MULT_BITS - 1)
        bias = np.clip(np.floor((offset - mean) * mult + 0.5), -(2**31) + 1, 2**31 - 1)
        if np.any(self.field("low", n_in) > highest) or np.any(self.field("high", n_in) < lowest):
            raise SampleError(f"scaler: no {self.raw} lies between low and high")
        ends = (
            np.clip(f(self.field(n, n_in)), lowest, highest)
            for f, n in ((np.ceil, "low"), (np.floor, "high"))
        )
        low, high = (end.astype(np.int64) for end in ends)
        if np.any(low > high):
            raise SampleError("scaler: no raw count lies between low and high")
        filled = np.clip(
            self.field("fill", n_in), self.field("low", n_in), self.field("high", n_in)
        )
        fill = np.clip(np.floor((filled - mean) * factor + 0.5), -32768, 32767)
        numbers = (low, high, offset, mult, bias, shift, fill)
        channels = Channels(*(np.asarray(v).astype(np.int64) for v in numbers))
        return Scaler(**{**self._fields(), "channels": channels})

    def _fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def to_json(self) -> dict[str, Any]:
        """What a .stw file keeps for the host: lists, without the integer adapter, which is among
        the constants.
        """
        kept = {}
        for name in ARRAYS:
            value = getattr(self, name)
            if value is not None:
                kept[name] = [float(v) if np.isfinite(v) else str(v) for v in value]
        return kept | {"missing": self.missing, "raw": self.raw}

    @classmethod
    def from_json(cls, kept: dict[str, Any], channels: Channels | None = None) -> Scaler:
        """The inverse. SampleError or ValueError on damage."""
        unknown = set(kept) - set(cls.__dataclass_fields__) | {"channels"} & set(kept)
        if unknown:
            raise ValueError(f"scaler has unknown fields {sorted(unknown)}")
        return cls(
            **{
                k: v if isinstance(v, str) else np.array([float(n) for n in v])
                for k, v in kept.items()
            },
            channels=channels,
        )


NO_SCALER = Scaler()
KEYS = "mean, std (or min, max), low, high, missing, fill, raw, y_mean, y_std (or y_min, y_max)"


def as_scaler(given: object) -> Scaler:
    """A Scaler from one, a dict, a path (.json, or .npz with the same names), or a fitted
    scikit-learn StandardScaler or MinMaxScaler.

    Dicts may say ``min`` and ``max`` instead of mean and std: min becomes 0 and max 1. Raises
    SampleError.
    """
    if given is None:
        return NO_SCALER
    if isinstance(given, Scaler):
        return given
    if isinstance(given, (str, Path)):
        return _from_mapping(_read(Path(given)), str(given))
    if isinstance(given, Mapping):
        return _from_mapping(dict(given), "scaler")
    if hasattr(given, "mean_") and hasattr(given, "scale_"):
        return Scaler(mean=given.mean_, std=given.scale_)
    if hasattr(given, "min_") and hasattr(given, "scale_"):
        return _from_min_max(given)
    raise SampleError(
        "a scaler is a Scaler, a dict, a .json or .npz file or a fitted scikit-learn scaler, not "
        f"{type(given).__name__}"
    )


def _from_min_max(given: Any) -> Scaler:
    """A fitted MinMaxScaler: y = x * scale_ + min_, limited to feature_range with clip=True."""
    try:
        scale, shift = np.asarray(given.scale_, np.float64), np.asarray(given.min_, np.float64)
        ends = {}
        if getattr(given, "clip", False):
            low, high = (float(v) for v in given.feature_range)
            ends = {"low": (low - shift) / scale, "high": (high - shift) / scale}
        return Scaler(mean=-shift / scale, std=1 / scale, **ends)
    except (TypeError, ValueError, AttributeError) as error:
        raise SampleError(f"the MinMaxScaler cannot be read ({error}): fit it first") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".npz":
            with Npz(path) as arrays:
                return {name: arrays.read(name).tolist() for name in arrays.names}
        content = json.loads(path.read_text(encoding="utf-8"))
    except (*DAMAGED, RecursionError) as error:
        raise SampleError(
            f"{path}: no readable scaler ({error}): give .json or .npz with {KEYS}"
        ) from error
    if not isinstance(content, dict):
        raise SampleError(f"{path}: a scaler is a JSON object with {KEYS}")
    return content


def _from_mapping(given: dict[str, Any], where: str) -> Scaler:
    for prefix in ("", "y_"):
        if f"{prefix}min" in given or f"{prefix}max" in given:
            try:
                low, high = (
                    np.asarray(given.pop(prefix + end), np.float64) for end in ("min", "max")
                )
            except (KeyError, ValueError, TypeError) as error:
                raise SampleError(
                    f"{where}: {prefix}min and {prefix}max must both be given, as numbers"
                ) from error
            if f"{prefix}mean" in given or f"{prefix}std" in given:
                raise SampleError(
                    f"{where}: give {prefix}min and {prefix}max, or {prefix}mean and {prefix}std"
                )
            given |= {f"{prefix}mean": low, f"{prefix}std": high - low}
    known = set(Scaler.__dataclass_fields__) - NOT_GIVEN
    if set(given) - known:
        raise SampleError(
            f"{where}: unknown field '{min(set(given) - known, key=str)}': a scaler has {KEYS}"
        )
    try:
        return Scaler(**given)
    except (ValueError, TypeError) as error:
        raise SampleError(f"{where}: {error}") from error
