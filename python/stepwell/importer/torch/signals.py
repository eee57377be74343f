"""What flows through a traced torch module, and the layers that are collected on the way.

A *signal* is a tensor that depends on the model's input. Its axes are named: "B" batch, "T" time,
"F" features, "" an axis of size 1, and products of them where a reshape has merged some ("BT").
Features of width 1 have no name of their own, so that squeezing and unsqueezing them needs no care.
Sizes are concrete while tracing (BATCH, ``Walk.time``), so that shape arithmetic in the user's code
runs as it stands.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from stepwell.errors import ImportRefused
from stepwell.integer.functions import Function
from stepwell.layers import Activation, Dense, Layer, Window

# what the sizes of batch and time stand for while tracing: a fixed size or step is hardly ever one
# of these
BATCH = 13
TIME = 1009
Path = tuple[object, ...]


@dataclass(frozen=True)
class Pending:
    """Part of an attention over time, not yet a layer. ``values``: score, or query and key;
    ``stage``: how far it has come.

    Stages: "sum" (query + key) -> "tanh" -> "scores" -> "weights" (softmax over time) -> "weighted"
    (times ``values[-1]``); "product" (query * key, elementwise) -> "scores".
    """

    form: str
    stage: str
    values: tuple[int, ...]
    key_width: int = 1
    scale: float = 1.0
    weight: np.ndarray | None = None


@dataclass(frozen=True)
class Signal:
    """A tensor made from graph value ``value`` [batch, steps, width], its axes ordered as ``axes``
    tells.

    ``length``: timesteps torch has in it, ``lead`` of them zeros that a padding has put in front
    for the next convolution and ``trail`` of them zeros after the end. ``last``: time has been
    reduced to the last step. ``state``: (call, "h") where it is also the new state of a cell.
    """

    value: int
    width: int
    axes: tuple[str, ...]
    length: int
    last: bool = False
    lead: int = 0
    trail: int = 0
    pending: Pending | None = None
    state: tuple[int, str] | None = None

    def __post_init__(self) -> None:
        if self.width == 1:
            object.__setattr__(self, "axes", tuple(axis.replace("F", "") for axis in self.axes))

    def size_of(self, atoms: str) -> int:
        return prod({"B": BATCH, "T": self.length, "F": self.width}[atom] for atom in atoms)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.size_of(axis) for axis in self.axes)


@dataclass(frozen=True)
class Stack:
    """Final states of several layers, as torch's h_n [layers * directions, B, H]; no parts where it
    cannot be data (c_n).

    ``grid``: the sizes into which a view has divided the first axis; ``turned``: axes are [B,
    layers, H].
    """

    parts: tuple[Signal, ...]
    state: tuple[int, str] | None = None
    grid: tuple[int, ...] = ()
    turned: bool = False


@dataclass(frozen=True)
class StateArgument:
    """An argument of forward that hands the state on, or a part of it."""

    path: Path


@dataclass(frozen=True)
class StateInput:
    """Where a StateArgument goes: which state of which recurrent call, and its shape in torch."""

    state: tuple[int, str]
    shape: tuple[int, ...]


class WidthFound(Exception):
    """The first layer that reads the model's input tells how wide it is."""

    def __init__(self, width: int):
        self.width = width


