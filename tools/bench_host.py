#!/usr/bin/env python3
"""Time of one streamed timestep on this machine, from Python, against other engines.

    python tools/bench_host.py
    python tools/bench_host.py --size 16x64 --json
    python tools/bench_host.py --batch 1024 --threads 2

All engines run the same LSTM (random weights, one step a call, state carried by the caller or the
engine) on one thread, in interleaved rounds of one process, so that a machine that changes its
speed changes it for all: judge the ratios. Peers that are not installed are skipped. "best" is the
fastest round, "median" the one in the middle; both in microseconds a step.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
import stepwell
from bench_mcu import layer
from onnx import TensorProto, helper, numpy_helper
from stepwell import engine
from stepwell.graph import Graph
from stepwell.layers import Lstm

SIZES = ["4x16", "8x32", "16x64", "32x128", "40x256"]
ROUNDS = 15
Step = Callable[[], object]


def to_onnx(lstm: Lstm, batch: int = 1) -> bytes:
    """One step with the state as inputs and outputs: gates i, o, f, g as the operator has them."""
    h = lstm.n_out
    order = np.concatenate([np.arange(h) + g * h for g in (0, 3, 1, 2)])
    tensors = {
        "W": lstm.w_x[order][None],
        "R": lstm.w_h[order][None],
        "B": np.concatenate([lstm.bias[order], np.zeros(4 * h)])[None],
    }
    node = helper.make_node(
        "LSTM", ["x", "W", "R", "B", "", "h0", "c0"], ["", "h", "c"], hidden_size=h
    )
    state = [1, batch, h]

    def value(name: str, shape: list[int]):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        [node],
        "step",
        [value("x", [1, batch, lstm.n_in]), value("h0", state), value("c0", state)],
        [value("h", state), value("c", state)],
        [
            numpy_helper.from_array(array.astype(np.float32), name)
            for name, array in tensors.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


# ---- one stream: each gives a function that does one step ----


class Ours:
    """A step of ours, and the kernel that a round of it runs with."""

    def __init__(self, lstm: Lstm, kernel: str, bound: bool):
        model = stepwell.convert(
            Graph((lstm,)), np.random.default_rng(2).normal(size=(2, 40, lstm.n_in))
        )
        stream, row = model.stream(), np.random.default_rng(3).normal(size=lstm.n_in)
        stream.x[:] = row
        self.kernel, self.call = kernel, stream.advance if bound else lambda: stream.step(row)


def session(content: bytes):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def ort_run(lstm: Lstm, batch: int = 1) -> Step:
    run = session(to_onnx(lstm, batch)).run
    state = {
        "h0": np.zeros((1, batch, lstm.n_out), np.float32),
        "c0": np.zeros((1, batch, lstm.n_out), np.float32),
    }
    x = np.random.default_rng(3).normal(size=(1, batch, lstm.n_in)).astype(np.float32)

    def step() -> None:
        state["h0"], state["c0"] = run(["h", "c"], {"x": x, **state})

    return step


def ort_bound(lstm: Lstm) -> Step:
    import onnxruntime

    made = session(to_onnx(lstm))
    x = np.random.default_rng(3).normal(size=(1, 1, lstm.n_in)).astype(np.float32)
    buffers = [
        [
            onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((1, 1, lstm.n_out), np.float32))
            for _ in "hc"
        ]
        for _ in "ab"
    ]
    bindings = []
    for read, written in (
        buffers,
        buffers[::-1],
    ):  # the state goes from one pair to the other and back
        binding = made.io_binding()
        binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x))
        for name, value in zip(("h0", "c0"), read, strict=True):
            binding.bind_ortvalue_input(name, value)
        for name, value in zip(("h", "c"), written, strict=True):
            binding.bind_ortvalue_output(name, value)
        bindings.append(binding)
    turn = [0]

    def step() -> None:
        turn[0] ^= 1
        made.run_with_iobinding(bindings[turn[0]])

    return step


def torch_cell(lstm: Lstm) -> Step:
    import torch

    torch.set_num_threads(1)
    cell = torch.nn.LSTMCell(lstm.n_in, lstm.n_out).eval()
    state = [torch.zeros(1, lstm.n_out)] * 2
    x = torch.randn(1, lstm.n_in)

    def step() -> None:
        with torch.inference_mode():
            state[:] = cell(x, tuple(state))

    return step


def litert(lstm: Lstm, dynamic_range: bool = False) -> Step:
    """Its fused LSTM operator, which keeps its state itself. The weights are the converter's own:
    time does not depend on them.
    """
    os.environ |= {
        "TF_USE_LEGACY_KERAS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
    }
    import tensorflow as tf
    import tf_keras
    from ai_edge_litert.interpreter import Interpreter

    model = tf_keras.Sequential(
        [tf_keras.Input(batch_shape=(1, 1, lstm.n_in)), tf_keras.layers.LSTM(lstm.n_out)]
    )
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT] if dynamic_range else []
    interpreter = Interpreter(model_content=converter.convert(), num_threads=1)
    interpreter.allocate_tensors()
    x_at, y_at = (
        interpreter.get_input_details()[0]["index"],
        interpreter.get_output_details()[0]["index"],
    )
    x = np.random.default_rng(3).normal(size=(1, 1, lstm.n_in)).astype(np.float32)

    def step() -> None:
        interpreter.set_tensor(x_at, x)
        interpreter.invoke()
        interpreter.get_tensor(y_at)

    return step


def numpy_cell(lstm: Lstm) -> Step:
    n = lstm.n_out
    w, b = np.hstack([lstm.w_x, lstm.w_h]).astype(np.float32), lstm.bias.astype(np.float32)
    both, c = np.zeros(lstm.n_in + n, np.float32), np.zeros(n, np.float32)
    z = np.empty(4 * n, np.float32)

    def step() -> None:
        np.dot(w, both, out=z)
        np.add(z, b, out=z)
        gates = 1 / (1 + np.exp(-z))
        c[:] = gates[n : 2 * n] * c + gates[:n] * np.tanh(z[2 * n : 3 * n])
        both[lstm.n_in :] = gates[3 * n :] * np.tanh(c)

    return step


PEERS: dict[str, Callable[[Lstm], Step]] = {
    "onnxruntime run()": ort_run,
    "onnxruntime, IO binding": ort_bound,
    "LiteRT float": litert,
    "LiteRT dynamic range": partial(litert, dynamic_range=True),
    "torch LSTMCell": torch_cell,
    "NumPy": numpy_cell,
}
OURS = {
    "stepwell step(row)": ("auto", False),
    "stepwell advance()": ("auto", True),
    "stepwell step(row), portable C": ("portable", False),
}


def rounds(steps: dict[str, object], per_round: int) -> dict[str, dict[str, float]]:
    """Microseconds a step of each, in interleaved rounds."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            call = step
            if isinstance(step, Ours):
                engine.use_kernel(step.kernel)
                call = step.call
            for _ in range(20):
                call()
            begin = time.perf_counter()
            for _ in range(per_round):
                call()
            times[name].append((time.perf_counter() - begin) / per_round * 1e6)
    engine.use_kernel("auto")
    return {name: {"best": min(t), "median": statistics.median(t)} for name, t in times.items()}


