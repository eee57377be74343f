"""Every place of the recurrent layers, float and integer side by side: pre-activations of each
gate, cells, hidden states.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stepwell.graph import Graph
from stepwell.integer.formats import C_FRAC, C_LIMIT, Z_SCALE
from stepwell.layers import RecurrentLayer
from stepwell.metrics import sqnr_db
from stepwell.model import Model
from stepwell.reference import Reference
from stepwell.samples import Samples
from stepwell.stream import FloatStream

HIDDEN, GATE = "hidden state h", "z of gate "
BITS = 16  # shown of how values fill their format

Array = np.ndarray
Seen = dict[tuple[int, str], Array]  # (layer, place) -> [steps of all sequences, width]


def observer(
    model: Model, hidden: str, see: Callable[[int, str, Array], None]
) -> Callable[[int, str, Array], None]:
    """For a FloatStream or a Reference, which call a layer's new h ``hidden``: ``see(layer, place,
    values [n, width])``.
    """

    def observe(index: int, name: str, values: Array) -> None:
        layer = model.layers[index] if index < len(model.layers) else None
        if layer is None or not layer.is_recurrent:
            return
        values = values.reshape(-1, values.shape[-1])
        if name == "z":
            for gate, part in zip(
                layer.records, np.split(values, len(layer.records), axis=-1), strict=True
            ):
                see(index, GATE + gate, part)
        elif name == "c" and layer.has_cell:
            see(index, layer.cell_name, values)
        elif name == hidden:
            see(index, HIDDEN, values)

    return observe


def float_observer(
    model: Model, see: Callable[[int, str, Array], None]
) -> Callable[[int, str, Array], None]:
    return observer(model, "y", see)


def integer_observer(
    model: Model, see: Callable[[int, str, Array], None]
) -> Callable[[int, str, Array], None]:
    return observer(model, "h_new", see)


def form(layer: RecurrentLayer, place: str) -> tuple[float, float]:
    """Real value of a code there, and the largest magnitude its format holds."""
    if place.startswith(GATE):
        return Z_SCALE, 32768 * Z_SCALE
    if place == layer.cell_name:
        return 2.0**-C_FRAC, C_LIMIT
    return layer.y_scale, layer.y_scale * 2 ** (layer.cell.h_bits - 1)


def measured(
    model: Model, graph: Graph, samples: Samples, curves: dict[str, Any]
) -> list[dict[str, Any]]:
    """SQNR and range of each place over all steps of the sequences; ``curves["activations"]``: how
    they fill their formats.
    """
    exact, integer = _seen(model, graph, samples.sequences)
    found, curves["activations"] = [], {}
    for (index, name), values in exact.items():
        layer = model.layers[index]
        scale, limit = form(layer, name)
        codes = integer[index, name] * scale
        largest = float(np.abs(values).max())
        found.append(
            {
                "layer": layer.name,
                "place": name,
                "sqnr_db": sqnr_db(values, codes),
                "rms_error": float(np.sqrt(np.mean((values - codes) ** 2))),
                "largest": largest,
                "limit": limit,
                "headroom_bits": float(np.log2(limit / (largest or limit))),
                "saturated": int((np.abs(codes) >= limit * (1 - 2.0**-15)).sum()),
                "values": int(codes.size),
            }
        )
        curves["activations"][f"{layer.name}: {name}"] = _filling(codes, limit)
    return found


def _filling(values: Array, limit: float) -> Array:
    """Share of the values in each octave of the format, [BITS]: the last one is its upper half, the
    first all that is less.
    """
    octave = np.floor(np.log2(np.maximum(np.abs(values), 2.0**-60) / limit)) + BITS
    return (
        np.bincount(np.clip(octave, 0, BITS - 1).astype(int).ravel(), minlength=BITS) / values.size
    )


def _seen(model: Model, graph: Graph, sequences: Sequence[Array]) -> tuple[Seen, Seen]:
    """Float and integer values. A mode other than carry is seen over its first window, from the
    reset.
    """
    exact: dict[tuple[int, str], list] = defaultdict(list)
    integer: dict[tuple[int, str], list] = defaultdict(list)
    if graph.reads_backwards:  # no stream passes the places in order
        return {}, {}
    graph, carries = graph.in_mode(model.mode), model.mode.kind == "carry"
    window = slice(None) if carries else slice(0, model.mode.window)
    for x in sequences:
        normal = x if model.scaler.is_identity else model.scaler.normalise(x)
        FloatStream(graph, float_observer(model, lambda k, name, v: exact[k, name].append(v))).run(
            normal[window]
        )
        see = integer_observer(model, lambda k, name, v: integer[k, name].append(v))
        reference = Reference(model, see)
        (reference.run if carries else reference.run_window)(x[window])
    shared = [key for key in exact if key in integer]
    return (
        {k: np.concatenate(exact[k]) for k in shared},
        {k: np.concatenate(integer[k]) for k in shared},
    )
