"""The tables: what each torch module and each torch function or method does to signals.

A handler takes the walk, then what torch's own function takes, under torch's names; a module's
handler takes the module first.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

MODULES: dict[str, Callable] = {}  # by class of torch.nn
OPERATIONS: dict[str, Callable] = {}  # by name of function or method

_LOOP = "the whole window is needed at once: read out every step, or the last one"
_CONTROL = "comparisons and control flow on data cannot be streamed: use activations, gates (products) or clamp"
_TRANSFORMER = "attends to the whole window at every step: use recurrent layers"
_PACKING = "a stream is one sequence and never padded: leave packing out of forward (the weights stay the same)"
REFUSED = {
    "log_softmax": "end the model in softmax, or in the logits: a stream gives their logarithm no better",
    "logsoftmax": "end the model in softmax, or in the logits",
    "pack_padded_sequence": _PACKING,
    "pad_packed_sequence": _PACKING,
    "pack_sequence": _PACKING,
    "flip": "reversed time cannot be streamed: use bidirectional=True in a window mode",
    "cumsum": "it adds up without bound: use a recurrent layer",
    **dict.fromkeys(("gt", "ge", "lt", "le", "eq", "ne", "where", "bool", "any", "all"), _CONTROL),
    "item": "a number read from a tensor cannot be streamed",
    "sort": _LOOP,
    "topk": "end the model in its logits or in argmax: the application takes the largest",
    "einsum": "write it as torch.bmm, torch.matmul or as products and sums",
    "scaled_dot_product_attention": "self-attention over the window: attention with the last state as its query is known, "
    "as torch.bmm -> softmax -> torch.bmm",
    "stack": "use torch.cat over the features",
    "instance_norm": "it normalises over time: use LayerNorm",
    "group_norm": "it normalises over time: use LayerNorm",
}
REFUSED_MODULES = {
    "LogSoftmax": REFUSED["log_softmax"],
    "MultiheadAttention": "attention of several heads is not known: one query (the last state) by bmm -> softmax -> bmm is",
    "TransformerEncoderLayer": _TRANSFORMER,
    "TransformerEncoder": _TRANSFORMER,
    "TransformerDecoderLayer": _TRANSFORMER,
    "TransformerDecoder": _TRANSFORMER,
    "Transformer": _TRANSFORMER,
    "Conv2d": "convolutions run along time only: use Conv1d with the other axis as channels",
    "Conv3d": "convolutions run along time only: use Conv1d with the other axes as channels",
    "ConvTranspose1d": "it makes several steps of one: use Conv1d",
    "Upsample": "it makes several steps of one",
    "InstanceNorm1d": REFUSED["instance_norm"],
    "GroupNorm": REFUSED["group_norm"],
    "EmbeddingBag": "use Embedding: one token at each step",
    "Bilinear": "products of signals: write it as Linear layers and a product",
    "Softmax2d": "use Softmax over the features",
    "Unflatten": "features cannot be divided into axes: use chunk or slices",
}


def operation(*names: str) -> Callable[[Callable], Callable]:
    """Registers a handler of functions and methods."""

    def register(handler: Callable) -> Callable:
        OPERATIONS.update(dict.fromkeys(names, handler))
        return handler

    return register


def module(*names: str) -> Callable[[Callable], Callable]:
    """Registers a handler of modules."""

    def register(handler: Callable) -> Callable:
        MODULES.update(dict.fromkeys(names, handler))
        return handler

    return register


def array(tensor: torch.Tensor) -> np.ndarray:
    """A constant's values."""
    return tensor.detach().to("cpu", torch.float64).numpy()