@dataclass
class Walk:
    """The layers collected so far. Value 0 is the model's input, value k the output of layer k - 1."""

    axes: tuple[str, ...]
    n_in: int
    n_in_known: bool
    steps: int | None
    layers: list[Layer] = field(default_factory=list)
    reads: list[tuple[int, ...]] = field(default_factory=list)
    state_inputs: dict[Path, StateInput] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    calls: int = 0  # recurrent calls so far
    name: str = ""  # of the layers made at the node at hand
    where: str = "forward"  # the node at hand, for messages

    @property
    def time(self) -> int:
        return self.steps or TIME

    @property
    def one_step(self) -> bool:
        """Whether a call of the module is one step."""
        return "T" not in self.axes

    @property
    def input(self) -> Signal:
        return Signal(0, self.n_in, self.axes, self.time)

    @property
    def progress(self) -> int:
        """How many layers with weights and how many recurrent calls were understood."""
        return self.calls + sum(any(True for _ in layer.arrays()) for layer in self.layers)

    def refuse(self, reason: str) -> ImportRefused:
        """The error for the node at hand."""
        return ImportRefused(f"{self.where}: {reason}")

    def note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    # ---- checks ----

    def plain(self, signal: Signal, may_lead: bool = False) -> Signal:
        """The signal, when it is ordinary data; ``may_lead``: zeros may have been padded before it
        or after it.
        """
        if isinstance(signal, StateArgument):
            raise self.refuse(
                f"reads {described(signal)}, which is neither the model's input (the first one) "
                "nor the state of a layer of torch: join several inputs to one before the model, "
                "and write cells as nn.LSTMCell, GRUCell or RNNCell"
            )
        if not isinstance(signal, Signal):
            raise self.refuse(
                f"reads {described(signal)}, which is not data: read out the layer's output or "
                "h_n[-1]"
            )
        if signal.pending:
            raise self.refuse(
                "unfinished attention: the forms known are scores -> softmax over time -> "
                "weighted sum"
            )
        if (signal.lead or signal.trail) and not may_lead:
            raise self.refuse(
                "zeros were padded before the sequence or after it: only a convolution or a "
                "pooling can take them"
            )
        return signal

    def feature_axis(self, signal: Signal, dim: int | None = None, width: int | None = None) -> int:
        """The number of the axis of the features. Refused when that is not ``dim``, or when they
        are not ``width`` many.
        """
        rank = len(signal.axes)
        if dim is not None and not -rank <= dim < rank:
            raise self.refuse(f"works on axis {dim} of {self.described_axes(signal)}")
        if dim is None:
            dim = signal.axes.index("F") if "F" in signal.axes else rank - 1
        if signal.axes[dim] != ("F" if signal.width > 1 else ""):
            raise self.refuse(
                f"works on axis {dim} of {self.described_axes(signal)}, which is not the one of "
                "the features"
            )
        if width is not None and width != signal.width:
            self.width_differs(signal, width)
        return dim % rank

    def width_differs(self, signal: Signal, width: int) -> None:
        """Refuses that a signal is not ``width`` wide, unless that tells how wide the model's input
        is.
        """
        if self.n_in_known:
            raise self.refuse(f"takes {width} values and is given {signal.width}")
        times, rest = divmod(signal.width, self.n_in)
        if rest or not times or width % times:
            raise self.refuse(
                "how wide the model's input is cannot be told from its layers: give it, n_in="
            )
        raise WidthFound(width // times)

    def time_axis(self, signal: Signal, dim: int | None = None) -> int:
        if "T" not in signal.axes or (
            dim is not None and signal.axes.index("T") != dim % len(signal.axes)
        ):
            raise self.refuse(f"works along time, and is given {self.described_axes(signal)}")
        return signal.axes.index("T")

    def described_axes(self, signal: Signal) -> str:
        names = {"B": "batch", "T": "time", "F": "features"}
        return f"[{', '.join(' * '.join(names[atom] for atom in axis) or '1' for axis in signal.axes)}]"

    def take_last(self, signal: Signal, at: int | None) -> Signal:
        """The last step, without axis ``at``."""
        if signal.pending is None:
            self.plain(signal)
        axes = signal.axes if at is None else (*signal.axes[:at], *signal.axes[at + 1 :])
        return replace(signal, axes=axes, last=not self.one_step, state=None)

    # ---- layers ----

    def emit(self, layer: Layer, *values: int) -> int:
        """Add a layer that reads ``values``; the number of the value it makes."""
        taken = {other.name for other in self.layers}
        name, copy = layer.name, 2
        while name in taken:
            name, copy = f"{layer.name}_{copy}", copy + 1
        self.layers.append(replace(layer, name=name))
        self.reads.append(values)
        return len(self.layers)

    def cropped(self, signal: Signal, steps: int) -> Signal:
        """The signal without its last steps, as long as they are made of zeros after the sequence's
        end.
        """
        of_padding = min(steps, signal.trail)
        value = self._cropped(signal.value, steps - of_padding)
        trail = signal.trail - of_padding
        return replace(signal, value=value, length=signal.length - steps, trail=trail, state=None)

    def _cropped(self, value: int, steps: int) -> int:
        """A value that ends so many steps earlier: convolutions on the way to it look less far
        ahead.
        """
        if steps == 0:
            return value
        if value == 0:
            raise self.refuse("it cuts timesteps off: a stream reads every step or the last one")
        layer, reads = self.layers[value - 1], self.reads[value - 1]
        if isinstance(layer, Window):
            less = min(layer.ahead, steps * layer.stride)
            sources = (self._cropped(reads[0], steps * layer.stride - less),)
            layer = replace(layer, ahead=layer.ahead - less)
        else:
            sources = tuple(self._cropped(read, steps) for read in reads)
        self.layers.append(layer)  # under its name: the whole one is seldom read, too
        self.reads.append(sources)
        return len(self.layers)

    def apply(self, layer: Layer, *signals: Signal, at: int | None = None) -> Signal:
        """A layer on signals of the same axes; ``at``: its features' axis, needed where it changes
        their number.
        """
        value = self.emit(layer, *(self.plain(signal).value for signal in signals))
        axes = signals[0].axes
        if at is not None:
            axes = (*axes[:at], "F", *axes[at + 1 :])
        return replace(signals[0], value=value, width=layer.n_out, axes=axes, state=None)

    def activate(self, signal: Signal, function: str | Function) -> Signal:
        return self.apply(Activation(self.name, function, signal.width), signal)

    def scaled(
        self, signal: Signal, scale: np.ndarray | float, offset: np.ndarray | float = 0.0, **options
    ) -> Signal:
        """scale * signal + offset, value by value: a Dense of as many groups."""
        weight, bias = (
            np.broadcast_to(np.asarray(v, np.float64), (signal.width,)).copy()
            for v in (scale, offset)
        )
        return self.apply(
            Dense(self.name, weight[:, None], bias, groups=signal.width, **options), signal
        )

    def window(
        self,
        signal: Signal,
        taps: int,
        stride: int = 1,
        dilation: int = 1,
        left: int = 0,
        right: int = 0,
    ) -> Signal:
        """The last ``taps`` values of every channel; ``left`` and ``right`` zeros are padded before
        and after.
        """
        layer, seen = self.looking(signal, taps, stride, dilation, left, right)
        if (taps, stride, layer.delay, layer.ahead) == (1, 1, 0, 0):
            return signal
        return replace(seen, value=self.emit(layer, signal.value), width=layer.n_out)

    def looking(
        self, signal: Signal, taps: int, stride: int, dilation: int, left: int, right: int
    ) -> tuple[Window, Signal]:
        """The layer of ``window``, not yet in the graph, and the signal in its place in time."""
        self.plain(signal, may_lead=True)
        left, right = left + signal.lead, right + signal.trail
        span = (taps - 1) * dilation + 1
        if max(left, right) >= span:
            raise self.refuse(
                f"pads {left} steps before the sequence, {right} after it, and looks at {span}: "
                f"pad {span - 1} steps at most"
            )
        padding = None if left == span - 1 else left
        layer = Window(f"{self.name}.window", signal.width, taps, dilation, stride, padding, right)
        length = layer.runs(signal.length - signal.lead - signal.trail) if stride > 0 else 0
        if length < 1:
            raise self.refuse(f"looks at {span} steps of {signal.length}")
        return layer, replace(signal, length=length, lead=0, trail=0, state=None)


def described(value: object) -> str:
    """A traced value for a message."""
    if isinstance(value, Stack):
        return "the final states of several layers" if value.parts else "a cell state"
    if isinstance(value, StateArgument):
        return f"argument '{value.path[0]}'"
    return "the model's data" if isinstance(value, Signal) else f"a {type(value).__name__}"


# ---- after the walk ----


@dataclass(frozen=True)
class Chain:
    """Layers and what they read, as in a Graph."""

    layers: list[Layer]
    reads: list[tuple[int, ...]]

    def users(self, value: int) -> int:
        return sum(reads.count(value) for reads in self.reads)

    def pruned(self, output: int) -> Chain:
        """Without the layers that do not lead to value ``output``, which becomes the last."""
        needed, waiting = {0}, [output]
        while waiting:
            value = waiting.pop()
            if value not in needed:
                needed.add(value)
                waiting.extend(self.reads[value - 1])
        number = {value: k for k, value in enumerate(sorted(needed))}
        kept = sorted(needed - {0})
        return Chain(
            [self.layers[v - 1] for v in kept],
            [tuple(number[r] for r in self.reads[v - 1]) for v in kept],
        )

    def fused(self) -> Chain:
        """Activations and scalings made part of the layer before them."""
        chain = Chain(list(self.layers), list(self.reads))
        for k, layer in enumerate(chain.layers):
            source = chain.reads[k][0]
            if len(chain.reads[k]) != 1 or source == 0 or chain.users(source) != 1:
                continue
            merged = _merged(chain.layers[source - 1], layer)
            if merged:
                chain.layers[k], chain.reads[k] = merged, chain.reads[source - 1]
                chain.reads[source - 1] = ()
        return chain.pruned(len(chain.layers))


def _merged(first: Layer, then: Layer) -> Layer | None:
    """One layer that does what both do, where there is one."""
    if getattr(first, "activation", "") != "none":
        return None
    if isinstance(then, Activation):
        return replace(first, activation=then.activation)
    if not isinstance(first, Dense) or not isinstance(then, Dense):
        return None
    if _is_scaling(then):
        weight, bias = then.weight * first.weight, then.weight[:, 0] * first.bias + then.bias
        return replace(first, weight=weight, bias=bias, activation=then.activation)
    if _is_scaling(first) and then.groups == 1:
        return replace(
            then, weight=then.weight * first.weight[:, 0], bias=then.weight @ first.bias + then.bias
        )
    return None


def _is_scaling(layer: Dense) -> bool:
    return layer.groups == layer.n_in == layer.n_out
