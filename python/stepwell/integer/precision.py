"""How many bits: of recurrent weights, of the model's input and of hidden states, for the whole
model or layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stepwell.errors import UnknownWord


@dataclass(frozen=True)
class Precision:
    """``weight_bits`` 8 or 4 (two weights a byte); ``x_bits`` and ``h_bits`` 16 or 8: codes of the
    input and of hidden states.
    """

    name: str
    weight_bits: int = 8
    x_bits: int = 16
    h_bits: int = 16

    @property
    def weight_limit(self) -> int:
        return 2 ** (self.weight_bits - 1) - 1

    @property
    def h_limit(self) -> int:
        return 2 ** (self.h_bits - 1) - 1


W8A16 = Precision("w8a16")
PRECISIONS = {
    precision.name: precision
    for precision in (
        W8A16,
        Precision("w8x16h8", 8, 16, 8),
        Precision("w8a8", 8, 8, 8),
        Precision("w4a16", 4, 16, 16),
    )
}
HELP = f"{', '.join(PRECISIONS)}; by layer: w8a16,LAYER:w4a16 (a name or a number from 0)"


@dataclass(frozen=True)
class Plan:
    """A precision for all recurrent layers but those in ``layers``: pairs of a layer's name or
    number and its precision.
    """

    default: Precision = W8A16
    layers: tuple[tuple[str, Precision], ...] = ()

    def of(self, index: int, name: str) -> Precision:
        given = dict(self.layers)
        return given.get(name, given.get(str(index), self.default))

    def check(self, names: Sequence[str]) -> None:
        """UnknownWord when it speaks of a layer that is not among the recurrent ones: ``names`` by
        number, "" for others.
        """
        for layer, _ in self.layers:
            if layer not in names and not (
                layer.isdigit() and int(layer) < len(names) and names[int(layer)]
            ):
                known = ", ".join(f"{index} '{name}'" for index, name in enumerate(names) if name)
                raise UnknownWord(
                    f"precision: '{layer}' is no recurrent layer of the model, which has {known}"
                )

    def __str__(self) -> str:
        return ",".join(
            [self.default.name, *(f"{layer}:{precision.name}" for layer, precision in self.layers)]
        )


UNIFORM = Plan()


def parse_precision(given: str | Precision | Plan) -> Plan:
    """``given``: a plan, a precision, or text as in ``HELP``. UnknownWord for anything else."""
    if isinstance(given, Plan):
        return given
    if isinstance(given, Precision):
        return Plan(given)
    if not isinstance(given, str):
        raise UnknownWord(f"precision: expected {HELP}; got {given!r}")
    first, *rest = (part.strip() for part in given.split(","))
    layers = [part.rpartition(":") for part in rest]
    if not all(layer and colon for layer, colon, _ in layers):
        raise UnknownWord(f"precision '{given}': expected {HELP}")
    return Plan(_known(first), tuple((layer, _known(name)) for layer, _, name in layers))


def _known(name: str) -> Precision:
    if name not in PRECISIONS:
        raise UnknownWord(f"precision '{name}' is not one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]
