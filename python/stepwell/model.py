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

from stepwell.graph import Timing
from stepwell.mode import CARRY, Mode
from stepwell.scaler import NO_SCALER, Scaler

if TYPE_CHECKING:
    from stepwell.columns import Wanted
    from stepwell.engine import Batch, Stream
    from stepwell.reference import Reference

FORMAT = 2  # STW_MODEL_FORMAT of stepwell.h; a test holds the two together
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
class Cell:
    """What a recurrent layer has beyond the plain cell.

    ``gate``, ``candidate``, ``output``: tables int16 [513] of the activations, None for sigmoid, tanh, tanh. ``peephole``
    int16 [3, H] in Q(peephole_frac); ``h0`` int16 [n_out], ``c0`` int32 [H]; ``projection`` int16 [n_out, H]. ``clip``: limit
    of pre-activations, Q4.11. ``h_bits``: hidden states are within +-(2^(h_bits - 1) - 1). ``g_frac``, ``a_frac``,
    ``h_frac``: formats of the candidate, the output's activation and h.
    """

    gate: np.ndarray | None = None
    candidate: np.ndarray | None = None
    output: np.ndarray | None = None
    peephole: np.ndarray | None = None
    h0: np.ndarray | None = None
    c0: np.ndarray | None = None
    projection: np.ndarray | None = None
    clip: int = 32767
    coupled: bool = False
    reverse: bool = False
    final: bool = False
    h_bits: int = 16
    g_frac: int = H_FRAC
    a_frac: int = H_FRAC
    h_frac: int = H_FRAC
    peephole_frac: int = 0


PLAIN = Cell()


class IntLayer:
    """One layer of the integer model. ``x_scale``: real value of a code of its first source; ``y_scale``: of an output code."""

    name: str
    kind: ClassVar[str]
    x_scale: float
    y_scale: float
    n_in: int
    n_out: int
    activation: str

    @property
    def widths(self) -> tuple[int, ...]:
        """How many values it reads from each of its sources."""
        return (self.n_in,)

    @property
    def n_cells(self) -> int:
        """Values of c (cells and counters) that the layer keeps from step to step."""
        return 0

    @property
    def n_hidden(self) -> int:
        """Values of h that it keeps."""
        return 0


@dataclass(frozen=True, eq=False)
class RecurrentLayer(IntLayer):
    """``w_x`` int8 [G*H, D], ``w_h`` int8 [G*H, n_out], values -127..127, or -7..7 with 4 ``weight_bits``, G ``gates``;
    ``rows`` [R*H], R ``records`` of each unit, then those of the projection.
    """

    name: str
    w_x: np.ndarray
    w_h: np.ndarray
    rows: Rows
    x_scale: float
    cell: Cell = PLAIN
    weight_bits: int = 8

    gates: ClassVar[tuple[str, ...]]
    records: ClassVar[tuple[str, ...]]
    has_cell: ClassVar[bool] = True
    activation: ClassVar[str] = "none"

    @property
    def n_in(self) -> int:
        return self.w_x.shape[1]

    @property
    def n_out(self) -> int:
        return self.w_h.shape[1]

    @property
    def n_units(self) -> int:
        return self.w_h.shape[0] // len(self.gates)

    @property
    def y_scale(self) -> float:
        return 2.0**-self.cell.h_frac

    @property
    def n_cells(self) -> int:
        return self.n_units if self.has_cell else 0

    @property
    def n_hidden(self) -> int:
        return self.n_out


class LstmLayer(RecurrentLayer):
    """State: h and the cell c."""

    kind = "lstm"
    gates = records = ("i", "f", "g", "o")


class GruLayer(RecurrentLayer):
    """State: h, and the same number in Q9.22 as S. The candidate n keeps the parts of input and hidden state apart."""

    kind = "gru"
    gates = ("r", "z", "n")
    records = ("r", "z", "nx", "nh")


class GruBeforeLayer(RecurrentLayer):
    """The GRU whose reset gate is applied before the recurrent product."""

    kind = "gru_before"
    gates = records = ("r", "z", "n")


class RnnLayer(RecurrentLayer):
    """State: h alone."""

    kind = "rnn"
    gates = records = ("h",)
    has_cell = False


@dataclass(frozen=True, eq=False)
class DenseLayer(IntLayer):
    """``weight`` int16 [n_out, n_in / groups]; ``rows`` [n_out], kx = 0. ``table`` int16 [513] where the activation is "table"."""

    name: str
    weight: np.ndarray
    rows: Rows
    activation: str
    x_scale: float
    y_scale: float
    groups: int = 1
    table: np.ndarray | None = None

    kind = "dense"

    @property
    def n_in(self) -> int:
        return self.weight.shape[1] * self.groups

    @property
    def n_out(self) -> int:
        return self.weight.shape[0]


