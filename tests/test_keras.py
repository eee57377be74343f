"""Keras models become graphs that replay them: every layer with its options, whole models, and what
is refused.

Each import is verified against Keras itself, so that to come out at all is the test; the rest looks
at what came out.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import stepwell
from stepwell.errors import ImportRefused, QuantizeError
from stepwell.importer import file_sha256, import_file
from stepwell.importer.keras_models import import_keras, import_keras_file, recurrent, versions
from stepwell.importer.replay import TOLERANCE
from stepwell.integer.functions import Function
from stepwell.layers import Attention, Dense, Gru, Lstm, Window
from stepwell.metrics import sqnr_db
from stepwell.stream import FloatStream, run_in_mode
from stepwell.windowing import parse_mode

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
keras = pytest.importorskip("keras", reason="needs Keras 3 and one of its backends")
h5py = pytest.importorskip("h5py")
k = keras.layers

N_IN, T = 5, 12


def _tool(name: str):
    spec = importlib.util.spec_from_file_location(
        name, Path(__file__).parent.parent / "tools" / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


export_keras = _tool("export_keras")
WHOLE_SEQUENCE = ("lstm_global_average", "lstm_global_max")


def sequential(*layers, shape=(T, N_IN), dtype=None, randomise: bool = True):
    model = keras.Sequential([keras.Input(shape, dtype=dtype), *layers])
    if randomise:
        export_keras.randomise(model)
    return model


def functional(make, shape=(T, N_IN)):
    """``make``: from the input tensor to the output tensor."""
    x = keras.Input(shape)
    model = keras.Model(x, make(x))
    export_keras.randomise(model)
    return model


def layers_of(model) -> list:
    """The graph's layers; the import is verified."""
    imported = import_keras(model)
    assert imported.replay.error <= TOLERANCE
    assert imported.replay.oracle.startswith("keras 3")
    return list(imported.graph.layers)


def kinds(model) -> list[str]:
    return [type(layer).__name__ for layer in layers_of(model)]


def refused(model) -> str:
    with pytest.raises(ImportRefused) as error:
        import_keras(model)
    return str(error.value)


# ---- the matrix ----


@pytest.mark.parametrize("steps", [T, None])
@pytest.mark.parametrize("name", export_keras.names())
def test_exported_models(name, steps):
    model = export_keras.build(name, steps)
    if name in WHOLE_SEQUENCE and steps is None:
        assert "keras.Input((T, n_in))" in refused(model)
        return
    imported = import_keras(model)
    assert imported.replay.error <= TOLERANCE
    assert imported.graph.readout == ("every" if len(model.outputs[0].shape) == 3 else "last")
    assert imported.graph.n_out == model.outputs[0].shape[-1]


# ---- recurrent layers ----


