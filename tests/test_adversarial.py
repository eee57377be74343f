"""Inputs and states made to overflow: they come close to the proven bound of a row, never past it,
and the checked C is silent.

What the proof says of a row holds for any x and h in -32768..32767. The worst ones have the signs
of its weights.
"""

import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
import stepwell
from conftest import ROOT, full
from stepwell.emit import copy_engine
from stepwell.integer import proof
from stepwell.layers import RecurrentLayer
from stepwell.link.hil import SNAPSHOT_HEADER, snapshot_parts
from stepwell.model import Model
from stepwell.quantize.dequantize import gate_records
from stepwell.reference import Reference
from test_native import BUILDS, COMPILERS, GOLDEN, SANITIZERS, compiled

CLOSE = 0.9  # of the bound
LOW, HIGH = -32768, 32767


def can_be_attacked(model: Model) -> bool:
    """The caller's codes and the state enter a recurrent layer as they are."""
    return isinstance(model.layers[0], RecurrentLayer) and model.mode.kind == "carry"


NAMES = [path.stem for path in GOLDEN if can_be_attacked(stepwell.load(path))]


@pytest.fixture(params=full(["turbofan", *NAMES], "turbofan", *NAMES[::9]))
def attacked(request, turbofan) -> Model:
    return (
        turbofan
        if request.param == "turbofan"
        else stepwell.load(ROOT / "tests" / "golden" / f"{request.param}.stw")
    )


def attacks(model: Model) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(record, x, h) for each row record of the first layer, towards plus and minus."""
    layer = model.layers[0]
    n_records = len(layer.records) * layer.n_units
    w_x, w_h = np.zeros((n_records, layer.n_in), int), np.zeros((n_records, layer.n_out), int)
    of_x, of_h = gate_records(layer)
    w_x[of_x], w_h[of_h] = layer.w_x, layer.w_h
    return [
        (
            record,
            np.where(sign * w_x[record] > 0, HIGH, LOW),
            np.where(sign * w_h[record] > 0, HIGH, LOW),
        )
        for record in range(n_records)
        for sign in (1, -1)
    ]


def with_hidden(model: Model, h: np.ndarray) -> bytes:
    """A snapshot of a stream just begun, but for the first layer's hidden state."""
    snapshot = bytearray(model.stream().save()[:-4])
    parts = snapshot_parts(model, bytes(snapshot) + bytes(4))
    before = next(k for k, part in enumerate(parts) if part.index == 0)
    cells, hidden = (
        sum(part.n_cells for part in parts),
        sum(part.n_hidden for part in parts[:before]),
    )
    struct.pack_into(
        f"<{len(h)}h", snapshot, SNAPSHOT_HEADER + 4 * cells + 2 * hidden, *map(int, h)
    )
    return bytes(snapshot) + struct.pack("<I", zlib.crc32(snapshot))


def test_the_bound_is_nearly_reached_and_never_passed(attacked):
    bound = proof.bounds(*attacked.layers[0].weight_sums(), attacked.layers[0].rows)[1]
    seen: list[np.ndarray] = []
    reference = Reference(
        attacked, lambda k, name, v: seen.append(v.ravel()) if (k, name) == (0, "acc") else None
    )
    reached = np.zeros(len(bound))
    for record, x, h in attacks(attacked):
        reference.restore(snapshot_parts(attacked, with_hidden(attacked, h)))
        reference.step_q(x.astype(np.int16))
        acc = np.abs(seen.pop())
        assert (acc <= bound[: len(acc)]).all() and acc.max() <= proof.INT32_MAX
        reached[record] = max(reached[record], acc[record] / bound[record])
    assert reached.max() >= CLOSE


@pytest.fixture(params=full(COMPILERS, *COMPILERS[:1]), scope="module")
def program(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adversarial")
    copy_engine(folder)
    flags = [*BUILDS["checked"], *SANITIZERS[request.param]]
    return compiled(folder, request.param, flags, str(ROOT / "tests" / "c" / "adversarial.c"))


@pytest.mark.skipif(not COMPILERS, reason="no C compiler: apt-get install gcc")
def test_checks_and_sanitisers_are_silent(attacked, program):
    pairs = [(with_hidden(attacked, h), x.astype("<i2")) for _, x, h in attacks(attacked)]
    pack = (
        struct.pack("<I", len(attacked.blob))
        + attacked.blob
        + b"".join(s + x.tobytes() for s, x in pairs)
    )
    done = subprocess.run([program], input=pack, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    y = np.frombuffer(done.stdout, "<i4").reshape(-1, attacked.n_out)
    stream = attacked.stream()
    for found, (snapshot, x) in zip(y, pairs, strict=True):
        stream.load(snapshot)
        assert np.array_equal(found, stream.step_q(x.astype(np.int16)))
