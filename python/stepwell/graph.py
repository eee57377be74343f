"""The float graph: what a trained model is, once the exporter's plumbing is taken away.

A graph is a list of layers, each applied at every timestep; a layer reads the model's input or the outputs of layers before it. It
is what the importers yield, what calibration runs, and the float side of every accuracy figure. Arrays are float64; gate rows are
stacked in the order i, f, g, o (input, forget, cell candidate, output), which is torch's order and that of the integer
specification; the ONNX operator's own order is i, o, f, c.

An activation is the name of a plain function ("none", "relu", "tanh", "sigmoid", "softmax") or a ``Function``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from stepwell.errors import ImportRefused
from stepwell.functions import PLAIN, Function, as_function
from stepwell.mode import Mode
from stepwell.text import printable

SOFTMAX_MAX = 512  # STW_SOFTMAX_MAX
NORM_MAX = 1024  # STW_NORM_MAX: the sum of squares of a LayerNorm stays in 64 bits
WIDTH_MAX = 65535
TIMING_MAX = 65535
AHEAD_MAX = 32767
SAME = ("", "upper", "lower")


class Layer:
    """One layer. ``widths``: how many values it reads from each of its sources."""

    name: str
    n_out: int

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.n_in,)

    def arrays(self) -> Iterator[tuple[str, np.ndarray | None, tuple[int, ...]]]:
        """(field, array or None where the layer does without, the shape it must have)."""
        return iter(())

    def fault(self) -> str:
        """What else is wrong with the layer; empty when nothing is."""
        return ""


# ---- recurrent layers ----


class Recurrent(Layer):
    """What the recurrent layers share: ``w_x`` [G*H, D] and ``w_h`` [G*H, n_out], rows stacked gate by gate.

    ``functions``: the activations f of the gates and g of the candidate (and h of an LSTM's output), as in the ONNX operators.
    ``clip``: what enters an activation is limited to +-clip. ``h0``: initial hidden state [n_out], None for zeros. ``reverse``:
    the layer reads a window backwards, which only a window mode can do; ``final``: every step gives the state at the window's end.
    """

    gates: ClassVar[tuple[str, ...]]
    w_x: np.ndarray
    w_h: np.ndarray
    bias: np.ndarray
    functions: tuple[str | Function, ...]
    clip: float
    h0: np.ndarray | None
    reverse: bool
    final: bool

    @property
    def n_in(self) -> int:
        return self.w_x.shape[1]

    @property
    def n_out(self) -> int:
        return self.w_h.shape[1]

    @property
    def n_units(self) -> int:
        """Units H; another number than n_out only where a projection follows them."""
        return self.w_h.shape[0] // len(self.gates)

    def arrays(self) -> Iterator[tuple[str, np.ndarray | None, tuple[int, ...]]]:
        rows = len(self.gates) * self.n_units
        yield "w_x", self.w_x, (rows, self.w_x.shape[-1])
        yield "w_h", self.w_h, (rows, self.n_out)
        yield "bias", self.bias, (rows,)
        yield "h0", self.h0, (self.n_out,)

    def fault(self) -> str:
        if not self.clip > 0:
            return f"clip must be positive, it is {self.clip}"
        return next((reason for f in self.functions if (reason := _function_fault(f, softmax=False))), "")


@dataclass(frozen=True, eq=False)
class Lstm(Recurrent):
    """One LSTM layer (Hochreiter & Schmidhuber 1997, with forget gate: Gers et al. 2000).

    Shapes: ``w_x`` [4H, D], ``w_h`` [4H, n_out], ``bias`` [4H]: the sum of the input and the recurrent bias. ``peephole`` [3H]:
    what the cell adds to the gates i, f, o (Gers & Schmidhuber 2000). ``coupled``: f = 1 - i, row f is not used. ``projection``
    [n_out, H]: h = projection @ (o * tanh(c)) (Sak et al. 2014). ``c0``: initial cell state [H].
    """

    name: str
    w_x: np.ndarray
    w_h: np.ndarray
    bias: np.ndarray
    functions: tuple[str | Function, ...] = ("sigmoid", "tanh", "tanh")
    clip: float = np.inf
    peephole: np.ndarray | None = None
    coupled: bool = False
    projection: np.ndarray | None = None
    h0: np.ndarray | None = None
    c0: np.ndarray | None = None
    reverse: bool = False
    final: bool = False

    gates = ("i", "f", "g", "o")

    def arrays(self) -> Iterator[tuple[str, np.ndarray | None, tuple[int, ...]]]:
        yield from super().arrays()
        yield "peephole", self.peephole, (3 * self.n_units,)
        yield "projection", self.projection, (self.n_out, self.n_units)
        yield "c0", self.c0, (self.n_units,)

    def fault(self) -> str:
        if self.projection is None and self.n_units != self.n_out:
            return f"{self.n_units} units give {self.n_out} values, but there is no projection"
        return super().fault()


@dataclass(frozen=True, eq=False)
class Gru(Recurrent):
    """One GRU layer (Cho et al. 2014). ``reset_after``: reset gate applied after the recurrent product, as in torch and cuDNN.

    Shapes: ``w_x`` [3H, D], ``w_h`` [3H, H], ``bias`` [3H] added to the inputs' part, ``bias_h`` [3H] to the hidden state's part:
    n = tanh(W_n x + b_n + r * (U_n h + bh_n)), or tanh(W_n x + b_n + U_n (r * h) + bh_n) where the reset comes before; for r and z
    only the sum of both biases counts.
    """

    name: str
    w_x: np.ndarray
    w_h: np.ndarray
    bias: np.ndarray
    bias_h: np.ndarray
    functions: tuple[str | Function, ...] = ("sigmoid", "tanh")
    clip: float = np.inf
    reset_after: bool = True
    h0: np.ndarray | None = None
    reverse: bool = False
    final: bool = False

    gates = ("r", "z", "n")

    def arrays(self) -> Iterator[tuple[str, np.ndarray | None, tuple[int, ...]]]:
        yield from super().arrays()
        yield "bias_h", self.bias_h, (3 * self.n_units,)


@dataclass(frozen=True, eq=False)
class Rnn(Recurrent):
    """One Elman layer (Elman 1990): h = f(w_x x + w_h h + bias); ``w_x`` [H, D], ``w_h`` [H, H], ``bias`` [H]."""

    name: str
    w_x: np.ndarray
    w_h: np.ndarray
    bias: np.ndarray
    functions: tuple[str | Function, ...] = ("tanh",)
    clip: float = np.inf
    h0: np.ndarray | None = None
    reverse: bool = False
    final: bool = False

    gates = ("h",)


# ---- layers without memory ----


@dataclass(frozen=True, eq=False)
class Dense(Layer):
    """``y = activation(weight @ x + bias)``; ``weight`` [n_out, n_in / groups], ``bias`` [n_out].

    With groups the rows of group k read the k-th part of the input only; groups = n_in = n_out scales each value by itself.
    """

    name: str
    weight: np.ndarray
    bias: np.ndarray
    activation: str | Function = "none"
    groups: int = 1

    @property
    def n_in(self) -> int:
        return self.weight.shape[1] * self.groups

    @property
    def n_out(self) -> int:
        return self.weight.shape[0]

    def arrays(self) -> Iterator[tuple[str, np.ndarray | None, tuple[int, ...]]]:
        yield "weight", self.weight, self.weight.shape[:2]
        yield "bias", self.bias, self.weight.shape[:1]

    def fault(self) -> str:
        if self.groups < 1 or self.n_out % self.groups:
            return f"{self.n_out} rows do not divide into {self.groups} groups"
        return _function_fault(self.activation)

    def product(self, x: np.ndarray) -> np.ndarray:
        """weight @ x, group by group: [..., n_in] -> [..., n_out]."""
        if self.groups == 1:
            return x @ self.weight.T
        parts = x.reshape(*x.shape[:-1], self.groups, self.weight.shape[1])
        weight = self.weight.reshape(self.groups, -1, self.weight.shape[1])
        return np.einsum("...gk,gok->...go", parts, weight).reshape(*x.shape[:-1], self.n_out)


@dataclass(frozen=True)
class Activation(Layer):
    """An elementwise activation that follows a layer which has none of its own."""

    name: str
    activation: str | Function
    n_in: int

    @property
    def n_out(self) -> int:
        return self.n_in

    def fault(self) -> str:
        if self.activation == "none":
            return "activation 'none' is not one of relu, tanh, sigmoid or a Function: leave the layer out"
        return _function_fault(self.activation, softmax=False)


@dataclass(frozen=True)
class Add(Layer):
    """``y = activation(weights[0] * a + weights[1] * b)``: residual connections, differences."""

    name: str
    n_in: int
    weights: tuple[float, float] = (1.0, 1.0)
    activation: str | Function = "none"

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.n_in, self.n_in)

    @property
    def n_out(self) -> int:
        return self.n_in

    def fault(self) -> str:
        finite = np.isfinite(self.weights).all() and any(self.weights)
        return _function_fault(self.activation, softmax=False) if finite else f"weights {self.weights}"


@dataclass(frozen=True)
class Mul(Layer):
    """``y = activation(a * b)``, elementwise: gates between layers."""

    name: str
    n_in: int
    activation: str | Function = "none"

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.n_in, self.n_in)

    @property
    def n_out(self) -> int:
        return self.n_in

    def fault(self) -> str:
        return _function_fault(self.activation, softmax=False)


@dataclass(frozen=True)
class Concat(Layer):
    """Two sources one after the other."""

    name: str
    parts: tuple[int, int]

    @property
    def widths(self) -> tuple[int, ...]:
        return self.parts

    @property
    def n_in(self) -> int:
        return sum(self.parts)

    @property
    def n_out(self) -> int:
        return self.n_in


@dataclass(frozen=True)
class Slice(Layer):
    """Values ``start`` .. ``start + n_out`` of the source."""

    name: str
    n_in: int
    start: int
    n_out: int

    def fault(self) -> str:
        inside = self.start >= 0 and self.start + self.n_out <= self.n_in
        return "" if inside else f"values {self.start} .. {self.start + self.n_out} of {self.n_in}"


@dataclass(frozen=True)
class MaxPool(Layer):
    """The largest of each run of ``taps`` values: after a Window, the largest value of each channel in it."""

    name: str
    n_in: int
    taps: int

    @property
    def n_out(self) -> int:
        return self.n_in // self.taps

    def fault(self) -> str:
        return "" if self.taps > 0 and self.n_in % self.taps == 0 else f"{self.n_in} values in runs of {self.taps}"


@dataclass(frozen=True, eq=False)
class LayerNorm(Layer):
    """``y = gamma * (x - mean(x)) / sqrt(var(x) + epsilon) + beta`` over the n values of a step (Ba et al. 2016)."""

    name: str
    gamma: np.ndarray
    beta: np.ndarray
    epsilon: float = 1e-5

    @property
    def n_in(self) -> int:
        return len(self.gamma)

    @property
    def n_out(self) -> int:
        return len(self.gamma)

    def arrays(self) -> Iterator[tuple[str, np.ndarray | None, tuple[int, ...]]]:
        yield "gamma", self.gamma, (self.n_in,)
        yield "beta", self.beta, (self.n_in,)

    def fault(self) -> str:
        if not 2 <= self.n_in <= NORM_MAX:
            return f"normalises over {self.n_in} values, 2 to {NORM_MAX} are supported"
        return "" if 0 <= self.epsilon < np.inf else f"epsilon is {self.epsilon}"


@dataclass(frozen=True, eq=False)
class Embedding(Layer):
    """Row ``x`` of ``table`` [vocabulary, width] for each of ``n_in`` tokens; it must read the model's input."""

    name: str
    table: np.ndarray
    n_in: int = 1

    @property
    def n_out(self) -> int:
        return self.n_in * self.table.shape[1]

    def arrays(self) -> Iterator[tuple[str, np.ndarray | None, tuple[int, ...]]]:
        yield "table", self.table, self.table.shape[:2]

    def fault(self) -> str:
        return "" if len(self.table) <= 32768 else f"{len(self.table)} tokens, 32768 at most"


@dataclass(frozen=True)
class ArgMax(Layer):
    """The index of the largest value, the first of equals; last layer only."""

    name: str
    n_in: int
    n_out: ClassVar[int] = 1


# ---- layers that look back ----


@dataclass(frozen=True)
class Window(Layer):
    """The last values of each channel, channel by channel, oldest first: what a causal convolution or a pooling looks at.

    y[c * taps + k] = x_c of ``dilation * (taps - 1 - k)`` steps ago. ``padding``: how many zeros the source puts before a sequence
    (None: as many as make the first step count); fewer, and the first outputs come later. ``stride``: one output every so many
    steps; everything after it runs at that rate.

    ``ahead``: how many zeros follow the sequence, 0 .. span - 1. Only a window has an end: a stream runs without them.
    ``same``: "upper" or "lower" where both depend on the sequence's length n, so that ceil(n / stride) outputs come; an odd
    zero stands after the sequence or before it. ``padding`` None then means that n is not known yet.
    ``lowest``: the largest value is sought: minus infinity stands in place of the zeros, and a MaxPool must follow.
    ``least``: the fewest steps of a sequence for which what follows is right.
    """

    name: str
    n_in: int
    taps: int
    dilation: int = 1
    stride: int = 1
    padding: int | None = None
    ahead: int = 0
    same: str = ""
    lowest: bool = False
    least: int = 1

    @property
    def n_out(self) -> int:
        return self.n_in * self.taps

    @property
    def span(self) -> int:
        """Steps it remembers, the current one included."""
        return (self.taps - 1) * self.dilation + 1

    @property
    def delay(self) -> int:
        """Steps of its source before its first output."""
        return 0 if self.padding is None else self.span - 1 - self.padding

    @property
    def edge(self) -> float:
        """What stands before and after the sequence."""
        return -np.inf if self.lowest else 0.0

    def over(self, n: int) -> Window:
        """The layer over a sequence of ``n`` steps."""
        if not self.same:
            return self
        both = max(0, (-(-n // self.stride) - 1) * self.stride + self.span - n)
        before = both // 2 if self.same == "upper" else both - both // 2
        return replace(self, padding=before, ahead=both - before)

    def runs(self, n: int) -> int:
        """How many outputs a sequence of ``n`` steps gives."""
        return max(0, (n + self.ahead - self.delay - 1) // self.stride + 1)

    def fault(self) -> str:
        if min(self.taps, self.dilation, self.stride) < 1:
            return f"taps {self.taps}, dilation {self.dilation} and stride {self.stride} must be positive"
        if self.span > WIDTH_MAX:
            return f"looks back over {self.span} steps, {WIDTH_MAX} at most"
        if not 0 <= self.ahead < min(self.span, AHEAD_MAX + 1) or self.same not in SAME:
            return f"looks {self.ahead} steps ahead, more than its span of {self.span} or {AHEAD_MAX}, or same '{self.same}'"
        return "" if 0 <= self.delay < self.span else f"padding {self.padding} does not fit a span of {self.span}"


ATTENTIONS = ("score", "dot", "additive")


@dataclass(frozen=True, eq=False)
class Attention(Layer):
    """A weighted mean of the last ``steps`` values: sum_i softmax_i(score_i) value_i, i over the steps seen since the reset.

    ``form`` "score": sources (score [1], value), the score of a step is given; "dot" (Luong et al. 2015): sources (query, key,
    value), score_i = scale * query . key_i; "additive" (Bahdanau et al. 2015): score_i = scale * weight . tanh(query + key_i).
    """

    name: str
    form: str
    steps: int
    key_width: int
    n_out: int
    scale: float = 1.0
    weight: np.ndarray | None = None

    @property
    def widths(self) -> tuple[int, ...]:
        return (1, self.n_out) if self.form == "score" else (self.key_width, self.key_width, self.n_out)

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


# ---- the graph ----


@dataclass(frozen=True)
class Source:
    """Where a graph came from: for provenance lines, never for arithmetic."""

    file: str = ""
    sha256: str = ""
    producer: str = ""
    opset: int = 0


@dataclass(frozen=True)
class Timing:
    """A layer runs at the steps first, first + every, first + 2 every, ... after a reset, which is step 0."""

    first: int = 0
    every: int = 1

    def runs(self, steps: int) -> int:
        """How often it runs in the first ``steps`` steps."""
        return 0 if steps <= self.first else (steps - 1 - self.first) // self.every + 1

    def at(self, step: int) -> bool:
        """Whether it runs at ``step``, from 0."""
        return step >= self.first and (step - self.first) % self.every == 0


def timing_behind(layer: Layer, before: Timing) -> Timing:
    """When a layer runs whose first source runs as ``before`` tells."""
    if not isinstance(layer, Window):
        return before
    return Timing(before.first + layer.delay * before.every, before.every * max(layer.stride, 1))


@dataclass(frozen=True)
class Output:
    """One of the source's outputs: its name and how many values it has."""

    name: str
    size: int


@dataclass(frozen=True)
class Graph:
    """Layers in an order in which they can be computed; the last one makes the output.

    ``sources``: for each layer the values it reads: 0 the model's input, k the output of layer k - 1; left out, the layers are a
    chain. ``readout`` tells which outputs the source model gives: "every" step or the "last" one only. A stream computes the output
    at every step either way. ``notes`` are sentences for the user about what the importer did ("weights were float16").
    ``outputs``: what the source calls its outputs, which stand side by side in this order; empty where it has no names. Characters
    that cannot be printed are replaced in all names, and a note says so.

    ``window``: the graph runs over windows of so many steps, each from a reset, and then over the zeros that follow a window's
    end; 0: over a stream that never ends. ``in_window`` and ``in_mode`` make one graph of the other. ``lags``: for each layer
    how many steps after a window's end it runs last.
    """

    layers: tuple[Layer, ...]
    readout: str = "every"
    source: Source = field(default_factory=Source)
    notes: tuple[str, ...] = ()
    sources: tuple[tuple[int, ...], ...] = ()
    outputs: tuple[Output, ...] = ()
    window: int = 0
    timing: tuple[Timing, ...] = field(init=False, default=())
    lags: tuple[int, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        """Raises ImportRefused, naming the layer, when the graph cannot be run."""
        if not any(isinstance(layer, Recurrent) for layer in self.layers):
            raise ImportRefused("a graph needs at least one recurrent layer")
        self._make_printable()
        if not self.sources:
            object.__setattr__(self, "sources", tuple((k,) for k in range(len(self.layers))))
        if len(self.sources) != len(self.layers):
            raise ImportRefused(f"{len(self.layers)} layers, but sources for {len(self.sources)}")
        for index in range(len(self.layers)):
            reason = self._fault(index)
            if reason:
                raise ImportRefused(f"layer {index} '{self.layers[index].name}': {reason}")
            object.__setattr__(self, "timing", (*self.timing, self._timing(index)))
            object.__setattr__(self, "lags", (*self.lags, self._lag(index)))
        last = self.timing[-1]
        for layer, timing in zip(self.layers, self.timing, strict=True):
            if timing.first > last.first or last.every % timing.every:
                raise ImportRefused(
                    f"layer '{layer.name}' runs at other steps than the output, which does not need it: leave it out"
                )
        if self.outputs and sum(output.size for output in self.outputs) != self.n_out:
            sizes = [output.size for output in self.outputs]
            raise ImportRefused(f"outputs of {sizes} values do not make up the {self.n_out} of the last layer")

    def _make_printable(self) -> None:
        """Names that a terminal or a file of notes can hold, and a note where one was changed."""
        layers = tuple(
            layer if printable(layer.name) == layer.name else replace(layer, name=printable(layer.name))
            for layer in self.layers
        )
        changed = [(a.name, b.name) for a, b in zip(self.layers, layers, strict=True) if a is not b]
        texts = {name: printable(getattr(self.source, name)) for name in ("file", "sha256", "producer")}
        outputs = tuple(Output(printable(output.name), output.size) for output in self.outputs)
        files = [(self.source.file, texts["file"])] if texts["file"] != self.source.file else []
        said = (*self.notes, *replaced_note("file", files), *replaced_note("layer", changed))
        notes = tuple(printable(note) for note in said)
        for name, value in (("layers", layers), ("outputs", outputs), ("notes", notes)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "source", replace(self.source, **texts))

    @property
    def n_in(self) -> int:
        return next(
            layer.widths[reads.index(0)] for layer, reads in zip(self.layers, self.sources, strict=True) if 0 in reads
        )

    @property
    def n_out(self) -> int:
        return self.layers[-1].n_out

    @property
    def reads_backwards(self) -> bool:
        return any(isinstance(layer, Recurrent) and (layer.reverse or layer.final) for layer in self.layers)

    @property
    def looks_ahead(self) -> Window | None:
        """A layer that needs the end of the sequence to be known: the answer at the end depends on the zeros that it sees
        after it, or those before it on the sequence's length.
        """
        windows = [layer for layer in self.layers if isinstance(layer, Window)]
        unknown = next((layer for layer in windows if layer.same and layer.padding is None), None)
        if unknown or self.readout != "last" or not self.lags[-1]:
            return unknown
        return next(layer for layer in windows if layer.ahead)

    @property
    def needs_window(self) -> bool:
        """Whether only a window can run it: a layer reads backwards, or looks ahead of an answer at the end."""
        return self.reads_backwards or self.looks_ahead is not None

    def in_window(self, steps: int) -> Graph:
        """The graph over windows of so many steps; ImportRefused where it cannot be run so."""
        layers, counts = list(self.layers), [steps]
        for index, layer in enumerate(layers):
            n = counts[self.sources[index][0]]
            if isinstance(layer, Window):
                layers[index] = layer = layer.over(n)
                if n < layer.least:
                    raise ImportRefused(
                        f"layer '{layer.name}': windows of {steps} steps leave it {n}, it pools over {layer.span}: take longer ones"
                    )
                n = layer.runs(n)
            counts.append(n)
        return replace(self, layers=tuple(layers), window=steps)

    def in_mode(self, mode: Mode) -> Graph:
        """The graph as a mode runs it: over its windows, or without the zeros after the end of a stream that has none."""
        if mode.kind != "carry":
            return self.in_window(mode.window)
        layers = (replace(layer, ahead=0, same="") if isinstance(layer, Window) else layer for layer in self.layers)
        return replace(self, layers=tuple(layers), window=0)

    def width(self, value: int) -> int:
        """Width of the model's input (0) or of the output of layer ``value - 1``."""
        return self.layers[value - 1].n_out if value else self.n_in

    def timing_of(self, value: int) -> Timing:
        return self.timing[value - 1] if value else Timing()

    def _timing(self, index: int) -> Timing:
        return timing_behind(self.layers[index], self.timing_of(self.sources[index][0]))

    def lag_of(self, value: int) -> int:
        return self.lags[value - 1] if value else 0

    def _lag(self, index: int) -> int:
        layer, reads = self.layers[index], self.sources[index]
        own = layer.ahead * self.timing_of(reads[0]).every if isinstance(layer, Window) else 0
        return own + max(self.lag_of(value) for value in reads)

    def _fault(self, index: int) -> str:
        layer, reads = self.layers[index], self.sources[index]
        reason = _array_fault(layer) or layer.fault()
        if reason:
            return reason
        if not all(0 < n <= WIDTH_MAX for n in (*layer.widths, layer.n_out)):
            return f"more than {WIDTH_MAX} inputs or outputs, or none"
        if len(reads) != len(layer.widths) or not all(0 <= value <= index for value in reads):
            return f"reads values {list(reads)}"
        for value, width in zip(reads, layer.widths, strict=True):
            if self.width(value) != width:
                return f"is given {self.width(value)} values and takes {width}"
        if len({self.timing_of(value) for value in reads}) > 1:
            return "its sources do not arrive at the same steps: pad convolutions on the left only, so that none is delayed"
        if self.window and len({self.lag_of(value) for value in reads}) > 1:
            return "its sources do not end at the same step of a window: pad them alike"
        if max(self._timing(index).first, self._timing(index).every, self._lag(index)) > TIMING_MAX:
            return f"its first output, its stride or the steps after a window's end are beyond {TIMING_MAX} steps"
        lowest = any(value and getattr(self.layers[value - 1], "lowest", False) for value in reads)
        if lowest and not isinstance(layer, MaxPool):
            return "reads a window that is padded with minus infinity, which only a MaxPool can"
        if isinstance(layer, Embedding) and reads != (0,):
            return "an embedding must read the model's input"
        return self._order_fault(index)

    def _order_fault(self, index: int) -> str:
        layer, is_last = self.layers[index], index == len(self.layers) - 1
        if isinstance(layer, ArgMax) and not is_last:
            return "ArgMax must come last"
        if getattr(layer, "activation", "") == "softmax" and (not is_last or layer.n_out > SOFTMAX_MAX):
            return f"softmax must come last and have at most {SOFTMAX_MAX} classes"
        return ""


def replaced_note(what: str, changed: list[tuple[str, str]]) -> list[str]:
    """A sentence on names that were made printable, pairs of the old and the new one; none where there are none."""
    if not changed:
        return []
    (old, new), others = changed[0], f", and {len(changed) - 1} more" if len(changed) > 1 else ""
    return [f"{what} {old!r} is called '{new}' here, its name cannot be printed{others}"]


def _array_fault(layer: Layer) -> str:
    for name, array, shape in layer.arrays():
        if array is None:
            continue
        if array.shape != shape or array.size == 0:
            return f"{name} has shape {list(array.shape)}, expected {list(shape)}"
        if not np.isfinite(array).all():
            return f"{name} holds NaN or infinity: the training has diverged"
    return ""


def _function_fault(activation: str | Function, softmax: bool = True) -> str:
    known = PLAIN if softmax else PLAIN[:-1]
    if isinstance(activation, str) and activation not in known:
        return f"activation '{activation}' is not one of {', '.join(known)}"
    if isinstance(activation, Function) and activation.name in PLAIN:
        return f"activation {activation.name} is plain: give its name"
    values = as_function(activation)(np.linspace(-16.0, 16.0, 65)) if isinstance(activation, Function) else 0.0
    return "" if np.isfinite(values).all() else f"activation {activation} is not finite everywhere"
