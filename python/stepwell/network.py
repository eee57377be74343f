"""The quantised network: rows, scales and provenance, which every later stage reads.

Rows stand gate by gate (row = gate * H + unit), as docs/numerics.md writes them. A target's order
in memory is its packing (``Packed``).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from stepwell.columns import Wanted
from stepwell.layers.base import IntLayer, Packed, Timing, input_width
from stepwell.scaler import NO_SCALER, Scaler
from stepwell.windowing import CARRY, Mode

FORMAT = 2  # STW_MODEL_FORMAT of stepwell.h; a test holds the two together


@dataclass(frozen=True, eq=False)
class Network:
    """A quantised recurrent network. ``x_scale``: real value of an input code (int16), once the
    scaler has done its part; outputs are int32 in Q(``y_frac``).

    ``sources``: for each layer the values it reads, 0 the model's input, k the output of layer k -
    1; left out, the layers are a chain. ``timing``: the steps at which each layer runs. ``mode``:
    how windows are treated; ``scaler``: what happens to the user's numbers before they are codes.
    ``notes`` holds provenance and what the quantiser has to say: JSON types only, saved with the
    model, without effect on bits.
    """

    layers: tuple[IntLayer, ...]
    x_scale: float
    y_frac: int
    notes: dict[str, Any] = field(default_factory=dict)
    sources: tuple[tuple[int, ...], ...] = ()
    timing: tuple[Timing, ...] = ()
    mode: Mode = CARRY
    scaler: Scaler = NO_SCALER

    def __post_init__(self) -> None:
        if not self.sources:
            object.__setattr__(self, "sources", tuple((k,) for k in range(len(self.layers))))
        if not self.timing:
            object.__setattr__(self, "timing", (Timing(),) * len(self.layers))

    @property
    def n_in(self) -> int:
        return input_width(self.layers, self.sources)

    @property
    def n_out(self) -> int:
        return self.layers[-1].n_out

    @property
    def lags(self) -> tuple[int, ...]:
        """For each layer, how many steps after a window's end it runs last: what it and those
        before it look ahead.
        """
        lags = [0]
        every = [1, *(timing.every for timing in self.timing)]
        for layer, reads in zip(self.layers, self.sources, strict=True):
            lags.append(lags[reads[0]] + layer.ahead * every[reads[0]])
        return tuple(lags[1:])

    @property
    def name(self) -> str:
        return self.notes.get("name", "model")

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Names of the inputs, when the calibration data had them: ``notes["columns"]``."""
        names = self.notes.get("columns")
        return tuple(names) if names else None

    @cached_property
    def wanted(self) -> Wanted:
        """Which columns of a table with names feed the model."""
        return Wanted(self.n_in, names=self.columns)

    def packed(self, packing: str = "plain") -> tuple[Packed, ...]:
        """The layers as they stand in memory, made once for each packing."""
        if packing not in self._packed:
            self._packed[packing] = tuple(layer.packed(packing) for layer in self.layers)
        return self._packed[packing]

    @cached_property
    def _packed(self) -> dict[str, tuple[Packed, ...]]:
        return {}

    def replace(self, **changes: Any) -> Network:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    # Real numbers <-> codes. The engine's C does the same arithmetic in double precision; a test
    # compares them.

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """Real input -> int16 codes: ``floor(x / x_scale + 1/2)``, clamped; any shape [..., n_in].

        With a scaler x is in the user's units; missing samples (NaN) become fill codes here, only a
        stream knows what to hold. A DataFrame is matched by name.
        """
        return self.scaler.codes(self.wanted.of_rows(x), self.x_scale)

    def dequantize(self, y_q: np.ndarray) -> np.ndarray:
        """int32 outputs -> real numbers, exactly: ``y_q * 2^-y_frac``; any shape [..., n_out]."""
        return np.asarray(y_q, dtype=np.float64) * 2.0**-self.y_frac


LAST_OUTPUT = "last output"  # the name of its part


@dataclass(frozen=True, eq=False)
class Part:
    """A piece of a stream's state: a counter, inputs or outputs that are remembered, or what a
    layer keeps; ``index`` -1 is no layer.

    ``c`` int32 [n_cells] and ``h`` int16 [n_hidden] are its values in a snapshot.
    """

    index: int
    name: str
    n_cells: int
    n_hidden: int
    c: np.ndarray | None = None
    h: np.ndarray | None = None


def state_parts(model: Network) -> list[Part]:
    """The pieces of a stream's state in the order in which they stand there (docs/numerics.md, "One
    LSTM step").
    """
    mode = model.mode
    window = mode.window * model.n_in if mode.kind == "slide" else 0
    parts = [Part(-1, "mode", 0 if mode.kind == "carry" else 1, window)]
    parts.append(Part(-1, "last codes", 0, model.n_in if model.scaler.missing == "hold" else 0))
    has_clock = model.timing[-1] != Timing()
    for _ in range(mode.n_copies):
        parts.append(Part(-1, "clock", int(has_clock), 0))
        parts += [
            Part(k, layer.name, layer.n_cells, layer.n_hidden)
            for k, layer in enumerate(model.layers)
        ]
    parts.append(Part(-1, LAST_OUTPUT, model.n_out if mode.repeats(model.timing[-1]) else 0, 0))
    return parts
