"""Preprocessing that travels with the model: normalisation, clamps, missing samples, raw counts,
units of outputs, bad input.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from fractions import Fraction
from functools import cache
from math import floor

import numpy as np
import pytest
import stepwell
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import graph_of, random_dense, random_lstm, random_norm, random_sequences
from stepwell._engine import ffi, lib
from stepwell.check import compare
from stepwell.errors import SampleError
from stepwell.graph import Graph
from stepwell.layers import Activation, Add, Concat, Dense, Slice, Window
from stepwell.metrics import sqnr_db
from stepwell.quantize.folding import float_side, fold_inputs, fold_outputs, without_leading_affine
from stepwell.report import analyse
from stepwell.samples import Samples
from stepwell.scaler import MISSING, NO_SCALER, RAW, Scaler, as_scaler
from stepwell.stream import FloatStream, run_in_mode

RNG = np.random.default_rng
GRAPH = Graph((random_lstm(RNG(1), 3, 6), random_dense(RNG(2), 6, 2)))
MEAN, STD = np.array([500.0, -2000.3, 0.25]), np.array([100.0, 3000.0, 5.0])
NORMAL = random_sequences(RNG(8), 8, 40, 3)  # what the network was trained on
USER = NORMAL * STD + MEAN
TEST = random_sequences(RNG(9), 1, 60, 3)[0] * STD + MEAN


@cache
def plain() -> stepwell.Model:
    return stepwell.convert(GRAPH, NORMAL)


def convert(mode: str = "carry", **fields) -> stepwell.Model:
    return stepwell.convert(GRAPH, USER, scaler={"mean": MEAN, "std": STD} | fields, mode=mode)


def every_way(model: stepwell.Model, x: np.ndarray) -> np.ndarray:
    """Outputs of x [T, n_in] by whole run, chunks, single steps and a batch, in NumPy and C: all
    the same.
    """
    expected = model.reference().run(x)
    reference, stream, chunks, batch = (
        model.reference(),
        model.stream(),
        model.stream(),
        model.batch(2),
    )
    assert np.array_equal(model.stream().run(x), expected)
    assert np.array_equal([reference.step(row) for row in x], expected)
    assert np.array_equal([stream.step(row) for row in x], expected)
    assert np.array_equal(
        np.concatenate([chunks.run(x[:7]), chunks.run(x[7:7]), chunks.run(x[7:])]), expected
    )
    assert np.array_equal([batch.step(np.stack([row, row]))[1] for row in x], expected)
    return expected


# ---- the same model on the user's numbers ----


def test_a_scaler_equals_normalised_data():
    model = convert()
    assert model.id == plain().id and model.x_scale == plain().x_scale, (
        "the device's constants are the same"
    )
    exact = FloatStream(GRAPH).run((TEST - MEAN) / STD)
    assert sqnr_db(exact, every_way(model, TEST)) > 45
    ours, theirs = model.quantize(TEST).astype(int), plain().quantize((TEST - MEAN) / STD)
    assert np.abs(ours - theirs).max() <= 1 and (ours != theirs).mean() < 0.01
    assert convert().blob == model.blob


@pytest.mark.parametrize("mode", ["carry", "tumble:9", "slide:9", "stagger:8/4"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"low": [300.0, -1e9, -20.0], "high": [700.0, 1e9, np.inf]},
        {"missing": "hold"},
        {"missing": "hold", "fill": [400.0, -2000.0, 1.0]},
        {"missing": "fill"},
        {"missing": "fill", "fill": [400.0, -2000.0, 1.0]},
        {"raw": "int16"},
        {"raw": "int16", "low": [300.0, -3000.0, -20.0], "high": [700.0, 3000.0, 20.0]},
        {"raw": "int32", "missing": "hold"},
        {"raw": "int32", "missing": "fill", "fill": [1.0, 2.0, 3.0]},
    ],
    ids=str,
)
def test_every_way_through_is_the_same(fields, mode):
    model = convert(mode, **fields)
    assert_same_scaler(stepwell.loads(model.blob).scaler, model.scaler)
    x = np.round(TEST) if "raw" in fields else TEST.copy()
    if "missing" in fields:
        x[RNG(2).random(x.shape) < 0.15] = np.nan
        x[0] = np.nan
    x[5] = 1e300
    x[6] = -1e300
    integer = every_way(model, x)
    calm = np.delete(x, (5, 6), axis=0)  # codes saturate there, and the float side does not
    exact = run_in_mode(GRAPH, model.mode, model.scaler.normalise(calm))
    assert sqnr_db(exact, model.reference().run(calm)) > 37
    assert np.isfinite(integer).all()


def assert_same_scaler(a: Scaler, b: Scaler) -> None:
    for name in Scaler.__dataclass_fields__:
        one, other = getattr(a, name), getattr(b, name)
        if name == "channels" and one is not None:
            for field in one.__dataclass_fields__:
                assert np.array_equal(getattr(one, field), getattr(other, field)), field
        else:
            assert np.array_equal(one, other), name


def test_one_number_for_all_channels():
    one = stepwell.convert(
        GRAPH, NORMAL * 7 + 3, scaler={"mean": 3, "std": 7, "low": -50, "high": 50}
    )
    many = stepwell.convert(
        GRAPH,
        NORMAL * 7 + 3,
        scaler={"mean": [3] * 3, "std": [7] * 3, "low": [-50] * 3, "high": [50] * 3},
    )
    x = NORMAL[0] * 9
    assert one.id == many.id
    assert np.array_equal(every_way(one, x), every_way(many, x))


def test_min_and_max():
    low, high = np.array([100.0, -5.0, 0.0]), np.array([300.0, 5.0, 1e-3])
    x = RNG(3).uniform(0, 1, (8, 30, 3))
    scaled = stepwell.convert(GRAPH, low + x * (high - low), scaler={"min": low, "max": high})
    assert np.allclose(scaled.scaler.normalise(np.stack([low, high])), [[0, 0, 0], [1, 1, 1]])
    expected = stepwell.convert(GRAPH, x).quantize(x)
    assert np.abs(scaled.quantize(low + x * (high - low)).astype(int) - expected).max() <= 1


def test_clamps_limit_what_the_network_sees():
    low, high = MEAN - STD, MEAN + 2 * STD
    model = convert(low=low, high=high)
    x = TEST.copy()
    x[10], x[20] = MEAN - 50 * STD, MEAN + 50 * STD
    clamped = np.clip(x, low, high)
    assert np.array_equal(every_way(model, x), every_way(model, clamped))
    assert np.array_equal(model.scaler.normalise(x), (clamped - MEAN) / STD)
    assert (
        model.x_scale == 2 * np.abs(np.clip(USER, low, high) - MEAN).__truediv__(STD).max() / 32767
    )
    only = convert(low=low)
    assert np.array_equal(only.stream().run(x), only.stream().run(np.maximum(x, low)))


# ---- missing samples ----


def filled_by_hand(x: np.ndarray, rule: str, fill: np.ndarray) -> np.ndarray:
    last, made = np.array(fill, float), []
    for row in x:
        last = np.array(
            [
                v if not np.isnan(v) else (last[k] if rule == "hold" else fill[k])
                for k, v in enumerate(row)
            ]
        )
        made.append(last)
    return np.array(made)


@pytest.mark.parametrize("mode", ["carry", "slide:9", "tumble:5", "stagger:6/3"])
@pytest.mark.parametrize("raw", ["", "int16", "int32"])
@pytest.mark.parametrize("rule", ["hold", "fill"])
def test_missing_samples(rule, raw, mode):
    fill = np.array([450.0, -1500.0, 2.0])
    model = convert(mode, missing=rule, raw=raw, fill=fill)
    x = np.round(TEST)
    x[RNG(4).random(x.shape) < 0.3] = np.nan
    x[:3, 1] = np.nan  # before the channel's first
    by_hand = filled_by_hand(x, rule, fill)
    assert np.array_equal(every_way(model, x), every_way(model, by_hand))
    assert np.array_equal(model.scaler.normalise(x), model.scaler.normalise(by_hand))
    stream, reference = model.stream(), model.reference()
    for runner in (stream, reference):  # a reset forgets what is held
        runner.run(by_hand)
        runner.reset()
        assert np.array_equal(runner.run(x), model.reference().run(x))


def test_missing_samples_become_the_mean_where_no_fill_is_given():
    model = convert(missing="fill")
    x = np.where(RNG(4).random(TEST.shape) < 0.3, np.nan, TEST)
    assert np.array_equal(every_way(model, x), every_way(model, np.where(np.isnan(x), MEAN, x)))


@pytest.mark.parametrize("raw", ["", "int16"])
def test_a_fill_value_is_clamped_like_any_other(raw):
    high = MEAN + STD
    model = convert(raw=raw, high=high, missing="fill", fill=MEAN + 10 * STD)
    gap = np.full((1, 3), np.nan)
    assert np.abs(model.quantize(gap) - np.floor(1 / model.x_scale + 0.5)).max() <= 1
    assert np.allclose(model.scaler.normalise(gap), 1.0)


def test_held_codes_are_part_of_a_snapshot():
    model = convert("slide:5", missing="hold")
    stream, other = model.stream(), model.stream()
    stream.run(TEST[:20])
    gap = np.full((6, 3), np.nan)
    other.run(TEST[30:40])
    other.load(stream.save())
    assert np.array_equal(other.run(gap), stream.run(gap))
    assert other.digest() == stream.digest()


@pytest.mark.parametrize("raw", ["", "int16"])
def test_missing_samples_are_refused_and_change_nothing(raw):
    model = convert(raw=raw)
    stream, reference, batch = model.stream(), model.reference(), model.batch(2)
    stream.run(TEST[:5])
    digest, bad = stream.digest(), TEST[:4].copy()
    bad[2, 1] = np.nan
    for call in (
        lambda: stream.run(bad),
        lambda: stream.step(bad[2]),
        lambda: reference.run(bad),
        lambda: batch.step(bad[1:3]),
    ):
        with pytest.raises(SampleError, match="nan at index"):
            call()
    assert stream.digest() == digest
    with pytest.raises(SampleError, match=r"nan at step 2, input 1 .*fill or drop"):
        stepwell.convert(GRAPH, [bad], scaler={"mean": MEAN, "std": STD})


@pytest.mark.parametrize("rule", MISSING)
def test_infinity_is_never_a_missing_sample(rule):
    model = convert(missing=rule)
    bad = TEST.copy()
    bad[3, 0] = -np.inf
    for runner in (model.stream(), model.reference()):
        with pytest.raises(SampleError, match="inf at index"):
            runner.run(bad)
    with pytest.raises(SampleError, match="inf at step 3"):
        stepwell.convert(GRAPH, [bad], scaler={"missing": rule})


def test_calibration_with_gaps_equals_calibration_without():
    x = USER.copy()
    x[RNG(6).random(x.shape) < 0.2] = np.nan
    x[:, 0] = np.nan
    fields = {"mean": MEAN, "std": STD, "missing": "hold"}
    gaps = stepwell.convert(GRAPH, x, scaler=fields)
    whole = stepwell.convert(GRAPH, [filled_by_hand(s, "hold", MEAN) for s in x], scaler=fields)
    assert gaps.id == whole.id


# ---- raw counts ----


def exact_codes(model: stepwell.Model, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """floor(((clamp(raw) - mean) / std) / x_scale + 1/2) in exact numbers, and how far the argument
    is from an integer.
    """
    scaler, lowest, highest = model.scaler, *RAW[model.scaler.raw]
    fields = {name: scaler.field(name, model.n_in) for name in ("mean", "std", "low", "high")}
    codes, distance = np.zeros(raw.shape, int), np.zeros(raw.shape)
    for j in range(model.n_in):
        mean, unit = (
            Fraction(float(fields["mean"][j])),
            Fraction(float(fields["std"][j])) * Fraction(model.x_scale),
        )
        for t, v in enumerate(raw[:, j]):
            v = min(max(int(v), lowest), highest)
            v = min(max(v, np.ceil(fields["low"][j])), np.floor(fields["high"][j]))
            code = (Fraction(v) - mean) / unit + Fraction(1, 2)
            codes[t, j] = min(max(floor(code), -32768), 32767)
            distance[t, j] = float(abs(code - round(code)))
    return codes, distance


EVERY_INT16 = np.stack(
    [RNG(k).permutation(np.arange(-32768, 32768))[:6000] for k in range(3)], axis=1
)
ENDS = np.array([[v] * 3 for v in (-(2**31) + 1, -(2**31) + 2, -1, 0, 1, 2**31 - 2, 2**31 - 1)])


@pytest.mark.parametrize(
    ("raw", "mean", "std"),
    [
        ("int16", [0, 0, 0], [1000, 300, 30]),
        ("int16", [100, -200, 5], [1024, 256, 32]),
        ("int16", [100.3, -200.7, 5.5], [1000.1, 300, 33.3]),
        ("int16", [40000, -50000, 5.5], [3000, 300, 30]),
        ("int16", [1e6, -1e8, 0.49], [1e4, 1e7, 1e-3]),
        ("int32", [0, 0, 0], [2.0**20, 2.0**10, 1]),
        ("int32", [1e6, -2e8, 5.5], [1e5, 3e7, 30]),
        ("int32", [2e9 + 0.5, -2e9 - 0.25, 0.1], [1e5, 3e8, 1e9]),
    ],
)
def test_raw_counts_give_exact_codes(raw, mean, std):
    """Equal to the real-number rule but for the rounding of the multiplier, which has 30 bits (a
    code has 16).
    """
    mean, std = np.array(mean, float), np.array(std, float)
    model = stepwell.convert(
        GRAPH, NORMAL * std + mean, scaler={"mean": mean, "std": std, "raw": raw}
    )
    near = np.round(RNG(5).normal(size=(2000, 3)) * std + mean).clip(*RAW[raw]).astype(int)
    counts = np.concatenate([EVERY_INT16[:2000], near, ENDS])
    expected, distance = exact_codes(model, counts)
    got = model.quantize(counts.astype(float)).astype(int)
    sure = distance > 2**-13
    assert sure.mean() > 0.98
    assert np.array_equal(got[sure], expected[sure])
    assert np.abs(got - expected).max() <= 1


@pytest.mark.parametrize("raw", ["int16", "int32"])
def test_raw_counts_are_exact_where_the_scale_is_a_power_of_two(raw):
    """Mean a whole number, std and x_scale powers of two: no rounding but that of the code."""
    mean, std = np.array([100.0, -7.0, 0.0]), np.array([1024.0, 64.0, 8.0])
    x = np.clip(NORMAL, -3, 3)
    x[0, 0, 0] = 32767 / 2**13  # x_scale = 2^-12
    model = stepwell.convert(GRAPH, x * std + mean, scaler={"mean": mean, "std": std, "raw": raw})
    assert model.x_scale == 2.0**-12
    counts = np.concatenate([EVERY_INT16, ENDS])
    assert np.array_equal(model.quantize(counts.astype(float)), exact_codes(model, counts)[0])


def test_raw_clamps_lie_within_the_limits_given():
    limits = {"low": [-50.5, -(10**9), 3], "high": [50.5, 10**9, 3]}
    model = stepwell.convert(
        GRAPH, NORMAL * 100, scaler={"std": [100.0] * 3, "raw": "int16"} | limits
    )
    assert model.scaler.channels.low.tolist() == [-50, -32768, 3]
    assert model.scaler.channels.high.tolist() == [50, 32767, 3]
    counts = np.concatenate([EVERY_INT16[:1500], ENDS])
    expected, distance = exact_codes(model, counts)
    assert (model.quantize(counts.astype(float)) == expected)[distance > 2**-13].all()


class Device:
    """stw_step_raw itself, as a microcontroller calls it, on the memory of a host stream."""

    def __init__(self, model: stepwell.Model):
        self.model, self.stream = model, model.stream()
        lib.stw_reset(self.stream._s._stream)
        self.y = np.zeros(model.n_out, np.int32)

    def step(self, raw: np.ndarray) -> tuple[int, list[int]]:
        counts = np.ascontiguousarray(raw, np.int32)
        status = lib.stw_step_raw(
            self.stream._s._stream,
            ffi.cast("int32_t *", counts.ctypes.data),
            ffi.cast("int32_t *", self.y.ctypes.data),
        )
        return status, self.y.tolist()


@pytest.mark.parametrize("mode", ["carry", "slide:7", "tumble:7", "stagger:8/4"])
@pytest.mark.parametrize("rule", MISSING)
@pytest.mark.parametrize("raw", ["int16", "int32"])
def test_the_device_does_what_the_host_does(raw, rule, mode):
    model = convert(mode, raw=raw, missing=rule, fill=[450, -1000, 3], high=[650, np.inf, np.inf])
    counts = np.round(np.concatenate([TEST, RNG(7).uniform(-1e5, 1e5, (20, 3)), ENDS]))
    x = counts.copy()
    if rule != "refuse":
        gaps = RNG(8).random(x.shape) < 0.3
        gaps[0] = True
        counts[gaps], x[gaps] = -(2**31), np.nan
    device, host = Device(model), model.reference()
    for row, expected in zip(counts, host.run(x), strict=True):
        status, y = device.step(row)
        assert status in (lib.STW_OK, lib.STW_HOLD)
        assert np.array_equal(model.dequantize(y), expected)
    stream = model.stream()
    stream.run(x)
    assert device.stream.digest() == stream.digest()
    if rule == "refuse":
        digest, y = device.stream.digest(), device.y.tolist()
        assert device.step([1, -(2**31), 2]) == (lib.STW_E_MISSING, y)
        assert device.stream.digest() == digest


def test_a_model_without_channels_takes_no_raw_counts():
    assert Device(plain()).step([1, 2, 3])[0] == lib.STW_E_ARG


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.sampled_from(["int16", "int32"]),
    st.lists(st.tuples(st.floats(-1e9, 1e9), st.floats(-6, 12)), min_size=3, max_size=3),
    st.floats(-4, 4),
    st.booleans(),
)
def test_any_channel_is_exact_or_refused(raw, channels, size, whole):
    """``size``: log10 of x_scale. The integer adapter against exact numbers, its fields within the
    bounds of the format.
    """
    mean = np.array([c[0] for c in channels])
    mean, std = np.round(mean) if whole else mean, np.array([10.0 ** c[1] for c in channels])
    x_scale = 10.0**size / 32767
    try:
        scaler = Scaler(mean=mean, std=std, raw=raw).with_channels(3, x_scale)
    except SampleError:
        assert (1 / (std * x_scale)).max() >= 2**29 or (1 / (std * x_scale)).min() <= 2**-47
        return
    c = scaler.channels
    assert (
        (c.mult >= 1).all()
        and (c.mult < 2**30).all()
        and (c.shift >= 1).all()
        and (c.shift <= 62).all()
    )
    assert (np.abs(c.bias) < 2**31).all() and (np.abs(c.offset) < 2**31).all()
    counts = np.concatenate(
        [EVERY_INT16[:50], ENDS, np.round(RNG(1).normal(size=(50, 3)) * std + mean).clip(*RAW[raw])]
    )
    got = scaler.codes(counts.astype(float), x_scale)
    for j in range(3):
        unit = Fraction(float(std[j])) * Fraction(x_scale)
        for v, code in zip(counts[:, j], got[:, j], strict=True):
            v = min(max(int(v), RAW[raw][0]), RAW[raw][1])
            real = (Fraction(v) - Fraction(float(mean[j]))) / unit
            real = min(max(real, Fraction(-32768)), Fraction(32767))
            assert abs(real - int(code)) <= Fraction(1, 2) + Fraction(1, 2**12), (v, code)


def test_means_and_limits_that_no_count_reaches():
    with pytest.raises(SampleError, match=r"mean of .* counts is beyond int32"):
        stepwell.convert(GRAPH, NORMAL + 3e9, scaler={"mean": 3e9, "raw": "int32"})
    for limits in ({"low": 40000, "high": 50000}, {"low": -(10**6), "high": -40000}):
        with pytest.raises(SampleError, match="no int16 lies between low and high"):
            stepwell.convert(GRAPH, NORMAL * 1e4, scaler={"std": 1e4, "raw": "int16"} | limits)
    with pytest.raises(SampleError, match="no raw count lies between low and high"):
        stepwell.convert(
            GRAPH, NORMAL * 100, scaler={"std": 100, "raw": "int16", "low": 3.2, "high": 3.8}
        )
    with pytest.raises(
        SampleError, match=r"a raw count of channel 1 is 2.*e\+18 codes: it cannot be scaled"
    ):
        stepwell.convert(
            GRAPH, NORMAL * [1, 1e-15, 1], scaler={"std": [1, 1e-15, 1], "raw": "int16"}
        )


# ---- outputs in the user's units ----


@pytest.mark.parametrize("mode", ["carry", "slide:6"])
@pytest.mark.parametrize(
    ("name", "n_out"),
    [
        ("lstm dense", 1),
        ("lstm", 5),
        ("table at the end", 5),
        ("gru variants", 2),
        ("layer norm", 2),
    ],
)
def test_outputs_in_units(name, n_out, mode):
    graph = graph_of(name)
    rng = RNG(n_out)
    y_mean, y_std = rng.normal(size=n_out) * 100, rng.uniform(0.5, 50, n_out)
    calib, x = random_sequences(rng, 8, 40, graph.n_in), random_sequences(rng, 1, 40, graph.n_in)[0]
    model = stepwell.convert(graph, calib, scaler={"y_mean": y_mean, "y_std": y_std}, mode=mode)
    exact = run_in_mode(graph, model.mode, x) * y_std + y_mean
    exact[: model.mode.first] = 0
    assert sqnr_db(exact, every_way(model, x)) > 45
    assert stepwell.loads(model.blob).scaler.y_std.tolist() == y_std.tolist()


def test_outputs_by_min_and_max():
    model = stepwell.convert(GRAPH, NORMAL, scaler={"y_min": [10, -5], "y_max": [30, -4]})
    other = stepwell.convert(GRAPH, NORMAL, scaler={"y_mean": [10, -5], "y_std": [20, 1]})
    assert model.id == other.id
    exact = FloatStream(GRAPH).run(NORMAL[0]) * [20, 1] + [10, -5]
    assert sqnr_db(exact, every_way(model, NORMAL[0])) > 45


@pytest.mark.parametrize("name", ["softmax", "arg max"])
def test_classes_have_no_units(name):
    graph = graph_of(name)
    with pytest.raises(SampleError, match="make no sense for classes: leave them out"):
        stepwell.convert(graph, random_sequences(RNG(1), 8, 20, graph.n_in), scaler={"y_mean": 1.0})


def test_units_of_a_relu_head():
    graph = Graph((random_lstm(RNG(1), 3, 4), Activation("act", "relu", 4)))
    model = stepwell.convert(graph, NORMAL, scaler={"y_std": 1e4, "y_mean": -3e4})
    exact = FloatStream(graph).run(NORMAL[0]) * 1e4 - 3e4
    assert sqnr_db(exact, every_way(model, NORMAL[0])) > 60


# ---- where scalers come from ----

FIELDS = {
    "mean": [1.0, 2.0, 3.0],
    "std": [4.0, 5.0, 6.0],
    "low": [-10.0, -np.inf, 0.0],
    "missing": "hold",
    "raw": "int16",
}


class Fitted:
    """Something like a fitted scikit-learn scaler."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


