"""What a model is and costs, as plain JSON types: sizes are exact for 32-bit targets."""

from __future__ import annotations

from typing import Any

from stepwell import proof
from stepwell.blob import ROW, packed_weights
from stepwell.engine import OpenModel, lib
from stepwell.model import FORMAT, IntLayer, Model, RecurrentLayer

# sizeof on a 32-bit target; emitted C asserts them when it is compiled for one
MODEL_STRUCT_BYTES = 20
LAYER_STRUCT_BYTES = 20
STREAM_STRUCT_BYTES = 20


def describe(model: Model) -> dict[str, Any]:
    """Sizes, formats, scales, layers and provenance of ``model``."""
    ram = ram_bytes(model)
    return {
        "name": model.name,
        "id": f"{model.id:08x}",
        "format": FORMAT,
        "precision": "w8a16",
        "n_in": model.n_in,
        "n_out": model.n_out,
        "input": {"type": "int16", "scale": model.x_scale, "range": [-32768 * model.x_scale, 32767 * model.x_scale]},
        "output": {"type": "int32", "format": f"Q{model.y_frac}", "scale": 2.0**-model.y_frac},
        "flash_bytes": flash_bytes(model),
        "ram_bytes": ram["state"] + ram["scratch"],
        "state_bytes": ram["state"],
        "scratch_bytes": ram["scratch"],
        "stream_struct_bytes": STREAM_STRUCT_BYTES,
        "snapshot_bytes": ram["snapshot"],
        "stw_file_bytes": len(model.blob),
        "macs_per_step": sum(macs(layer) for layer in model.layers),
        "layers": [_describe_layer(layer) for layer in model.layers],
        "notes": model.notes,
    }


def ram_bytes(model: Model) -> dict[str, int]:
    """Bytes of a stream: "state" (kept between steps), "scratch" (during a step) and "snapshot"; as the C library lays them out."""
    opened = OpenModel(model.blob)
    return {
        "state": int(lib.stw_state_bytes(opened.model)),
        "scratch": int(lib.stw_scratch_bytes(opened.model)),
        "snapshot": int(lib.stw_snapshot_bytes(opened.model)),
    }


def flash_bytes(model: Model) -> int:
    """Constants of the emitted model on a 32-bit target: structs, rows and weights; the engine's code comes on top."""
    return MODEL_STRUCT_BYTES + sum(_layer_flash(layer) for layer in model.layers)


def _layer_flash(layer: IntLayer) -> int:
    arrays = [-(-array.nbytes // 4) * 4 for array in packed_weights(layer) if array is not None]  # aligned to 4
    return LAYER_STRUCT_BYTES + sum(arrays) + len(layer.rows) * ROW.itemsize


def macs(layer: IntLayer) -> int:
    """Multiply-accumulates of one step."""
    return sum(array.size for array in packed_weights(layer) if array is not None)


def _describe_layer(layer: IntLayer) -> dict[str, Any]:
    described = {
        "name": layer.name,
        "kind": layer.kind,
        "n_in": layer.n_in,
        "n_out": layer.n_out,
        "activation": layer.activation,
        "x_scale": layer.x_scale,
        "y_scale": layer.y_scale,
        "macs": macs(layer),
        "flash_bytes": _layer_flash(layer),
        "overflow_margin_bits": round(proof.layer_margin_bits(layer), 2),
    }
    if isinstance(layer, RecurrentLayer):
        described["formats"] = {"w": "int8", "h": "int16 Q0.15", "z": "int16 Q4.11"}
        if layer.kind != "rnn":
            described["formats"]["c"] = "int32 Q9.22"
    return described
