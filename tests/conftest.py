"""Fixtures shared by all tests: random float graphs, models made from them, and the demo's real model and data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import stepwell
from stepwell.graph import Activation, Dense, Graph, Gru, Lstm, Rnn

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "python" / "stepwell" / "demo"


def random_lstm(rng: np.random.Generator, n_in: int, n_out: int, gain: float = 2.0) -> Lstm:
    bound = gain / np.sqrt(n_out)

    def uniform(*shape: int) -> np.ndarray:
        return rng.uniform(-bound, bound, shape)

    return Lstm(f"lstm{n_in}x{n_out}", uniform(4 * n_out, n_in), uniform(4 * n_out, n_out), uniform(4 * n_out))


def random_gru(rng: np.random.Generator, n_in: int, n_out: int, gain: float = 2.0) -> Gru:
    bound = gain / np.sqrt(n_out)

    def uniform(*shape: int) -> np.ndarray:
        return rng.uniform(-bound, bound, shape)

    weights = uniform(3 * n_out, n_in), uniform(3 * n_out, n_out)
    return Gru(f"gru{n_in}x{n_out}", *weights, uniform(3 * n_out), uniform(3 * n_out))


def random_rnn(rng: np.random.Generator, n_in: int, n_out: int) -> Rnn:
    bound = 1 / np.sqrt(n_out)  # a larger gain makes an Elman network chaotic: no two arithmetics agree for long
    weights = rng.uniform(-bound, bound, (n_out, n_in)), rng.uniform(-bound, bound, (n_out, n_out))
    return Rnn(f"rnn{n_in}x{n_out}", *weights, rng.uniform(-bound, bound, n_out))


def random_dense(rng: np.random.Generator, n_in: int, n_out: int, activation: str = "none") -> Dense:
    weight = rng.normal(size=(n_out, n_in)) / np.sqrt(n_in)
    return Dense(f"dense{n_in}x{n_out}", weight, rng.normal(size=n_out), activation)


# every layer kind, every activation, inside a chain and at its end
SHAPES = {
    "lstm": lambda r: (random_lstm(r, 3, 5),),
    "one unit": lambda r: (random_lstm(r, 1, 1),),
    "lstm dense": lambda r: (random_lstm(r, 14, 32), random_dense(r, 32, 1)),
    "two lstm, three dense": lambda r: (
        random_lstm(r, 7, 12),
        random_lstm(r, 12, 9),
        random_dense(r, 9, 11, "relu"),
        random_dense(r, 11, 6, "tanh"),
        random_dense(r, 6, 2),
    ),
    "dense lstm dense": lambda r: (
        random_dense(r, 5, 8, "relu"),
        random_lstm(r, 8, 6),
        random_dense(r, 6, 3, "sigmoid"),
    ),
    "softmax": lambda r: (random_lstm(r, 6, 16), random_dense(r, 16, 10, "softmax")),
    "relu between": lambda r: (random_lstm(r, 4, 8), Activation("act", "relu", 8), random_dense(r, 8, 2, "relu")),
    "tanh, sigmoid after lstm": lambda r: (
        random_lstm(r, 4, 8),
        Activation("act1", "tanh", 8),
        Activation("act2", "sigmoid", 8),
    ),
    "gru": lambda r: (random_gru(r, 3, 5), random_dense(r, 5, 2)),
    "rnn": lambda r: (random_rnn(r, 4, 9), random_dense(r, 9, 2)),
    "one unit of each": lambda r: (random_gru(r, 1, 1), random_rnn(r, 1, 1), random_lstm(r, 1, 1)),
    "gru rnn lstm gru": lambda r: (
        random_gru(r, 6, 7),
        random_rnn(r, 7, 5),
        random_lstm(r, 5, 9),
        random_gru(r, 9, 4),
        random_dense(r, 4, 3, "softmax"),
    ),
    "relu at the end": lambda r: (random_lstm(r, 4, 8), Activation("act", "relu", 8)),
}


def random_sequences(rng: np.random.Generator, n: int, steps: int, n_in: int) -> np.ndarray:
    """Slow random walks plus noise, [n, steps, n_in]."""
    walk = np.cumsum(rng.normal(size=(n, steps, n_in)), axis=1) * 0.3
    return walk + rng.normal(size=walk.shape) * 0.3


@pytest.fixture(params=list(SHAPES), scope="session")
def graph(request) -> Graph:
    return Graph(SHAPES[request.param](np.random.default_rng(7)))


@pytest.fixture(scope="session")
def model(graph) -> stepwell.Model:
    rng = np.random.default_rng(8)
    return stepwell.convert(graph, random_sequences(rng, 16, 40, graph.n_in))


@pytest.fixture(scope="session")
def turbofan() -> stepwell.Model:
    """The demo's model, converted from its real ONNX export."""
    return stepwell.convert(DEMO / "turbofan.onnx", DEMO / "turbofan_calib.npz")


@pytest.fixture(scope="session")
def small_model() -> stepwell.Model:
    """A model of a few hundred bytes: for tests that touch every bit."""
    graph = Graph((random_lstm(np.random.default_rng(1), 2, 3), random_dense(np.random.default_rng(2), 3, 2)))
    return stepwell.convert(graph, random_sequences(np.random.default_rng(3), 8, 20, 2))