@dataclass(frozen=True, eq=False)
class ActivationLayer(IntLayer):
    """Elementwise activation of another layer's output; ``rows`` [1] brings a code to the format the activation takes."""

    name: str
    n_in: int
    rows: Rows
    activation: str
    x_scale: float
    y_scale: float
    table: np.ndarray | None = None

    kind = "activation"

    @property
    def n_out(self) -> int:
        return self.n_in


@dataclass(frozen=True, eq=False)
class AddLayer(IntLayer):
    """Weighted sum of two sources: ``weights`` int16 [2], ``rows`` [1]."""

    name: str
    n_in: int
    weights: np.ndarray
    rows: Rows
    activation: str
    x_scale: float
    y_scale: float
    table: np.ndarray | None = None

    kind = "add"

    @property
    def n_out(self) -> int:
        return self.n_in

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.n_in, self.n_in)


@dataclass(frozen=True, eq=False)
class MulLayer(IntLayer):
    """Product of two sources; ``rows`` [1]."""

    name: str
    n_in: int
    rows: Rows
    activation: str
    x_scale: float
    y_scale: float
    table: np.ndarray | None = None

    kind = "mul"

    @property
    def n_out(self) -> int:
        return self.n_in

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.n_in, self.n_in)


@dataclass(frozen=True, eq=False)
class ConcatLayer(IntLayer):
    """Two sources one after the other, each brought to y_scale by one of ``rows`` [2]."""

    name: str
    parts: tuple[int, int]
    rows: Rows
    x_scale: float
    y_scale: float

    kind = "concat"
    activation: ClassVar[str] = "none"

    @property
    def n_in(self) -> int:
        return self.parts[0]

    @property
    def n_out(self) -> int:
        return sum(self.parts)

    @property
    def widths(self) -> tuple[int, ...]:
        return self.parts


@dataclass(frozen=True)
class SliceLayer(IntLayer):
    """Values ``start`` .. ``start + n_out`` of the source."""

    name: str
    n_in: int
    start: int
    n_out: int
    x_scale: float
    y_scale: float

    kind = "slice"
    activation: ClassVar[str] = "none"


@dataclass(frozen=True)
class MaxPoolLayer(IntLayer):
    """The largest of each run of ``taps`` values."""

    name: str
    n_in: int
    taps: int
    x_scale: float
    y_scale: float

    kind = "max_pool"
    activation: ClassVar[str] = "none"

    @property
    def n_out(self) -> int:
        return self.n_in // self.taps


@dataclass(frozen=True, eq=False)
class LayerNormLayer(IntLayer):
    """``gamma`` int16 [n], ``rows`` [n]; ``epsilon`` 1..2^61-1 and ``exponent`` as in docs/numerics.md, "LayerNorm"."""

    name: str
    gamma: np.ndarray
    rows: Rows
    epsilon: int
    exponent: int
    x_scale: float
    y_scale: float

    kind = "layer_norm"
    activation: ClassVar[str] = "none"

    @property
    def n_in(self) -> int:
        return len(self.gamma)

    @property
    def n_out(self) -> int:
        return len(self.gamma)


@dataclass(frozen=True, eq=False)
class EmbeddingLayer(IntLayer):
    """``table`` int16 [vocabulary, width]; ``n_in`` tokens a step."""

    name: str
    table: np.ndarray
    n_in: int
    x_scale: float
    y_scale: float

    kind = "embedding"
    activation: ClassVar[str] = "none"

    @property
    def n_out(self) -> int:
        return self.n_in * self.table.shape[1]


@dataclass(frozen=True)
class ArgMaxLayer(IntLayer):
    """The index of the largest value."""

    name: str
    n_in: int
    x_scale: float
    y_scale: float = 1.0
    n_out: ClassVar[int] = 1

    kind = "arg_max"
    activation: ClassVar[str] = "none"