def same(a: Scaler, b: Scaler) -> bool:
    return json.dumps(a.to_json()) == json.dumps(b.to_json())


def test_files_and_mappings(tmp_path):
    expected = Scaler(**FIELDS)
    (tmp_path / "s.json").write_text(json.dumps(FIELDS))  # -Infinity as Python writes it
    np.savez(tmp_path / "s.npz", **FIELDS)
    np.savez_compressed(tmp_path / "c.npz", **FIELDS)
    untouched = copy.deepcopy(FIELDS)
    for given_ in (
        expected,
        FIELDS,
        tmp_path / "s.json",
        str(tmp_path / "s.json"),
        tmp_path / "s.npz",
        tmp_path / "c.npz",
    ):
        assert same(as_scaler(given_), expected)
    assert untouched == FIELDS
    assert as_scaler(None) is NO_SCALER and NO_SCALER.is_identity
    assert as_scaler({}).is_identity and not expected.is_identity
    assert same(Scaler.from_json(expected.to_json()), expected)
    ranges = {"min": [0, 1, 2], "max": [1, 3, 7]}
    (tmp_path / "m.json").write_text(json.dumps(ranges))
    assert same(as_scaler(tmp_path / "m.json"), Scaler(mean=[0, 1, 2], std=[1, 2, 5]))
    assert ranges == {"min": [0, 1, 2], "max": [1, 3, 7]}


