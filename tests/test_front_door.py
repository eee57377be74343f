"""What stepwell says before it believes a model: one test for each fault of the front door, on small inputs.

The cases of the design folder run too, where that folder lies beside the repository.
"""

from __future__ import annotations

from pathlib import Path

import pytest

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"


# ---- W1: windows: the source's window is known, and the gap of carrying on is told ----


# ---- W2: scale: a leading affine is the scaler, channels get a scale of their own ----


# ---- W3: fidelity: noise is never silent ----


# ---- W4: padding='same': exact in windows, refused in carry ----


# ---- W5: check: source, float stream and integer side by side ----


# ---- W6: columns are matched by name ----


# ---- W7: csv headers of numbers ----


# ---- W8: banners and noise before a live stream ----


# ---- W9: held outputs ----


def held_models():
    """Models that hold outputs: by window modes, by strides, by a warm-up, and by all of them. With inputs [T, n_in]."""
    import stepwell
    from conftest import graph_of, sequences_for

    for name, modes in (
        ("lstm dense", ["slide:30/5", "stagger:30/6", "slide:30/30"]),
        ("strided conv and residual", ["carry", "tumble:24", "slide:24/5"]),
        ("valid conv, max pool", ["carry", "tumble:24"]),
    ):
        graph = graph_of(name)
        for mode in modes:
            model = stepwell.convert(graph, sequences_for(graph, 21, 8, 48), mode=mode)
            yield f"{name} {mode}", model, sequences_for(graph, 22, 1, 75)[0]


def test_a_snapshot_holds_the_output_at_every_cut():
    import numpy as np

    for name, model, x in held_models():
        stream, other = model.stream(), model.stream()
        whole = model.reference().run(x)
        snapshots, fresh = [stream.save()], []
        for row in x:
            stream.step(row)
            fresh.append(stream.fresh)
            snapshots.append(stream.save())
        assert np.array_equal(model.stream().run(x), whole) and 0 < sum(fresh) < len(x), name
        for cut, snapshot in enumerate(snapshots):
            other.run(x[:7])  # what it held before is forgotten
            other.load(snapshot)
            assert np.array_equal(other.y, whole[cut - 1] if cut else 0 * whole[0]), (name, cut)
            assert np.array_equal(other.run(x[cut:]), whole[cut:]), (name, cut)


def test_fresh_tells_new_outputs_from_held_ones():
    import numpy as np

    for name, model, x in held_models():
        stream, reference, batch = model.stream(), model.reference(), model.batch(3, 2)
        assert not stream.fresh and not reference.fresh and not batch.fresh
        held = np.zeros(model.n_out)
        for row in x:
            y = stream.step(row)
            assert np.array_equal(reference.step(row), y), name
            assert np.array_equal(batch.step(np.tile(row, (3, 1))), np.tile(y, (3, 1))), name
            assert stream.fresh == reference.fresh == batch.fresh, name
            assert stream.fresh or np.array_equal(y, held), name
            held = y
        last = stream.fresh
        for runner in (stream, reference):
            runner.reset()
            assert not runner.fresh
            runner.run(x)
            assert runner.fresh == last
        stream.load(stream.save())
        assert not stream.fresh


def test_run_prints_new_outputs_only(tmp_path):
    import json

    import numpy as np
    from click.testing import CliRunner
    from stepwell.cli.commands import cli

    for name, model, x in held_models():
        file, data = tmp_path / "m.stw", tmp_path / "x.csv"
        model.save(file)
        np.savetxt(data, x, delimiter=",")
        stream = model.stream()
        steps = [([float(v) for v in stream.step(row)], stream.fresh) for row in x]

        def printed(*options, file=file, data=data):
            done = CliRunner().invoke(cli, ["run", str(file), str(data), *options])
            assert done.exit_code == 0, done.output
            return done.stdout.splitlines()

        assert printed() == [",".join(f"{v:.9g}" for v in y) for y, fresh in steps if fresh], name
        assert printed("--held") == [",".join(f"{v:.9g}" for v in y) for y, _ in steps], name
        new = [{"row": row, "y": y, "new": True} for row, (y, fresh) in enumerate(steps, 1) if fresh]
        assert [json.loads(line) for line in printed("--json")] == new, name
        every = [{"row": row, "y": y, "new": fresh} for row, (y, fresh) in enumerate(steps, 1)]
        assert [json.loads(line) for line in printed("--json", "--held")] == every, name