@dataclass(frozen=True)
class WindowLayer(IntLayer):
    """The last ``taps`` values of each channel, ``dilation`` steps apart.

    ``ahead``: how many zeros follow a window's end, 0 in mode carry; ``lowest``: the lowest code stands in place of zeros.
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
    activation: ClassVar[str] = "none"

    @property
    def n_out(self) -> int:
        return self.n_in * self.taps

    @property
    def span(self) -> int:
        return (self.taps - 1) * self.dilation + 1

    @property
    def edge(self) -> int:
        """The code before and after a sequence."""
        return -32768 if self.lowest else 0

    @property
    def n_hidden(self) -> int:
        return self.n_in * self.span


@dataclass(frozen=True, eq=False)
class AttentionLayer(IntLayer):
    """``rows`` [1] brings a score to Q15.16, log2-scaled; ``weight`` int16 [key_width] for form "additive"."""

    name: str
    form: str
    steps: int
    key_width: int
    n_out: int
    weight: np.ndarray | None
    rows: Rows
    x_scale: float
    y_scale: float

    kind = "attention"
    activation: ClassVar[str] = "none"

    @property
    def n_in(self) -> int:
        return self.key_width

    @property
    def widths(self) -> tuple[int, ...]:
        return (1, self.n_out) if self.form == "score" else (self.key_width, self.key_width, self.n_out)

    @property
    def n_cells(self) -> int:
        return 1

    @property
    def n_hidden(self) -> int:
        return self.steps * (self.key_width + self.n_out)


@dataclass(frozen=True, eq=False)
class Model:
    """A quantised recurrent network. ``x_scale``: real value of an input code (int16), once the scaler has done its part;
    outputs are int32 in Q(``y_frac``).

    ``sources``: for each layer the values it reads, 0 the model's input, k the output of layer k - 1; left out, the layers
    are a chain. ``timing``: the steps at which each layer runs. ``mode``: how windows are treated; ``scaler``: what happens
    to the user's numbers before they are codes. ``notes`` holds provenance and what the quantiser has to say: JSON types
    only, saved with the model, without effect on bits.
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

    def __repr__(self) -> str:
        kinds = ", ".join(f"{layer.kind} {layer.n_in}->{layer.n_out}" for layer in self.layers)
        return f"<stepwell.Model {self.name} {self.id:08x}: {kinds}>"

    @property
    def n_in(self) -> int:
        return next(
            layer.widths[reads.index(0)] for layer, reads in zip(self.layers, self.sources, strict=True) if 0 in reads
        )

    @property
    def n_out(self) -> int:
        return self.layers[-1].n_out

    @property
    def lags(self) -> tuple[int, ...]:
        """For each layer, how many steps after a window's end it runs last: what it and those before it look ahead."""
        lags = [0]
        every = [1, *(timing.every for timing in self.timing)]
        for layer, reads in zip(self.layers, self.sources, strict=True):
            lags.append(lags[reads[0]] + getattr(layer, "ahead", 0) * every[reads[0]])
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
        from stepwell.columns import Wanted

        return Wanted(self.n_in, names=self.columns)

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

    def batch(self, n_streams: int, threads: int = 1) -> Batch:
        """``n_streams`` streams in flat memory, stepped together, by so many threads."""
        from stepwell.engine import Batch

        return Batch(self, n_streams, threads)

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
        """Real input -> int16 codes: ``floor(x / x_scale + 1/2)``, clamped; any shape [..., n_in].

        With a scaler x is in the user's units; missing samples (NaN) become fill codes here, only a stream knows what to hold.
        A DataFrame is matched by name.
        """
        return self.scaler.codes(self.wanted.of_rows(x), self.x_scale)

    def dequantize(self, y_q: np.ndarray) -> np.ndarray:
        """int32 outputs -> real numbers, exactly: ``y_q * 2^-y_frac``; any shape [..., n_out]."""
        return np.asarray(y_q, dtype=np.float64) * 2.0**-self.y_frac


LAST_OUTPUT = "last output"  # the name of its part


@dataclass(frozen=True, eq=False)
class Part:
    """A piece of a stream's state: a counter, inputs or outputs that are remembered, or what a layer keeps; ``index`` -1 is
    no layer.

    ``c`` int32 [n_cells] and ``h`` int16 [n_hidden] are its values in a snapshot.
    """

    index: int
    name: str
    n_cells: int
    n_hidden: int
    c: np.ndarray | None = None
    h: np.ndarray | None = None


def state_parts(model: Model) -> list[Part]:
    """The pieces of a stream's state in the order in which they stand there (docs/numerics.md, "One LSTM step")."""
    mode = model.mode
    window = mode.window * model.n_in if mode.kind == "slide" else 0
    parts = [Part(-1, "mode", 0 if mode.kind == "carry" else 1, window)]
    parts.append(Part(-1, "last codes", 0, model.n_in if model.scaler.missing == "hold" else 0))
    has_clock = model.timing[-1] != Timing()
    for _ in range(mode.n_copies):
        parts.append(Part(-1, "clock", int(has_clock), 0))
        parts += [Part(k, layer.name, layer.n_cells, layer.n_hidden) for k, layer in enumerate(model.layers)]
    parts.append(Part(-1, LAST_OUTPUT, model.n_out if mode.repeats(model.timing[-1]) else 0, 0))
    return parts