def test_objects_like_those_of_scikit_learn():
    x = RNG(1).normal(size=(50, 3)) * [1, 20, 300] + [5, 0, -7]
    mean, std = x.mean(axis=0), x.std(axis=0)
    assert np.allclose(as_scaler(Fitted(mean_=mean, scale_=std)).normalise(x), (x - mean) / std)
    # with_std=False
    assert np.allclose(as_scaler(Fitted(mean_=mean, scale_=None)).normalise(x), x - mean)
    # with_mean=False
    assert np.allclose(as_scaler(Fitted(mean_=None, scale_=std)).normalise(x), x / std)
    scale = 2 / (x.max(axis=0) - x.min(axis=0))  # feature_range (-1, 1)
    shift = -1 - x.min(axis=0) * scale
    ranged = as_scaler(Fitted(min_=shift, scale_=scale))
    assert np.allclose(ranged.normalise(x), x * scale + shift)
    assert np.allclose(ranged.normalise(x).max(axis=0), 1)
    clipped = as_scaler(Fitted(min_=shift, scale_=scale, clip=True, feature_range=(-1, 1)))
    assert np.allclose(clipped.normalise(3 * x), np.clip(3 * x * scale + shift, -1, 1))


def test_real_scalers_of_scikit_learn():
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    x = RNG(1).normal(size=(50, 3)) * [1, 20, 300] + [5, 0, -7]
    for scaler in (
        preprocessing.StandardScaler(),
        preprocessing.StandardScaler(with_mean=False),
        preprocessing.MinMaxScaler((-1, 1)),
        preprocessing.MinMaxScaler((0, 2), clip=True),
    ):
        assert np.allclose(as_scaler(scaler.fit(x)).normalise(2 * x), scaler.transform(2 * x))
    with pytest.raises(SampleError, match="fitted"):
        as_scaler(preprocessing.StandardScaler())


