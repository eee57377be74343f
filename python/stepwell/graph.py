"""The float graph: what a trained model is, once the exporter's plumbing is taken away.

A graph is a list of layers. A layer reads the model's input or the outputs of layers before it, at
every timestep. The importers yield a graph, calibration runs it, and every accuracy figure compares
with it. Arrays are float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from stepwell.errors import ImportRefused
from stepwell.layers.base import SOFTMAX_MAX, WIDTH_MAX, Layer, Timing, input_width
from stepwell.text import printable
from stepwell.windowing import Mode

TIMING_MAX = 65535


@dataclass(frozen=True)
class Source:
    """Where a graph came from: for provenance lines, never for arithmetic."""

    file: str = ""
    sha256: str = ""
    producer: str = ""
    opset: int = 0


@dataclass(frozen=True)
class Output:
    """One of the source's outputs: its name and how many values it has."""

    name: str
    size: int


@dataclass(frozen=True)
class Graph:
    """Layers in an order in which they can be computed; the last one makes the output.

    ``sources``: for each layer the values it reads: 0 the model's input, k the output of layer k -
    1; left out, the layers are a chain. ``readout`` tells which outputs the source model gives:
    "every" step or the "last" one only. A stream computes the output at every step either way.
    ``notes`` are sentences for the user about what the importer did ("weights were float16").
    ``outputs``: what the source calls its outputs, which stand side by side in this order; empty
    where it has no names. Characters that cannot be printed are replaced in all names, and a note
    says so.

    ``window``: the graph runs over windows of so many steps, each from a reset, and then over the
    zeros that follow a window's end; 0: over a stream that never ends. ``in_window`` and
    ``in_mode`` make one graph of the other. ``lags``: for each layer how many steps after a
    window's end it runs last.
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
        if not any(layer.is_recurrent for layer in self.layers):
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
                    f"layer '{layer.name}' runs at other steps than the output, which does not "
                    "need it: leave it out"
                )
        if self.outputs and sum(output.size for output in self.outputs) != self.n_out:
            sizes = [output.size for output in self.outputs]
            raise ImportRefused(
                f"outputs of {sizes} values do not make up the {self.n_out} of the last layer"
            )

    def _make_printable(self) -> None:
        """Names that a terminal or a file of notes can hold, and a note where one was changed."""
        layers = tuple(
            layer
            if printable(layer.name) == layer.name
            else replace(layer, name=printable(layer.name))
            for layer in self.layers
        )
        changed = [(a.name, b.name) for a, b in zip(self.layers, layers, strict=True) if a is not b]
        texts = {
            name: printable(getattr(self.source, name)) for name in ("file", "sha256", "producer")
        }
        outputs = tuple(Output(printable(output.name), output.size) for output in self.outputs)
        files = [(self.source.file, texts["file"])] if texts["file"] != self.source.file else []
        said = (*self.notes, *replaced_note("file", files), *replaced_note("layer", changed))
        notes = tuple(printable(note) for note in said)
        for name, value in (("layers", layers), ("outputs", outputs), ("notes", notes)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "source", replace(self.source, **texts))

    @property
    def n_in(self) -> int:
        return input_width(self.layers, self.sources)

    @property
    def n_out(self) -> int:
        return self.layers[-1].n_out

    @property
    def reads_backwards(self) -> bool:
        recurrent = (layer for layer in self.layers if layer.is_recurrent)
        return any(layer.reverse or layer.final for layer in recurrent)

    @property
    def looks_ahead(self) -> Layer | None:
        """A layer that needs the end of the sequence to be known.

        The answer at the end depends on the zeros that it sees after the sequence. The zeros before
        it may depend on the sequence's length.
        """
        unknown = next((layer for layer in self.layers if layer.needs_length), None)
        if unknown or self.readout != "last" or not self.lags[-1]:
            return unknown
        return next(layer for layer in self.layers if layer.ahead)

    @property
    def needs_window(self) -> bool:
        """Whether only a window can run it: a layer reads backwards, or looks ahead of an answer at
        the end.
        """
        return self.reads_backwards or self.looks_ahead is not None

    def in_window(self, steps: int) -> Graph:
        """The graph over windows of so many steps; ImportRefused where it cannot be run so."""
        layers, counts = list(self.layers), [steps]
        for index, layer in enumerate(layers):
            n = counts[self.sources[index][0]]
            reason = layer.length_fault(n)
            if reason:
                raise ImportRefused(
                    f"layer '{layer.name}': windows of {steps} steps {reason}: take longer ones"
                )
            layers[index] = layer.over(n)
            counts.append(layers[index].runs(n))
        return replace(self, layers=tuple(layers), window=steps)

    def in_mode(self, mode: Mode) -> Graph:
        """The graph as a mode runs it: over its windows, or over a stream that has no end."""
        if mode.kind != "carry":
            return self.in_window(mode.window)
        layers = tuple(layer.over_stream() for layer in self.layers)
        return replace(self, layers=layers, window=0)

    def width(self, value: int) -> int:
        """Width of the model's input (0) or of the output of layer ``value - 1``."""
        return self.layers[value - 1].n_out if value else self.n_in

    def timing_of(self, value: int) -> Timing:
        return self.timing[value - 1] if value else Timing()

    def _timing(self, index: int) -> Timing:
        return self.layers[index].timing(self.timing_of(self.sources[index][0]))

    def lag_of(self, value: int) -> int:
        return self.lags[value - 1] if value else 0

    def _lag(self, index: int) -> int:
        layer, reads = self.layers[index], self.sources[index]
        own = layer.ahead * self.timing_of(reads[0]).every
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
        lowest = any(value and self.layers[value - 1].lowest for value in reads)
        if lowest and not layer.takes_lowest:
            return "reads a window that is padded with minus infinity, which only a MaxPool can"
        if layer.takes_tokens and reads != (0,):
            return "an embedding must read the model's input"
        return self._order_fault(index)

    def _order_fault(self, index: int) -> str:
        layer, is_last = self.layers[index], index == len(self.layers) - 1
        if layer.comes_last and not is_last:
            return f"{type(layer).__name__} must come last"
        if getattr(layer, "activation", "") == "softmax" and (
            not is_last or layer.n_out > SOFTMAX_MAX
        ):
            return f"softmax must come last and have at most {SOFTMAX_MAX} classes"
        return ""


def replaced_note(what: str, changed: list[tuple[str, str]]) -> list[str]:
    """A sentence on names that were made printable, pairs of the old and the new one; none where
    there are none.
    """
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