def one_stream(size: str) -> dict[str, dict[str, float]]:
    lstm = layer("lstm", *map(int, size.split("x")))
    steps: dict[str, object] = {name: Ours(lstm, *how) for name, how in OURS.items()}
    for name, make in PEERS.items():
        try:
            steps[name] = make(lstm)
        except ImportError as error:
            print(f"{name}: skipped, {error}", file=sys.stderr)
    return rounds(steps, 400)


def many_streams(size: str, n: int, threads: int) -> dict[str, dict[str, float]]:
    """Thousands of stream-steps a second; one call steps all streams."""
    lstm = layer("lstm", *map(int, size.split("x")))
    model = stepwell.convert(
        Graph((lstm,)), np.random.default_rng(2).normal(size=(2, 40, lstm.n_in))
    )
    x = np.random.default_rng(3).normal(size=(n, lstm.n_in))
    steps: dict[str, object] = {}
    for k in sorted({1, threads}):
        batch = model.batch(n, k)
        steps[f"stepwell, {k} thread{'s' * (k > 1)}"] = lambda batch=batch: batch.step(x)
    try:
        steps["onnxruntime float, 1 thread"] = ort_run(lstm, n)
    except ImportError as error:
        print(f"onnxruntime: skipped, {error}", file=sys.stderr)
    found = rounds(steps, 20)
    return {name: {what: n / t * 1e3 for what, t in times.items()} for name, times in found.items()}


def table(
    title: str, columns: list[str], found: dict[str, dict[str, dict[str, float]]], digits: int
) -> str:
    """Rows are engines; best (median)."""
    names = list(dict.fromkeys(name for of_size in found.values() for name in of_size))
    lines = [f"| {title} | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name in names:
        cells = [found[c].get(name) for c in columns]
        lines.append(
            f"| {name} | "
            + " | ".join(
                f"{c['best']:.{digits}f} ({c['median']:.{digits}f})" if c else "" for c in cells
            )
            + " |"
        )
    return "\n".join(lines)


def main() -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument(
        "--size", default=",".join(SIZES), help="inputs x units, several with commas"
    )
    parser.add_argument("--batch", type=int, default=1024, help="streams of the batch; 0: none")
    parser.add_argument("--threads", type=int, default=2, help="threads of the batch")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    sizes = args.size.split(",")
    for size in sizes:
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", size):
            parser.error(f"a size is inputs x units, as 16x64, not '{size}'")
    found = {}
    for size in sizes:
        print(f"{size} ...", file=sys.stderr, flush=True)
        found[size] = one_stream(size)
    batch = many_streams("16x64", args.batch, args.threads) if args.batch > 0 else {}
    if args.json:
        print(
            json.dumps(
                {
                    "kernel": engine.kernel,
                    "microseconds": found,
                    "thousand_steps_per_second": batch,
                },
                indent=2,
            )
        )
        return 0
    print(
        f"kernel {engine.kernel}; microseconds a step, best (median) of {ROUNDS} interleaved "
        f"rounds\n"
    )
    print(table("I x H", sizes, found, 2))
    if batch:
        print(f"\n16x64, {args.batch} streams, thousand stream-steps a second, best (median)\n")
        for name, rates in batch.items():
            print(f"  {name:<28} {rates['best']:8.0f} ({rates['median']:.0f})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