# ---- bad input ----


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mean": "abc"}, "mean must be numbers, one a channel"),
        ({"mean": [1, [2]]}, "mean must be numbers"),
        ({"mean": {"a": 1}}, "mean must be numbers"),
        ({"mean": [1j]}, "mean must be numbers"),
        ({"mean": [[1.0, 2.0]]}, "mean must be one finite number a channel"),
        ({"mean": np.nan}, "mean must be one finite number"),
        ({"std": [1, np.inf]}, "std must be one finite number"),
        ({"fill": [np.inf]}, "fill must be one finite number"),
        ({"low": np.nan}, "low must be"),
        ({"std": [1, 0, 1]}, "std of channel 1 is 0.0: a constant channel has no scale, drop it"),
        ({"std": [1, -2]}, "std of channel 1 is -2.0: it must be positive"),
        ({"y_std": 0}, "y_std of channel 0 is 0.0"),
        ({"low": [5, 1], "high": [1, 5]}, "low is above high"),
        ({"min": [0, 0], "max": [1, 0]}, "std of channel 1 is 0.0: a constant channel"),
        ({"min": 5, "max": 1}, "positive"),
        ({"min": 5}, "min and max must both be given"),
        ({"max": 5}, "min and max must both be given"),
        ({"y_min": 5}, "y_min and y_max must both be given"),
        ({"min": "a", "max": 1}, "min and max must both be given, as numbers"),
        ({"min": 0, "max": 1, "mean": 3}, "min and max, or mean and std"),
        ({"missing": "drop"}, "missing 'drop' is not one of refuse, hold, fill"),
        ({"missing": None}, "missing"),
        ({"missing": ["hold"]}, "missing"),
        ({"raw": "int8"}, "raw 'int8' is not int16 or int32"),
        ({"raw": ["int16"]}, "scaler"),
        ({"raw": 16}, "raw '16' is not int16 or int32"),
        ({"mu": 1}, "unknown field 'mu': a scaler has mean, std"),
        ({"channels": None}, "unknown field 'channels'"),
        ({1: 2}, "unknown field '1'"),
    ],
    ids=str,
)
def test_fields_that_make_no_sense(fields, message):
    with pytest.raises(SampleError, match=message):
        as_scaler(fields)
    with pytest.raises(SampleError, match=message):
        stepwell.convert(GRAPH, NORMAL, scaler=fields)


