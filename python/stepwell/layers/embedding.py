"""Embedding: a row of a table for each token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stepwell.layers.base import Array, Fields, IntLayer, Layer, Packed, Turn
from stepwell.layers.place import Place

TOKENS_MAX = 32768


@dataclass(frozen=True, eq=False)
class Embedding(Layer):
    """Row ``x`` of ``table`` [vocabulary, width] for each of ``n_in`` tokens of the model's input."""

    name: str
    table: Array
    n_in: int = 1

    takes_tokens = True

    @property
    def n_out(self) -> int:
        return self.n_in * self.table.shape[1]

    def arrays(self) -> Iterator[tuple[str, Array | None, tuple[int, ...]]]:
        yield "table", self.table, self.table.shape[:2]

    def fault(self) -> str:
        many = len(self.table) > TOKENS_MAX
        return f"{len(self.table)} tokens, {TOKENS_MAX} at most" if many else ""

    def run(self, turn: Turn, x: Array) -> Array:
        tokens = np.clip(x, 0, len(self.table) - 1).astype(int)
        return self.table[tokens].reshape(*x.shape[:-1], self.n_out)

    def quantized(self, place: Place) -> EmbeddingLayer:
        y_scale = float(np.abs(self.table).max() or 1.0) / 32767
        table = np.floor(self.table / y_scale + 0.5).astype(np.int16)
        return EmbeddingLayer(self.name, table, self.n_in, place.x_scale, y_scale)


@dataclass(frozen=True, eq=False)
class EmbeddingLayer(IntLayer):
    """``table`` int16 [vocabulary, width]; ``n_in`` tokens a step."""

    name: str
    table: Array
    n_in: int
    x_scale: float
    y_scale: float

    kind = "embedding"
    number = 14
    activation: ClassVar[str] = "none"

    @property
    def n_out(self) -> int:
        return self.n_in * self.table.shape[1]

    def run(self, turn: Turn, x: Array) -> Array:
        rows = self.table.astype(np.int64)[np.clip(x, 0, len(self.table) - 1)]
        return rows.reshape(*x.shape[:-1], self.n_out)

    def packed(self, packing: str = "plain") -> Packed:
        return Packed(w=self.table.astype("<i2"), p=(*self.table.shape, 0))

    @classmethod
    def unpacked(cls, f: Fields) -> EmbeddingLayer:
        return cls(f.name, f.weights(f.p[0], f.p[1]), f.n_in, f.x_scale, f.y_scale)
