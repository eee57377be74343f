"""Instructions a step, estimated: what tools/bench_mcu.py --fit found in emulated runs of LSTMs and
GRUs (costs.json).
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

from stepwell.info import runs_per_step
from stepwell.integer.packing import packing_for
from stepwell.layers.base import IntLayer
from stepwell.network import Network

WALK = 60.0  # instructions of the walk over the layers, for each of them


@cache
def fitted() -> dict[str, dict[str, list[float]]]:
    """By core (packing.TARGETS): cell and width -> instructions for each multiply-accumulate, each
    unit, and each layer.

    "missed": the largest relative error of the fit, over sizes that it has not seen, too.
    """
    return json.loads(files("stepwell").joinpath("costs.json").read_text())


def cores() -> list[str]:
    return list(fitted())


def error(core: str) -> float:
    """Relative error of an estimate for recurrent models, as the fit saw it. Other layers are
    estimated more roughly.
    """
    return float(fitted()[core]["missed"])


def instructions_per_step(model: Network, core: str) -> int:
    """Estimated, on average over a turn of the model's mode. KeyError for an unknown core."""
    runs = runs_per_step(model)
    walks = [
        n * timing.every for n, timing in zip(runs, model.timing, strict=True)
    ]  # also where a layer does not run
    return round(
        sum(
            _layer(layer, core) * n + WALK * walk
            for layer, n, walk in zip(model.layers, runs, walks, strict=True)
        )
    )


def _layer(layer: IntLayer, core: str) -> float:
    table = fitted()[core]
    if not layer.is_recurrent:  # like the sums of a GRU
        return table["gru8"][0] * layer.macs
    packed = " pairs" if layer.packing(packing_for(core)) == "pairs" else ""
    per_mac, per_unit, always = table[f"{layer.like}{layer.weight_bits}{packed}"]
    return per_mac * layer.macs + per_unit * layer.n_units + always
