"""What stepwell says before it believes a model: one test for each fault of the front door, on small inputs.

The cases of the design folder run too, where that folder lies beside the repository.
"""

from __future__ import annotations

from pathlib import Path

import pytest

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"


# ---- W1: windows: the source's window is known, and the gap of carrying on is told ----



# ---- W2: scale: a leading affine is the scaler, channels get a scale of their own ----

def in_units(graph, unit_mean, unit_std):
    """The graph as one that takes x * unit_std + unit_mean, its normalisation hidden in the weights."""
    import numpy as np
    from stepwell.folding import fold_inputs

    return fold_inputs(graph, -np.asarray(unit_mean) / unit_std, 1 / np.asarray(unit_std))


def decibels(exact, other) -> float:
    import numpy as np

    return float(10 * np.log10((exact**2).sum() / ((exact - other) ** 2).sum()))


UNITS = [101_000.0, 22.0, 0.45, 400.0], [1000.0, 5.0, 0.1, 60.0]  # mean and std of four sensors


@pytest.mark.parametrize("hidden", [False, True], ids=["in a layer", "in the weights"])
def test_physical_units_with_the_normalisation_inside(hidden):
    import numpy as np
    import stepwell
    from conftest import random_dense, random_lstm, random_sequences
    from stepwell.float_stream import FloatStream
    from stepwell.graph import Dense, Graph

    rng, (mean, std) = np.random.default_rng(1), np.array(UNITS)
    plain = Graph((random_lstm(rng, 4, 16), random_dense(rng, 16, 2)))
    normal, test = (random_sequences(np.random.default_rng(seed), 16, 50, 4) / 2 for seed in (2, 3))
    affine = Dense("normalise", 1 / std[:, None], -mean / std, groups=4)
    graph = in_units(plain, mean, std) if hidden else Graph((affine, *plain.layers))
    model = stepwell.convert(graph, normal * std + mean)
    exact = FloatStream(plain).run(test)
    assert decibels(exact, np.stack([model.stream().run(x * std + mean) for x in test])) > 55
    (note,) = model.notes["import_notes"]
    assert "input scaler" in note if not hidden else "--no-auto-scale" in note
    if not hidden:
        assert np.allclose(model.scaler.mean, mean, rtol=1e-12) and np.allclose(model.scaler.std, std, rtol=1e-12)
        assert len(model.layers) == 2


def test_channels_get_a_scale_of_their_own_unless_told_not_to(tmp_path):
    import numpy as np
    import stepwell
    from conftest import random_dense, random_gru, random_sequences
    from stepwell.float_stream import FloatStream
    from stepwell.graph import Graph

    rng, ratio = np.random.default_rng(4), np.array([10.0, 100.0, 1000.0, 10000.0])
    plain = Graph((random_gru(rng, 4, 12), random_dense(rng, 12, 1)))
    x, test = (random_sequences(np.random.default_rng(seed), 16, 50, 4) / 2 for seed in (5, 6))
    graph, exact = in_units(plain, 0 * ratio, ratio), FloatStream(plain).run(test)
    own, one = (stepwell.convert(graph, x * ratio, auto_scale=auto) for auto in (True, False))
    alike = stepwell.convert(plain, x)
    db = [decibels(exact, m.reference().run(test * r)) for m, r in ((own, ratio), (one, ratio), (alike, 1.0))]
    assert db[0] > db[2] - 3 and db[1] < db[0] - 10, db
    assert one.scaler.is_identity and alike.scaler.is_identity and not alike.notes["import_notes"]




# ---- W3: fidelity: noise is never silent ----



# ---- W4: padding='same': exact in windows, refused in carry ----



# ---- W5: check: source, float stream and integer side by side ----



# ---- W6: columns are matched by name ----



# ---- W7: csv headers of numbers ----



# ---- W8: banners and noise before a live stream ----



# ---- W9: held outputs ----



# ---- W10: hard_sigmoid by the version of Keras ----