def test_unknown_fields_of_several_types():
    with pytest.raises(SampleError, match="unknown field"):
        as_scaler({1: 2, "mu": 3})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mean": [1, 2]}, "mean has 2 values, the model 3 channels"),
        ({"std": [1, 2, 3, 4]}, "std has 4 values, the model 3 channels"),
        ({"fill": [1, 2]}, "fill has 2 values"),
        ({"low": []}, "low has 0 values"),
        ({"y_mean": [1, 2, 3]}, "y_mean has 3 values, the model 2 channels"),
    ],
)
def test_fields_of_another_model(fields, message):
    with pytest.raises(SampleError, match=message):
        stepwell.convert(GRAPH, NORMAL, scaler=fields)


@pytest.mark.parametrize(
    "thing",
    [
        5,
        [1.0, 2.0],
        np.ones(3),
        Fitted(),
        Fitted(scale_=np.ones(3)),
        Fitted(center_=np.zeros(3), scale_=np.ones(3)),
        Fitted(mean_="a", scale_="b"),
        Fitted(min_=None, scale_=np.ones(3)),
        Fitted(min_="a", scale_="b"),
        Fitted(min_=np.zeros(3), scale_=np.zeros(3)),
        Fitted(min_=np.zeros(3), scale_=np.ones(3), clip=True),
        Fitted(min_=np.zeros(3), scale_=np.ones(3), clip=True, feature_range=None),
    ],
    ids=lambda thing: str(getattr(thing, "__dict__", thing)),
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_things_that_are_no_scalers(thing):
    with pytest.raises(SampleError, match=r"scaler|MinMaxScaler"):
        as_scaler(thing)


def damaged_npz(path) -> None:
    np.savez_compressed(path, mean=RNG(1).normal(size=3000))
    content = bytearray(path.read_bytes())
    content[200:240] = b"\xff" * 40
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("s.json", b"hello"),
        ("s.json", b""),
        ("s.json", b"\xff\xfe{}"),
        ("s.json", b"[1, 2]"),
        ("s.json", b'"mean"'),
        ("s.json", b"[" * 100000),
        ("s.json", b'{"mean": [1, null, 3]}'),
        ("s.json", b'{"mean": [NaN]}'),
        ("s.json", b'{"mean": [1e999]}'),
        ("s.json", b'{"mean": [' + b"9" * 5000 + b"]}"),
        ("s.json", b'{"std": [0]}'),
        ("s.json", b'{"mu": 1}'),
        ("s.npz", b"hello"),
        ("s.npz", b""),
        ("s.npz", b"PK\x03\x04" + bytes(50)),
        ("s.npz", damaged_npz),
        ("s.npz", lambda path: np.savez(path, mean=np.array([None, 1], object))),
        ("s.npz", lambda path: np.savez(path, mean=np.ones((2, 2)))),
        ("s.npz", lambda path: np.savez(path, x=np.ones(3))),
        ("s.npz", lambda path: np.savez(path, mean=np.array(["a", "b"]))),
        ("s.txt", b"mean 1 2 3"),
        ("s", b""),
        ("absent/s.json", None),
        (".", None),
    ],
    ids=lambda value: getattr(value, "__name__", repr(value)[:40]),
)
def test_files_that_are_no_scalers(tmp_path, name, content):
    path = tmp_path / name
    if callable(content):
        content(path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(SampleError) as refused:
        as_scaler(path)
    assert len(str(refused.value)) > 20


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_scales_beyond_all_numbers():
    for fields in ({"std": 1e-320}, {"std": 1e-300}, {"mean": 1e308, "std": 1e-300}):
        with pytest.raises(SampleError, match="normalise the inputs"):
            stepwell.convert(GRAPH, NORMAL, scaler=fields)
    model = stepwell.convert(GRAPH, NORMAL * 1e300, scaler={"std": 1e300})
    assert np.abs(model.quantize(NORMAL * 1e300).astype(int) - plain().quantize(NORMAL)).max() <= 1


def test_nothing_is_half_written(tmp_path):
    """A scaler that is refused leaves no file, and the one that stood there as it was."""
    from conftest import DEMO
    from test_cli import run

    bad, out = tmp_path / "bad.json", tmp_path / "m.stw"
    bad.write_text('{"std": [0]}')
    arguments = [
        "convert",
        DEMO / "turbofan.onnx",
        "--calib",
        DEMO / "turbofan_calib.npz",
        "-o",
        out,
    ]
    done = run(*arguments, "--scaler", bad)
    assert done.returncode == 1 and "a constant channel has no scale" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.json"]
    good = tmp_path / "good.json"
    good.write_text('{"mean": 0.5, "std": 2}')
    done = run(*arguments, "--scaler", good, "--missing", "hold")
    assert done.returncode == 0, done.stderr
    content = out.read_bytes()
    assert stepwell.load(out).scaler.missing == "hold"
    assert run(*arguments, "--scaler", bad).returncode == 1
    assert out.read_bytes() == content and len(list(tmp_path.iterdir())) == 3


def test_normalise_takes_any_shape():
    scaler = Scaler(mean=MEAN, std=STD, missing="hold")
    x = USER.copy()
    x[0, 3, 1] = np.nan
    assert np.array_equal(scaler.normalise(x)[0], scaler.normalise(x[0]))
    assert scaler.normalise(x)[0, 3, 1] == scaler.normalise(x)[0, 2, 1]
    assert np.isnan(x[0, 3, 1]), "the caller's array stays as it is"


def test_normalise_of_no_steps():
    assert Scaler(missing="hold").normalise(np.empty((0, 3))).shape == (0, 3)


def test_empty_runs_and_gaps_only():
    for rule in ("hold", "fill"):
        model = convert(missing=rule)
        for runner in (model.stream(), model.reference()):
            assert runner.run(np.empty((0, 3))).shape == (0, 2)
        gap = np.full((10, 3), np.nan)
        assert np.array_equal(every_way(model, gap), every_way(model, np.tile(MEAN, (10, 1))))


@pytest.mark.parametrize(
    "change",
    [
        {"scaler": {"mean": [1, 2]}},
        {"scaler": {"mean": "x"}},
        {"scaler": {"raw": "int9"}},
        {"scaler": {"std": [0.0]}},
        {"scaler": {"y_std": [1, 2, 3]}},
        {"scaler": 5},
        {"scaler": {"foo": 1}},
    ],
    ids=str,
)
def test_scalers_in_a_file_are_hostile_too(change):
    """The host's part of a .stw holds the scaler as JSON: damage is a ModelError, whatever it says."""
    import struct

    from test_blob import forged

    model = convert()
    device_bytes = struct.unpack_from("<I", model.blob, 12)[0]
    host = json.loads(model.blob[device_bytes:-4]) | change
    content = bytearray(model.blob[:device_bytes] + json.dumps(host).encode() + bytes(4))
    with pytest.raises(stepwell.ModelError, match="no usable host notes"):
        stepwell.loads(forged(bytes(content)))


# ---- offsets and scales that convert finds by itself ----

UNITS = np.array([101_000.0, -22.0, 0.45]), np.array([1000.0, 5.0, 0.1])
SPREAD = NORMAL / 2 * UNITS[1] + UNITS[0]
SPREAD_TEST = random_sequences(RNG(9), 1, 60, 3)[0] / 2 * UNITS[1] + UNITS[0]
HIDDEN = fold_inputs(GRAPH, -UNITS[0] / UNITS[1], 1 / UNITS[1])  # GRAPH, for numbers in those units


def affine(factor, bias) -> Dense:
    return Dense(
        "affine", np.array(factor, float)[:, None], np.array(bias, float), groups=len(factor)
    )


def same_numbers(graph: Graph, model: stepwell.Model, x: np.ndarray) -> float:
    """Largest difference of the float side of ``model`` from ``graph``, relative."""
    exact = run_in_mode(graph, model.mode, model.scaler.of_source.normalise(x))
    folded = run_in_mode(float_side(graph, model.scaler), model.mode, model.scaler.normalise(x))
    return float(np.abs(folded - exact).max() / np.abs(exact).max())


@pytest.mark.parametrize(
    "affines",
    [
        [affine(1 / UNITS[1], -UNITS[0] / UNITS[1])],
        [
            affine([1, 1, 1], -UNITS[0]),
            affine(1 / UNITS[1], [0, 0, 0]),
            affine([2, 2, 2], [0.5, 0, -0.5]),
        ],
        [affine(-1 / UNITS[1], UNITS[0] / UNITS[1])],
        [affine([1e-3, -0.2, 10], [-101, -4.4, -4.5]), affine([1, 1, -1], [0, 0, 1])],
        [affine([1e-3, 0, 10], [-101, 0.7, -4.5])],
    ],
    ids=["one", "chain", "negative", "mixed signs", "a channel that counts for nothing"],
)
def test_a_leading_affine_is_the_scaler(affines):
    graph = Graph((*affines, *GRAPH.layers))
    model = stepwell.convert(graph, SPREAD)
    assert same_numbers(graph, model, SPREAD) < 1e-12
    factor, bias = np.ones(3), np.zeros(3)
    for layer in affines:
        factor, bias = factor * layer.weight[:, 0], bias * layer.weight[:, 0] + layer.bias
    used = factor != 0
    if not any("of its own" in note for note in model.notes["import_notes"]):
        assert np.allclose(model.scaler.std[used], 1 / np.abs(factor[used]), rtol=1e-12)
        assert np.allclose(
            model.scaler.mean[used], -(bias / np.where(used, factor, 1))[used], rtol=1e-12
        )
    assert len(model.layers) == 2 + (not np.all(factor > 0))
    assert sqnr_db(FloatStream(graph).run(SPREAD_TEST), every_way(model, SPREAD_TEST)) > 50


def test_an_affine_that_others_read_past_stays():
    graph = Graph(
        (
            *(
                affine(1 / UNITS[1], -UNITS[0] / UNITS[1]),
                random_lstm(RNG(1), 3, 4),
                random_lstm(RNG(2), 3, 4),
            ),
            *(Concat("both", (4, 4)), random_dense(RNG(3), 8, 1)),
        ),
        sources=((0,), (1,), (0,), (2, 3), (4,)),
    )
    assert without_leading_affine(graph)[0] is graph
    alone = Graph((random_lstm(RNG(1), 3, 3), affine([1, 2, 3], [1, 1, 1])))
    assert without_leading_affine(alone)[0] is alone


@pytest.mark.parametrize("mode", ["carry", "tumble:9", "slide:9", "stagger:8/4"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"missing": "fill"},
        {"missing": "fill", "fill": [101_000.0, -20.0, 0.4]},
        {"missing": "hold", "fill": [100_500.0, -20.0, 0.5]},
        {"low": [99_000.0, -1e9, 0.2], "high": [102_000.0, 1e9, np.inf]},
        {"raw": "int32"},
        {"raw": "int32", "missing": "hold", "fill": [101_000.0, -22.0, 0.0]},
        {"mean": [100_000.0, 0.0, 0.0], "std": [10.0, 1.0, 2.0]},
        {"y_mean": [5.0, -3.0], "y_std": [100.0, 0.5]},
    ],
    ids=str,
)
def test_every_way_through_own_scales_is_the_same(fields, mode):
    given = as_scaler(fields)
    inner = given.field("mean", 3), given.field("std", 3)
    graph = fold_inputs(HIDDEN, -inner[0] / inner[1], 1 / inner[1])
    model = stepwell.convert(graph, SPREAD, scaler=fields, mode=mode)
    assert any("of its own" in note for note in model.notes["import_notes"])
    assert_same_scaler(stepwell.loads(model.blob).scaler, model.scaler)
    x = SPREAD_TEST.copy()
    if "raw" in fields:
        x = np.round(x)
    if "missing" in fields:
        x[RNG(2).random(x.shape) < 0.15] = np.nan
        x[0] = np.nan
    integer = every_way(model, x)
    side = float_side(graph, model.scaler)
    exact = run_in_mode(side, model.mode, model.scaler.normalise(x))
    source = fold_outputs(graph, given)
    assert np.allclose(
        exact, run_in_mode(source, model.mode, given.normalise(x)), rtol=1e-10, atol=1e-10
    )
    if fields != {"missing": "fill"}:  # fills 0 there, which is far from all that calibration saw
        assert sqnr_db(exact, integer) > 40
    assert np.array_equal(
        model.quantize(np.nan_to_num(x)), model.reference().model.quantize(np.nan_to_num(x))
    )


