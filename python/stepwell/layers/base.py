"""What all layers have in common: the float layer, the integer layer, and what passes between them
and the rest.

A layer kind is one file of this folder. Read from top to bottom it has

1. the float layer: what it computes, and what is wrong with it,
2. ``quantized``: the integer layer that stands for it,
3. the integer layer: what it computes (docs/numerics.md), and what the overflow proof needs to know,
4. how it stands in a blob: ``packed`` and ``unpacked``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from stepwell.integer import proof
from stepwell.integer.fixed import Rows, lookup, sat, sig, softmax, tanh
from stepwell.integer.formats import TABLE_ENTRIES
from stepwell.integer.functions import PLAIN, Function, as_function
from stepwell.integer.packing import ROW, rows_of
from stepwell.integer.precision import W8A16, Precision
from stepwell.layers.place import Place

Array = np.ndarray

SOFTMAX_MAX = 512  # STW_SOFTMAX_MAX
NORM_MAX = 1024  # STW_NORM_MAX: a sum of so many squares of codes stays in 64 bits
WIDTH_MAX = 65535
ACTIVATIONS = (*PLAIN, "table")  # STW_NONE .. STW_TABLE


# ---- when a layer runs ----


@dataclass(frozen=True)
class Timing:
    """A layer runs at the steps first, first + every, first + 2 every, ... after a reset (step 0)."""

    first: int = 0
    every: int = 1

    def runs(self, steps: int) -> int:
        """How often it runs in the first ``steps`` steps."""
        return 0 if steps <= self.first else (steps - 1 - self.first) // self.every + 1

    def at(self, step: int) -> bool:
        """Whether it runs at ``step``, from 0."""
        return step >= self.first and (step - self.first) % self.every == 0


def _no_observer(name: str, values: Array) -> None:
    pass


@dataclass
class Turn:
    """One layer's turn over a stretch of steps.

    ``state``: what the layer kept of the stretch before, None after a reset. The layer puts there
    what it keeps. ``observe(name, values)``: whoever wants to see values [..., steps, width].
    ``due(k)``: whether the layer runs at run k of its first source, counted from the stretch's
    first. ``ends``: a window's end is in this stretch. ``is_last``: the layer makes the output.
    """

    state: tuple[Any, ...] | None = None
    observe: Callable[[str, Array], None] = _no_observer
    due: Callable[[int], bool] = field(default=lambda k: True)
    ends: bool = False
    is_last: bool = False


# ---- shapes that a float layer and its integer layer share ----


class AsWide:
    """A layer that gives as many values as it reads."""

    n_in: int

    @property
    def n_out(self) -> int:
        return self.n_in


class Pairwise(AsWide):
    """A layer that takes two sources value by value."""

    @property
    def widths(self) -> tuple[int, int]:
        return (self.n_in, self.n_in)


# ---- the float layer ----


class Layer:
    """One layer of the float graph. ``widths``: how many values it reads from each of its sources.

    An ``activation`` is the name of a plain function ("none", "relu", "tanh", "sigmoid", "softmax")
    or a ``Function``.
    """

    name: str
    n_out: int

    is_recurrent: ClassVar[bool] = False
    takes_tokens: ClassVar[bool] = False  # it reads the model's input, which holds tokens
    comes_last: ClassVar[bool] = False  # nothing can read its output
    takes_lowest: ClassVar[bool] = False  # minus infinity among its inputs does no harm
    lowest: bool = False  # minus infinity may be among its outputs
    ahead: int = 0  # zeros that follow a window's end, in runs of its source
    needs_length: bool = False  # a sequence's length decides what it computes, and is not known
    n_summed: int = 0  # values that each row of its weights multiplies

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.n_in,)

    def arrays(self) -> Iterator[tuple[str, Array | None, tuple[int, ...]]]:
        """(field, array or None where the layer does without, the shape it must have)."""
        return iter(())

    def fault(self) -> str:
        """What else is wrong with the layer. Empty when nothing is."""
        return ""

    # ---- steps ----

    def timing(self, before: Timing) -> Timing:
        """When the layer runs, if its first source runs as ``before`` tells."""
        return before

    def over(self, n: int) -> Layer:
        """The layer over a sequence of ``n`` runs of its source."""
        return self

    def over_stream(self) -> Layer:
        """The layer over a stream that never ends."""
        return self

    def runs(self, n: int) -> int:
        """How many outputs ``n`` runs of its source give, those after a window's end included."""
        return n

    def length_fault(self, n: int) -> str:
        """Why sequences of ``n`` runs of its source are too short. Empty when they are not."""
        return ""

    # ---- values ----

    def run(self, turn: Turn, *x: Array) -> Array:
        """A stretch of steps: float [..., steps, width] of each source -> [..., runs, n_out]."""
        raise NotImplementedError

    def activated(self, turn: Turn, v: Array) -> Array:
        """``v`` behind the layer's activation."""
        turn.observe("v", v)
        return as_function(self.activation)(v)

    # ---- integers ----

    def quantized(self, place: Place) -> IntLayer:
        """The integer layer. QuantizeError, naming the layer, where it has no place in the formats."""
        raise NotImplementedError

    def code_limit(self, precision: Precision, limits: list[int]) -> int:
        """The largest output code; ``limits``: those of its sources."""
        return W8A16.h_limit


