"""Window modes: their texts, what each gives at every step by its definition, layers that read
backwards, state and refusals.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import stepwell
from shapes import (
    SHAPES,
    graph_of,
    random_dense,
    random_gru,
    random_lstm,
    random_projected,
    random_rnn,
    random_sequences,
    sequences_for,
)
from stepwell.errors import ImportRefused, QuantizeError, StepwellError
from stepwell.graph import Graph
from stepwell.integer.functions import Function
from stepwell.layers import Add, Attention, Concat, Dense, Gru, Lstm, MaxPool, Window
from stepwell.metrics import sqnr_db
from stepwell.model import Model
from stepwell.quantize import in_mode
from stepwell.stream import FloatStream, run_in_mode
from stepwell.windowing import CARRY, Mode, parse_mode

RNG = np.random.default_rng


# ---- texts ----


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("carry", Mode()),
        (" carry ", Mode()),
        ("tumble:50", Mode("tumble", 50, 1)),
        ("tumble:1", Mode("tumble", 1, 1)),
        ("slide:50", Mode("slide", 50, 1)),
        ("slide:50/1", Mode("slide", 50, 1)),
        ("slide:50/7", Mode("slide", 50, 7)),
        ("slide:50/50", Mode("slide", 50, 50)),
        ("slide:65535", Mode("slide", 65535, 1)),
        ("stagger:50/5", Mode("stagger", 50, 10)),
        ("stagger:50/1", Mode("stagger", 50, 50)),
        ("stagger:50/50", Mode("stagger", 50, 1)),
    ],
)
def test_texts(text, mode):
    assert parse_mode(text) == mode
    assert parse_mode(str(mode)) == mode
    assert parse_mode(mode) is mode
    assert mode.n_copies == (int(text.split("/")[1]) if mode.kind == "stagger" else 1)


def test_a_tumbling_window_of_a_model_that_is_read_at_its_end():
    assert parse_mode("tumble:50", "last") == Mode("tumble", 50, 50)
    assert parse_mode("tumble:50", "every") == Mode("tumble", 50, 1)
    assert str(Mode("tumble", 50, 50)) == "tumble:50"
    assert parse_mode("slide:50", "last") == Mode("slide", 50, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not one of carry, tumble:T"),
        ("window", "is not one of"),
        ("slide", "is not one of"),
        ("slide:", "is not one of"),
        ("slide:x", "is not one of"),
        ("slide:-3", "is not one of"),
        ("slide:1.5", "is not one of"),
        ("slide:5/", "is not one of"),
        ("slide:5/2/1", "is not one of"),
        ("Slide:5", "is not one of"),
        ("carry:5", "is not one of"),
        (None, "is not one of"),
        (50, "is not one of"),
        ("slide:0", "1 to 65535 steps"),
        ("tumble:65536", "1 to 65535 steps"),
        ("slide:1000000", "1 to 65535|is not one of"),
        ("tumble:50/5", "tumble takes no second number"),
        ("slide:50/51", "would skip inputs"),
        ("slide:50/0", "at least 1"),
        ("tumble:50/0", "at least 1"),
        ("stagger:50/0", "at least 1"),
        ("stagger:50", "divides T"),
        ("stagger:50/7", "divides T"),
        ("stagger:50/100", "divides T"),
    ],
)
def test_texts_that_make_no_sense(text, message):
    with pytest.raises(StepwellError, match=message):
        parse_mode(text)


@pytest.mark.parametrize(
    "fields",
    [
        ("foo", 0, 1),
        ("carry", 5, 1),
        ("carry", 0, 2),
        ("slide", 0, 1),
        ("slide", 5, 0),
        ("slide", 5, 6),
        ("stagger", 10, 3),
        ("tumble", 10, 3),
        ("slide", 70000, 1),
        ("slide", -1, 1),
    ],
)
def test_modes_made_by_hand_are_checked_too(fields):
    with pytest.raises(StepwellError, match="mode"):
        stepwell.convert(graph_of("gru"), np.ones((8, 20, 3)), mode=Mode(*fields))


# ---- the definition, step by step ----


def by_definition(mode: Mode, run, x: np.ndarray, n_out: int) -> np.ndarray:
    """Outputs [T, n_out]: at step t what ``run`` (from a reset) gives at the last of the steps that
    the mode names.
    """
    made, held = [], np.zeros(n_out)
    for t in range(len(x)):
        if mode.kind == "tumble":
            start = t // mode.window * mode.window
            due = mode.stride == 1 or t + 1 == start + mode.window
        else:
            start = t + 1 - mode.window
            due = start >= 0 and start % mode.stride == 0
        if due:
            held = run(x[start : t + 1])[-1]
        made.append(held)
    return np.array(made)


MODES = [
    "tumble:9",
    "tumble:1",
    "slide:9",
    "slide:1",
    "slide:9/4",
    "slide:9/9",
    "stagger:9/3",
    "stagger:9/1",
]
MODES += ["stagger:9/9", "stagger:12/4", "stagger:1/1"]
PLAIN = [
    "lstm dense",
    "gru before variants",
    "projection of everything",
    "rnn variants",
    "attention, dot product",
]
PLAIN += [
    "causal conv",
    "concat",
    "layer norm",
    "window at the end",
    "attention, additive",
    "lstm start",
    "embedding",
]


@cache
def converted(name: str, text: str, readout: str = "every") -> tuple[Graph, Model]:
    graph = replace(graph_of(name), readout=readout)
    return graph, stepwell.convert(graph, sequences_for(graph, 21, 8, 40), mode=text)


CASES = [(text, "every") for text in MODES] + [("tumble:9", "last"), ("tumble:1", "last")]


@pytest.mark.parametrize(("text", "readout"), CASES)
@pytest.mark.parametrize("name", PLAIN)
def test_outputs_are_those_of_the_definition(name, text, readout):
    graph, model = converted(name, text, readout)
    assert model.mode == parse_mode(text, readout) and stepwell.loads(model.blob).mode == model.mode
    carried = model.replace(mode=CARRY)
    x = sequences_for(graph, 22, 1, 40)[0]
    expected = by_definition(model.mode, lambda w: FloatStream(graph).run(w), x, graph.n_out)
    assert np.allclose(run_in_mode(graph, model.mode, x), expected, rtol=0, atol=1e-9)
    expected = by_definition(model.mode, lambda w: carried.stream().run(w), x, graph.n_out)
    assert np.array_equal(model.reference().run(x), expected)
    assert np.array_equal(model.stream().run(x), expected)


LATE = ["valid conv, max pool", "strided conv and residual"]


@pytest.mark.parametrize(
    "text",
    ["tumble:9", "tumble:24", "slide:9", "slide:8", "slide:12/5", "stagger:12/3", "stagger:8/8"],
)
@pytest.mark.parametrize("name", LATE)
def test_models_with_strides_and_a_warm_up(name, text):
    """What they hold between outputs is part of it: tumbling windows hold the last output until the
    new window makes one.
    """
    graph = graph_of(name)
    timing, mode = graph.timing[-1], parse_mode(text)
    missed = (mode.window - 1 - timing.first) % timing.every
    calib, x = sequences_for(graph, 21, 8, 48), sequences_for(graph, 22, 1, 60)[0]
    if missed and mode.kind == "stagger":
        with pytest.raises(QuantizeError, match="none at the window's last: take a window of"):
            stepwell.convert(graph, calib, mode=text)
        return
    model = stepwell.convert(graph, calib, mode=text)
    expected = model.reference().run(x)
    assert np.array_equal(model.stream().run(x), expected)
    carried = model.replace(mode=CARRY)
    if mode.kind == "tumble":
        fresh = [
            t % mode.window >= timing.first and (t % mode.window - timing.first) % timing.every == 0
            for t in range(60)
        ]
        own = np.concatenate(
            [carried.stream().run(x[at : at + mode.window]) for at in range(0, 60, mode.window)]
        )
        held, made = np.zeros(graph.n_out), []
        for t in range(60):
            held = own[t] if fresh[t] else held
            made.append(held)
    else:
        made = by_definition(mode, lambda w: carried.stream().run(w), x, graph.n_out)
    assert np.array_equal(expected, made)
    assert sqnr_db(run_in_mode(graph, mode, x), expected) > 40


@pytest.mark.parametrize(
    "text", ["tumble:11", "slide:11", "slide:11/3", "stagger:12/4", "stagger:11/11"]
)
@pytest.mark.parametrize(
    "name", ["lstm dense", "gru before", "causal conv", "attention, scores given", "projection"]
)
def test_chunks_resets_batches_and_snapshots(name, text):
    graph, model = converted(name, text)
    x = sequences_for(graph, 23, 3, 50)
    whole = model.reference().run(x)
    cuts = [0, 1, 10, 11, 11, 30, 50]
    for make in (model.reference, model.stream):
        runner = make()
        for _ in range(2):
            parts = [runner.run(x[0, a:b]) for a, b in itertools.pairwise(cuts)]
            assert np.array_equal(np.concatenate(parts), whole[0])
            runner.reset()
        assert np.array_equal([runner.step(row) for row in x[0]], whole[0])
    batch = model.batch(3)
    for _ in range(2):
        assert np.array_equal(np.stack([batch.step(x[:, t]) for t in range(50)], axis=1), whole)
        batch.reset()
    for cut in (3, 11, 25):
        stream, other = model.stream(), model.stream()
        stream.run(x[0, :cut])
        other.run(x[1])
        snapshot = stream.save()
        other.load(snapshot)
        assert other.digest() == stream.digest() and other.save() == snapshot
        assert len(snapshot) == model.info()["snapshot_bytes"]
        again, rest = other.run(x[0, cut:]), stream.run(x[0, cut:])
        new = next(
            t
            for t in range(cut, 50)
            if t >= model.mode.first and (t - model.mode.first) % model.mode.stride == 0
        )
        assert np.array_equal(again[new - cut :], rest[new - cut :])
        assert other.digest() == stream.digest()


def test_a_damaged_counter_of_a_mode_is_refused():
    """Counters index memory: a snapshot with a counter that no step could have given is no
    snapshot, its checksum right or not.
    """
    import struct
    import zlib

    for text, limit in (("tumble:6", 6), ("slide:6", 6), ("stagger:6/3", 12)):
        _, model = converted("lstm dense", text)
        stream = model.stream()
        stream.run_q(np.ones((4, 14), np.int16))
        snapshot, digest = stream.save(), stream.digest()
        for counter, fits in (
            (limit - 1, True),
            (limit, False),
            (2**31, False),
            (-1 % 2**32, False),
        ):
            body = bytearray(snapshot[:-4])
            struct.pack_into("<I", body, 8, counter)
            forged = bytes(body) + struct.pack("<I", zlib.crc32(body))
            if fits:
                model.stream().load(forged)
            else:
                with pytest.raises(stepwell.ModelError, match="snapshot refused"):
                    stream.load(forged)
        assert stream.digest() == digest


def test_every_shape_slides_and_staggers():
    for name in SHAPES:
        graph = graph_of(name)
        calib, x = sequences_for(graph, 21, 8, 24), sequences_for(graph, 22, 1, 30)[0]
        for text in ("slide:8", "stagger:8/2", "tumble:8"):
            if graph.timing[-1].every > 1 and text.startswith("stagger"):
                continue
            model = stepwell.convert(graph, calib, mode=text)
            noise = RNG(1).integers(-32768, 32768, (30, model.n_in)).astype(np.int16)
            assert np.array_equal(model.stream().run(x), model.reference().run(x)), (name, text)
            assert np.array_equal(model.stream().run_q(noise), model.reference().run_q(noise)), (
                name,
                text,
            )


# ---- layers that read backwards ----


def both_ways(forward, backward, *more, final: bool = False) -> Graph:
    """Bidirectional: two layers over the input, side by side, then what follows."""
    forward, backward = replace(forward, final=final), replace(backward, reverse=True, final=final)
    concat = Concat("both", (forward.n_out, backward.n_out))
    sources = ((0,), (0,), (1, 2), *((k + 3,) for k in range(len(more))))
    return Graph((forward, backward, concat, *more), sources=sources, readout="last")


def backward_graphs() -> dict[str, Graph]:
    r = RNG(41)
    return {
        "reverse": Graph((replace(random_gru(r, 3, 5), reverse=True),)),
        "reverse final": Graph((replace(random_gru(r, 3, 5), reverse=True, final=True),)),
        "forward final": Graph((replace(random_lstm(r, 3, 5), final=True), random_dense(r, 5, 2))),
        "reverse last": Graph((random_lstm(r, 3, 4), replace(random_lstm(r, 4, 5), reverse=True))),
        "bidirectional": both_ways(
            random_lstm(r, 3, 5), random_lstm(r, 3, 5), random_dense(r, 10, 2)
        ),
        "bidirectional final": both_ways(
            random_gru(r, 3, 5), random_gru(r, 3, 5), random_dense(r, 10, 2), final=True
        ),
        "projected": both_ways(
            random_projected(r, 3, 6, 4), random_projected(r, 3, 6, 4), random_lstm(r, 8, 3)
        ),
        "rnn with start": both_ways(
            replace(random_rnn(r, 3, 4), h0=r.uniform(-1, 1, 4)),
            replace(random_rnn(r, 3, 4), h0=r.uniform(-1, 1, 4)),
        ),
        "gru before, tables": both_ways(
            replace(random_gru(r, 3, 4), reset_after=False),
            replace(
                random_gru(r, 3, 4),
                reset_after=False,
                functions=("sigmoid", Function("softsign")),
                clip=2.0,
            ),
            random_dense(r, 8, 3, "softmax"),
        ),
        "attention over both": Graph(
            (
                random_lstm(r, 3, 4),
                replace(random_lstm(r, 3, 4), reverse=True),
                Concat("both", (4, 4)),
                Attention("mean", "dot", 20, 8, 8),
                random_dense(r, 8, 2),
            ),
            sources=((0,), (0,), (1, 2), (3, 3, 3), (4,)),
        ),
        "conv before": Graph(
            (
                Window("w", 3, 3),
                random_dense(r, 9, 4, "relu"),
                replace(random_lstm(r, 4, 5), reverse=True, final=True),
            )
        ),
        "strides before": Graph(
            (
                Window("w", 3, 2, stride=2, padding=0),
                random_dense(r, 6, 4, "relu"),
                replace(random_lstm(r, 4, 5), reverse=True),
                random_dense(r, 5, 2),
            )
        ),
    }


BACKWARD = backward_graphs()


def turned_round(graph: Graph, window: np.ndarray) -> np.ndarray:
    """The last output over a window: layers that go backwards are plain ones over a sequence turned
    round.
    """
    values = [window]
    for layer, reads in zip(graph.layers, graph.sources, strict=True):
        inputs = [values[value] for value in reads]
        if getattr(layer, "reverse", False):
            y = FloatStream(Graph((replace(layer, reverse=False, final=False),))).run(
                inputs[0][::-1]
            )[::-1]
            y = np.repeat(y[:1], len(y), axis=0) if layer.final else y
        elif getattr(layer, "final", False):
            y = FloatStream(Graph((replace(layer, final=False),))).run(inputs[0])
            y = np.repeat(y[-1:], len(y), axis=0)
        elif isinstance(layer, Concat):
            y = np.concatenate(inputs, axis=1)
        elif isinstance(layer, Dense):
            y = stepwell.integer.functions.as_function(layer.activation)(
                inputs[0] @ layer.weight.T + layer.bias
            )
        elif isinstance(layer, Window):
            padded = np.concatenate(
                [np.zeros((layer.span - 1 - layer.delay, layer.n_in)), inputs[0]]
            )
            ends = range(layer.span, len(padded) + 1, layer.stride)
            y = np.array(
                [padded[end - layer.span : end : layer.dilation].T.reshape(-1) for end in ends]
            )
        elif isinstance(layer, Attention):
            scores = inputs[0] @ inputs[1].T
            p = np.exp(scores - scores.max(axis=1, keepdims=True)) * np.tri(len(window))
            y = p / p.sum(axis=1, keepdims=True) @ inputs[2]
        else:
            y = FloatStream(Graph((layer,))).run(inputs[0])
        values.append(y)
    return values[-1][-1]


@pytest.mark.parametrize("text", ["slide:8", "slide:9/9", "slide:8/3", "slide:20/20"])
@pytest.mark.parametrize("name", BACKWARD)
def test_layers_that_read_backwards(name, text):
    graph = BACKWARD[name]
    model = stepwell.convert(graph, random_sequences(RNG(8), 8, 48, 3), mode=text)
    x = random_sequences(RNG(9), 2, 50, 3)
    exact, integer = run_in_mode(graph, model.mode, x), model.reference().run(x)
    expected = by_definition(model.mode, lambda w: turned_round(graph, w)[None], x[0], graph.n_out)
    assert np.allclose(exact[0], expected, rtol=0, atol=1e-9)
    assert np.array_equal(np.stack([model.stream().run(row) for row in x]), integer)
    assert sqnr_db(exact, integer) > 40
    noise = RNG(10).integers(-32768, 32768, (40, 3)).astype(np.int16)
    assert np.array_equal(model.stream().run_q(noise), model.reference().run_q(noise))


@pytest.mark.parametrize(("kind", "layer"), [("LSTM", Lstm), ("GRU", Gru)])
def test_bidirectional_layers_equal_torch(kind, layer):
    torch = pytest.importorskip("torch")
    torch.manual_seed(4)
    module = getattr(torch.nn, kind)(3, 4, batch_first=True, bidirectional=True).double()
    found = {n: p.detach().numpy() for n, p in module.named_parameters()}

    def way(suffix: str):
        w_x, w_h, b_x, b_h = (
            found[f"{n}_l0{suffix}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        return Gru("t", w_x, w_h, b_x, b_h) if layer is Gru else Lstm("t", w_x, w_h, b_x + b_h)

    x = random_sequences(RNG(9), 1, 30, 3)[0]
    y, hidden = module(torch.tensor(np.stack([x[t : t + 10] for t in range(21)])))
    states = hidden[0] if kind == "LSTM" else hidden
    for final, expected in ((False, y[:, -1]), (True, torch.cat([states[0], states[1]], dim=-1))):
        graph = both_ways(way(""), way("_reverse"), final=final)
        got = run_in_mode(graph, parse_mode("slide:10"), x)[9:]
        assert np.allclose(got, expected.detach().numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("text", ["carry", "tumble:8", "stagger:8/2"])
@pytest.mark.parametrize("name", ["reverse", "forward final", "bidirectional"])
def test_reading_backwards_needs_a_sliding_window(name, text):
    with pytest.raises(QuantizeError, match=r"reads the sequence backwards.*mode='slide:T'"):
        stepwell.convert(BACKWARD[name], random_sequences(RNG(8), 8, 20, 3), mode=text)


def test_a_forged_model_that_reads_backwards_in_carry_is_refused():
    model = stepwell.convert(
        BACKWARD["reverse"], random_sequences(RNG(8), 8, 20, 3), mode="slide:8"
    )
    with pytest.raises(stepwell.ModelError, match="do not fit"):
        stepwell.loads(model.replace(mode=CARRY).blob)


# ---- layers that look ahead ----


def padded(x: np.ndarray, layer: Window) -> np.ndarray:
    """What a Window gives for a whole sequence [n, n_in] with all that stands around it."""
    layer = layer.over(len(x))
    before, after = (
        np.full((n, x.shape[1]), layer.edge) for n in (layer.span - 1 - layer.delay, layer.ahead)
    )
    known = np.concatenate([before, x, after])
    starts = range(0, len(known) - layer.span + 1, layer.stride)
    return np.array([known[at : at + layer.span : layer.dilation].T.reshape(-1) for at in starts])


def over_a_window(graph: Graph, x: np.ndarray) -> np.ndarray:
    """A chain of layers over a sequence, one after the other: [n, n_out]."""
    for layer in graph.layers:
        if isinstance(layer, Window):
            x = padded(x, layer)
        elif isinstance(layer, MaxPool):
            x = x.reshape(len(x), -1, layer.taps).max(axis=-1)
        elif isinstance(layer, Dense):
            x = stepwell.integer.functions.as_function(layer.activation)(
                x @ layer.weight.T + layer.bias
            )
        else:
            x = FloatStream(Graph((layer,))).run(x)
    return x


def ahead_graphs() -> dict[str, Graph]:
    r = RNG(51)

    def conv(n_in: int, taps: int, n_out: int = 4, **options) -> tuple:
        return Window("w", n_in, taps, **options), random_dense(r, n_in * taps, n_out, "relu")

    largest = Window("p", 3, 3, padding=1, ahead=1, lowest=True), MaxPool("m", 9, 3)
    return {
        "one": Graph((*conv(3, 3, padding=1, ahead=1), random_lstm(r, 4, 5))),
        "no delay": Graph(
            (*conv(3, 3, padding=2, ahead=2), random_lstm(r, 4, 5), random_dense(r, 5, 2))
        ),
        "only ahead": Graph((*conv(3, 4, padding=0, ahead=3), random_gru(r, 4, 5))),
        "three": Graph(
            (
                *conv(3, 3, padding=1, ahead=1),
                *conv(4, 4, padding=1, ahead=2, dilation=2),
                random_gru(r, 4, 3),
                *conv(3, 2, padding=0, ahead=1),
                random_lstm(r, 4, 5),
            )
        ),
        "strided": Graph((*conv(3, 4, stride=3, same="upper"), random_lstm(r, 4, 5))),
        "strided twice": Graph(
            (
                *conv(3, 5, stride=2, same="lower"),
                *conv(4, 3, stride=2, same="upper"),
                random_gru(r, 4, 5),
            )
        ),
        "ahead, then strides": Graph(
            (
                *conv(3, 3, padding=1, ahead=1),
                *conv(4, 2, stride=2, padding=0),
                random_lstm(r, 4, 5),
            )
        ),
        "strides, then ahead": Graph(
            (*conv(3, 2, stride=2, padding=0), *conv(4, 3, padding=1, ahead=1), random_gru(r, 4, 5))
        ),
        "largest": Graph((*largest, random_lstm(r, 3, 5))),
        "a window at the end": Graph(
            (random_lstm(r, 3, 4), Window("end", 4, 3, padding=1, ahead=1))
        ),
    }


AHEAD = ahead_graphs()


@pytest.mark.parametrize(
    "text", ["slide:10", "slide:11/4", "tumble:10", "tumble:11", "stagger:10/5", "stagger:11/11"]
)
@pytest.mark.parametrize("readout", ["every", "last"])
@pytest.mark.parametrize("name", AHEAD)
def test_layers_that_look_ahead(name, readout, text):
    """With a window's last step comes the last output of the whole window; before it, those that
    need no step after it.
    """
    graph, mode = replace(AHEAD[name], readout=readout), parse_mode(text, readout)
    calib, x = random_sequences(RNG(8), 8, 40, 3), random_sequences(RNG(9), 1, 44, 3)[0]
    try:
        model = stepwell.convert(graph, calib, mode=mode)
    except QuantizeError as error:
        assert mode.kind != "slide" and "none at the window's last: take a window of" in str(error)
        return
    exact, integer = run_in_mode(graph, mode, x), model.reference().run(x)
    timing = graph.in_window(mode.window).timing[-1]
    expected, held = [], np.zeros(graph.n_out)
    for t in range(len(x)):
        start = t // mode.window * mode.window if mode.kind == "tumble" else t + 1 - mode.window
        whole = t + 1 - start == mode.window and start >= 0 and start % mode.stride == 0
        made = over_a_window(graph, x[start : start + mode.window]) if start >= 0 else ()
        if (
            mode.kind == "tumble"
            and mode.stride == 1
            and len(x) - start >= mode.window
            and not whole
        ):
            runs = timing.runs(t + 1 - start)
            held = made[runs - 1] if runs and timing.runs(t - start) < runs else held
        held = made[-1] if whole else held
        expected.append(held)
    known = (
        len(x) if mode.kind != "tumble" or mode.stride > 1 else len(x) // mode.window * mode.window
    )
    assert np.allclose(exact[:known], expected[:known], rtol=0, atol=1e-9)
    assert np.array_equal(model.stream().run(x), integer)
    assert sqnr_db(exact, integer) > 40
    noise = RNG(10).integers(-32768, 32768, (40, 3)).astype(np.int16)
    expected = model.reference().run_q(noise)
    assert np.array_equal(model.stream().run_q(noise), expected)
    stepped, loaded = model.stream(), stepwell.loads(model.blob)
    assert np.array_equal([stepped.step_q(row) for row in noise], expected)
    assert np.array_equal(loaded.reference().run_q(noise), expected)
    batch = model.batch(2)
    assert np.array_equal([batch.step(np.stack([row, row]))[1] for row in x], integer)


@pytest.mark.parametrize("name", AHEAD)
def test_looking_ahead_in_a_stream(name):
    """An answer at the end needs an end; answers at every step come later, as if nothing followed."""
    calib = random_sequences(RNG(8), 8, 40, 3)
    with pytest.raises(
        QuantizeError, match=r"layer '\w+' looks ahead .* mode='slide:T' or 'tumble:T'"
    ):
        stepwell.convert(replace(AHEAD[name], readout="last"), calib)
    graph = replace(AHEAD[name], readout="every")
    if "strided" in name:
        with pytest.raises(QuantizeError, match="looks ahead"):
            stepwell.convert(graph, calib)
        return
    model = stepwell.convert(graph, calib)
    assert not any(model.lags) and not any(getattr(layer, "ahead", 0) for layer in model.layers)
    layers = tuple(
        replace(layer, ahead=0) if isinstance(layer, Window) else layer for layer in graph.layers
    )
    # all that reaches a device
    assert model.id == stepwell.convert(replace(graph, layers=layers), calib).id
    x = random_sequences(RNG(9), 1, 20, 3)[0]
    timing, whole = graph.timing[-1], over_a_window(graph, x)
    late = run_in_mode(graph, CARRY, x)[timing.first :: timing.every]
    assert np.allclose(late, whole[: len(late)], rtol=0, atol=1e-9)


def test_a_model_in_another_mode_sees_another_end():
    graph = replace(AHEAD["strided"], readout="last")
    calib, x = random_sequences(RNG(8), 8, 40, 3), random_sequences(RNG(9), 1, 40, 3)[0]
    model = stepwell.convert(graph, calib, mode="slide:10")
    for text in ("slide:11", "tumble:12", "stagger:9/3"):
        mode = parse_mode(text, "last")
        other = in_mode(model, graph, mode)
        assert sqnr_db(run_in_mode(graph, mode, x), other.stream().run(x)) > 40
        assert np.array_equal(other.stream().run(x), other.reference().run(x))
    with pytest.raises(QuantizeError, match="looks ahead"):
        in_mode(model, graph, CARRY)


def test_what_looking_ahead_costs():
    near, far = (
        stepwell.convert(
            Graph(
                (
                    Window("w", 3, 3, padding=2, ahead=n),
                    random_dense(RNG(1), 9, 4),
                    random_lstm(RNG(2), 4, 5),
                ),
                "last",
            ),
            random_sequences(RNG(8), 8, 40, 3),
            mode="slide:10",
        ).info()
        for n in (0, 2)
    )
    assert (
        far["macs_per_step"] == round(near["macs_per_step"] * 1.2)
        and far["state_bytes"] == near["state_bytes"]
    )
    assert far["scratch_bytes"] == near["scratch_bytes"] // 10 * 12
    assert far["layers"][0]["looks_ahead"] == 2 and "looks_ahead" not in near["layers"][0]


@pytest.mark.parametrize(
    "ahead, mode", [(1, "carry"), (3, "slide:8"), (32767, "slide:8"), (2, "carry")]
)
def test_a_forged_model_that_looks_ahead_is_refused(ahead, mode):
    """Where no window ends, and further than its span."""
    graph = Graph((Window("w", 3, 3), random_dense(RNG(1), 9, 4), random_lstm(RNG(2), 4, 5)))
    model = stepwell.convert(graph, random_sequences(RNG(8), 8, 40, 3), mode=mode)
    forged = model.replace(layers=(replace(model.layers[0], ahead=ahead), *model.layers[1:]))
    with pytest.raises(stepwell.ModelError, match="do not fit"):
        stepwell.loads(forged.blob)


def test_a_forged_model_whose_sources_end_apart_is_refused():
    r = RNG(1)
    window = Window("w", 3, 3, padding=2, ahead=2)
    layers = (
        window,
        random_dense(r, 9, 3),
        window,
        random_dense(r, 9, 3),
        Add("sum", 3),
        random_lstm(r, 3, 4),
    )
    graph = Graph(layers, sources=((0,), (1,), (0,), (3,), (2, 4), (5,)))
    model = stepwell.convert(graph, random_sequences(RNG(8), 8, 40, 3), mode="slide:8")
    forged = model.replace(layers=(replace(model.layers[0], ahead=1), *model.layers[1:]))
    with pytest.raises(stepwell.ModelError, match="do not fit"):
        stepwell.loads(forged.blob)
    with pytest.raises(ImportRefused, match="do not end at the same step of a window"):
        replace(graph, layers=(replace(window, ahead=1), *layers[1:])).in_window(8)


# ---- refusals ----


def test_a_window_shorter_than_the_warm_up_is_named():
    graph = Graph(
        (Window("w", 3, 6, padding=0), random_dense(RNG(1), 18, 4), random_lstm(RNG(1), 4, 3))
    )
    with pytest.raises(
        QuantizeError, match="first output comes after 6 steps: take a longer window"
    ):
        stepwell.convert(graph, random_sequences(RNG(8), 8, 20, 3), mode="slide:5")


def test_a_window_shorter_than_the_warm_up():
    graph = Graph(
        (Window("w", 3, 6, padding=0), random_dense(RNG(1), 18, 4), random_lstm(RNG(1), 4, 3))
    )
    calib = random_sequences(RNG(8), 8, 20, 3)
    for text in ("slide:5", "tumble:5", "stagger:5/5"):
        with pytest.raises(StepwellError):
            stepwell.convert(graph, calib, mode=text)
    model = stepwell.convert(graph, calib, mode="slide:6")
    assert np.array_equal(model.stream().run(calib[0]), model.reference().run(calib[0]))


@pytest.mark.parametrize("text", ["stagger:10/10", "stagger:10/5", "stagger:10/1"])
def test_a_window_that_ends_between_two_outputs(text):
    graph = Graph((Window("w", 3, 3, stride=3, padding=0), random_lstm(RNG(1), 9, 4)))
    calib = random_sequences(RNG(8), 8, 30, 3)
    with pytest.raises(
        QuantizeError, match="none at the window's last: take a window of 9 or 12 steps"
    ):
        stepwell.convert(graph, calib, mode=text)
    with pytest.raises(QuantizeError, match="none at the window's last"):
        stepwell.convert(replace(graph, readout="last"), calib, mode="tumble:10")


def test_calibration_sees_windows():
    """A counter that runs away in a long stream stays small in a window: the formats are those of
    the window.
    """
    n = 2
    w_x, w_h = np.zeros((4 * n, 1)), np.zeros((4 * n, n))
    bias = np.repeat([20.0, 20.0, 20.0, 0.0], n)  # i = f = g = 1: the cell counts steps
    graph = Graph((Lstm("counter", w_x, w_h, bias),))
    x = np.ones((8, 600, 1))
    assert any(
        "saturates at 512" in warning for warning in stepwell.convert(graph, x).notes["warnings"]
    )
    assert not stepwell.convert(graph, x, mode="tumble:100").notes["warnings"]
    assert not stepwell.convert(graph, x, mode="slide:100/50").notes["warnings"]


def test_calibration_sequences_shorter_than_the_window():
    graph = graph_of("lstm dense")
    model = stepwell.convert(graph, sequences_for(graph, 1, 8, 10), mode="slide:30/30")
    x = sequences_for(graph, 2, 1, 60)[0]
    assert np.array_equal(model.stream().run(x), model.reference().run(x))


def test_what_the_modes_cost():
    """RAM by the definition: slide keeps its inputs, stagger its copies of the state, strides the
    last output.
    """
    of = {
        text: converted("lstm dense", text)[1].info()
        for text in ("carry", "tumble:12", "slide:12", "stagger:12/4")
    }
    state = of["carry"]["state_bytes"]
    assert of["tumble:12"]["state_bytes"] == state + 4
    assert of["slide:12"]["state_bytes"] == state + 4 + 12 * 14 * 2
    assert of["stagger:12/4"]["state_bytes"] == 4 * state + 4 + 4 * of["carry"]["n_out"]
    assert (
        of["carry"]["scratch_bytes"]
        == of["stagger:12/4"]["scratch_bytes"]
        < of["slide:12"]["scratch_bytes"]
    )
    assert of["slide:12"]["macs_per_step"] == 12 * of["carry"]["macs_per_step"]
    assert of["stagger:12/4"]["macs_per_step"] == 4 * of["carry"]["macs_per_step"]


def test_the_longest_window():
    graph = Graph((random_rnn(RNG(1), 1, 1),))
    calib = random_sequences(RNG(8), 8, 30, 1)
    x_q = RNG(2).integers(-32768, 32768, (65600, 1)).astype(np.int16)
    model = stepwell.convert(graph, calib, mode=Mode("slide", 65535, 65535))
    y = model.stream().run_q(x_q)
    assert not y[:65534].any() and (y[65534:] == y[65534]).all()
    assert y[65534] == model.replace(mode=CARRY).stream().run_q(x_q[:65535])[-1]
    model = stepwell.convert(graph, calib, mode="tumble:65535")
    carried = model.replace(mode=CARRY)
    expected = np.concatenate(
        [carried.stream().run_q(x_q[:65535]), carried.stream().run_q(x_q[65535:])]
    )
    assert np.array_equal(model.stream().run_q(x_q), expected)


def test_more_staggered_states_than_memory_has():
    # 60000 states of 5001 values
    graph = Graph((random_rnn(RNG(1), 1, 1), Window("wide", 1, 5000)))
    with pytest.raises(StepwellError):
        stepwell.convert(graph, random_sequences(RNG(8), 8, 3, 1), mode="stagger:60000/60000")
