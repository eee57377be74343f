#!/usr/bin/env python3
"""Export a matrix of recurrent Keras 3 models to ONNX: one file for each pattern that an importer
meets, with inputs and outputs.

    pip install keras tensorflow-cpu tf2onnx                     # or: keras torch onnxscript
    KERAS_BACKEND=tensorflow python tools/export_keras.py patterns/
    KERAS_BACKEND=torch python tools/export_keras.py patterns/ gru      # those whose name holds "gru"

BACKEND-NAME.onnx comes with BACKEND-NAME_io.npz: "x" [batch, T, n_in], and "y", what Keras computes
for it. The tests of the Keras importer take their models from the same table.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

N_IN, N_HIDDEN, N_OUT, STEPS, BATCH, VOCABULARY = 5, 8, 3, 12, 2, 11


def _models() -> dict[str, Callable[[], list]]:
    """Name -> the layers after the Input."""
    from keras import layers as k

    lstm = {"units": N_HIDDEN, "return_sequences": True}
    return {
        "lstm": lambda: [k.LSTM(**lstm)],
        "lstm_last": lambda: [k.LSTM(N_HIDDEN)],
        "lstm_dense": lambda: [k.LSTM(**lstm), k.Dense(N_OUT)],
        "lstm_last_softmax": lambda: [k.LSTM(N_HIDDEN), k.Dense(N_OUT, activation="softmax")],
        "lstm_no_bias": lambda: [k.LSTM(N_HIDDEN, use_bias=False)],
        "lstm_hard": lambda: [
            k.LSTM(N_HIDDEN, activation="relu", recurrent_activation="hard_sigmoid")
        ],
        "lstm_unrolled": lambda: [k.LSTM(N_HIDDEN, unroll=True)],
        "lstm_backwards": lambda: [k.LSTM(N_HIDDEN, go_backwards=True)],
        "lstm_stacked": lambda: [k.LSTM(**lstm), k.Dropout(0.3), k.LSTM(6), k.Dense(N_OUT)],
        "lstm_stacked3": lambda: [k.LSTM(**lstm), k.LSTM(**lstm), k.LSTM(**lstm)],
        "lstm_masking": lambda: [k.Masking(0.0), k.LSTM(N_HIDDEN), k.Dense(N_OUT)],
        "gru": lambda: [k.GRU(**lstm)],
        "gru_last": lambda: [k.GRU(N_HIDDEN), k.Dense(N_OUT)],
        "gru_before": lambda: [k.GRU(**lstm, reset_after=False)],
        "gru_before_last": lambda: [k.GRU(N_HIDDEN, reset_after=False)],
        "gru_no_bias": lambda: [k.GRU(N_HIDDEN, use_bias=False)],
        "gru_stacked": lambda: [k.GRU(**lstm), k.GRU(6), k.Dense(N_OUT, activation="softmax")],
        "rnn": lambda: [k.SimpleRNN(**lstm)],
        "rnn_last": lambda: [k.SimpleRNN(N_HIDDEN), k.Dense(N_OUT, activation="relu")],
        "rnn_cells": lambda: [k.RNN([k.LSTMCell(6), k.GRUCell(N_HIDDEN)], return_sequences=True)],
        "bidirectional": lambda: [k.Bidirectional(k.LSTM(**lstm))],
        "bidirectional_last": lambda: [k.Bidirectional(k.GRU(N_HIDDEN)), k.Dense(N_OUT)],
        "bidirectional_sum": lambda: [k.Bidirectional(k.LSTM(**lstm), merge_mode="sum")],
        "time_distributed": lambda: [
            k.LSTM(**lstm),
            k.TimeDistributed(k.Dense(N_OUT, activation="tanh")),
        ],
        "conv_lstm": lambda: [
            k.Conv1D(7, 3, padding="causal", activation="relu"),
            k.LSTM(N_HIDDEN),
            k.Dense(N_OUT),
        ],
        "conv_dilated_gru": lambda: [
            k.Conv1D(6, 3, padding="causal", dilation_rate=2),
            k.BatchNormalization(),
            k.ReLU(),
            k.GRU(**lstm),
        ],
        "conv_same_lstm": lambda: [
            k.Conv1D(7, 3, padding="same", activation="relu"),
            k.LSTM(N_HIDDEN),
        ],
        "conv_pool_lstm": lambda: [
            k.Conv1D(7, 3, activation="relu"),
            k.MaxPooling1D(2),
            k.LSTM(N_HIDDEN),
        ],
        "depthwise_lstm": lambda: [k.ZeroPadding1D((2, 0)), k.DepthwiseConv1D(3), k.LSTM(N_HIDDEN)],
        "separable_lstm": lambda: [
            k.ZeroPadding1D((2, 0)),
            k.SeparableConv1D(6, 3),
            k.LSTM(N_HIDDEN),
        ],
        "layer_norm_gru": lambda: [k.Dense(6), k.LayerNormalization(), k.GRU(N_HIDDEN)],
        "lstm_global_average": lambda: [k.LSTM(**lstm), k.GlobalAveragePooling1D(), k.Dense(N_OUT)],
        "lstm_global_max": lambda: [k.LSTM(**lstm), k.GlobalMaxPooling1D(), k.Dense(N_OUT)],
        "embedding_lstm": lambda: [
            k.Embedding(VOCABULARY, 6),
            k.LSTM(N_HIDDEN),
            k.Dense(N_OUT, activation="sigmoid"),
        ],
    }


def build(name: str, steps: int | None = STEPS):
    """A Sequential of the table with weights, statistics and biases drawn at random."""
    import keras

    tokens = name.startswith("embedding")
    source = keras.Input((steps,), dtype="int32") if tokens else keras.Input((steps, N_IN))
    model = keras.Sequential([source, *_models()[name]()], name=name)
    randomise(model)
    return model


def randomise(model) -> None:
    """New values for every weight that a stream reads: what is zero or one at the start would hide
    mistakes.
    """
    rng = np.random.default_rng(7)
    for weight in model.weights:
        if weight.dtype.startswith("float") and "rnn_state" not in weight.path:
            draw = rng.normal(scale=0.4, size=weight.shape)
            weight.assign(np.abs(draw) + 0.5 if weight.path.endswith("variance") else draw)


def sample(model, steps: int = STEPS, batch: int = BATCH) -> np.ndarray:
    """Random input for a model: [batch, T, n_in], or tokens [batch, T]."""
    rng = np.random.default_rng(5)
    spec = model.inputs[0]
    if "int" in spec.dtype:
        return rng.integers(0, VOCABULARY, size=(batch, steps)).astype(spec.dtype)
    return rng.normal(size=(batch, steps, spec.shape[-1])).astype("float32")


def names() -> list[str]:
    return list(_models())


def lengths() -> tuple[int | None, ...]:
    """T fixed and dynamic. With the torch backend fixed only: Keras traces a dynamic T as one step,
    and the file computes one.
    """
    import keras

    return (STEPS,) if keras.backend.backend() == "torch" else (STEPS, None)


def export(name: str, steps: int | None, folder: Path) -> Path:
    """Write BACKEND-NAME[-dynamic].onnx and its _io.npz; returns the path of the first."""
    import keras

    model = build(name, steps)
    x = sample(model)
    stem = f"{keras.backend.backend()}-{name}{'' if steps else '-dynamic'}"
    path = folder / f"{stem}.onnx"
    shape = (None if keras.backend.backend() == "tensorflow" else BATCH, *model.inputs[0].shape[1:])
    signature = [keras.InputSpec(shape=shape, dtype=model.inputs[0].dtype, name="x")]
    with _silence():
        model.export(str(path), format="onnx", input_signature=signature, verbose=False)
        y = keras.ops.convert_to_numpy(model(x, training=False))
    np.savez(folder / f"{stem}_io.npz", x=x, y=y)
    return path


def operators(path: Path) -> str:
    """The operators of a file in order, runs and repetitions counted."""
    import onnx

    kinds = [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
    return (
        " ".join(kinds)
        if len(kinds) <= 40
        else f"{len(kinds)} nodes: {dict(Counter(kinds).most_common())}"
    )


@contextlib.contextmanager
def _silence():
    """The exporters have much to say, on every channel."""
    sink = io.StringIO()
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("part", nargs="?", default="", help="only models whose name holds this")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in names():
        for steps in lengths():
            if args.part in name:
                try:
                    path = export(name, steps, args.folder)
                    print(f"{path.name}: {operators(path)}", flush=True)
                except (
                    Exception
                ) as error:  # one model that Keras cannot export must not stop the others
                    failed += 1
                    reason = (str(error) or type(error).__name__).splitlines()[0][:150]
                    print(
                        f"{name}, T = {steps}: Keras does not export it: {reason}",
                        file=sys.stderr,
                        flush=True,
                    )
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