@pytest.mark.parametrize("precision", ["w8a16", "w8x16h8", "w8a8", "w4a16"])
def test_own_scales_in_every_precision(precision):
    wide = stepwell.convert(HIDDEN, SPREAD, precision=precision)
    like = stepwell.convert(GRAPH, NORMAL / 2, precision=precision)
    exact = FloatStream(HIDDEN).run(SPREAD_TEST)
    db = [
        sqnr_db(exact, every_way(model, x))
        for model, x in ((wide, SPREAD_TEST), (like, (SPREAD_TEST - UNITS[0]) / UNITS[1]))
    ]
    assert db[0] > db[1] - 4, db


def test_a_padded_channel_keeps_its_zero():
    rng = RNG(4)
    for padding, offset in ((None, 0.0), (0, 1.0)):
        graph = Graph(
            (
                Window("w", 3, 3, padding=padding),
                random_dense(rng, 9, 5, "relu"),
                random_lstm(rng, 5, 6),
            )
        )
        graph = fold_inputs(graph, -offset * UNITS[0] / UNITS[1], 1 / UNITS[1])
        x = SPREAD + (offset - 1) * UNITS[0]
        model = stepwell.convert(graph, x)
        assert np.all(model.scaler.mean == 0) == (padding is None)
        assert same_numbers(graph, model, x) < 1e-11 and model.scaler.source_std is not None
        assert sqnr_db(FloatStream(graph).run(x[0]), every_way(model, x[0])) > 50