def test_a_snapshot_without_the_output_is_refused_as_another_format():
    """Snapshots of format 1 began with STWS and were shorter by the output."""
    import struct
    import zlib

    import stepwell
    from stepwell._engine import lib
    from test_blob_bounds import Bound

    for _, model, x in held_models():
        stream = model.stream()
        stream.run(x[:40])
        snapshot, digest = stream.save(), stream.digest()
        body = snapshot[:-4]
        for old in (b"STWS" + body[4:], b"STWS" + body[4 : -4 * model.n_out], snapshot[:3] + b"\3" + body[4:]):
            sealed = old + struct.pack("<I", zlib.crc32(old))
            assert lib.stw_load(Bound(model).stream, sealed, len(sealed)) == lib.STW_E_FORMAT
            with pytest.raises(stepwell.ModelError, match="not a stepwell model or snapshot of this format"):
                stream.load(sealed)
        assert stream.digest() == digest


def test_a_step_in_c_gives_the_held_output_into_any_memory():
    from stepwell._engine import ffi, lib
    from test_blob_bounds import Bound

    for name, model, x in held_models():
        bound, codes, expected = Bound(model), model.quantize(x), model.reference().run_q(model.quantize(x))
        size = lib.stw_snapshot_bytes(bound.model)
        assert size == model.info()["snapshot_bytes"] == len(model.stream().save())
        buffer = ffi.new("uint8_t[]", size)
        for t, row in enumerate(codes):
            y = ffi.new("int32_t[]", [99] * model.n_out)
            status = lib.stw_step(bound.stream, ffi.new("int16_t[]", row.tolist()), y)
            assert status in (lib.STW_OK, lib.STW_HOLD) and list(y) == expected[t].tolist(), (name, t)
            assert lib.stw_save(bound.stream, buffer, size) == lib.STW_OK
            bound = Bound(model)  # as after a sleep in which RAM was lost
            assert lib.stw_load(bound.stream, buffer, size) == lib.STW_OK


def test_a_model_that_never_holds_needs_no_more_memory(small_model):
    """One layer of 3 units: c and h; 3 codes of scratch."""
    assert small_model.info()["state_bytes"] == round_up_4(3 * 4 + 4 * 2) and small_model.mode.kind == "carry"


def round_up_4(n: int) -> int:
    return (n + 3) // 4 * 4


# ---- W10: hard_sigmoid by the version of Keras ----


# ---- W11: raw data into a model of scaled data ----


# ---- W12: several outputs ----


# ---- W13: hidden weights that keep few codes ----


# ---- W14: short calibration sequences ----


# ---- W15: concatenations of relu layers at 8 bits ----


# ---- W16: info's ranges by channel ----


# ---- the cases of the design folder ----


@pytest.mark.skipif(not CASES.is_dir(), reason="not part of the repository: the cases beside it")
@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (
            "F08_missed_window.stw",
            "mode stagger:16/4: the model gives an output every 3 steps, and none at the window's",
        ),
        ("F10_overlapping_places.stw", "layer 1 'dense12x6' writes over the output of layer 0 'window'"),
    ],
)
def test_models_that_the_exporter_never_writes(file, reason):
    import stepwell
    from stepwell._engine import lib
    from test_blob_bounds import opened

    path = CASES / "hostile" / file
    assert opened(path.read_bytes(), 64) == lib.STW_E_SHAPE
    with pytest.raises(stepwell.ModelError, match=f"{file}: {reason}"):
        stepwell.load(path)