@pytest.mark.parametrize("return_sequences", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("activation", ["tanh", "relu", "softsign"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "GRU before", "SimpleRNN"])
def test_cells(kind, activation, use_bias, return_sequences):
    options = {"reset_after": False} if "before" in kind else {}
    options |= {} if kind == "SimpleRNN" else {"recurrent_activation": "hard_sigmoid"}
    layer = getattr(k, kind.split()[0])(
        4, activation=activation, use_bias=use_bias, return_sequences=return_sequences, **options
    )
    (made,) = layers_of(sequential(layer))
    assert made.functions[-1] == (Function("softsign") if activation == "softsign" else activation)
    assert use_bias or not made.bias.any()


def test_gates_of_gru():
    layer = k.GRU(4)
    (made,) = layers_of(sequential(layer))
    z, r, h = np.split(np.asarray(layer.cell.kernel), 3, axis=1)
    assert isinstance(made, Gru)
    assert np.allclose(made.w_x, np.concatenate([r, z, h], axis=1).T)


@pytest.mark.parametrize("merge", ["concat", "sum", "ave", "mul"])
@pytest.mark.parametrize("return_sequences", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_bidirectional(kind, return_sequences, merge):
    layer = k.Bidirectional(
        getattr(k, kind)(4, return_sequences=return_sequences), merge_mode=merge
    )
    made = layers_of(sequential(layer, k.Dense(2)))
    assert [part.reverse for part in made[:2]] == [False, True]
    assert [part.final for part in made[:2]] == [False, not return_sequences]
    assert made[2].n_out == (8 if merge == "concat" else 4)


def test_bidirectional_of_two_outputs():
    model = functional(
        lambda x: k.Add()(k.Bidirectional(k.GRU(4, return_sequences=True), merge_mode=None)(x))
    )
    assert kinds(model) == ["Gru", "Gru", "Add"]


def test_cells_by_themselves():
    cells = [k.LSTMCell(4), k.GRUCell(3, reset_after=False), k.SimpleRNNCell(6)]
    assert kinds(sequential(k.RNN(cells), k.Dense(2))) == ["Lstm", "Gru", "Rnn", "Dense"]
    made = layers_of(sequential(k.RNN([k.LSTMCell(4), k.LSTMCell(3)], go_backwards=True)))
    assert [(layer.reverse, layer.final) for layer in made] == [(True, False), (True, True)]


def test_state_of_layers_that_return_it():
    def last_state(x):
        y, h, _ = k.LSTM(4, return_sequences=True, return_state=True)(x)
        return k.Concatenate()([h, y[:, -1, :]])

    imported = import_keras(functional(last_state))
    assert imported.graph.readout == "last"
    assert imported.graph.sources[-1] == (1, 1)


def test_stateful_layers_keep_their_state():
    model = keras.Sequential(
        [keras.Input(batch_shape=(3, 7, N_IN)), k.LSTM(4, stateful=True), k.Dense(2)]
    )
    export_keras.randomise(model)
    model(np.ones((3, 7, N_IN), "float32"))
    before = [np.array(keras.ops.convert_to_numpy(state)) for state in model.layers[0].states]
    imported = import_keras(model)
    after = [keras.ops.convert_to_numpy(state) for state in model.layers[0].states]
    assert all((a == b).all() for a, b in zip(before, after, strict=True))
    assert before[0].any()
    assert "stateful" in imported.graph.notes[0]


# ---- layers without memory ----


@pytest.mark.parametrize(
    "activation",
    "linear relu tanh sigmoid softmax relu6 leaky_relu elu selu celu softplus softsign silu swish "
    "gelu mish hard_sigmoid "
    "hard_silu hard_tanh exponential".split(),
)
def test_activations(activation):
    made = layers_of(sequential(k.GRU(6, return_sequences=True), k.Dense(4, activation=activation)))
    assert len(made) == 2
    separate = layers_of(
        sequential(k.GRU(6, return_sequences=True), k.Dense(4), k.Activation(activation))
    )
    assert separate[-1].activation == made[-1].activation


@pytest.mark.parametrize(
    "layer, function",
    [
        (lambda: k.ReLU(), "relu"),
        (lambda: k.ReLU(max_value=0.5), Function("clip", 0.0, 0.5)),
        (lambda: k.ReLU(negative_slope=0.25), Function("leaky_relu", 0.25)),
        (lambda: k.ReLU(threshold=0.25), Function("thresholded_relu", 0.25)),
        (lambda: k.LeakyReLU(0.125), Function("leaky_relu", 0.125)),
        (lambda: k.ELU(0.5), Function("elu", 0.5)),
        (lambda: k.PReLU("ones", shared_axes=[1, 2]), None),
        (lambda: k.Activation("tanh"), "tanh"),
        (lambda: k.Activation(k.LeakyReLU(0.125)), Function("leaky_relu", 0.125)),
        (lambda: k.TimeDistributed(k.ReLU()), "relu"),
    ],
)
def test_layers_that_are_functions(layer, function):
    made = layers_of(sequential(k.Dense(4), layer(), k.LSTM(3)))
    assert [type(part) for part in made] == [Dense, Lstm]
    assert function is None or made[0].activation == function


def test_prelu_with_a_slope_for_each_feature():
    assert kinds(sequential(k.PReLU(shared_axes=[1]), k.LSTM(3)))[-2:] == ["Add", "Lstm"]
    assert "shared_axes=[1]" in refused(sequential(k.PReLU(), k.LSTM(3)))


def test_softmax_after_a_recurrent_layer():
    (_, head) = layers_of(sequential(k.LSTM(4, return_sequences=True), k.Softmax()))
    assert head.activation == "softmax" and head.groups == 4


@pytest.mark.parametrize(
    "layer",
    [
        lambda: k.Dropout(0.5),
        lambda: k.SpatialDropout1D(0.5),
        lambda: k.GaussianNoise(0.5),
        lambda: k.GaussianDropout(0.5),
        lambda: k.ActivityRegularization(0.5),
        lambda: k.Identity(),
        lambda: k.TimeDistributed(k.Dropout(0.5)),
    ],
)
def test_layers_of_training_only(layer):
    assert kinds(sequential(layer(), k.LSTM(4, return_sequences=True), layer())) == ["Lstm"]


@pytest.mark.parametrize("scale", [False, True])
def test_batch_norm(scale):
    norm = {"scale": scale, "center": scale}
    assert kinds(sequential(k.Dense(4), k.BatchNormalization(**norm), k.ReLU(), k.GRU(3))) == [
        "Dense",
        "Gru",
    ]
    (first, *_) = layers_of(sequential(k.BatchNormalization(**norm), k.GRU(3)))
    assert first.groups == N_IN
    assert kinds(
        sequential(k.GRU(3, return_sequences=True), k.TimeDistributed(k.BatchNormalization()))
    ) == [
        "Gru",
        "Dense",
    ]


def test_layer_norm():
    made = layers_of(sequential(k.LayerNormalization(epsilon=1e-2, scale=False), k.GRU(3)))
    assert made[0].epsilon == 1e-2 and (made[0].gamma == 1).all()
    assert kinds(sequential(k.GRU(3), k.LayerNormalization(axis=1))) == ["Gru", "LayerNorm"]


def test_scalings_of_the_input():
    mean, variance = [1000.0, -3.0, 0.0, 50.0, 0.5], [400.0, 0.25, 1.0, 9.0, 1e-4]
    (first, _) = layers_of(
        sequential(k.Normalization(mean=mean, variance=variance), k.LSTM(4), randomise=False)
    )
    assert np.allclose(first.weight[:, 0], 1 / np.sqrt(variance)) and first.groups == N_IN
    assert kinds(sequential(k.Rescaling(1 / 255, -0.5), k.LSTM(4))) == ["Dense", "Lstm"]
    adapted = k.Normalization()
    adapted.adapt(np.random.default_rng(1).normal(3.0, 2.0, (20, T, N_IN)).astype("float32"))
    head = k.Normalization(mean=5.0, variance=4.0, invert=True, axis=None)
    assert kinds(sequential(adapted, k.LSTM(4), k.Dense(1), head, randomise=False)) == [
        "Dense",
        "Lstm",
        "Dense",
    ]


def test_embeddings():
    tokens = {"shape": (T,), "dtype": "int32"}
    imported = import_keras(sequential(k.Embedding(20, 6, mask_zero=True), k.LSTM(4), **tokens))
    assert "token 0" in imported.graph.notes[0]
    flat = k.TimeDistributed(k.Flatten())
    made = layers_of(sequential(k.Embedding(20, 6), flat, k.LSTM(4), shape=(T, 3), dtype="int32"))
    assert made[0].n_in == 3 and made[0].n_out == 18


def test_masking_is_said():
    imported = import_keras(sequential(k.Masking(-1.0), k.LSTM(4), k.Dense(2)))
    assert "'masking" in imported.graph.notes[0] and "skip" in imported.graph.notes[0]


# ---- several sources ----


@pytest.mark.parametrize(
    "merge, last",
    [
        (lambda a, b: k.Add()([a, b]), "Add"),
        (lambda a, b: k.Add()([a, b, a]), "Add"),
        (lambda a, b: a + b, "Add"),
        (lambda a, b: k.Subtract()([a, b]), "Add"),
        (lambda a, b: a - b, "Add"),
        (lambda a, b: k.Average()([a, b]), "Dense"),
        (lambda a, b: k.Multiply()([a, b]), "Mul"),
        (lambda a, b: a * b, "Mul"),
        (
            lambda a, b: k.LSTM(3)(
                (0.5 - a * 2.0) / 4.0 + (b - np.float32([1.0, 2.0, 3.0, 4.0])) + 1
            ),
            "Lstm",
        ),
        (lambda a, b: k.Concatenate()([a, b, a]), "Concat"),
        (lambda a, b: keras.ops.concatenate([a, b], axis=-1), "Concat"),
        (lambda a, b: k.ReLU()(k.Add()([a, b])), "Add"),
    ],
)
def test_merges(merge, last):
    def make(x):
        y = k.LSTM(4, return_sequences=True)(x)
        return merge(k.GRU(4, return_sequences=True)(y), y)

    assert kinds(functional(make))[-1] == last


def test_what_two_layers_read_is_not_fused():
    def make(x):
        y = k.Dense(4)(k.LSTM(4, return_sequences=True)(x))
        return k.Add()([k.ReLU()(y), y])

    assert kinds(functional(make)) == ["Lstm", "Dense", "Activation", "Add"]


def test_models_within_models():
    inner = sequential(k.Dense(6, activation="relu"), k.GRU(4, return_sequences=True))
    assert kinds(functional(lambda x: k.Dense(2)(inner(x)[:, -1]))) == ["Dense", "Gru", "Dense"]
    step = sequential(k.Dense(6, activation="relu"), k.Dense(4), shape=(N_IN,))
    assert kinds(sequential(k.TimeDistributed(step), k.GRU(4))) == ["Dense", "Dense", "Gru"]


def test_shared_layers_are_written_twice():
    shared = k.Dense(N_IN, activation="tanh")
    made = layers_of(functional(lambda x: k.LSTM(4)(shared(shared(x)))))
    assert (made[0].weight == made[1].weight).all()


def test_unused_outputs_of_layers_are_left_out():
    x = keras.Input((T, N_IN))
    model = keras.Model(x, [k.Dense(2)(k.LSTM(4)(x)), k.GRU(4)(x)])
    assert kinds(keras.Model(model.input, model.outputs[0])) == ["Lstm", "Dense"]


# ---- plumbing ----


@pytest.mark.parametrize(
    "make",
    [
        lambda x: k.Flatten()(k.LSTM(4)(x)),
        lambda x: k.Reshape((4,))(k.Reshape((1, 4))(k.LSTM(4)(x))),
        lambda x: k.LSTM(4, return_sequences=True)(x)[:, -1],
        lambda x: k.LSTM(4, return_sequences=True)(x)[:, -1, :],
        lambda x: k.LSTM(4, return_sequences=True)(x)[:, -1:, 1:3],
        lambda x: k.LSTM(4, return_sequences=True)(x)[..., 1:3],
        lambda x: keras.ops.squeeze(keras.ops.expand_dims(k.LSTM(4)(x), 1), 1),
        lambda x: k.LSTM(4)(k.TimeDistributed(k.Reshape((N_IN,)))(k.Reshape((T, N_IN, 1))(x))),
    ],
)
def test_plumbing(make):
    assert set(kinds(functional(make))) <= {"Lstm", "Slice"}


def test_input_of_one_channel():
    model = sequential(k.Reshape((T, 1)), k.LSTM(4), shape=(T,))
    assert import_keras(model).graph.n_in == 1
    assert "Reshape((T, 1))" in refused(
        sequential(k.Dense(4), k.Reshape((4, 1)), k.LSTM(4), shape=(T,))
    )


def test_flattened_sequence():
    made = layers_of(
        sequential(k.LSTM(4, return_sequences=True), k.Flatten(), k.Dropout(0.2), k.Dense(3))
    )
    assert [type(layer) for layer in made] == [Lstm, Window, Dense]
    assert made[1].taps == T
    assert "a whole sequence in one row, which is only" in refused(
        sequential(k.LSTM(4, return_sequences=True), k.Flatten())
    )


# ---- convolutions and pooling ----


@pytest.mark.parametrize("dilation, strides", [(1, 1), (2, 1), (1, 2), (1, 3)])
@pytest.mark.parametrize("padding", ["causal", "valid", "same"])
@pytest.mark.parametrize("taps", [1, 2, 3, 4])
def test_convolutions(taps, padding, dilation, strides):
    layers = [
        k.Conv1D(6, taps, strides, padding, dilation_rate=dilation, activation="relu"),
        k.LSTM(4, return_sequences=True),
    ]
    imported = import_keras(sequential(*layers, shape=(13, N_IN)))
    assert imported.graph.timing[-1].every == strides
    assert padding != "causal" or imported.graph.timing[-1].first == 0


@pytest.mark.parametrize("steps", [11, 12, 13])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_answers_at_the_end_of_strided_convolutions(padding, steps):
    graph = import_keras(
        sequential(k.Conv1D(6, 4, 3, padding), k.LSTM(4), shape=(steps, N_IN))
    ).graph
    assert graph.readout == "last"
    assert graph.needs_window == (padding == "same")  # one zero at least follows these lengths


@pytest.mark.parametrize(
    "layer",
    [
        lambda: k.Conv1D(6, 3, padding="causal", groups=2),
        lambda: k.Conv1D(8, 3, padding="causal", groups=4, use_bias=False),
        lambda: k.DepthwiseConv1D(3),
        lambda: k.DepthwiseConv1D(3, depth_multiplier=2, activation="tanh", use_bias=False),
        lambda: k.DepthwiseConv1D(3, strides=2, padding="same"),
        lambda: k.SeparableConv1D(6, 3),
        lambda: k.SeparableConv1D(6, 2, depth_multiplier=3, dilation_rate=2, activation="relu"),
    ],
)
def test_grouped_convolutions(layer):
    made = layers_of(sequential(layer(), k.GRU(4, return_sequences=True), shape=(T, 4)))
    assert any(isinstance(part, Dense) and part.groups > 1 for part in made)


@pytest.mark.parametrize("last", [False, True])
def test_looking_ahead_and_reading_backwards(last):
    """What reads the sequence from its end needs the zeros after it."""
    ahead = k.Conv1D(6, 4, padding="same")
    after = k.LSTM(3) if last else k.Conv1D(3, 3, padding="valid")
    imported = import_keras(
        sequential(ahead, k.Bidirectional(k.GRU(4, return_sequences=True)), after)
    )
    assert any("looks 2 steps ahead" in note for note in imported.graph.notes)
    inside = sequential(
        k.LSTM(4, return_sequences=True), k.Conv1D(4, 3, padding="same"), k.Bidirectional(k.GRU(3))
    )
    assert import_keras(inside).graph.needs_window


SAME = {
    "one": lambda: [k.Conv1D(6, 3, padding="same", activation="relu"), k.LSTM(4)],
    "two, normalised": lambda: [
        k.Conv1D(6, 5, padding="same", activation="relu"),
        k.BatchNormalization(),
        k.Conv1D(6, 4, padding="same"),
        k.LSTM(4),
        k.Dense(2),
    ],
    "dilated": lambda: [k.Conv1D(6, 3, padding="same", dilation_rate=2), k.GRU(4)],
    "strided": lambda: [k.Conv1D(6, 3, strides=2, padding="same"), k.LSTM(4)],
    "depthwise": lambda: [k.DepthwiseConv1D(3, strides=2, padding="same"), k.GRU(4)],
    "separable": lambda: [k.SeparableConv1D(6, 4, padding="same"), k.GRU(4)],
    "then pooled": lambda: [k.Conv1D(6, 3, padding="same"), k.MaxPooling1D(2), k.LSTM(4)],
    "behind a cell": lambda: [
        k.LSTM(4, return_sequences=True),
        k.Conv1D(4, 3, padding="same"),
        k.LSTM(4),
    ],
    "zeros around": lambda: [k.ZeroPadding1D((1, 2)), k.Conv1D(4, 3), k.LSTM(4)],
    "every step": lambda: [k.Conv1D(6, 4, padding="same"), k.LSTM(4, return_sequences=True)],
    "largest": lambda: [k.MaxPooling1D(3, 1, padding="same"), k.LSTM(4)],
    "largest, strided": lambda: [k.MaxPooling1D(3, 2, padding="same"), k.LSTM(4)],
    "mean": lambda: [k.AveragePooling1D(3, 1, padding="same"), k.LSTM(4)],
    "means": lambda: [
        k.Conv1D(4, 3, padding="same"),
        k.AveragePooling1D(5, 1, padding="same"),
        k.GRU(4),
    ],
}


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("steps", [12, 13])
@pytest.mark.parametrize("name", SAME)
def test_padding_same_is_exact_in_windows(name, steps, fixed):
    model = sequential(*SAME[name](), shape=(steps if fixed else None, N_IN))
    graph = import_keras(model).graph
    rng = np.random.default_rng(5)
    calib, x = rng.normal(size=(8, 40, N_IN)), rng.normal(size=(40, N_IN)).astype(np.float32)
    for text in (f"slide:{steps}", f"tumble:{steps}", f"stagger:{steps}/{steps}"):
        mode = parse_mode(text, graph.readout)
        ends = range(steps - 1, 40, steps if text.startswith("tumble") else 1)
        expected = keras.ops.convert_to_numpy(
            model(np.stack([x[t + 1 - steps : t + 1] for t in ends]), training=False)
        )
        expected = expected[:, -1] if graph.readout == "every" else expected
        got = run_in_mode(graph, mode, x)[list(ends)]
        assert np.abs(got - expected).max() <= TOLERANCE * np.ptp(expected)
        made = stepwell.convert(graph, calib, mode=mode)
        assert np.array_equal(made.stream().run(x), made.reference().run(x))
        assert sqnr_db(expected, made.stream().run(x)[list(ends)]) > 40
    if graph.readout == "every":
        stepwell.convert(graph, calib)
    elif graph.needs_window:
        with pytest.raises(QuantizeError, match=r"layer '\w+' looks ahead .* mode='slide:T'"):
            stepwell.convert(graph, calib)


def test_means_that_depend_on_the_backend(monkeypatch):
    """Keras' backends pad a mean differently where the two ends differ: who cannot know which one
    it was is told.
    """
    uneven = sequential(k.AveragePooling1D(2, padding="same"), k.LSTM(4), shape=(11, N_IN))
    if keras.backend.backend() == "torch":
        assert "set KERAS_BACKEND to the one it was trained with" in refused(uneven)
        monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    graph = import_keras(uneven, verify=False).graph.in_window(11)
    x, seen = np.random.default_rng(1).normal(size=(2, 11, N_IN)), {}
    FloatStream(graph, lambda index, name, values: seen.update({(index, name): values})).run(x)
    padded = np.concatenate([x, np.full((2, 1, N_IN), np.nan)], axis=1)
    assert np.allclose(
        seen[len(graph.layers) - 1, "x"], np.nanmean(padded.reshape(2, 6, 2, N_IN), axis=2)
    )


@pytest.mark.parametrize("zeros", [1, 2, 3])
def test_zeros_in_front(zeros):
    imported = import_keras(sequential(k.ZeroPadding1D((zeros, 0)), k.Conv1D(6, 4), k.LSTM(4)))
    assert imported.graph.timing[-1].first == 3 - zeros


@pytest.mark.parametrize("kind", ["Max", "Average"])
@pytest.mark.parametrize("size, strides", [(2, None), (3, None), (3, 1), (3, 2)])
def test_pooling(kind, size, strides):
    pool = getattr(k, f"{kind}Pooling1D")(size, strides)
    imported = import_keras(
        sequential(k.LSTM(4, return_sequences=True), pool, k.GRU(3), shape=(None, N_IN))
    )
    assert imported.graph.timing[-1].every == (strides or size)


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("kind", ["Max", "Average"])
def test_pooling_over_the_sequence(kind, keepdims):
    pool = getattr(k, f"Global{kind}Pooling1D")(keepdims=keepdims)
    front = [k.Conv1D(4, 3), k.MaxPooling1D(2), k.LSTM(4, return_sequences=True)]
    assert import_keras(sequential(*front, pool, k.Dense(2))).graph.readout == "last"


def test_pooling_by_operations():
    def make(x):
        y = k.LSTM(4, return_sequences=True)(x)
        return k.Concatenate()(
            [keras.ops.mean(y, axis=1), keras.ops.max(y, axis=1), keras.ops.sum(y, axis=1)]
        )

    assert kinds(functional(make))[-1] == "Concat"


def test_residual_convolutions():
    def make(x):
        y = k.Conv1D(N_IN, 3, padding="causal", dilation_rate=2)(x)
        return k.LSTM(4)(k.ReLU()(k.Add()([x, y])))

    assert kinds(functional(make)) == ["Window", "Dense", "Add", "Lstm"]
    delayed = functional(lambda x: k.LSTM(4)(k.Add()([x, k.Conv1D(N_IN, 3, padding="same")(x)])))
    assert "do not arrive at the same steps" in refused(delayed)


# ---- attention ----


def _attended(layer, **call):
    def make(x):
        y = k.LSTM(4, return_sequences=True)(x)
        return k.Dense(2)(k.Flatten()(layer([k.Reshape((1, 4))(y[:, -1]), y], **call)))

    return functional(make)


@pytest.mark.parametrize(
    "layer, form",
    [
        (lambda: k.Attention(), "dot"),
        (lambda: k.Attention(use_scale=True), "dot"),
        (lambda: k.Attention(score_mode="concat"), "additive"),
        (lambda: k.AdditiveAttention(), "additive"),
        (lambda: k.AdditiveAttention(use_scale=False), "additive"),
    ],
)
def test_attention(layer, form):
    made = next(part for part in layers_of(_attended(layer())) if isinstance(part, Attention))
    assert (made.form, made.steps, made.key_width, made.n_out) == (form, T, 4, 4)


def test_attention_with_keys():
    def make(x):
        y, h, _ = k.LSTM(4, return_sequences=True, return_state=True)(x)
        return k.Attention()([k.Reshape((1, 3))(k.Dense(3)(h)), y, k.Dense(3)(y)])

    made = layers_of(functional(make))[-1]
    assert (made.key_width, made.n_out) == (3, 4)


def test_causal_attention():
    def make(x):
        y = k.LSTM(4, return_sequences=True)(x)
        return k.Attention()([y, y], use_causal_mask=True)

    assert import_keras(functional(make)).graph.readout == "every"


@pytest.mark.parametrize(
    "weigh",
    [
        lambda a, y: k.Dot(axes=1)([a, y]),
        lambda a, y: keras.ops.sum(a * y, axis=1),
        lambda a, y: keras.ops.sum(k.Multiply()([y, a]), axis=1),
    ],
)
def test_attention_by_scores(weigh):
    def make(x):
        y = k.LSTM(4, return_sequences=True)(x)
        return weigh(k.Softmax(axis=1)(k.Dense(1, activation="tanh")(y)), y)

    assert layers_of(functional(make))[-1].form == "score"


# ---- what is refused ----


class OwnCell(k.LSTMCell):
    pass


class OwnLayer(k.Dense):
    pass


class OwnModel(keras.Model):
    def call(self, x):
        return x


def _fed_state(x):
    _, h, c = k.LSTM(4, return_state=True)(x)
    return k.LSTM(4)(x, initial_state=[h, c])


def _cell_state(x):
    return k.Dense(2)(k.LSTM(4, return_state=True)(x)[2])


def _mixed_ends(x):
    y = k.LSTM(4, return_sequences=True)(x)
    return k.Add()([y, k.Reshape((1, 4))(y[:, -1])])


def _scores(x):
    y = k.LSTM(4, return_sequences=True)(x)
    return k.AdditiveAttention()([y, y], return_attention_scores=True)[0]


LSTM_SEQUENCE = {"units": 4, "return_sequences": True}
REFUSALS = {
    "no recurrent layer": (lambda: sequential(k.Dense(3)), "at least one recurrent layer"),
    "backwards": (
        lambda: sequential(k.LSTM(4, return_sequences=True, go_backwards=True)),
        "Bidirectional",
    ),
    "initial state": (lambda: functional(_fed_state), "initial_state"),
    "cell state": (lambda: functional(_cell_state), "only the hidden state"),
    "own cell": (lambda: sequential(k.RNN(OwnCell(4))), "OwnCell is not one of Keras' own"),
    "own layer": (lambda: sequential(OwnLayer(4), k.LSTM(4)), "OwnLayer"),
    "lambda": (lambda: sequential(k.Lambda(lambda x: x), k.LSTM(4)), "Python code"),
    "decoder": (lambda: sequential(k.LSTM(4), k.RepeatVector(T), k.LSTM(4)), "encoder by itself"),
    "heads": (
        lambda: functional(lambda x: k.LSTM(4)(k.MultiHeadAttention(2, 3)(x, x))),
        "of one head",
    ),
    "future": (lambda: functional(lambda x: k.LSTM(4)(k.Attention()([x, x]))), "use_causal_mask"),
    "scores": (lambda: functional(_scores), "return_attention_scores"),
    "permute": (lambda: sequential(k.Permute((2, 1)), k.LSTM(4)), "in this order"),
    "time mixed": (lambda: sequential(k.Reshape((T // 2, 2 * N_IN)), k.LSTM(4)), "time must stay"),
    "norm over time": (
        lambda: sequential(k.LayerNormalization(axis=1), k.LSTM(4)),
        "only the features",
    ),
    "joined in time": (
        lambda: functional(lambda x: k.LSTM(4)(k.Concatenate(axis=1)([x, x]))),
        "only the features",
    ),
    "mixed ends": (lambda: functional(_mixed_ends), "of one shape"),
    "zeros behind": (
        lambda: sequential(k.ZeroPadding1D((0, 3)), k.Conv1D(4, 3), k.LSTM(4)),
        "more than the 2",
    ),
    "zeros twice": (
        lambda: sequential(k.ZeroPadding1D(1), k.Conv1D(4, 3, padding="same"), k.LSTM(4)),
        "padding='valid'",
    ),
    "zeros alone": (
        lambda: sequential(k.ZeroPadding1D((1, 0)), k.LSTM(4)),
        "only understood in front of Conv1D",
    ),
    "many zeros": (
        lambda: sequential(k.ZeroPadding1D((5, 0)), k.Conv1D(4, 3), k.LSTM(4)),
        "more than the 2",
    ),
    "channels first": (
        lambda: sequential(k.Conv1D(4, 3, data_format="channels_first"), k.LSTM(4)),
        "channels_last",
    ),
    "softmax inside": (
        lambda: sequential(k.Dense(4, activation="softmax"), k.LSTM(4)),
        "softmax must come last",
    ),
    "unknown function": (
        lambda: sequential(k.LSTM(4), k.Dense(3, activation="log_softmax")),
        "log_softmax",
    ),
    "own function": (lambda: sequential(k.LSTM(4, activation=lambda x: x)), "<lambda>"),
    "relu of two": (
        lambda: sequential(k.LSTM(4), k.ReLU(max_value=1.0, threshold=0.5)),
        "only one of",
    ),
    "half": (lambda: sequential(k.LSTM(4, dtype="mixed_bfloat16")), "bfloat16"),
    "first step": (
        lambda: functional(lambda x: k.LSTM(4, return_sequences=True)(x)[:, 0]),
        "the last step",
    ),
    "merge mode": (
        lambda: functional(lambda x: k.Bidirectional(k.GRU(3, return_state=True))(x)[1]),
        "state",
    ),
    "three axes": (
        lambda: sequential(k.Reshape((T, N_IN, 1)), k.Conv2D(2, 3), k.Flatten()),
        "Conv1D",
    ),
    "images": (
        lambda: sequential(k.TimeDistributed(k.LSTM(4)), shape=(T, 3, N_IN)),
        "needs a sequence",
    ),
    "too long for T": (
        lambda: sequential(k.LSTM(4, return_sequences=True), k.Embedding(3, 4)),
        "model's input",
    ),
    "own model": (OwnModel, "rebuild it as"),
    "not built": (lambda: keras.Sequential([k.LSTM(4)]), "not built"),
    "no model": (lambda: 3, "not a builtins.int"),
    "a layer": (lambda: k.LSTM(4), "expected a keras.Model"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    make, sentence = REFUSALS[name]
    assert sentence in refused(make())


def test_many_inputs_are_refused():
    a, b = keras.Input((T, 2)), keras.Input((T, 3))
    y = k.LSTM(4)(k.Concatenate()([a, b]))
    assert "has 2 inputs" in refused(keras.Model([a, b], y))


def two_heads(pack, first=None, second=None) -> keras.Model:
    x = keras.Input((T, N_IN))
    y, h, c = k.LSTM(4, return_sequences=True, return_state=True)(x)
    return keras.Model(
        x, pack((first or k.Dense(2, name="mu"))(y), (second or k.Dense(1, name="value"))(y), h, c)
    )


PACKED = {
    "list": (lambda a, b, h, c: [a, b], ["mu", "value"]),
    "with states": (lambda a, b, h, c: [h, a, c, b], ["mu", "value"]),
    "dict": (lambda a, b, h, c: {"worth": b, "mean": a}, ["worth", "mean"]),
}


@pytest.mark.parametrize("name", PACKED)
def test_outputs_stand_side_by_side(name, tmp_path):
    pack, names = PACKED[name]
    model = two_heads(pack)
    imported = import_keras(model)
    assert [
        output.name for output in imported.graph.outputs
    ] == names and imported.replay.error <= TOLERANCE
    assert imported.graph.n_out == 3 and imported.graph.readout == "every"
    turned = import_keras(model, outputs=names[::-1])
    assert [output.name for output in turned.graph.outputs] == names[
        ::-1
    ] and turned.replay.error <= TOLERANCE
    model.save(tmp_path / "model.keras")
    alone = import_file(tmp_path / "model.keras", outputs=names[1])
    assert alone.graph.outputs == imported.graph.outputs[1:] and alone.replay.error <= TOLERANCE


def test_outputs_that_cannot_stand_side_by_side():
    model = two_heads(lambda a, b, h, c: [a, b, k.Dense(3, name="end")(h)])
    text = refused(model)
    assert "'mu' answers at every step, 'end' at the last one" in text
    assert "by themselves convert 'mu', 'value', 'end': choose with --outputs NAME" in text
    assert import_keras(model, outputs="end").graph.readout == "last"
    model = two_heads(lambda a, b, h, c: [a, b], first=k.Dense(2, "softmax", name="mu"))
    assert "'mu' ends in softmax" in refused(model)
    model = two_heads(lambda a, b, h, c: [a, b], first=k.UpSampling1D(2, name="more"))
    assert "'value' converts by itself: choose with --outputs NAME" in refused(model)
    assert import_keras(model, outputs="value").replay.error <= TOLERANCE
    with pytest.raises(ImportRefused, match="no output 'nothing': the model has 'more', 'value'"):
        import_keras(model, outputs="nothing")


def test_names_that_cannot_be_printed():
    model = two_heads(lambda a, b, h, c: [a, b], first=k.Dense(2, name="m\u00a0u\x1b[2J"))
    graph = import_keras(model).graph
    assert [output.name for output in graph.outputs] == ["m\\xa0u\\x1b[2J", "value"]
    model = sequential(k.LSTM(4, name="tief \u00e9\t\U0001f600"))
    graph = import_keras(model).graph
    assert graph.layers[0].name == "tief \u00e9\\t\U0001f600"
    assert any("cannot be printed" in note and note.isprintable() for note in graph.notes)


def test_diverged_weights_are_refused():
    model = sequential(k.LSTM(4, name="memory"))
    model.set_weights([np.full(w.shape, np.nan) for w in model.get_weights()])
    assert "'memory'" in refused(model) and "NaN" in refused(model)


def test_a_misread_cell_does_not_pass(monkeypatch):
    monkeypatch.setitem(
        recurrent.CELLS,
        "LSTMCell",
        lambda cell, name, **s: recurrent._rnn(k.SimpleRNN(4).cell, name, **s),
    )
    assert "layer 'lstm" in refused(sequential(k.LSTM(4)))
    wrong = recurrent._gru

    def swapped(cell, name, **settings):
        made = wrong(cell, name, **settings)
        return replace(made, w_x=np.roll(made.w_x, 4, axis=0))

    monkeypatch.setitem(recurrent.CELLS, "GRUCell", swapped)
    assert "of the output's range" in refused(sequential(k.GRU(4)))


def test_without_keras(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras", None)
    assert 'pip install "stepwell[keras]"' in refused(object())


def test_scaled_outputs_go_into_the_dense_layer():
    made = layers_of(functional(lambda x: k.Dense(2)(k.LSTM(4)(x)) * 20.0 + 300.0))
    assert [type(layer) for layer in made] == [Lstm, Dense]


def test_built_by_data_and_saved(tmp_path):
    model = keras.Sequential([k.LSTM(4), k.Dense(2)])
    model(np.ones((3, T, N_IN), "float32"))
    export_keras.randomise(model)
    assert kinds(model) == ["Lstm", "Dense"]
    model = sequential(k.Bidirectional(k.GRU(4)), k.Dense(2))
    model.save(tmp_path / "model.keras")
    again = import_keras(keras.saving.load_model(tmp_path / "model.keras"))
    assert again.graph.source.sha256 == import_keras(model).graph.source.sha256


def test_outputs_by_name():
    x = keras.Input((T, N_IN))
    assert kinds(keras.Model(x, {"y": k.LSTM(4)(x)})) == ["Lstm"]


def test_saved_files(tmp_path):
    model = sequential(k.LSTM(4, return_sequences=True), k.Dense(2))
    x = np.random.default_rng(1).normal(size=(16, T, N_IN))
    direct = stepwell.convert(model, x, name="saved")
    for name in ("m.keras", "m.h5"):
        model.save(tmp_path / name)
        made = stepwell.convert(tmp_path / name, x, name="saved")
        assert made.notes["source"]["file"] == name and made.notes["source"][
            "sha256"
        ] == file_sha256(tmp_path / name)
        assert [layer.w_x.tolist() for layer in made.layers[:1]] == [
            layer.w_x.tolist() for layer in direct.layers[:1]
        ]
    (tmp_path / "broken.keras").write_bytes((tmp_path / "m.keras").read_bytes()[:200])
    with pytest.raises(ImportRefused, match=r"broken\.keras: Keras cannot load it"):
        stepwell.convert(tmp_path / "broken.keras", x)
    with pytest.raises(ImportRefused, match=r"absent\.keras: no such file"):
        stepwell.convert(tmp_path / "absent.keras", x)


def test_command_line_takes_saved_files(tmp_path):
    sequential(k.LSTM(4), k.Dense(2)).save(tmp_path / "m.keras")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(1).normal(size=(16, T, N_IN)))
    files = [str(tmp_path / name) for name in ("m.keras", "x.npz", "m.stw")]

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "stepwell", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "stream = source (keras 3" in run("convert", files[0], "--calib", files[1])
    assert "0 mismatches" in run("check", files[2], "--data", files[1])


def test_unverified():
    imported = import_keras(sequential(k.LSTM(4)), verify=False)
    assert imported.replay is None
    assert imported.graph.source.producer == f"keras {keras.__version__}"
    assert len(imported.graph.source.sha256) == 64


# ---- older files, and a backend that is there ----

HARD = {"activation": "hard_sigmoid"}
OLD = {
    "LSTM": lambda: [k.LSTM(4, recurrent_activation="hard_sigmoid")],
    "GRU": lambda: [k.GRU(4, recurrent_activation="hard_sigmoid", reset_after=False)],
    "SimpleRNN": lambda: [k.SimpleRNN(4, **HARD)],
    "Dense": lambda: [k.LSTM(4), k.Dense(3, **HARD)],
    "Activation": lambda: [k.LSTM(4), k.Dense(3), k.Activation("hard_sigmoid")],
    "both ways": lambda: [k.Bidirectional(k.LSTM(3, recurrent_activation="hard_sigmoid"))],
    "cells": lambda: [
        k.RNN([k.GRUCell(3, recurrent_activation="hard_sigmoid"), k.SimpleRNNCell(3, **HARD)])
    ],
    "inside": lambda: [k.TimeDistributed(k.Dense(4, **HARD)), k.LSTM(3)],
}


def saved_by(model, path: Path, version: str | bytes | None) -> Path:
    """The model in a file that names another version of Keras, or none."""
    model.save(path)
    with h5py.File(path, "r+") as file:
        del file.attrs["keras_version"]
        if version is not None:
            file.attrs["keras_version"] = version
    return path


def slopes(graph) -> set[float]:
    named = [
        f
        for layer in graph.layers
        for f in getattr(layer, "functions", (getattr(layer, "activation", "none"),))
    ]
    return {f.alpha for f in named if isinstance(f, Function) and f.name == "hard_sigmoid"}


@pytest.mark.parametrize(
    "version, slope", [("2.2.4", 0.2), ("2.10.0-tf", 0.2), (b"1.2.2", 0.2), ("3.4.1", 1 / 6)]
)
@pytest.mark.parametrize("name", OLD)
def test_hard_sigmoid_has_the_slope_of_the_file(name, version, slope, tmp_path):
    path = saved_by(sequential(*OLD[name]()), tmp_path / "old.h5", version)
    imported = import_keras_file(path)  # Keras itself is compared with the same function
    assert imported.replay.error <= TOLERANCE
    assert slopes(imported.graph) == {slope}
    assert any("slope 0.2 of Keras" in note for note in imported.graph.notes) == (slope == 0.2)


def test_the_slope_is_computed(tmp_path):
    model = sequential(k.LSTM(4, recurrent_activation="hard_sigmoid"))
    graph = import_keras_file(saved_by(model, tmp_path / "old.h5", "2.2.4")).graph
    own = k.LSTM(4, recurrent_activation=lambda z: keras.ops.clip(0.2 * z + 0.5, 0.0, 1.0))
    own.build((None, T, N_IN))
    own.set_weights(model.get_weights())
    x = np.random.default_rng(2).normal(size=(2, T, N_IN)) * 2
    expected = keras.ops.convert_to_numpy(own(x.astype(np.float32)))
    assert np.abs(FloatStream(graph).run(x)[:, -1] - expected).max() < 1e-5
    assert np.abs(FloatStream(import_keras(model).graph).run(x)[:, -1] - expected).max() > 1e-3


@pytest.mark.parametrize("version", [None, "", "2", "2.\x1b[31m", "two.0"])
def test_a_file_that_does_not_tell_its_version(version, tmp_path):
    path = saved_by(sequential(*OLD["LSTM"]()), tmp_path / "old.h5", version)
    with pytest.raises(
        ImportRefused, match=r"old\.h5: it has hard_sigmoid, whose slope is 0\.2 before Keras 3"
    ):
        import_keras_file(path)
    assert import_keras_file(
        saved_by(sequential(k.LSTM(4)), tmp_path / "plain.h5", version)
    ).graph.layers


def test_version_of_a_keras_archive(tmp_path):
    path = tmp_path / "m.keras"
    sequential(*OLD["LSTM"]()).save(path)
    assert versions.saved_by(path) == keras.__version__
    older = tmp_path / "older.keras"
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(older, "w") as made:
        for entry in archive.namelist():
            text = archive.read(entry)
            made.writestr(
                entry, b'{"keras_version": "2.13.1"}' if entry == "metadata.json" else text
            )
    assert versions.saved_by(older) == "2.13.1"
    assert slopes(import_keras_file(older).graph) == {0.2}


IMPORT = """
import sys, numpy as np, stepwell
assert "keras" not in sys.modules
model = stepwell.convert(sys.argv[1], np.random.default_rng(1).normal(size=(8, 20, 5)), mode="slide:12")
import keras
print(keras.backend.backend(), model.n_out)
"""


@pytest.mark.parametrize("settings, backend", [(None, ""), ("tensorflow", ""), ("jax", "jax")])
def test_a_keras_file_needs_no_variable(settings, backend, tmp_path):
    """What Keras writes into its own settings at its first import is no choice; what the user
    writes is.
    """
    path = tmp_path / "m.keras"
    sequential(k.Conv1D(4, 3, padding="same"), k.LSTM(4)).save(path)
    (tmp_path / ".keras").mkdir()
    if settings:
        (tmp_path / ".keras" / "keras.json").write_text(f'{{"backend": "{settings}"}}')
    plain = {name: value for name, value in os.environ.items() if not name.startswith("KERAS")}
    command = [sys.executable, "-c", IMPORT, str(path)]
    run = subprocess.run(
        command, env=plain | {"HOME": str(tmp_path)}, capture_output=True, text=True
    )
    if backend and not importlib.util.find_spec(backend):
        assert run.returncode and "set KERAS_BACKEND to a backend that is installed" in run.stderr
        return
    assert run.returncode == 0, run.stderr
    expected = next(
        b for b in (backend, "tensorflow", "torch", "jax") if b and importlib.util.find_spec(b)
    )
    assert run.stdout.split() == [expected, "4"]
