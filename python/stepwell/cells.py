"""Recurrent layers, quantised: the gates' rows, and what a cell has beyond the plain one (tables, peepholes, projection, start)."""

from __future__ import annotations

from collections.abc import Callable
from math import floor, log2

import numpy as np

from stepwell.calibrate import HEADROOM, HEADROOM_8, LayerStats, Moments
from stepwell.errors import QuantizeError
from stepwell.functions import Function, as_function
from stepwell.graph import Gru, Lstm, Recurrent, Rnn
from stepwell.model import (
    C_FRAC,
    H_FRAC,
    Z_FRAC,
    Cell,
    GruBeforeLayer,
    GruLayer,
    LstmLayer,
    RecurrentLayer,
    RnnLayer,
    Rows,
)
from stepwell.precision import W8A16, Precision
from stepwell.rows import Z_SCALE, Report, joined_rows, single_rows, stacked

TABLE_STEP = 128  # z codes between two entries of a table
PEEPHOLE_FRAC = range(6, 16)
C_LIMIT = 2.0 ** (31 - C_FRAC)
G_FRAC_MIN = 7


def frac_for(peak: float, most: int = H_FRAC, largest_code: int = 32767) -> int:
    """The finest format Q(frac) whose codes hold ``peak``; may be negative for large numbers."""
    return most if peak <= 0 else min(most, floor(log2(largest_code / peak)))


def table_of(function: Function, z_scale: float, y_scale: float) -> np.ndarray:
    """513 values of a function over the int16 range of z: int16 codes, limited to +-32767."""
    z = (np.arange(513) * TABLE_STEP - 32768) * z_scale
    return np.clip(np.floor(function(z) / y_scale + 0.5), -32767, 32767).astype(np.int16)


def largest(function: Function, z_scale: float = Z_SCALE) -> float:
    """Largest magnitude of a function over the int16 range of z."""
    return float(np.abs(function((np.arange(513) * TABLE_STEP - 32768) * z_scale)).max())


def quantize_recurrent(
    layer: Recurrent, stats: LayerStats, x_scale: float, report: Report, precision: Precision = W8A16
) -> RecurrentLayer:
    """The integer layer. QuantizeError, naming the layer, when a function or weight has no place in the formats."""
    quantize = _rnn if isinstance(layer, Rnn) else _lstm if isinstance(layer, Lstm) else _gru
    return quantize(layer, stats, x_scale, report, precision)


