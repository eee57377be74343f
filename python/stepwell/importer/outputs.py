"""Several outputs of one source: which of them are wanted, and how they become the one output of a
stream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from stepwell.errors import ImportRefused
from stepwell.graph import Output
from stepwell.layers import ArgMax, Concat, Dense, Layer, Timing
from stepwell.text import printable

CHOOSE = "choose with --outputs NAME (outputs='NAME')"
TRIED_ALONE = 16  # outputs that are tried one by one when they do not convert together

# outputs that the user wants, in this order; None or empty: all of them
Names = str | Sequence[str] | None


class UnknownOutput(ImportRefused):
    """A wanted output does not exist."""


class PartRefused(ImportRefused):
    """The outputs do not convert together, but some do by themselves."""


@dataclass(frozen=True, eq=False)
class Head:
    """A data output of the source.

    ``value``: of the graph, which makes it; ``size`` values a step. ``last``: it answers at the end
    of the sequence only. ``constant`` [size]: it does not depend on the input, and ``value`` means
    nothing.
    """

    name: str
    value: int
    size: int
    last: bool
    constant: np.ndarray | None = None


# ---- names ----


def as_names(outputs: Names) -> tuple[str, ...]:
    """The outputs that the user wants; none for all of them. Raises ImportRefused."""
    wanted = (outputs,) if isinstance(outputs, str) else tuple(outputs or ())
    if not all(isinstance(name, str) for name in wanted):
        raise ImportRefused(f"outputs must be a name or a list of names, they are {outputs!r:.80}")
    twice = [name for name, count in Counter(wanted).items() if count > 1]
    if twice:
        raise ImportRefused(
            f"output '{printable(twice[0])}' is wanted twice: name each output once"
        )
    return wanted


def unique_names(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """The names without characters that cannot be printed, with a number behind those that are
    taken already.
    """
    used, numbers, made = set(taken), Counter(), []
    for name in map(printable, names):
        copy = name
        while copy in used:
            numbers[name] += 1
            copy = f"{name}_{numbers[name] + 1}"
        used.add(copy)
        made.append(copy)
    return made


def places(names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Where the wanted outputs are in ``names``, in the order wanted. Raises UnknownOutput, which
    tells the names there are.
    """
    unknown = [name for name in map(printable, wanted) if name not in names]
    if unknown:
        raise UnknownOutput(f"there is no output '{unknown[0]}': the model has {listed(names)}")
    return [list(names).index(printable(name)) for name in wanted]


def listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{printable(name)}'" for name in names) or "no outputs with names"


def advised(
    error: ImportRefused, names: Sequence[str], converts: Callable[[str], object]
) -> ImportRefused:
    """The error of outputs that do not convert together, and which of them do by themselves.

    ``converts`` is tried on each name: False, or an ImportRefused, means no.
    """
    if len(names) < 2 or isinstance(error, UnknownOutput):
        return error
    alone = [name for name in names[:TRIED_ALONE] if _works(converts, name)]
    if not alone:
        return error
    if len(alone) == 1:
        return PartRefused(f"{error}; {listed(alone)} converts by itself: {CHOOSE}")
    return PartRefused(f"{error}; by themselves convert {listed(alone)}: {CHOOSE}")


def _works(converts: Callable[[str], object], name: str) -> bool:
    try:
        return converts(name) is not False
    except ImportRefused:
        return False


# ---- side by side ----


