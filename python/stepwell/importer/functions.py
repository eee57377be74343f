"""Local functions of an ONNX file: inlined, once it is known how much that makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.inliner

from stepwell.errors import ImportRefused

# of all calls together: a recurrent model for a microcontroller has some hundred nodes
NODES_LIMIT = 20_000
BYTES_LIMIT = 1 << 28
DEPTH_LIMIT = 64  # calls within calls: the inliner recurses

Key = tuple[str, str]  # domain and name


@dataclass(frozen=True)
class _Size:
    """What a body becomes when every call in it is inlined; sizes stop just beyond their limits."""

    nodes: int
    n_bytes: int
    depth: int


def inlined(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model with the bodies of its local functions in place of their calls.

    Raises ImportRefused, before anything is inlined, where functions call each other in a circle or
    make too many nodes.
    """
    if not model.functions:
        return model
    total = _inlined_size(model, path)
    if total.nodes > NODES_LIMIT or total.n_bytes > BYTES_LIMIT:
        raise ImportRefused(
            f"{path}: its local functions would make more than {NODES_LIMIT} nodes or "
            f"{BYTES_LIMIT >> 20} MB: "
            "export without local functions"
        )
    try:
        made = onnx.inliner.inline_local_functions(model)
    except Exception as error:
        raise ImportRefused(
            f"{path}: its local functions cannot be inlined ({error}): export without them"
        ) from error
    left = {_key(function.domain, function.name) for function in model.functions} & set(
        _calls(made.graph.node)
    )
    if left:
        raise ImportRefused(
            f"{path}: local function '{min(left)[1]}' cannot be inlined, it is written for "
            "another opset than the graph: export without local functions"
        )
    return made


def _inlined_size(model: onnx.ModelProto, path: Path) -> _Size:
    """Of the graph. Sizes of functions are found callees first, each one once."""
    bodies: dict[Key, list[onnx.FunctionProto]] = {}
    for function in model.functions:
        bodies.setdefault(_key(function.domain, function.name), []).append(function)
    calls = {
        key: Counter(k for function in functions for k in _calls(function.node) if k in bodies)
        for key, functions in bodies.items()
    }
    sizes: dict[Key, _Size] = {}
    graph_calls = Counter(key for key in _calls(model.graph.node) if key in bodies)
    for start in graph_calls:
        entered: list[tuple[Key, Iterator[Key]]] = [(start, iter(calls[start]))]
        within = {start}
        while entered:
            key, callees = entered[-1]
            callee = next((k for k in callees if k not in sizes), None)
            if callee is None:
                nodes = sum(1 for function in bodies[key] for _ in _calls(function.node))
                n_bytes = sum(function.ByteSize() for function in bodies[key])
                sizes[key] = _with_calls(_Size(nodes, n_bytes, 1), calls[key], sizes)
                entered.pop()
                within.discard(key)
            elif callee in within:
                raise ImportRefused(
                    f"{path}: local function '{callee[1]}' calls itself: export without local "
                    "functions"
                )
            elif len(entered) >= DEPTH_LIMIT:
                raise ImportRefused(
                    f"{path}: its local functions call each other more than {DEPTH_LIMIT} deep: "
                    "export without them"
                )
            else:
                entered.append((callee, iter(calls[callee])))
                within.add(callee)
    total = _with_calls(_Size(0, 0, 0), graph_calls, sizes)
    if total.depth > DEPTH_LIMIT:
        raise ImportRefused(
            f"{path}: its local functions call each other more than {DEPTH_LIMIT} deep: export "
            "without them"
        )
    return total


def _with_calls(own: _Size, calls: Counter[Key], sizes: dict[Key, _Size]) -> _Size:
    nodes = own.nodes + sum(sizes[key].nodes * n for key, n in calls.items())
    n_bytes = own.n_bytes + sum(sizes[key].n_bytes * n for key, n in calls.items())
    depth = own.depth + max((sizes[key].depth for key in calls), default=0)
    return _Size(min(nodes, NODES_LIMIT + 1), min(n_bytes, BYTES_LIMIT + 1), depth)


def _calls(nodes: list[onnx.NodeProto]) -> Iterator[Key]:
    """What every node runs, those in the bodies of If, Loop and Scan too."""
    for node in nodes:
        yield _key(node.domain, node.op_type)
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _calls(body.node)


def _key(domain: str, name: str) -> Key:
    return ("" if domain == "ai.onnx" else domain, name)