def _row_name(layer: Recurrent) -> Callable[[int], str]:
    def name(row: int) -> str:
        gate, unit = layer.gates[row // layer.n_units], row % layer.n_units
        return f"layer '{layer.name}' row {row} (gate {gate}, unit {unit})"

    return name


# ---- what cells have in common ----


def _gate_table(layer: Recurrent) -> np.ndarray | None:
    """The table of the gates' activation, Q0.15; None for the sigmoid."""
    if layer.functions[0] == "sigmoid":
        return None
    function = as_function(layer.functions[0])
    z = (np.arange(513) * TABLE_STEP - 32768) * Z_SCALE
    lowest = 0.0 if isinstance(layer, Gru) or getattr(layer, "coupled", False) else -1.0
    if function(z).min() < lowest or function(z).max() > 1.0:
        raise QuantizeError(
            f"layer '{layer.name}': the gates' activation {function} leaves {lowest:g} .. 1, so that nothing bounds the state: "
            "train with sigmoid or hard_sigmoid gates"
        )
    return table_of(function, Z_SCALE, 2.0**-H_FRAC)


def _value_table(layer: Recurrent, activation: str | Function) -> tuple[np.ndarray | None, int]:
    """The table of a candidate's or output's activation and its format; None for tanh."""
    if activation == "tanh":
        return None, H_FRAC
    function = as_function(activation)
    frac = frac_for(largest(function))
    if frac < G_FRAC_MIN:
        raise QuantizeError(
            f"layer '{layer.name}': activation {function} reaches {largest(function):.3g} within +-16: train with another one"
        )
    return table_of(function, Z_SCALE, 2.0**-frac), frac


def _clip_code(layer: Recurrent, z_scale: float = Z_SCALE) -> int:
    return int(min(32767.0, max(1.0, np.floor(layer.clip / z_scale + 0.5))))


def _start(layer: Recurrent, h_frac: int, precision: Precision) -> dict[str, np.ndarray | None]:
    """Initial states as codes; both or neither."""
    c0 = layer.c0 if isinstance(layer, Lstm) else layer.h0
    if layer.h0 is None and c0 is None:
        return {"h0": None, "c0": None}
    h0 = np.zeros(layer.n_out) if layer.h0 is None else layer.h0
    c0 = np.zeros(layer.n_units) if c0 is None else c0
    if np.abs(c0).max() >= C_LIMIT:
        raise QuantizeError(
            f"layer '{layer.name}': an initial cell state is {np.abs(c0).max():.3g}, Q9.22 holds less than {C_LIMIT:.0f}"
        )
    h_codes = np.floor(h0 * 2.0**h_frac + 0.5).clip(-precision.h_limit, precision.h_limit).astype(np.int16)
    c_codes = np.clip(np.floor(c0 * 2.0**C_FRAC + 0.5), -(2.0**31), 2.0**31 - 1).astype(np.int32)
    return {"h0": h_codes, "c0": c_codes}


def _h_frac(layer: Recurrent, bounded: bool, stats: LayerStats, precision: Precision) -> int:
    """The format of the hidden state: Q0.15 (or Q0.7) where it is at most 1, else what calibration saw, with headroom."""
    finest = precision.h_bits - 1
    peaks = [stats.peaks.get("y", 0.0), stats.peaks.get("h", 0.0)]
    bounded = bounded and (layer.h0 is None or np.abs(layer.h0).max() <= 1.0)
    headroom = HEADROOM_8 if precision.h_bits == 8 else HEADROOM
    frac = finest if bounded else frac_for(headroom * max(peaks), finest, precision.h_limit)
    if frac < 0:
        raise QuantizeError(
            f"layer '{layer.name}': the hidden state reaches {max(peaks):.3g}: normalise the inputs or use tanh"
        )
    return frac


# ---- one kind each ----


def _lstm(layer: Lstm, stats: LayerStats, x_scale: float, report: Report, precision: Precision) -> LstmLayer:
    candidate, g_frac = _value_table(layer, layer.functions[1])
    output, a_frac = _value_table(layer, layer.functions[2])
    bounded = layer.projection is None and (output is None or largest(as_function(layer.functions[2])) <= 1.0)
    h_frac = _h_frac(layer, bounded, stats, precision)
    w_x, w_h, bias = (_without_forget(layer, a) for a in (layer.w_x, layer.w_h, layer.bias))
    scales, limit = (x_scale, 2.0**-h_frac, Z_SCALE), precision.weight_limit
    q_x, q_h, rows = joined_rows((w_x, w_h), bias, stats.moments, scales, _row_name(layer), report, limit)
    projection = None
    if layer.projection is not None:
        projection, rows_p = _projection(layer, a_frac, h_frac, report)
        rows = stacked(rows, rows_p)
    peephole, peephole_frac = _peephole(layer)
    if output is not None and stats.peaks.get("c", 0.0) > 16:
        report.warnings.append(
            f"layer '{layer.name}': the cell state reaches {stats.peaks['c']:.3g}, its activation {layer.functions[2]} is "
            "held up to 16 only: expect large errors, train with tanh"
        )
    cell = Cell(
        gate=_gate_table(layer),
        candidate=candidate,
        output=output,
        peephole=peephole,
        projection=projection,
        clip=_clip_code(layer),
        coupled=layer.coupled,
        reverse=layer.reverse,
        final=layer.final,
        g_frac=g_frac,
        a_frac=a_frac,
        h_bits=precision.h_bits,
        h_frac=h_frac,
        peephole_frac=peephole_frac,
        **_start(layer, h_frac, precision),
    )
    return LstmLayer(layer.name, q_x, q_h, rows, x_scale, cell, precision.weight_bits)


def _without_forget(layer: Lstm, array: np.ndarray) -> np.ndarray:
    """A coupled cell's forget gate has no weights of its own."""
    if not layer.coupled:
        return array
    array = array.copy()
    array[layer.n_units : 2 * layer.n_units] = 0.0
    return array


def _projection(layer: Lstm, a_frac: int, h_frac: int, report: Report) -> tuple[np.ndarray, Rows]:
    """Integers [n_out, H] over the cell's output, which keeps its activation's format, and their rows, which give h's."""
    n = layer.n_units
    plain = Moments(np.zeros(n), np.eye(n))

    def name(row: int) -> str:
        return f"layer '{layer.name}' row {row} of the projection"

    q, rows = single_rows(
        layer.projection, np.zeros(layer.n_out), plain, 2.0**-a_frac, 2.0**-h_frac, 32767, name, report
    )
    return q.astype(np.int16), rows


def _peephole(layer: Lstm) -> tuple[np.ndarray | None, int]:
    """int16 [3, H] and their format."""
    if layer.peephole is None or not np.any(layer.peephole):
        return None, 0
    peak = float(np.abs(layer.peephole).max())
    frac = frac_for(peak)
    if frac < PEEPHOLE_FRAC[0]:
        raise QuantizeError(
            f"layer '{layer.name}': a peephole weight is {peak:.3g}, 511 at most: retrain with weight decay"
        )
    return np.floor(layer.peephole.reshape(3, -1) * 2.0**frac + 0.5).clip(-32768, 32767).astype(np.int16), frac


def _gru(
    layer: Gru, stats: LayerStats, x_scale: float, report: Report, precision: Precision
) -> GruLayer | GruBeforeLayer:
    candidate, g_frac = _value_table(layer, layer.functions[1])
    bounded = candidate is None or largest(as_function(layer.functions[1])) <= 1.0
    h_frac = _h_frac(layer, bounded, stats, precision)
    cell = Cell(
        gate=_gate_table(layer),
        candidate=candidate,
        clip=_clip_code(layer),
        reverse=layer.reverse,
        final=layer.final,
        g_frac=g_frac,
        h_bits=precision.h_bits,
        h_frac=h_frac,
        **_start(layer, h_frac, precision),
    )
    bias = layer.bias + layer.bias_h
    scales, limit = (x_scale, 2.0**-h_frac, Z_SCALE), precision.weight_limit
    if not layer.reset_after:
        weights = (layer.w_x, layer.w_h)
        q_x, q_h, rows = joined_rows(weights, bias, stats.moments, scales, _row_name(layer), report, limit)
        return GruBeforeLayer(layer.name, q_x, q_h, rows, x_scale, cell, precision.weight_bits)
    gates, candidates = slice(0, 2 * layer.n_out), slice(2 * layer.n_out, None)
    weights = (layer.w_x[gates], layer.w_h[gates])
    q_x, q_h, rows = joined_rows(weights, bias[gates], stats.moments, scales, _row_name(layer), report, limit)
    of_x, of_h = stats.moments.part(slice(0, layer.n_in)), stats.moments.part(slice(layer.n_in, None))

    def name_of(part: str) -> Callable[[int], str]:
        return lambda unit: f"layer '{layer.name}' unit {unit} (gate n, {part} part)"

    parts = [
        single_rows(
            layer.w_x[candidates], layer.bias[candidates], of_x, x_scale, Z_SCALE, limit, name_of("input"), report
        ),
        single_rows(
            layer.w_h[candidates], layer.bias_h[candidates], of_h, scales[1], Z_SCALE, limit, name_of("hidden"), report
        ),
    ]
    (q_nx, rows_nx), (q_nh, rows_nh) = parts
    q_x, q_h = np.vstack([q_x, q_nx.astype(np.int8)]), np.vstack([q_h, q_nh.astype(np.int8)])
    return GruLayer(layer.name, q_x, q_h, stacked(rows, rows_nx, rows_nh), x_scale, cell, precision.weight_bits)


def _rnn(layer: Rnn, stats: LayerStats, x_scale: float, report: Report, precision: Precision) -> RnnLayer:
    """With tanh z is in Q4.11; before a table it gets the format that calibration suggests, and so does h behind it."""
    function = as_function(layer.functions[0])
    plain = layer.functions[0] == "tanh"
    z_frac = Z_FRAC if plain else max(0, frac_for(HEADROOM * stats.peaks.get("z", 0.0)))
    z_scale = 2.0**-z_frac
    bounded = plain or largest(function, z_scale) <= 1.0
    h_frac = _h_frac(layer, bounded, stats, precision)
    cell = Cell(
        candidate=None if plain else table_of(function, z_scale, 2.0**-h_frac),
        clip=_clip_code(layer, z_scale),
        reverse=layer.reverse,
        final=layer.final,
        h_bits=precision.h_bits,
        h_frac=h_frac,
        **(_start(layer, h_frac, precision) | ({} if layer.h0 is None else {"c0": np.zeros(layer.n_units, np.int32)})),
    )
    scales, limit = (x_scale, 2.0**-h_frac, z_scale), precision.weight_limit
    q_x, q_h, rows = joined_rows(
        (layer.w_x, layer.w_h), layer.bias, stats.moments, scales, _row_name(layer), report, limit
    )
    return RnnLayer(layer.name, q_x, q_h, rows, x_scale, cell, precision.weight_bits)