def input_width(
    layers: Sequence[Layer] | Sequence[IntLayer], sources: Sequence[tuple[int, ...]]
) -> int:
    """Width of the model's input: what its first reader takes. ``sources``: of each layer."""
    readers = zip(layers, sources, strict=True)
    return next(layer.widths[reads.index(0)] for layer, reads in readers if 0 in reads)


def function_fault(activation: str | Function, softmax: bool = True) -> str:
    """What is wrong with an activation. Empty when nothing is."""
    known = PLAIN if softmax else PLAIN[:-1]
    if isinstance(activation, str) and activation not in known:
        return f"activation '{activation}' is not one of {', '.join(known)}"
    if not isinstance(activation, Function):
        return ""
    if activation.name in PLAIN:
        return f"activation {activation.name} is plain: give its name"
    is_finite = np.isfinite(activation(np.linspace(-16.0, 16.0, 65))).all()
    return "" if is_finite else f"activation {activation} is not finite everywhere"


# ---- the integer layer ----


@dataclass(frozen=True, eq=False)
class Packed:
    """A layer as it stands in memory: arrays in the kernel's order, None where it has none.

    ``w`` input weights, ``r`` recurrent weights, ``rows`` records, ``extra`` int16: a table,
    an epsilon, a cell's variants. ``p``: stw_layer.p. ``packing``: of the rows.
    """

    w: Array | None = None
    r: Array | None = None
    rows: Array | None = None
    extra: Array | None = None
    p: tuple[int, int, int] = (0, 0, 0)
    packing: str = "plain"

    @property
    def arrays(self) -> tuple[Array | None, ...]:
        """In the order in which a descriptor names them."""
        return self.w, self.r, self.rows, self.extra


class Fields:
    """One layer's descriptor and arrays in a blob, as ``unpacked`` needs them.

    ``w``, ``r``, ``rows``, ``extra``: offsets of the arrays, 0 for none.
    """

    def __init__(
        self,
        blob: bytes,
        widths: tuple[int, int],
        activation: str,
        p: tuple[int, int, int],
        offsets: tuple[int, int, int, int],
        scales: tuple[float, float],
        name: str,
    ):
        self._blob = blob
        self.n_in, self.n_out = widths
        self.activation, self.p, self.name = activation, p, name
        self.x_scale, self.y_scale = scales
        self._w, self._r, self._rows, self._extra = offsets

    def _array(self, dtype: Any, offset: int, *shape: int) -> Array:
        return np.frombuffer(self._blob, dtype, int(np.prod(shape)), offset).reshape(shape)

    def weights(self, *shape: int) -> Array:
        """int16."""
        return self._array("<i2", self._w, *shape).astype(np.int16)

    def bytes_of(self, which: str, *shape: int) -> Array:
        """int8, of "w" or "r"."""
        return self._array(np.int8, self._w if which == "w" else self._r, *shape)

    def records(self, n: int) -> Array:
        return self._array(ROW, self._rows, n)

    def rows(self, n: int) -> Rows:
        return rows_of(self.records(n))

    def extra(self, start: int, n: int) -> Array:
        """int16 [n]."""
        return self._array("<i2", self._extra + 2 * start, n).astype(np.int16)

    @property
    def has_extra(self) -> bool:
        return self._extra != 0

    @property
    def table(self) -> Array | None:
        return self.extra(0, TABLE_ENTRIES) if self.activation == "table" else None