# ---- W11: raw data into a model of scaled data ----

def test_raw_data_in_a_model_of_scaled_data_names_the_channel(tmp_path):
    import numpy as np
    import stepwell
    from conftest import random_dense, random_lstm, random_sequences
    from stepwell.graph import Graph

    rng = np.random.default_rng(7)
    graph = Graph((random_lstm(rng, 3, 16), random_dense(rng, 16, 1)))
    scaled = random_sequences(rng, 16, 40, 3) / 4
    rows = scaled.reshape(-1, 3) * [1, 300, 1] + [0, 1221, 0]
    csv = tmp_path / "log.csv"
    csv.write_text("a,CO2,b\n" + "\n".join(",".join(f"{v:.6g}" for v in row) for row in rows) + "\n")
    model = stepwell.convert(graph, csv, columns=["a", "CO2", "b"])
    said = [text for text in model.notes["warnings"] if "scaled data" in text]
    low, high = rows[:, 1].min(), rows[:, 1].max()
    assert len(said) == 1 and f"channel CO2 is {low:.4g} .. {high:.4g}" in said[0] and "--scaler" in said[0]
    assert "channel a" not in said[0]
    # the same numbers with the scaler, and in a model that was trained on them: nothing to say
    scaler = {"mean": [0, 1221, 0], "std": [1, 300, 1]}
    for source, options in ((graph, {"scaler": scaler}), (in_units(graph, [0, 1221, 0], [1.0, 300, 1]), {})):
        calm = stepwell.convert(source, csv, columns=["a", "CO2", "b"], **options)
        assert not any("scaled data" in text for text in calm.notes["warnings"])




# ---- W12: several outputs ----



# ---- W13: hidden weights that keep few codes ----

def test_hidden_weights_that_keep_few_codes_are_told():
    import numpy as np
    import stepwell
    from conftest import random_dense, random_lstm
    from stepwell.graph import Graph

    rng = np.random.default_rng(8)
    lstm = random_lstm(rng, 257, 8)
    graph = Graph((lstm, random_dense(rng, 8, 1)))
    x = np.abs(rng.normal(size=(8, 60, 257))) * np.exp(rng.normal(size=(8, 60, 1)) * 1.5)
    wide = stepwell.convert(graph, x * 20)
    (said,) = [text for text in wide.notes["warnings"] if "codes" in text]
    assert f"layer '{lstm.name}' row" in said and "gate" in said and "w8x16h8" in said and "--scaler" in said
    assert "hidden weights" in said and np.abs(wide.layers[0].w_h).max(axis=1).min() < 32
    calm = stepwell.convert(graph, x / 200)
    assert not any("codes" in text for text in calm.notes["warnings"])
    assert np.abs(calm.layers[0].w_h).max(axis=1).min() >= 32




# ---- W14: short calibration sequences ----

def test_short_sequences_for_a_carried_stream_are_told_and_run_end_to_end():
    from dataclasses import replace

    import numpy as np
    import stepwell
    from conftest import random_dense, random_lstm
    from stepwell.float_stream import FloatStream
    from stepwell.graph import Graph

    rng = np.random.default_rng(0)
    lstm = random_lstm(rng, 3, 12, 0.8)
    bias = lstm.bias.copy()
    bias[12:24] += 4.5  # the forget gates: a memory of a hundred steps
    graph = Graph((replace(lstm, bias=bias), random_dense(rng, 12, 2)))
    short, long = rng.normal(size=(32, 12, 3)), rng.normal(size=(4, 600, 3))
    model = stepwell.convert(graph, short)
    (said,) = [text for text in model.notes["warnings"] if "without a reset" in text]
    assert "short for mode carry" in said
    assert decibels(FloatStream(graph).run(long), model.reference().run(long)) > 45  # 33 by the short ones alone
    windows = stepwell.convert(graph, short, mode="slide:12")
    assert not any("without a reset" in text for text in windows.notes["warnings"])




# ---- W15: concatenations of relu layers at 8 bits ----

