"""Attention: a weighted mean of the last values, with weights that depend on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from stepwell.errors import QuantizeError
from stepwell.integer import fixed
from stepwell.integer.fixed import Rows, rsh, sat, tanh
from stepwell.integer.formats import H_SCALE, LOG2_E, SOFTMAX_FRAC
from stepwell.integer.functions import softmax
from stepwell.integer.packing import records_of
from stepwell.integer.rows import multipliers, scaling_row
from stepwell.layers.base import (
    NORM_MAX,
    SOFTMAX_MAX,
    Array,
    Fields,
    IntLayer,
    Layer,
    Packed,
    Turn,
    without_hidden,
)
from stepwell.layers.place import Place

SCORE_SHIFT_MAX = 62
ATTENTIONS = ("score", "dot", "additive")


class _Sources:
    """Scores or queries and keys, and the values that they weigh."""

    form: str
    key_width: int
    n_out: int

    @property
    def widths(self) -> tuple[int, ...]:
        if self.form == "score":
            return (1, self.n_out)
        return (self.key_width, self.key_width, self.n_out)


@dataclass(frozen=True, eq=False)
class Attention(_Sources, Layer):
    """A weighted mean of the last ``steps`` values: sum_i softmax_i(score_i) value_i, i over the
    steps seen since the reset.

    ``form`` "score": sources (score [1], value), the score of a step is given; "dot" (Luong et al.
    2015): sources (query, key, value), score_i = scale * query . key_i; "additive" (Bahdanau et al.
    2015): score_i = scale * weight . tanh(query + key_i).
    """

    name: str
    form: str
    steps: int
    key_width: int
    n_out: int
    scale: float = 1.0
    weight: np.ndarray | None = None

    @property
    def n_in(self) -> int:
        return self.widths[0]

    def arrays(self) -> Iterator[tuple[str, np.ndarray | None, tuple[int, ...]]]:
        yield "weight", self.weight, (self.key_width,)

    def fault(self) -> str:
        if self.form not in ATTENTIONS or (self.weight is None) == (self.form == "additive"):
            return f"form '{self.form}' is not one of {', '.join(ATTENTIONS)}, or its weight is missing"
        if not 1 <= self.steps <= SOFTMAX_MAX:
            return f"attends to {self.steps} steps, 1 to {SOFTMAX_MAX} are supported"
        if self.key_width > NORM_MAX:
            return f"keys of {self.key_width} values, {NORM_MAX} at most"
        return "" if np.isfinite(self.scale) else f"scale is {self.scale}"

    @property
    def adds_query_and_key(self) -> bool:
        """Whether both must have the format of pre-activations."""
        return self.form == "additive"

    def run(self, turn: Turn, *x: Array) -> Array:
        return _over_steps(self, turn, x, softmax, lambda p, v: (p[..., None] * v).sum(axis=-2))

    def scores(self, query: Array, keys: Array) -> Array:
        """[..., D] and [..., N, D] -> [..., N]."""
        if self.form == "score":
            return self.scale * keys[..., 0]
        if self.form == "dot":
            return self.scale * (query[..., None, :] * keys).sum(axis=-1)
        return self.scale * np.tanh(query[..., None, :] + keys) @ self.weight

    def quantized(self, place: Place) -> AttentionLayer:
        """Scores are log2-scaled logits in Q15.16, like those of a softmax layer."""
        unit = self.scale * LOG2_E * 2.0**SOFTMAX_FRAC
        weight = None
        if self.form == "additive":
            top = float(np.abs(self.weight).max() or 1.0) / 32767
            weight = np.floor(self.weight / top + 0.5).astype(np.int16)
            unit *= top * H_SCALE
        else:
            unit *= place.scales[0] * (place.scales[1] if self.form == "dot" else 1.0)
        if not 2.0**-SCORE_SHIFT_MAX < unit < 2.0**14:
            raise QuantizeError(
                f"layer '{self.name}': a score's scale of {self.scale:.3g} has no place in the "
                "format: scale the scores"
            )
        row = scaling_row(1.0)
        row.mult[:], row.shift[:] = multipliers(np.array([unit]), SCORE_SHIFT_MAX)
        sizes = self.steps, self.widths[0], self.n_out
        scales = place.x_scale, place.scales[-1]
        return AttentionLayer(self.name, self.form, *sizes, weight, row, *scales)


def _over_steps(layer, turn: Turn, x: tuple[Array, ...], softmax, mean) -> Array:
    """One context a step, [..., steps, n_out]. Kept for the next stretch: the last keys and values."""
    query, key, value = x if layer.form != "score" else (x[0], *x)
    keys, values = turn.state or (key[..., :0, :], value[..., :0, :])
    first = keys.shape[-2]
    keys, values = np.concatenate([keys, key], axis=-2), np.concatenate([values, value], axis=-2)
    contexts = []
    for t in range(query.shape[-2]):
        seen = slice(max(0, first + t + 1 - layer.steps), first + t + 1)
        weights = softmax(layer.scores(query[..., t, :], keys[..., seen, :]))
        contexts.append(mean(weights, values[..., seen, :]))
    keep = slice(max(0, keys.shape[-2] - layer.steps), None)
    turn.state = (keys[..., keep, :], values[..., keep, :])
    empty = np.zeros((*value.shape[:-2], 0, layer.n_out), value.dtype)
    return np.stack(contexts, axis=-2) if contexts else empty


@dataclass(frozen=True, eq=False)
class AttentionLayer(_Sources, IntLayer):
    """``rows`` [1] brings a score to Q15.16, log2-scaled.

    ``weight`` int16 [key_width] for form "additive".
    """

    name: str
    form: str
    steps: int
    key_width: int
    n_out: int
    weight: Array | None
    rows: Rows
    x_scale: float
    y_scale: float

    kind = "attention"
    number = 16
    knob = "ATTENTION"
    activation: ClassVar[str] = "none"
    n_cells = 1

    @property
    def n_in(self) -> int:
        return self.key_width

    @property
    def n_hidden(self) -> int:
        return self.steps * (self.key_width + self.n_out)

    @property
    def spare(self) -> int:
        return 2 * self.steps

    @property
    def macs(self) -> int:
        return self.steps * ((self.key_width if self.form != "score" else 0) + self.n_out)

    def described(self) -> dict[str, Any]:
        return {"looks_back": self.steps - 1}

    def run(self, turn: Turn, *x: Array) -> Array:
        """docs/numerics.md, "Attention"."""
        return _over_steps(self, turn, x, fixed.softmax, _context)

    def scores(self, query: Array, keys: Array) -> Array:
        """[..., D] and [..., N, D] -> logits in Q15.16, log2-scaled, [..., N]."""
        if self.form == "score":
            acc = keys[..., 0]
        elif self.form == "dot":
            acc = (query[..., None, :] * keys).sum(axis=-1)
        else:
            acc = tanh(sat(query[..., None, :] + keys, 16)) @ self.weight.astype(np.int64)
        limit = 2**31 - 2**16
        return np.clip(rsh(acc * int(self.rows.mult[0]), int(self.rows.shift[0])), -limit, limit)

    def restored(self, c: Array, h: Array) -> tuple[Array, Array]:
        """Keys and values, oldest first, from the ring that a snapshot keeps."""
        n, counter = self.steps, int(c[0])
        keys, values = np.split(h, [n * self.key_width])
        order = np.arange(min(counter, n)) + (counter % n if counter >= n else 0)
        return keys.reshape(n, -1)[order % n], values.reshape(n, -1)[order % n]

    def weight_sums(self) -> tuple[Array, Array]:
        return without_hidden(np.ones(1, np.int64))

    def margin_bits(self) -> Array:
        return np.empty(0)  # a score has 64 bits

    def packed(self, packing: str = "plain") -> Packed:
        weight = None if self.weight is None else self.weight.astype("<i2")
        p = (self.steps, ATTENTIONS.index(self.form), self.key_width)
        return Packed(w=weight, rows=records_of(self.rows), p=p)

    @classmethod
    def unpacked(cls, f: Fields) -> AttentionLayer:
        steps, form, width = f.p
        weight = f.weights(width) if ATTENTIONS[form] == "additive" else None
        sizes, scales = (steps, width, f.n_out), (f.x_scale, f.y_scale)
        return cls(f.name, ATTENTIONS[form], *sizes, weight, f.rows(1), *scales)


def _context(p: Array, values: Array) -> Array:
    return sat(rsh((p[..., None] * values).sum(axis=-2), 15), 16)
