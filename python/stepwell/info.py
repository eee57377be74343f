"""What a model is and costs, as plain JSON types: sizes are exact for 32-bit targets."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np

from stepwell.blob import CHANNEL, blob_of, model_id
from stepwell.engine import OpenModel, lib
from stepwell.layers.base import Packed
from stepwell.network import FORMAT, Network

# sizeof on a 32-bit target; emitted C asserts them when it is compiled for one
MODEL_STRUCT_BYTES = 28
LAYER_STRUCT_BYTES = 40
STREAM_STRUCT_BYTES = 16


def describe(model: Network, packing: str = "plain") -> dict[str, Any]:
    """Sizes, formats, scales, layers and provenance of ``model``, its rows in ``packing``."""
    ram = ram_bytes(model)
    return {
        "name": model.name,
        "id": f"{model_id(blob_of(model)):08x}",
        "format": FORMAT,
        "precision": model.notes.get("precision", "w8a16"),
        "n_in": model.n_in,
        "n_out": model.n_out,
        "input": {"type": "int16", "scale": model.x_scale, **input_ranges(model)},
        "output": {"type": "int32", "format": f"Q{model.y_frac}", "scale": 2.0**-model.y_frac},
        "outputs": outputs(model),
        "flash_bytes": flash_bytes(model, packing),
        "ram_bytes": ram["state"] + ram["scratch"],
        "state_bytes": ram["state"],
        "scratch_bytes": ram["scratch"],
        "stream_struct_bytes": STREAM_STRUCT_BYTES,
        "snapshot_bytes": ram["snapshot"],
        "stw_file_bytes": len(blob_of(model)),
        "macs_per_step": macs_per_step(model),
        "mode": str(model.mode),
        "timing": timing(model),
        "scaler": model.scaler.to_json(),
        "layers": [_describe_layer(model, index, packing) for index in range(len(model.layers))],
        "notes": model.notes,
    }


def outputs(model: Network) -> list[dict[str, Any]]:
    """What the source calls its outputs: "name", the index of the "first" value and the "size";
    empty where it has no names.
    """
    named = model.notes.get("outputs", [])
    firsts = accumulate((output["size"] for output in named), initial=0)
    return [
        {"name": output["name"], "first": first, "size": output["size"]}
        for output, first in zip(named, firsts, strict=False)
    ]


def ram_bytes(model: Network) -> dict[str, int]:
    """Bytes of a stream: "state" (kept between steps), "scratch" (during a step) and "snapshot"; as
    the C library lays them out.
    """
    opened = OpenModel(blob_of(model))
    return {
        "state": int(lib.stw_state_bytes(opened.model)),
        "scratch": int(lib.stw_scratch_bytes(opened.model)),
        "snapshot": int(lib.stw_snapshot_bytes(opened.model)),
    }


def flash_bytes(model: Network, packing: str = "plain") -> int:
    """Constants of the emitted model on a 32-bit target: structs, rows and weights; the engine's
    code comes on top.
    """
    channels = 0 if model.scaler.channels is None else model.n_in * CHANNEL.itemsize
    return MODEL_STRUCT_BYTES + channels + sum(map(_layer_flash, model.packed(packing)))


def _layer_flash(layer: Packed) -> int:
    arrays = [-(-array.nbytes // 4) * 4 for array in layer.arrays if array is not None]
    return LAYER_STRUCT_BYTES + sum(arrays)  # each aligned to 4


def input_ranges(model: Network) -> dict[str, Any]:
    """``ranges``: of each channel the smallest and the largest input that a code stands for, in the
    user's units. ``range``: the one that all channels share, None where they differ.
    """
    ranges = np.stack(model.scaler.range(model.n_in, model.x_scale), axis=1).tolist()
    return {
        "ranges": ranges,
        "range": ranges[0] if all(ends == ranges[0] for ends in ranges) else None,
    }


def macs_per_step(model: Network) -> float:
    """Multiply-accumulates of a step, on average over those of a turn of the mode and of strides."""
    return round(
        sum(
            layer.macs * runs
            for layer, runs in zip(model.layers, runs_per_step(model), strict=True)
        )
    )


def runs_per_step(model: Network) -> list[float]:
    """How often each layer runs at a step, on average over a turn of the mode; a window's end takes
    more steps than it has.
    """
    mode = model.mode
    every = [timing.every for timing in model.timing]
    if mode.kind == "carry":
        return [1 / n for n in every]
    turns = mode.window / mode.stride if mode.kind == "slide" else mode.n_copies
    return [turns * (1 + lag / mode.window) / n for n, lag in zip(every, model.lags, strict=True)]


def timing(model: Network) -> dict[str, int]:
    """``first_output``: the step (from 0) of the first output after a reset; ``output_every``:
    steps from one to the next.

    ``remembers_steps``: how many inputs an output depends on, -1 for all since the reset (a
    recurrent layer in mode carry).
    """
    last = model.timing[-1]
    if model.mode.kind == "carry" or (model.mode.kind == "tumble" and model.mode.stride == 1):
        first, every = last.first, last.every
        if model.mode.kind == "tumble":
            # with the window's end comes all that is left
            first = min(first, model.mode.window - 1)
    else:
        first, every = model.mode.first, model.mode.stride
    window = model.mode.window if model.mode.kind != "carry" else -1
    return {"first_output": first, "output_every": every, "remembers_steps": window}


def _describe_layer(model: Network, index: int, packing: str) -> dict[str, Any]:
    layer, timing = model.layers[index], model.timing[index]
    described = {
        "name": layer.name,
        "kind": layer.kind,
        "n_in": layer.n_in,
        "n_out": layer.n_out,
        "activation": layer.activation,
        "x_scale": layer.x_scale,
        "y_scale": layer.y_scale,
        "macs": layer.macs,
        "sources": list(model.sources[index]),
        "first": timing.first,
        "every": timing.every,
        "flash_bytes": _layer_flash(model.packed(packing)[index]),
        "overflow_margin_bits": round(float(layer.margin_bits().min(initial=31.0)), 2),
    }
    return described | layer.described()
