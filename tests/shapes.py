"""Random float graphs with every layer kind, and sequences for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
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
    Gru,
    LayerNorm,
    Lstm,
    MaxPool,
    Mul,
    Rnn,
    Slice,
    Window,
)


def random_lstm(rng: np.random.Generator, n_in: int, n_out: int, gain: float = 2.0) -> Lstm:
    bound = gain / np.sqrt(n_out)

    def uniform(*shape: int) -> np.ndarray:
        return rng.uniform(-bound, bound, shape)

    return Lstm(
        f"lstm{n_in}x{n_out}",
        uniform(4 * n_out, n_in),
        uniform(4 * n_out, n_out),
        uniform(4 * n_out),
    )


def random_gru(rng: np.random.Generator, n_in: int, n_out: int, gain: float = 2.0) -> Gru:
    bound = gain / np.sqrt(n_out)

    def uniform(*shape: int) -> np.ndarray:
        return rng.uniform(-bound, bound, shape)

    weights = uniform(3 * n_out, n_in), uniform(3 * n_out, n_out)
    return Gru(f"gru{n_in}x{n_out}", *weights, uniform(3 * n_out), uniform(3 * n_out))


def random_rnn(rng: np.random.Generator, n_in: int, n_out: int) -> Rnn:
    # a larger gain makes an Elman network chaotic: no two arithmetics agree for long
    bound = 1 / np.sqrt(n_out)
    weights = rng.uniform(-bound, bound, (n_out, n_in)), rng.uniform(-bound, bound, (n_out, n_out))
    return Rnn(f"rnn{n_in}x{n_out}", *weights, rng.uniform(-bound, bound, n_out))


def random_dense(
    rng: np.random.Generator,
    n_in: int,
    n_out: int,
    activation: str | Function = "none",
    groups: int = 1,
) -> Dense:
    columns = n_in // groups
    weight = rng.normal(size=(n_out, columns)) / np.sqrt(columns)
    return Dense(f"dense{n_in}x{n_out}", weight, rng.normal(size=n_out), activation, groups)


def random_norm(rng: np.random.Generator, n: int) -> LayerNorm:
    return LayerNorm(f"norm{n}", 1 + 0.3 * rng.normal(size=n), 0.3 * rng.normal(size=n))


def random_projected(rng: np.random.Generator, n_in: int, n_units: int, n_out: int) -> Lstm:
    plain = random_lstm(rng, n_in, n_units)
    w_h = rng.normal(size=(4 * n_units, n_out)) * 0.6
    return Lstm(
        "projected", plain.w_x, w_h, plain.bias, projection=rng.normal(size=(n_out, n_units)) * 0.5
    )


HARD = Function("hard_sigmoid", 0.2, 0.5)

# every layer kind, every activation, inside a chain and at its end; a maker gives layers of a chain
# or a Graph
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
    "relu between": lambda r: (
        random_lstm(r, 4, 8),
        Activation("act", "relu", 8),
        random_dense(r, 8, 2, "relu"),
    ),
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
    # ---- variants of the recurrent cells ----
    "peephole": lambda r: (
        replace(random_lstm(r, 3, 6), peephole=r.normal(size=18) * 0.5),
        random_dense(r, 6, 2),
    ),
    "coupled": lambda r: (replace(random_lstm(r, 3, 6), coupled=True), random_dense(r, 6, 2)),
    "coupled peephole clip": lambda r: (
        replace(random_lstm(r, 3, 5), coupled=True, peephole=r.normal(size=15) * 4, clip=2.5),
        random_dense(r, 5, 2),
    ),
    "lstm clip": lambda r: (replace(random_lstm(r, 3, 6), clip=0.7), random_dense(r, 6, 2)),
    "lstm functions": lambda r: (
        replace(random_lstm(r, 3, 6), functions=(HARD, "relu", "tanh")),
        random_dense(r, 6, 2),
    ),
    "lstm tables": lambda r: (
        replace(
            random_lstm(r, 3, 6, 1.0), functions=(HARD, Function("softsign"), Function("softplus"))
        ),
        random_dense(r, 6, 2),
    ),
    "lstm relu out": lambda r: (
        replace(random_lstm(r, 3, 6, 1.0), functions=("sigmoid", "tanh", "relu")),
        random_dense(r, 6, 2),
    ),
    "projection": lambda r: (random_projected(r, 3, 6, 4), random_dense(r, 4, 2)),
    "projection of everything": lambda r: (
        replace(
            random_projected(r, 3, 7, 5),
            functions=(HARD, "tanh", Function("softsign")),
            peephole=r.normal(size=21) * 0.3,
            clip=3.0,
            h0=r.uniform(-1, 1, 5),
            c0=r.normal(size=7) * 2,
        ),
    ),
    "lstm start": lambda r: (
        replace(random_lstm(r, 3, 6), h0=r.uniform(-1, 1, 6), c0=r.normal(size=6) * 2),
        random_dense(r, 6, 2),
    ),
    "gru before": lambda r: (
        replace(random_gru(r, 3, 6), reset_after=False),
        random_dense(r, 6, 2),
    ),
    "gru before variants": lambda r: (
        replace(
            random_gru(r, 3, 6),
            reset_after=False,
            functions=(HARD, "relu"),
            clip=3.0,
            h0=r.uniform(-1, 1, 6),
        ),
        random_dense(r, 6, 2),
    ),
    "gru variants": lambda r: (
        replace(
            random_gru(r, 3, 6),
            functions=(HARD, Function("elu", 1.0)),
            clip=3.0,
            h0=r.uniform(-1, 1, 6),
        ),
        random_dense(r, 6, 2),
    ),
    "rnn relu": lambda r: (
        replace(random_rnn(r, 3, 6), functions=("relu",)),
        random_dense(r, 6, 2),
    ),
    "rnn variants": lambda r: (
        replace(
            random_rnn(r, 3, 6), functions=(Function("softsign"),), clip=2.0, h0=r.uniform(-1, 1, 6)
        ),
        random_dense(r, 6, 2),
    ),
    # ---- layers without memory ----
    "table in a dense": lambda r: (
        random_lstm(r, 3, 6),
        random_dense(r, 6, 5, Function("leaky_relu", 0.1)),
        random_dense(r, 5, 2),
    ),
    "table at the end": lambda r: (
        random_lstm(r, 3, 6),
        random_dense(r, 6, 5, Function("elu", 1.0)),
    ),
    "table after lstm": lambda r: (
        random_lstm(r, 3, 6),
        Activation("act", Function("softplus"), 6),
        random_dense(r, 6, 2),
    ),
    "table alone at the end": lambda r: (
        random_lstm(r, 3, 6),
        Activation("act", Function("softplus"), 6),
    ),
    "groups": lambda r: (
        random_lstm(r, 3, 6),
        random_dense(r, 6, 4, "relu", 2),
        random_dense(r, 4, 4, "none", 4),
    ),
    "scale of the input": lambda r: (
        random_dense(r, 3, 3, "none", 3),
        random_lstm(r, 3, 6),
        random_dense(r, 6, 2),
    ),
    "layer norm": lambda r: (random_lstm(r, 3, 6), random_norm(r, 6), random_dense(r, 6, 2)),
    "layer norm of two": lambda r: (random_norm(r, 2), random_lstm(r, 2, 3)),
    "wide layer norm, one at the end": lambda r: (
        random_dense(r, 3, 70),
        random_norm(r, 70),
        random_lstm(r, 70, 6),
        random_norm(r, 6),
    ),
    "residual": lambda r: Graph(
        (random_lstm(r, 3, 6), random_dense(r, 6, 6, "tanh"), Add("sum", 6), random_dense(r, 6, 2)),
        sources=((0,), (1,), (1, 2), (3,)),
    ),
    "difference at the end": lambda r: Graph(
        (random_lstm(r, 3, 6), random_dense(r, 6, 6), Add("sum", 6, (1.0, -2.5), "relu")),
        sources=((0,), (1,), (1, 2)),
    ),
    "sum in a table": lambda r: Graph(
        (
            random_lstm(r, 3, 6),
            random_dense(r, 6, 6),
            Add("sum", 6, (0.5, 1.0), Function("softsign")),
            random_gru(r, 6, 3),
        ),
        sources=((0,), (1,), (1, 2), (3,)),
    ),
    "gate": lambda r: Graph(
        (
            random_lstm(r, 3, 6),
            random_dense(r, 6, 6, "sigmoid"),
            Mul("gate", 6),
            random_dense(r, 6, 2),
        ),
        sources=((0,), (1,), (1, 2), (3,)),
    ),
    "product at the end": lambda r: Graph(
        (random_lstm(r, 3, 6), random_dense(r, 6, 6), Mul("gate", 6, "tanh")),
        sources=((0,), (1,), (1, 2)),
    ),
    "concat": lambda r: Graph(
        (random_lstm(r, 3, 6), random_gru(r, 3, 4), Concat("both", (6, 4)), random_dense(r, 10, 2)),
        sources=((0,), (0,), (1, 2), (3,)),
    ),
    "concat at the end": lambda r: Graph(
        (random_lstm(r, 3, 5), random_dense(r, 5, 4), Concat("both", (5, 4))),
        sources=((0,), (1,), (1, 2)),
    ),
    "slice": lambda r: (random_lstm(r, 3, 6), Slice("some", 6, 2, 3), random_dense(r, 3, 2)),
    "slice at the end": lambda r: (
        random_lstm(r, 3, 6),
        random_dense(r, 6, 5, "relu"),
        Slice("some", 5, 1, 3),
    ),
    "embedding": lambda r: (
        Embedding("tokens", r.normal(size=(11, 4)), 2),
        random_gru(r, 8, 6),
        random_dense(r, 6, 3),
    ),
    "arg max": lambda r: (random_lstm(r, 3, 6), random_dense(r, 6, 4), ArgMax("class", 4)),
    # ---- layers that look back ----
    "causal conv": lambda r: (
        Window("window", 4, 3),
        random_dense(r, 12, 6, "relu"),
        random_lstm(r, 6, 5),
        random_dense(r, 5, 2),
    ),
    "dilated depthwise conv": lambda r: (
        Window("window", 4, 3, 2),
        random_dense(r, 12, 4, "relu", 4),
        random_lstm(r, 4, 5),
        random_dense(r, 5, 2),
    ),
    "valid conv, max pool": lambda r: (
        Window("window", 4, 3, padding=0),
        random_dense(r, 12, 6, "relu"),
        Window("pool", 6, 2, stride=2, padding=1),
        MaxPool("max", 12, 2),
        random_lstm(r, 6, 5),
        random_dense(r, 5, 2),
    ),
    "window after lstm": lambda r: (
        random_lstm(r, 3, 6),
        Window("window", 6, 4),
        random_dense(r, 24, 6, "none", 6),
        random_dense(r, 6, 2),
    ),
    "window at the end": lambda r: (random_lstm(r, 3, 5), Window("window", 5, 2, 3)),
    "max pool at the end": lambda r: (
        random_lstm(r, 3, 5),
        Window("window", 5, 3),
        MaxPool("max", 15, 3),
    ),
    "strided conv and residual": lambda r: Graph(
        (
            Window("window", 4, 2, stride=2, padding=1),
            random_dense(r, 8, 6, "relu"),
            random_lstm(r, 6, 6),
            Add("sum", 6),
            Window("pool", 6, 3, stride=2),
            random_dense(r, 18, 6, "none", 6),
            random_gru(r, 6, 5),
            random_dense(r, 5, 2),
        ),
        sources=((0,), (1,), (2,), (2, 3), (4,), (5,), (6,), (7,)),
    ),
    "attention, scores given": lambda r: Graph(
        (
            random_lstm(r, 3, 6),
            random_dense(r, 6, 1),
            Attention("mean", "score", 8, 1, 6),
            random_dense(r, 6, 2),
        ),
        sources=((0,), (1,), (2, 1), (3,)),
    ),
    "attention, dot product": lambda r: Graph(
        (
            random_lstm(r, 3, 6),
            Attention("mean", "dot", 5, 6, 6, scale=0.7),
            Concat("both", (6, 6)),
            random_dense(r, 12, 2),
        ),
        sources=((0,), (1, 1, 1), (2, 1), (3,)),
    ),
    "attention, additive": lambda r: Graph(
        (
            random_lstm(r, 3, 6),
            random_dense(r, 6, 4),
            random_dense(r, 6, 4),
            Attention("mean", "additive", 7, 4, 6, weight=r.normal(size=4)),
            random_dense(r, 6, 2),
        ),
        sources=((0,), (1,), (1,), (2, 3, 1), (4,)),
    ),
    "attention at the end": lambda r: Graph(
        (random_gru(r, 3, 5), Attention("mean", "dot", 3, 5, 5)), sources=((0,), (1, 1, 1))
    ),
}

# what the fixture `graph` gives to tests that take rows in every layer, and outputs that are
# numbers, for granted
WITHOUT_ROWS = (Window, Slice, MaxPool, Embedding, ArgMax)


def graph_of(name: str, seed: int = 7) -> Graph:
    """The graph of that shape."""
    made = SHAPES[name](np.random.default_rng(seed))
    return made if isinstance(made, Graph) else Graph(made)


def has_rows(name: str) -> bool:
    return not any(isinstance(layer, WITHOUT_ROWS) for layer in graph_of(name).layers)


def takes_tokens(graph: Graph) -> bool:
    return isinstance(graph.layers[0], Embedding)


def sequences_for(graph: Graph, seed: int, n: int, steps: int) -> np.ndarray:
    """Sequences that look like real input of the graph, [n, steps, n_in]: numbers, or tokens for an
    embedding.
    """
    rng = np.random.default_rng(seed)
    if takes_tokens(graph):
        return rng.integers(0, len(graph.layers[0].table), (n, steps, graph.n_in)).astype(
            np.float64
        )
    return random_sequences(rng, n, steps, graph.n_in)


def random_sequences(rng: np.random.Generator, n: int, steps: int, n_in: int) -> np.ndarray:
    """Slow random walks plus noise, [n, steps, n_in]."""
    walk = np.cumsum(rng.normal(size=(n, steps, n_in)), axis=1) * 0.3
    return walk + rng.normal(size=walk.shape) * 0.3
