"""The one integer model: canonical rows, scales and provenance; what every later stage reads.

Canonical means gate-major rows (row = gate * H + unit), as docs/numerics.md writes them. The order in
which a target stores rows in memory is the packing, and belongs to blob.py and emit.py.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from stepwell.engine import Batch, Stream
    from stepwell.reference import Reference

FORMAT = 1  # STW_MODEL_FORMAT of stepwell.h; a test holds the two together
H_FRAC = 15  # hidden state h: int16 Q0.15
Z_FRAC = 11  # pre-activation z: int16 Q4.11
C_FRAC = 22  # cell state c: int32 Q9.22


@dataclass(frozen=True, eq=False)
class Rows:
    """How each row's accumulator becomes a number: ``RSH(acc * mult, shift)``. All arrays are [n_rows].

    ``bias`` int32 in accumulator units; ``mult`` int16 2^14..2^15-1; ``kx`` int8 -15..15, the power of two that brings the
    input sum to the hidden sum's scale; ``shift`` int8 1..46.
    """

    bias: np.ndarray
    mult: np.ndarray
    kx: np.ndarray
    shift: np.ndarray

    def __len__(self) -> int:
        return len(self.bias)


@dataclass(frozen=True, eq=False)
class RecurrentLayer:
    """``w_x`` int8 [G*H, D], ``w_h`` int8 [G*H, H], values -127..127, G ``gates``; ``rows`` [R*H], R ``records``, of each unit.

    ``x_scale``: real value of an input code.
    """

    name: str
    w_x: np.ndarray
    w_h: np.ndarray
    rows: Rows
    x_scale: float

    kind: ClassVar[str]
    gates: ClassVar[tuple[str, ...]]
    records: ClassVar[tuple[str, ...]]
    activation: ClassVar[str] = "none"
    y_scale: ClassVar[float] = 2.0**-H_FRAC
    has_cell: ClassVar[bool] = True

    @property
    def n_in(self) -> int:
        return self.w_x.shape[1]

    @property
    def n_out(self) -> int:
        return self.w_h.shape[1]

    @property
    def n_cells(self) -> int:
        """Values of c that the layer keeps from step to step, besides h [n_out]."""
        return self.n_out if self.has_cell else 0


class LstmLayer(RecurrentLayer):
    """State: h and the cell c."""

    kind = "lstm"
    gates = records = ("i", "f", "g", "o")


class GruLayer(RecurrentLayer):
    """State: h, and the same number in Q9.22 as S. The candidate n keeps the parts of input and hidden state apart."""

    kind = "gru"
    gates = ("r", "z", "n")
    records = ("r", "z", "nx", "nh")


class RnnLayer(RecurrentLayer):
    """State: h alone."""

    kind = "rnn"
    gates = records = ("h",)
    has_cell = False


@dataclass(frozen=True, eq=False)
class DenseLayer:
    """``weight`` int16 [n_out, n_in]; ``rows`` [n_out], kx = 0. ``y_scale``: real value of an output code."""

    name: str
    weight: np.ndarray
    rows: Rows
    activation: str
    x_scale: float
    y_scale: float

    kind = "dense"

    @property
    def n_in(self) -> int:
        return self.weight.shape[1]

    @property
    def n_out(self) -> int:
        return self.weight.shape[0]


@dataclass(frozen=True, eq=False)
class ActivationLayer:
    """Elementwise activation of an LSTM's output; ``rows`` [1] brings a code to the format the activation takes."""

    name: str
    n_in: int
    rows: Rows
    activation: str
    x_scale: float
    y_scale: float

    kind = "activation"

    @property
    def n_out(self) -> int:
        return self.n_in


IntLayer = RecurrentLayer | DenseLayer | ActivationLayer


@dataclass(frozen=True, eq=False)
class Model:
    """A quantised recurrent network. ``x_scale``: real value of an input code (int16); outputs are int32 in Q(``y_frac``).

    ``notes`` holds provenance and what the quantiser has to say: JSON types only, saved with the model, without effect on bits.
    """

    layers: tuple[IntLayer, ...]
    x_scale: float
    y_frac: int
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def n_in(self) -> int:
        return self.layers[0].n_in

    @property
    def n_out(self) -> int:
        return self.layers[-1].n_out

    @property
    def name(self) -> str:
        return self.notes.get("name", "model")

    @cached_property
    def blob(self) -> bytes:
        """The packed form (.stw): what ``save`` writes, what the host engine opens, what can be sent to a device."""
        from stepwell import blob

        return blob.pack(self)

    @property
    def id(self) -> int:
        """CRC-32 of all constants that reach the device; ties snapshots and boards to this model."""
        from stepwell import blob

        return blob.model_id(self.blob)

    def save(self, path: str | Path) -> None:
        """Write the .stw file, whole or not at all."""
        from stepwell.files import write_whole

        write_whole(path, self.blob)

    def stream(self) -> Stream:
        """One stream with state of its own, computed by the C kernel; any number may share this model."""
        from stepwell.engine import Stream

        return Stream(self)

    def batch(self, n_streams: int) -> Batch:
        """``n_streams`` streams in flat memory, stepped together."""
        from stepwell.engine import Batch

        return Batch(self, n_streams)

    def reference(self) -> Reference:
        """The NumPy oracle: same methods as a stream, same bits, slow."""
        from stepwell.reference import Reference

        return Reference(self)

    def info(self) -> dict[str, Any]:
        """Sizes, formats, scales and layers as plain JSON types."""
        from stepwell.info import describe

        return describe(self)

    def replace(self, **changes: Any) -> Model:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    # Real numbers <-> codes. The engine's C does the same arithmetic in double precision; a test compares them.

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """Real input -> int16 codes: ``floor(x / x_scale + 1/2)``, clamped; any shape [..., n_in]."""
        codes = np.floor(np.asarray(x, dtype=np.float64) * (1.0 / self.x_scale) + 0.5)
        return np.clip(codes, -32768, 32767).astype(np.int16)

    def dequantize(self, y_q: np.ndarray) -> np.ndarray:
        """int32 outputs -> real numbers, exactly: ``y_q * 2^-y_frac``; any shape [..., n_out]."""
        return np.asarray(y_q, dtype=np.float64) * 2.0**-self.y_frac