def test_finer_inputs_beside_hidden_states_of_8_bits_cost_nothing():
    from dataclasses import replace

    import numpy as np
    import stepwell
    from conftest import random_dense, random_gru, random_sequences
    from stepwell.float_stream import FloatStream
    from stepwell.graph import Concat, Graph

    rng = np.random.default_rng(9)

    def relu(n_in, n):
        return replace(random_gru(rng, n_in, n, 1.0), functions=("sigmoid", "relu"), reset_after=False)

    first = relu(6, 8)
    graph = Graph(
        (
            *(replace(first, w_x=first.w_x * 4), Concat("b", (8, 6)), relu(14, 8), Concat("d", (8, 14)), relu(22, 8)),
            random_dense(rng, 8, 2, "tanh"),
        ),
        sources=((0,), (1, 0), (2,), (3, 2), (4,), (5,)),
    )
    x, test = (random_sequences(np.random.default_rng(seed), 16, 60, 6) / 4 for seed in (10, 11))
    exact = FloatStream(graph).run(test)
    models = {p: stepwell.convert(graph, x, precision=p) for p in ("w8a16", "w8x16h8", "w8a8")}
    db = {p: decibels(exact, model.reference().run(test)) for p, model in models.items()}
    assert db["w8x16h8"] >= db["w8a8"] - 0.5 and db["w8a16"] > db["w8x16h8"] > 40, db
    # a concatenation holds what its widest source can reach, in steps of 16 bits: not the step of 8 bits
    first, joined = models["w8x16h8"].layers[:2]
    assert np.isclose(joined.y_scale, max(127 * first.y_scale, 32767 * models["w8x16h8"].x_scale) / 32767)
    assert not any("bits beside" in text for text in models["w8x16h8"].notes["warnings"])




# ---- W16: info's ranges by channel ----

def info_of(model, path) -> tuple[dict, str]:
    """What ``stepwell info`` says of the input: as JSON, and all it says as text."""
    import json

    from click.testing import CliRunner
    from stepwell.cli.commands import cli

    model.save(path)
    ask = CliRunner().invoke
    return json.loads(ask(cli, ["info", str(path), "--json"]).output)["input"], ask(cli, ["info", str(path)]).output


def test_info_gives_the_range_of_each_channel(tmp_path):
    import numpy as np
    import stepwell
    from conftest import random_dense, random_lstm, random_sequences
    from stepwell.graph import Graph

    rng = np.random.default_rng(12)
    graph = Graph((random_lstm(rng, 2, 4), random_dense(rng, 4, 1)))
    scaler = {"mean": [101_000.0, 22.0], "std": [60.0, 2.0]}
    x = random_sequences(rng, 8, 30, 2)
    in_units = stepwell.convert(graph, x * scaler["std"] + scaler["mean"], scaler=scaler)
    facts, text = info_of(in_units, tmp_path / "units.stw")
    assert facts["range"] is None and facts["ranges"][0][0] > 90_000 and facts["ranges"][1][1] < 1000
    for k, (low, high) in enumerate(facts["ranges"]):
        assert f"channel {k}: {low:.4g} .. {high:.4g}" in text
    facts, text = info_of(stepwell.convert(graph, x), tmp_path / "plain.stw")
    assert facts["range"] == facts["ranges"][0] == facts["ranges"][1] and "channel 0" not in text




# ---- the cases of the design folder ----


@pytest.mark.skipif(not CASES.is_dir(), reason="not part of the repository: the cases beside it")
def test_case_raw_units_normalised_inside():
    import numpy as np
    import stepwell

    folder = CASES / "raw_units_normalised_inside"
    model = stepwell.convert(folder / "weather.onnx", folder / "weather.npz")
    x, y = np.load(folder / "weather.npz")["x"], np.load(folder / "expected.npz")["y"]
    assert decibels(y, np.stack([model.stream().run(sequence) for sequence in x])) >= 55
    assert any("input scaler" in note for note in model.notes["import_notes"])
