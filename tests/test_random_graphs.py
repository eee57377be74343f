"""Random graphs of every supported kind: reference = engine, and a stream = the whole sequence, in
float and in integers.

Then numbers that nobody trains on purpose: either a clear error, or a model whose C equals the
reference. ``STEPWELL_EXAMPLES=2000 pytest tests/test_random_graphs.py`` tries that many graphs,
others each time.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import stepwell
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from shapes import (
    HARD,
    random_dense,
    random_gru,
    random_lstm,
    random_norm,
    random_projected,
    random_rnn,
    random_sequences,
)
from stepwell.errors import ImportRefused, QuantizeError, SampleError
from stepwell.graph import Graph
from stepwell.integer.functions import Function
from stepwell.layers import (
    Activation,
    Add,
    ArgMax,
    Attention,
    Concat,
    Dense,
    Embedding,
    Layer,
    LayerNorm,
    MaxPool,
    Mul,
    Slice,
    Timing,
    Window,
)
from stepwell.metrics import sqnr_db
from stepwell.stream import FloatStream, run_in_mode
from stepwell.windowing import Mode, parse_mode

REFUSALS = (QuantizeError, SampleError, ImportRefused)
EXAMPLES = int(os.environ.get("STEPWELL_EXAMPLES", "0"))


def tried(examples: int):
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        deadline=None,
        print_blob=True,
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.filter_too_much,
        ],
    )


SMOOTH = [
    Function("softsign"),
    Function("softplus"),
    Function("gelu"),
    Function("elu", 1.0),
    Function("leaky_relu", 0.1),
]
ACTIVATIONS = ["none", "none", "relu", "tanh", "sigmoid", *SMOOTH]
KINDS = (
    "lstm lstm gru gru rnn dense dense groups norm activation add mul concat slice window strided "
    "pool score dot additive"
).split()


@dataclass(frozen=True)
class Value:
    """Something that a layer may read: its number, width and timing, and the steps that it is made
    after a window's end.
    """

    number: int
    width: int
    timing: Timing
    lag: int = 0


class Maker:
    """Draws one graph, layer by layer; every layer reads any values that fit."""

    def __init__(self, draw, backward: bool):
        self.draw, self.backward = draw, backward
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="weights"))
        self.layers: list[Layer] = []
        self.sources: list[tuple[int, ...]] = []
        self.values = [Value(0, draw(st.integers(1, 5), label="inputs"), Timing())]

    def one_of(self, things):
        return self.draw(st.sampled_from(list(things)))

    def flag(self) -> bool:
        return self.draw(st.booleans())

    def width(self) -> int:
        return self.draw(st.integers(1, 7))

    def add(self, layer: Layer, *reads: Value) -> Value:
        """The value that the layer makes."""
        self.layers.append(layer)
        self.sources.append(tuple(value.number for value in reads))
        timing, lag = reads[0].timing, reads[0].lag
        if isinstance(layer, Window):
            lag += layer.ahead * timing.every
            timing = Timing(timing.first + layer.delay * timing.every, timing.every * layer.stride)
        self.values.append(Value(len(self.layers), layer.n_out, timing, lag))
        return self.values[-1]

    def any_value(self, *, beside: Value | None = None, width: int = 0) -> Value:
        """One of the last few, or one of the timing and width asked for."""
        fit = [
            v
            for v in self.values
            if beside is None or (v.timing, v.lag) == (beside.timing, beside.lag)
        ]
        fit = [v for v in fit if not width or v.width == width]
        if isinstance(self.layers[0] if self.layers else None, Embedding):
            fit = [v for v in fit if v.number]  # tokens are not numbers
        return self.one_of(fit[-4:])

    def dense(
        self, source: Value, width: int = 0, activation: str | Function | None = None
    ) -> Value:
        activation = self.one_of(ACTIVATIONS) if activation is None else activation
        return self.add(
            random_dense(self.rng, source.width, width or self.width(), activation), source
        )

    # ---- recurrent layers in their variants ----

    def ways(self) -> dict:
        """Backwards or not; a start of its own or not."""
        if not self.backward:
            return {}
        return {"reverse": self.flag(), "final": self.draw(st.integers(0, 3)) == 0}

    def lstm(self, x: Value) -> Layer:
        n, plain = self.width(), self.flag()
        if self.draw(st.integers(0, 3)) == 0:
            layer = random_projected(self.rng, x.width, n, self.width())
        else:
            layer = random_lstm(self.rng, x.width, n)
        if plain:
            return replace(layer, **self.ways())
        return replace(
            layer,
            functions=(
                self.one_of(["sigmoid", HARD]),
                self.one_of(["tanh", "relu", Function("softsign")]),
                self.one_of(["tanh", Function("softsign")]),
            ),
            clip=self.one_of([np.inf, 0.5, 3.0, 20.0]),
            coupled=self.flag(),
            peephole=self.rng.normal(size=3 * n) if self.flag() else None,
            h0=self.rng.normal(size=layer.n_out) if self.flag() else None,
            c0=self.rng.normal(size=n) * 3 if self.flag() else None,
            **self.ways(),
        )

    def gru(self, x: Value) -> Layer:
        n = self.width()
        return replace(
            random_gru(self.rng, x.width, n),
            functions=(
                self.one_of(["sigmoid", HARD]),
                self.one_of(["tanh", "tanh", "relu", Function("softsign")]),
            ),
            clip=self.one_of([np.inf, np.inf, 0.5, 3.0]),
            reset_after=self.flag(),
            h0=self.rng.normal(size=n) if self.flag() else None,
            **self.ways(),
        )

    def rnn(self, x: Value) -> Layer:
        n = self.width()
        return replace(
            random_rnn(self.rng, x.width, n),
            functions=(self.one_of(["tanh", "tanh", "relu", Function("softsign")]),),
            clip=self.one_of([np.inf, np.inf, 1.0]),
            h0=self.rng.normal(size=n) if self.flag() else None,
            **self.ways(),
        )

    # ---- one more layer of a kind ----

    def more(self, kind: str) -> None:
        x = self.any_value()
        if kind in ("lstm", "gru", "rnn"):
            self.add(getattr(self, kind)(x), x)
        elif kind == "dense":
            self.dense(x)
        elif kind == "groups":
            groups = self.one_of([g for g in range(1, x.width + 1) if x.width % g == 0])
            rows = groups * self.draw(st.integers(1, 2))
            self.add(random_dense(self.rng, x.width, rows, self.one_of(ACTIVATIONS), groups), x)
        elif kind == "norm":
            wide = x if x.width >= 2 else self.dense(x, 4, "none")
            self.add(random_norm(self.rng, wide.width), wide)
        elif kind == "activation":
            self.add(Activation("act", self.one_of(ACTIVATIONS[2:]), x.width), x)
        elif kind in ("add", "mul"):
            other = self.any_value(beside=x, width=x.width)
            activation = self.one_of(ACTIVATIONS)
            weights = self.one_of([(1.0, 1.0), (1.0, -1.0), (0.3, -4.0)])
            layer = (
                Add("sum", x.width, weights, activation)
                if kind == "add"
                else Mul("product", x.width, activation)
            )
            self.add(layer, x, other)
        elif kind == "concat":
            other = self.any_value(beside=x)
            self.add(Concat("both", (x.width, other.width)), x, other)
        elif kind == "slice":
            start = self.draw(st.integers(0, x.width - 1))
            self.add(Slice("some", x.width, start, self.draw(st.integers(1, x.width - start))), x)
        elif kind in ("window", "strided", "pool"):
            self.look_back(kind, x)
        else:
            self.attend(kind, x)

    def look_back(self, kind: str, x: Value) -> None:
        taps, dilation = self.draw(st.integers(1, 4)), self.draw(st.integers(1, 3))
        span = (taps - 1) * dilation + 1
        padding = None if kind == "window" and self.flag() else self.draw(st.integers(0, span - 1))
        stride = self.draw(st.integers(1, 3)) if kind == "strided" else 1
        ahead = self.draw(st.integers(0, span - 1)) if self.draw(st.integers(0, 3)) == 0 else 0
        lowest = kind == "pool" and dilation == 1 and self.flag()
        seen = self.add(
            Window("window", x.width, taps, dilation, stride, padding, ahead, lowest=lowest), x
        )
        if kind == "pool":
            self.add(MaxPool("largest", seen.width, taps), seen)
            if lowest:  # nothing else may read it
                self.values.remove(seen)
        elif self.flag():
            self.dense(seen)

    def attend(self, form: str, x: Value) -> None:
        steps, width = self.draw(st.integers(1, 9)), self.draw(st.integers(1, 4))
        value = self.any_value(beside=x)
        if form == "score":
            reads = (self.dense(x, 1), value)
        elif form == "dot":
            reads = (x, self.dense(x, x.width, "none"), value)
        else:
            reads = (self.dense(x, width), self.dense(x, width), value)
        weight = self.rng.normal(size=width) if form == "additive" else None
        key_width = reads[0].width
        scale = self.one_of([1.0, 0.3, 2.0])
        self.add(Attention("mean", form, steps, key_width, value.width, scale, weight), *reads)

    def finish(self) -> Graph:
        x = self.values[-1]
        self.add(self.one_of([self.gru, self.lstm, self.rnn])(x), x)
        end = self.one_of(["as it is", "as it is", "dense", "softmax", "arg max"])
        if end == "dense":
            self.dense(self.values[-1])
        elif end == "softmax":
            self.dense(self.values[-1], activation="softmax")
        elif end == "arg max":
            self.add(ArgMax("class", self.values[-1].width), self.values[-1])
        return self.alive(self.one_of(["every", "last"]))

    def alive(self, readout: str) -> Graph:
        """The graph without the layers that its output does not depend on."""
        needed = {len(self.layers)}
        for number in range(len(self.layers), 0, -1):
            needed |= set(self.sources[number - 1]) if number in needed else set()
        kept = [number for number in range(1, len(self.layers) + 1) if number in needed]
        places = {0: 0} | {number: place for place, number in enumerate(kept, start=1)}
        sources = tuple(
            tuple(places[value] for value in self.sources[number - 1]) for number in kept
        )
        return Graph(tuple(self.layers[number - 1] for number in kept), readout, sources=sources)


@st.composite
def graphs(draw, backward: bool = False) -> Graph:
    maker = Maker(draw, backward)
    if draw(st.integers(0, 9)) == 0:
        tokens = maker.rng.normal(size=(draw(st.integers(1, 20)), draw(st.integers(1, 4))))
        maker.add(Embedding("tokens", tokens, maker.values[0].width), maker.values[0])
    for kind in draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=7), label="kinds"):
        maker.more(kind)
    return maker.finish()


def data_for(graph: Graph, seed: int, n: int, steps: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if isinstance(graph.layers[0], Embedding):
        return rng.integers(0, len(graph.layers[0].table), (n, steps, graph.n_in)).astype(float)
    return random_sequences(rng, n, steps, graph.n_in)


def assert_bits(model: stepwell.Model, x: np.ndarray, cuts: list[int]) -> None:
    """Reference = engine on data [T, n_in] and on full-scale noise: whole, in chunks, step by step,
    after a load.
    """
    rng = np.random.default_rng(1)
    noise = rng.integers(-32768, 32768, x.shape).astype(np.int16)
    for codes in (model.quantize(x), noise, rng.choice([-32768, 32767], x.shape).astype(np.int16)):
        expected = model.reference().run_q(codes)
        assert np.array_equal(model.stream().run_q(codes), expected)
        reference, stream, loaded = model.reference(), model.stream(), model.stream()
        edges = [0, *cuts, len(codes)]
        parts = [
            (reference.run_q(codes[a:b]), stream.run_q(codes[a:b])) for a, b in pairwise(edges)
        ]
        assert np.array_equal(np.concatenate([p for p, _ in parts]), expected)
        assert np.array_equal(np.concatenate([p for _, p in parts]), expected)
    stream.reset()
    assert np.array_equal([stream.step_q(row) for row in codes], expected)
    stream.reset()
    stream.run_q(codes[: cuts[0]])
    loaded.load(stream.save())
    stream.run_q(codes[cuts[0] :])
    loaded.run_q(codes[cuts[0] :])
    assert loaded.digest() == stream.digest()
    batch = model.batch(2)
    assert np.array_equal(
        [batch.step(np.stack([row, row]))[1] for row in x[:15]], model.reference().run(x[:15])
    )
    again = stepwell.loads(model.blob)
    assert again.blob == model.blob and np.array_equal(again.reference().run_q(codes), expected)
    assert model.info()["snapshot_bytes"] == len(stream.save())


def convert_or_refuse(graph: Graph, calib, x: np.ndarray, cuts=(7,), **options) -> bool:
    """Whether there is a model, whose bits are then right; a refusal must name a layer or say what
    to do.
    """
    try:
        model = stepwell.convert(graph, calib, **options)
    except REFUSALS as error:
        text = str(error)
        names = {layer.name for layer in graph.layers} | {"output", "output scale"}
        assert (
            any(f"'{name}'" in text for name in names) or "calibration" in text or "mode" in text
        ), text
        return False
    assert_bits(model, x, list(cuts))
    assert np.isfinite(model.reference().run(x)).all()
    return True


STEPS = 45
CUTS = st.lists(st.integers(0, STEPS), min_size=1, max_size=3).map(sorted)


def mode_that_fits(graph: Graph, kind: str, size: int, part: int) -> Mode:
    """A mode whose windows hold an output of the graph at their last step."""
    timing = graph.timing[-1]
    window = timing.first + timing.every * size + 1
    if kind == "stagger":
        divisors = [k for k in range(1, window + 1) if window % k == 0]
        return parse_mode(f"stagger:{window}/{divisors[part % len(divisors)]}")
    if kind == "slide":
        return parse_mode(f"slide:{window}/{part % window + 1}")
    return parse_mode("carry" if kind == "carry" else f"tumble:{window}", graph.readout)


@tried(60)
@given(graphs(), CUTS)
def test_float_stream_equals_whole_sequence(graph, cuts):
    x = data_for(graph, 5, 2, STEPS)
    whole = FloatStream(graph).run(x)
    chunked, stepped = FloatStream(graph), FloatStream(graph)
    edges = [0, *cuts, STEPS]
    parts = [chunked.run(x[:, a:b]) for a, b in pairwise(edges)]
    size = 1e-9 * max(1.0, np.abs(whole).max())
    assert np.allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=size)
    assert np.allclose(
        np.stack([stepped.step(x[:, t]) for t in range(STEPS)], axis=1), whole, rtol=0, atol=size
    )
    assert np.allclose(FloatStream(graph).run(x[1]), whole[1], rtol=0, atol=size)


@tried(80)
@given(
    graphs(),
    st.sampled_from(["carry", "carry", "tumble", "slide", "stagger"]),
    st.integers(0, 9),
    st.integers(0, 9),
    CUTS,
)
def test_engine_equals_reference(graph, kind, size, part, cuts):
    mode = mode_that_fits(graph, kind, size, part)
    calib, x = data_for(graph, 8, 8, max(40, mode.window)), data_for(graph, 9, 1, STEPS)[0]
    made = convert_or_refuse(graph, calib, x, cuts, mode=mode)
    event(f"{kind}, {len(graph.layers)} layers" if made else "refused")


@tried(40)
@given(graphs(backward=True), st.integers(0, 9), st.integers(0, 9), CUTS)
def test_engine_equals_reference_backwards(graph, size, part, cuts):
    """Layers that read backwards, and whose last state is all that counts, in the one mode that has
    them.
    """
    mode = mode_that_fits(graph, "slide", size, part)
    calib, x = data_for(graph, 8, 8, max(40, mode.window)), data_for(graph, 9, 1, STEPS)[0]
    event("converted" if convert_or_refuse(graph, calib, x, cuts, mode=mode) else "refused")


@tried(40)
@given(graphs(), st.sampled_from(["carry", "tumble", "slide"]), st.integers(1, 9))
def test_integers_stay_close_to_the_floats(graph, kind, size):
    """On the calibration's own data, at the first steps, before any chaos: nothing that random
    weights do is far off.
    """
    mode = mode_that_fits(graph, kind, size, 0)
    calib = data_for(graph, 8, 8, max(30, mode.window))
    peaks = [1.0]
    FloatStream(graph, lambda index, name, values: peaks.append(float(np.abs(values).max()))).run(
        calib
    )
    assume(max(peaks) < 30)  # products of products leave what networks are trained on
    try:
        model = stepwell.convert(graph, calib, mode=mode)
    except REFUSALS as error:
        assert "overflow proof" in str(error), error
        return
    x = calib[:, :12]
    exact, integer = run_in_mode(graph, mode, x), model.reference().run(x)
    if isinstance(graph.layers[-1], ArgMax) or not exact.any():
        return
    reached = sqnr_db(exact, integer)
    assert reached is None or reached > 15, (reached, model)


# ---- numbers that nobody trains on purpose ----


def scaled(layer: Layer, size: float, dead_row: int | None = None) -> Layer:
    """The layer with its weights (not its biases) times ``size``, one row of all of them zero."""

    def times(array: np.ndarray) -> np.ndarray:
        array = array * size
        if dead_row is not None:
            array[dead_row % len(array)] = 0.0
        return array

    names = ("w_x", "w_h", "weight", "gamma", "table", "peephole", "projection")
    present = {
        name: getattr(layer, name)
        for name in names
        if isinstance(getattr(layer, name, None), np.ndarray)
    }
    if isinstance(layer, Attention):
        return replace(layer, scale=layer.scale * size)
    if isinstance(layer, Add):
        return replace(layer, weights=tuple(w * size for w in layer.weights))
    return replace(layer, **{name: times(array) for name, array in present.items()})


@tried(60)
@given(
    graphs(),
    st.lists(st.sampled_from([1e-6, 1e-3, 1.0, 1.0, 1e3, 1e6]), min_size=10, max_size=10),
    st.integers(0, 20),
    st.booleans(),
    st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_weights_of_any_size(graph, sizes, dead_row, dead, size_of_x):
    layers = tuple(
        scaled(layer, sizes[k % len(sizes)], dead_row if dead else None)
        for k, layer in enumerate(graph.layers)
    )
    graph = Graph(layers, sources=graph.sources)
    tokens = isinstance(graph.layers[0], Embedding)
    unit = 1.0 if tokens else size_of_x
    made = convert_or_refuse(
        graph, data_for(graph, 8, 8, 40) * unit, data_for(graph, 9, 1, 30)[0] * unit
    )
    event("converted" if made else "refused")


@tried(30)
@given(
    graphs(),
    st.sampled_from([0.0, 1e-9, 1.0, -5.0, 1e4]),
    st.sampled_from([1e-6, 1.0, 1e6]),
    st.integers(0, 9),
)
def test_calibration_far_from_the_data(graph, constant, far, zero):
    """Constant sequences, inputs that calibration never saw the size of, channels that are zero."""
    tokens = isinstance(graph.layers[0], Embedding)
    calib, x = data_for(graph, 8, 8, 40), data_for(graph, 9, 1, 30)[0]
    flat = np.full_like(calib, max(0.0, np.floor(constant)) if tokens else constant)
    calib[..., zero % graph.n_in] = 0.0
    convert_or_refuse(graph, flat, x)
    convert_or_refuse(graph, calib, x * (1.0 if tokens else far))
    convert_or_refuse(graph, calib[:1, : graph.timing[-1].first + 1], x)


SMALL = [1e-1, 1e-2, 3e-3, 1e-4, 1e-6, 0.0]


@pytest.mark.parametrize("kind", [random_lstm, random_gru, random_rnn])
@pytest.mark.parametrize("array", ["w_x", "w_h"])
@pytest.mark.parametrize("size", SMALL)
def test_rows_with_weights_on_one_side_only(kind, array, size):
    """A gate that has unlearned its inputs or its recurrence, which weight decay does."""
    layer = kind(np.random.default_rng(1), 3, 6)
    weights = getattr(layer, array).copy()
    weights[5] *= size
    graph = Graph((replace(layer, **{array: weights}),))
    model = stepwell.convert(graph, random_sequences(np.random.default_rng(8), 16, 60, 3))
    x = random_sequences(np.random.default_rng(9), 3, 50, 3)
    assert sqnr_db(FloatStream(graph).run(x), model.reference().run(x)) > 40
    assert_bits(model, x[0], [3, 20])


def test_a_layer_that_nothing_reads():
    """Dead branches convert, or are refused by name."""
    rng = np.random.default_rng(1)
    window, rnn = Window("dead", 2, 2, stride=3, padding=0), random_rnn(rng, 2, 2)
    calib = random_sequences(np.random.default_rng(8), 8, 30, 2)
    assert_bits(
        stepwell.convert(Graph((random_gru(rng, 2, 3), rnn), sources=((0,), (0,))), calib),
        calib[0],
        [4],
    )
    try:
        graph = Graph((window, rnn), sources=((0,), (0,)))
    except ImportRefused as error:
        assert "'dead'" in str(error)
        return
    assert_bits(stepwell.convert(graph, calib), calib[0], [4])


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-12, 1e-6, 1e6, 1e12, 1e30, 1e100, 1e300])
@pytest.mark.parametrize("kind", [random_lstm, random_gru, random_rnn, None])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_weights_and_inputs_of_absurd_size(kind, size):
    """Weights, inputs, both against each other."""
    rng = np.random.default_rng(1)
    layer = kind(rng, 3, 5) if kind else random_lstm(rng, 3, 5)
    after = (
        (random_dense(rng, 5, 2),)
        if kind
        else (random_norm(rng, 5), random_dense(rng, 5, 2, Function("gelu")))
    )
    calib = random_sequences(np.random.default_rng(8), 8, 30, 3)
    x = random_sequences(np.random.default_rng(9), 1, 30, 3)[0]
    convert_or_refuse(Graph((layer, *after)), calib * size, x * size)
    convert_or_refuse(Graph((scaled(layer, size), *after)), calib, x)
    convert_or_refuse(Graph((replace(layer, w_x=layer.w_x / size), *after)), calib * size, x * size)
    convert_or_refuse(Graph((layer, *(scaled(part, size) for part in after))), calib, x)
    convert_or_refuse(Graph((layer, *after)), calib, x, scaler={"y_std": size, "y_mean": -size})


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6, 1e9, 1e15])
def test_layers_side_by_side_of_different_sizes(size):
    """A concatenation keeps one scale: what is small beside the large is lost, and that is said or
    harmless.
    """
    rng = np.random.default_rng(1)
    lstm, far = random_lstm(rng, 3, 4), Dense("far", rng.normal(size=(2, 4)) * size, np.zeros(2))
    back = Dense(
        "back", np.hstack([rng.normal(size=(2, 4)), rng.normal(size=(2, 2)) / size]), np.zeros(2)
    )
    graph = Graph((lstm, far, Concat("both", (4, 2)), back), sources=((0,), (1,), (1, 2), (3,)))
    calib = random_sequences(np.random.default_rng(8), 8, 40, 3)
    try:
        model = stepwell.convert(graph, calib)
    except REFUSALS:
        return
    close = sqnr_db(FloatStream(graph).run(calib), model.reference().run(calib)) > 20
    assert close or any("both" in warning for warning in model.notes["warnings"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Graph(()),
        lambda: Graph((random_dense(np.random.default_rng(1), 3, 2),)),
        lambda: Graph((random_gru(np.random.default_rng(1), 3, 2),), sources=((1,),)),
        lambda: Graph((random_gru(np.random.default_rng(1), 3, 2),), sources=((-1,),)),
        lambda: Graph((random_gru(np.random.default_rng(1), 3, 2),), sources=((0, 0),)),
        lambda: Graph((random_gru(np.random.default_rng(1), 3, 2),), sources=((0,), (1,))),
        lambda: Graph((random_gru(np.random.default_rng(1), 3, 2), Add("a", 2)), sources=((0,),)),
        lambda: Graph(
            (random_gru(np.random.default_rng(1), 3, 2), Add("a", 2)), sources=((0,), (1,))
        ),
        lambda: Graph(
            (random_gru(np.random.default_rng(1), 3, 2), Add("a", 2)), sources=((0,), (1, 2))
        ),
        lambda: Graph(
            (random_gru(np.random.default_rng(1), 3, 2), Add("a", 2)), sources=((0,), (0, 1))
        ),
        lambda: Graph((Window("w", 3, 2, 70000), random_gru(np.random.default_rng(1), 6, 2))),
        lambda: Graph((Window("w", 3, 30, 3000), random_gru(np.random.default_rng(1), 90, 2))),
        lambda: Graph(
            (Window("w", 3, 2, stride=70000), random_gru(np.random.default_rng(1), 6, 2))
        ),
        lambda: Graph((Window("w", 3, 0), random_gru(np.random.default_rng(1), 6, 2))),
        lambda: Graph((Window("w", 3, 2, padding=2), random_gru(np.random.default_rng(1), 6, 2))),
        lambda: Graph((Window("w", 3, 40000), random_gru(np.random.default_rng(1), 6, 2))),
        lambda: Graph(
            (random_gru(np.random.default_rng(1), 3, 2), Embedding("e", np.ones((3, 2)), 2))
        ),
        lambda: Graph((random_gru(np.random.default_rng(1), 3, 2), Slice("s", 2, 1, 2))),
        lambda: Graph((random_gru(np.random.default_rng(1), 3, 2), Slice("s", 2, 0, 0))),
        lambda: Graph((random_gru(np.random.default_rng(1), 3, 4), MaxPool("m", 4, 3))),
        lambda: Graph((random_gru(np.random.default_rng(1), 3, 4), MaxPool("m", 4, 0))),
        lambda: Graph(
            (
                random_gru(np.random.default_rng(1), 3, 4),
                ArgMax("m", 4),
                Dense("d", np.ones((2, 1)), np.ones(2)),
            )
        ),
        lambda: Graph(
            (random_gru(np.random.default_rng(1), 3, 1), LayerNorm("n", np.ones(1), np.ones(1)))
        ),
        lambda: Graph(
            (
                random_gru(np.random.default_rng(1), 3, 2),
                LayerNorm("n", np.ones(2), np.ones(2), -1.0),
            )
        ),
        lambda: Graph(
            (random_gru(np.random.default_rng(1), 3, 2), LayerNorm("n", np.ones(2), np.ones(3)))
        ),
        lambda: Graph(
            (random_gru(np.random.default_rng(1), 3, 2), Add("a", 2, (0.0, 0.0))),
            sources=((0,), (1, 1)),
        ),
        lambda: Graph(
            (random_gru(np.random.default_rng(1), 3, 2), Add("a", 2, (np.nan, 1.0))),
            sources=((0,), (1, 1)),
        ),
        lambda: Graph(
            (
                random_gru(np.random.default_rng(1), 3, 2),
                Dense("d", np.ones((2, 1)), np.ones(2), groups=0),
            )
        ),
        lambda: Graph(
            (
                random_gru(np.random.default_rng(1), 3, 2),
                Dense("d", np.ones((3, 1)), np.ones(3), groups=2),
            )
        ),
        lambda: Graph((replace(random_gru(np.random.default_rng(1), 3, 2), clip=0.0),)),
        lambda: Graph((replace(random_gru(np.random.default_rng(1), 3, 2), clip=np.nan),)),
        lambda: Graph((replace(random_gru(np.random.default_rng(1), 3, 2), h0=np.ones(3)),)),
        lambda: Graph(
            (replace(random_lstm(np.random.default_rng(1), 3, 2), c0=np.full(2, np.inf)),)
        ),
        lambda: Graph((replace(random_lstm(np.random.default_rng(1), 3, 2), peephole=np.ones(4)),)),
        lambda: Graph(
            (replace(random_lstm(np.random.default_rng(1), 3, 2), projection=np.ones((3, 2))),)
        ),
        lambda: Graph(
            (replace(random_projected(np.random.default_rng(1), 3, 4, 2), projection=None),)
        ),
        *(
            lambda changes=changes: Graph(
                (
                    random_gru(np.random.default_rng(1), 3, 2),
                    replace(Attention("t", "dot", 5, 2, 2), **changes),
                ),
                sources=((0,), (1, 1, 1)),
            )
            for changes in (
                {"steps": 0},
                {"steps": 513},
                {"form": "cosine"},
                {"form": "additive"},
                {"scale": np.inf},
                {"weight": np.ones(2)},
                {"key_width": 3},
                {"n_out": 3},
            )
        ),
    ],
)
def test_graphs_that_make_no_sense(make):
    with pytest.raises(ImportRefused) as refused:
        make()
    assert len(str(refused.value)) > 15