def test_a_channel_that_a_layer_without_weights_reads_keeps_its_scale():
    rng = RNG(5)
    layers = random_lstm(rng, 3, 6), random_dense(rng, 6, 1), Slice("last", 3, 1, 1), Add("sum", 1)
    unit = np.array([1e-3, 1, 10])
    first = replace(layers[0], w_x=layers[0].w_x / unit)
    x, graph = NORMAL * unit, Graph((first, *layers[1:]), sources=((0,), (1,), (0,), (2, 3)))
    model = stepwell.convert(graph, x)
    assert (
        model.scaler.mean[1] == 0
        and model.scaler.std[1] == 1
        and model.scaler.std[0] < 0.01 < model.scaler.std[2]
    )
    assert same_numbers(graph, model, x) < 1e-12
    assert sqnr_db(FloatStream(graph).run(x[0]), every_way(model, x[0])) > 50
    normed = Graph((random_norm(rng, 3), *GRAPH.layers))
    assert stepwell.convert(normed, x).scaler.is_identity, (
        "LayerNorm mixes channels: their sizes belong to it"
    )


@pytest.mark.parametrize("constant", [0.0, 101_325.0, 1e-6])
def test_dead_channels(constant):
    """A channel that does not move in the calibration data may move later: it gets room by its
    weights.
    """
    x, test = SPREAD.copy(), SPREAD_TEST.copy()
    x[..., 0], test[..., 0] = constant, constant
    model = stepwell.convert(HIDDEN, x)
    assert np.isfinite(model.scaler.mean).all() and np.all(model.scaler.std > 0)
    assert same_numbers(HIDDEN, model, x) < 1e-10
    exact = FloatStream(HIDDEN).run(test)
    assert sqnr_db(exact, every_way(model, test)) > 45
    raw = stepwell.convert(HIDDEN, x, scaler={"raw": "int32"})
    assert raw.scaler.channels is not None