class IntLayer:
    """One layer of the integer model.

    ``x_scale``: real value of a code of its first source. ``y_scale``: of an output code.
    ``kind`` and ``number``: STW_LSTM .. of stepwell.h. ``knob``: of stw_config.h, STW_WITH_...
    """

    kind: ClassVar[str]
    number: ClassVar[int]
    knob: ClassVar[str] = "MIX"
    extra_what: ClassVar[str] = "table of the activation"
    is_recurrent: ClassVar[bool] = False
    writes_output: ClassVar[bool] = False  # as the last layer it writes int32 outputs itself
    in_state: bool = False  # its output is read where its state stands, but in slide mode
    spare: int = 0  # int16 values of scratch beside its output
    n_cells: int = 0  # int32 values (cells and counters) that it keeps from step to step
    n_hidden: int = 0  # int16 values that it keeps
    macs: int = 0  # multiply-accumulates of one run
    ahead: int = 0

    name: str
    x_scale: float
    y_scale: float
    n_in: int
    n_out: int
    activation: str

    @property
    def widths(self) -> tuple[int, ...]:
        """How many values it reads from each of its sources."""
        return (self.n_in,)

    def described(self) -> dict[str, Any]:
        """Facts beyond those that every layer has, as JSON types."""
        return {}

    # ---- the specification ----

    def run(self, turn: Turn, *x: Array) -> Array:
        """A stretch of steps: codes [..., steps, width] of each source -> [..., runs, n_out]."""
        raise NotImplementedError

    def activated(self, turn: Turn, v: Array) -> Array:
        """``v`` behind the activation: codes, or outputs where the layer is the last one."""
        turn.observe("v", v)
        y = self._function(v)
        return y if turn.is_last else sat(y, 16)

    def _function(self, v: Array) -> Array:
        match self.activation:
            case "relu":
                return np.maximum(v, 0)
            case "tanh":
                return tanh(sat(v, 16))
            case "sigmoid":
                return sig(sat(v, 16))
            case "table":
                return lookup(self.table, sat(v, 16))
            case "softmax":
                return softmax(v)
        return v

    def restored(self, c: Array, h: Array) -> tuple[Array, ...] | None:
        """``Turn.state`` from what a snapshot keeps: int64 [n_cells] and [n_hidden]."""
        return None

    # ---- the overflow proof ----

    def weight_sums(self) -> tuple[Array, Array] | None:
        """Sums of |weight| of each row, over the inputs and over the hidden state: int64 [n_rows].

        None for a layer without rows.
        """
        return None

    def margin_bits(self) -> Array:
        """log2 of how far each row's bound stays below 2^31. Empty for a layer without sums."""
        sums = self.weight_sums()
        return np.empty(0) if sums is None else proof.margin_bits(*sums, self.rows)

    # ---- memory ----

    def packing(self, wanted: str) -> str:
        """``wanted`` where the layer can have it, else "plain"."""
        return "plain"

    def packed(self, packing: str = "plain") -> Packed:
        """The layer in memory, its rows in ``packing`` where it can have that."""
        raise NotImplementedError

    def packed_table(self) -> Array | None:
        """``Packed.extra`` of a layer whose activation may be a table."""
        return self.table.astype("<i2") if self.activation == "table" else None

    @classmethod
    def unpacked(cls, f: Fields) -> IntLayer:
        """The inverse of ``packed``."""
        raise NotImplementedError


def without_hidden(sum_x: Array) -> tuple[Array, Array]:
    """``weight_sums`` of rows that no hidden state enters."""
    return sum_x, np.zeros_like(sum_x)
