"""The layer kinds, one file each. ``base`` tells what such a file has."""

from stepwell.layers.attention import ATTENTIONS, Attention, AttentionLayer
from stepwell.layers.base import IntLayer, Layer, Packed, Timing, Turn
from stepwell.layers.dense import Dense, DenseLayer
from stepwell.layers.elementwise import Activation, ActivationLayer, Add, AddLayer, Mul, MulLayer
from stepwell.layers.embedding import Embedding, EmbeddingLayer
from stepwell.layers.gru import Gru, GruBeforeLayer, GruLayer
from stepwell.layers.lstm import Lstm, LstmLayer
from stepwell.layers.moves import (
    ArgMax,
    ArgMaxLayer,
    Concat,
    ConcatLayer,
    MaxPool,
    MaxPoolLayer,
    Slice,
    SliceLayer,
)
from stepwell.layers.norm import LayerNorm, LayerNormLayer
from stepwell.layers.recurrent import Cell, Recurrent, RecurrentLayer
from stepwell.layers.rnn import Rnn, RnnLayer
from stepwell.layers.window import Window, WindowLayer

KINDS: tuple[type[IntLayer], ...] = (
    LstmLayer,
    DenseLayer,
    ActivationLayer,
    GruLayer,
    RnnLayer,
    GruBeforeLayer,
    WindowLayer,
    AddLayer,
    MulLayer,
    ConcatLayer,
    SliceLayer,
    MaxPoolLayer,
    LayerNormLayer,
    EmbeddingLayer,
    ArgMaxLayer,
    AttentionLayer,
)
BY_NUMBER = {kind.number: kind for kind in KINDS}

__all__ = [
    "ATTENTIONS",
    "BY_NUMBER",
    "KINDS",
    "Activation",
    "ActivationLayer",
    "Add",
    "AddLayer",
    "ArgMax",
    "ArgMaxLayer",
    "Attention",
    "AttentionLayer",
    "Cell",
    "Concat",
    "ConcatLayer",
    "Dense",
    "DenseLayer",
    "Embedding",
    "EmbeddingLayer",
    "Gru",
    "GruBeforeLayer",
    "GruLayer",
    "IntLayer",
    "Layer",
    "LayerNorm",
    "LayerNormLayer",
    "Lstm",
    "LstmLayer",
    "MaxPool",
    "MaxPoolLayer",
    "Mul",
    "MulLayer",
    "Packed",
    "Recurrent",
    "RecurrentLayer",
    "Rnn",
    "RnnLayer",
    "Slice",
    "SliceLayer",
    "Timing",
    "Turn",
    "Window",
    "WindowLayer",
]