def side_by_side(layers: list[Layer], sources: list[tuple[int, ...]], heads: Sequence[Head]) -> int:
    """The value of all heads one after the other; layers for that are appended.

    Heads that end in a plain dense layer become rows of one dense layer, so that each keeps its
    precision beside larger ones. Raises ImportRefused, naming the outputs, for what cannot stand
    side by side.
    """
    if all(head.constant is not None for head in heads):
        raise ImportRefused(
            f"output {listed([heads[0].name])} is a constant: it does not depend on the input"
        )
    if len(heads) == 1:
        return heads[0].value
    _check(layers, sources, heads)

    def put(layer: Layer, *reads: int) -> int:
        layers.append(layer)
        sources.append(reads)
        return len(layers)

    (name,) = unique_names(["outputs"], (layer.name for layer in layers))
    if not any(head.constant is not None or _is_plain(layers, head) for head in heads):
        return _concatenated(put, name, [(head.value, head.size) for head in heads])
    parts = [_rows(layers, sources, head) for head in heads]
    widths = {read: weight.shape[1] for read, weight, _ in parts if read >= 0}
    starts = dict(zip(widths, np.cumsum([0, *widths.values()]), strict=False))
    weight, row = np.zeros((sum(head.size for head in heads), sum(widths.values()))), 0
    for read, rows, _ in parts:
        if read >= 0:
            weight[row : row + len(rows), starts[read] : starts[read] + rows.shape[1]] = rows
        row += len(rows)
    value = _concatenated(put, f"{name}.inputs", list(widths.items()))
    return put(Dense(name, weight, np.concatenate([bias for _, _, bias in parts])), value)


def outputs_of(heads: Sequence[Head]) -> tuple[Output, ...]:
    return tuple(Output(head.name, head.size) for head in heads)


def readout_of(heads: Sequence[Head]) -> str:
    return "last" if any(head.last and head.constant is None for head in heads) else "every"


def _check(layers: list[Layer], sources: list[tuple[int, ...]], heads: Sequence[Head]) -> None:
    data = [head for head in heads if head.constant is None]
    timing = [Timing()]
    for layer, reads in zip(layers, sources, strict=True):
        timing.append(layer.timing(timing[reads[0]]) if reads else Timing())
    for head in data:
        layer = layers[head.value - 1] if head.value else None
        if layer is None:
            raise _apart(heads, f"'{head.name}' is the model's input itself")
        if getattr(layer, "activation", "") == "softmax":
            raise _apart(
                heads, f"'{head.name}' ends in softmax, which must be the last layer of a stream"
            )
        if isinstance(layer, ArgMax):
            raise _apart(heads, f"'{head.name}' is a class number (argmax), an integer")
    first = data[0]
    for head in data[1:]:
        if head.last != first.last:
            step, end = (first, head) if head.last else (head, first)
            raise _apart(
                heads, f"'{step.name}' answers at every step, '{end.name}' at the last one"
            )
        if timing[head.value] != timing[first.value]:
            raise _apart(heads, f"'{first.name}' and '{head.name}' come at different steps")


def _apart(heads: Sequence[Head], reason: str) -> ImportRefused:
    return ImportRefused(
        f"outputs {listed(head.name for head in heads)} cannot stand side by side: {reason}"
    )


def _is_plain(layers: list[Layer], head: Head) -> bool:
    layer = layers[head.value - 1]
    return isinstance(layer, Dense) and layer.activation == "none"


def _rows(
    layers: list[Layer], sources: list[tuple[int, ...]], head: Head
) -> tuple[int, np.ndarray, np.ndarray]:
    """The head as rows of a dense layer: the value that they read (-1: none), their weights [size,
    width] and bias [size].
    """
    if head.constant is not None:
        return -1, np.zeros((head.size, 0)), head.constant
    if not _is_plain(layers, head):
        return head.value, np.eye(head.size), np.zeros(head.size)
    layer = layers[head.value - 1]
    weight = layer.weight if layer.groups == 1 else layer.product(np.eye(layer.n_in)).T
    return sources[head.value - 1][0], weight, layer.bias


def _concatenated(put: Callable[..., int], name: str, parts: list[tuple[int, int]]) -> int:
    """The value of several values, each given with its width."""
    value, width = parts[0]
    for k, (other, more) in enumerate(parts[1:], start=1):
        value = put(
            Concat(name if k == len(parts) - 1 else f"{name}.{k}", (width, more)), value, other
        )
        width += more
    return value