def test_tokens_and_even_channels_are_left_alone():
    assert stepwell.convert(
        graph_of("embedding"), RNG(1).integers(0, 11, (8, 20, 2)).astype(float)
    ).scaler.is_identity
    assert stepwell.convert(GRAPH, NORMAL).scaler.is_identity
    assert stepwell.convert(HIDDEN, SPREAD / UNITS[1] * 3, auto_scale=False).scaler.is_identity


def test_check_report_search_and_fine_tuning_know_what_was_folded():
    graph = Graph((affine(1 / UNITS[1], -UNITS[0] / UNITS[1] + [0, 9, 0]), *GRAPH.layers))
    model, found = stepwell.convert(graph, SPREAD), Samples(tuple(SPREAD[:3]), None, "made")
    assert len(model.notes["import_notes"]) == 2, (
        "an affine that leaves a channel far from zero: both"
    )
    result = compare(model, graph, found)
    assert result["sqnr_db"] > 50 and result["engine_mismatches"] == 0
    facts = analyse(model, graph, found, steps=200).facts
    assert facts["check"]["sqnr_db"] == result["sqnr_db"]
    assert min(layer["sqnr_db"] for layer in facts["layers"]) > 50
    assert min(place["sqnr_db"] for place in facts["places"]) > 40
    best, tried = stepwell.smallest(graph, SPREAD, SPREAD, max_drop=1e-9 + 100)
    assert best.notes["precision"] == "w4a16" and tried[0].sqnr_db > 20
    assert str(tried[0].plan) == "w4a16"


def test_fine_tuning_takes_the_user_s_units():
    torch = pytest.importorskip("torch")
    from stepwell import qat

    student = qat.prepare(HIDDEN, SPREAD, precision="w8a16")
    y = student(torch.tensor(SPREAD[:2])).detach().numpy()
    assert sqnr_db(FloatStream(HIDDEN).run(SPREAD[:2]), y) > 40
    assert (
        sqnr_db(FloatStream(HIDDEN).run(SPREAD_TEST), student.model().stream().run(SPREAD_TEST))
        > 40
    )


@pytest.mark.parametrize(
    "fields",
    [{"source_mean": [0.0]}, {"source_mean": [0.0], "source_std": [1.0]}, {"source_std": [-1.0]}],
    ids=str,
)
def test_what_convert_fills_in_is_not_for_the_user(fields):
    with pytest.raises(SampleError, match="unknown field"):
        as_scaler(fields)
    with pytest.raises(SampleError, match="source_"):
        Scaler(**fields)


def test_front_ends_give_the_same_scaler():
    torch = pytest.importorskip("torch")

    class Normalised(torch.nn.Module):
        def __init__(self, by_norm: bool):
            super().__init__()
            self.lstm, self.norm = (
                torch.nn.LSTM(3, 6, batch_first=True),
                torch.nn.BatchNorm1d(3, eps=0.0),
            )
            self.norm.running_mean[:], self.norm.running_var[:] = (
                torch.tensor(u) for u in (UNITS[0], UNITS[1] ** 2)
            )
            self.by_norm = by_norm

        def forward(self, x):
            norm = self.norm
            if self.by_norm:
                return self.lstm(norm(x.transpose(1, 2)).transpose(1, 2))[0]
            return self.lstm((x - norm.running_mean) / torch.sqrt(norm.running_var))[0]

    for by_norm in (False, True):
        torch.manual_seed(0)
        model = stepwell.convert(Normalised(by_norm).eval(), SPREAD)
        assert np.allclose(model.scaler.mean, UNITS[0], rtol=1e-5)
        assert np.allclose(model.scaler.std, UNITS[1], rtol=1e-5)
        assert model.layers[0].kind == "lstm"


def test_a_spike_is_no_size():
    """One value far out is no reason for scales, and where there is one, the channel keeps its
    codes.
    """
    x = NORMAL.copy()
    x[0, 0, 0] = 500.0
    assert stepwell.convert(GRAPH, x).scaler.is_identity
    spread = SPREAD.copy()
    spread[0, 0, 0] += 500 * UNITS[1][0]
    calm, spiked = (stepwell.convert(HIDDEN, data).scaler for data in (SPREAD, spread))
    assert spiked.std[0] < 20 * calm.std[0] and np.allclose(spiked.std[1:], calm.std[1:])
