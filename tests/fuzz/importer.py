#!/usr/bin/env python3
"""importer.py - an ONNX file converts and replays, or is refused by ImportRefused; whatever else is
raised is a crash.

    tests/fuzz/importer.py [options of libFuzzer] CORPUS

libFuzzer by way of atheris, guided by the importer's coverage. A few changes are of bytes; most are
of the parsed model, so that what stands behind the parser gets tried. Writes fuzzed.onnx into the
working directory.
"""

from __future__ import annotations

import random
import resource
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import atheris
import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from onnx import helper, numpy_helper

with atheris.instrument_imports(include=["stepwell.importer"]):
    from stepwell.errors import ImportRefused
    from stepwell.importer import import_onnx
    from stepwell.importer.recurrent import FUNCTIONS
    from stepwell.importer.walk import FOLDED, HANDLERS, HINTS

FILE = Path("fuzzed.onnx")
MEMORY = (
    4 << 30
    # of addresses: an array that a damaged size asks for is a MemoryError before it fills the machine
)
OPERATORS = sorted({*HANDLERS, *FOLDED, *HINTS, "Constant"})
WORDS = [
    *map(str.encode, FUNCTIONS),
    b"forward",
    b"reverse",
    b"bidirectional",
    b"tanh",
    b"SAME_UPPER",
    b"VALID",
]
INTEGERS = [
    -(2**63),
    -(2**31),
    -2,
    -1,
    0,
    1,
    2,
    3,
    7,
    255,
    2**14,
    2**20,
    2**24,
    2**31 - 1,
    2**40,
    2**63 - 1,
]
FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, -3e38, float("nan"), float("inf")]


def converts_or_is_refused(data: bytes) -> None:
    FILE.write_bytes(data)
    try:
        imported = import_onnx(FILE)
    except ImportRefused as error:
        assert str(error)
    else:
        assert imported.graph.layers and imported.replay


def changed_file(data: bytes, most: int, seed: int) -> bytes:
    """Changes of a model; of bytes where there is no model, where it grows too long, and now and
    then.
    """
    rng = random.Random(seed)
    if rng.random() < 0.1:
        return atheris.Mutate(data, most)
    try:
        changed = changed_model(rng, onnx.ModelProto.FromString(data))
    except (DecodeError, UnicodeError, NothingLeft):
        return atheris.Mutate(data, most)
    return changed if len(changed) <= most else atheris.Mutate(data, most)


class NothingLeft(Exception):
    """A model without nodes."""


def changed_model(rng: random.Random, model: onnx.ModelProto) -> bytes:
    for _ in range(rng.choice([1, 1, 2, 4])):
        if not model.graph.node:
            raise NothingLeft
        rng.choice([change_field, change_field, change_attribute, add_node])(rng, model)
    return model.SerializePartialToString()


# ---- any field ----


def change_field(rng: random.Random, model: onnx.ModelProto) -> None:
    """A size, an edge, an operator, a weight: another value; a node, an attribute, a tensor: gone,
    twice, or elsewhere.
    """
    message, field = rng.choice(list(fields(model)))
    value = getattr(message, field.name)
    if not field.is_repeated:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            message.ClearField(field.name)
        else:
            setattr(message, field.name, another(rng, field, value, model))
        return
    at = rng.randrange(len(value))
    match rng.randrange(4):
        case 0:
            del value[at]
        case 1:
            value.append(value[at])
        case 2:
            value.append(value.pop(at))
        case _ if field.type != FieldDescriptor.TYPE_MESSAGE:
            value[at] = another(rng, field, value[at], model)


def fields(message: Message) -> Iterator[tuple[Message, FieldDescriptor]]:
    """Every field that is set, at any depth, with the message that it is in."""
    for field, value in message.ListFields():
        yield message, field
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                yield from fields(inner)


def another(rng: random.Random, field: FieldDescriptor, value, model: onnx.ModelProto):
    """A value that the field can hold."""
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return rng.choice(OPERATORS if field.name == "op_type" else [*edges(model), ""])
        case FieldDescriptor.TYPE_BYTES:
            return (
                rng.choice(WORDS)
                if field.name in ("s", "strings")
                else atheris.Mutate(value, len(value) + 8)
            )
        case FieldDescriptor.TYPE_ENUM:
            return rng.choice(list(field.enum_type.values_by_number))
        case FieldDescriptor.TYPE_FLOAT | FieldDescriptor.TYPE_DOUBLE:
            return rng.choice([*FLOATS, 2 * value])
        case FieldDescriptor.TYPE_INT32:
            return rng.choice([number for number in INTEGERS if abs(number) < 2**31])
        case FieldDescriptor.TYPE_UINT64:
            return rng.choice([number for number in INTEGERS if number >= 0])
        case _:
            return rng.choice([*INTEGERS, *sizes(model)])


def edges(model: onnx.ModelProto) -> list[str]:
    graph = model.graph
    named = [value.name for values in (graph.input, graph.initializer) for value in values]
    return [*named, *(name for node in graph.node for name in node.output)]


def sizes(model: onnx.ModelProto) -> list[int]:
    """What would fit."""
    return [size for tensor in model.graph.initializer for size in tensor.dims]


# ---- nodes ----


def change_attribute(rng: random.Random, model: onnx.ModelProto) -> None:
    """One of the operator's own attributes gets a value of its type."""
    node = rng.choice(model.graph.node)
    if not onnx.defs.has(str(node.op_type)):
        return
    schema = onnx.defs.get_schema(node.op_type)
    makers = {
        "INT": lambda: rng.choice([*INTEGERS, *sizes(model)]),
        "INTS": lambda: [rng.choice([-1, 0, 1, 2, 3]) for _ in range(rng.randrange(5))],
        "FLOAT": lambda: rng.choice(FLOATS),
        "FLOATS": lambda: [rng.choice(FLOATS) for _ in range(rng.randrange(5))],
        "STRING": lambda: rng.choice(WORDS),
        "STRINGS": lambda: [rng.choice(WORDS) for _ in range(rng.randrange(7))],
        "TENSOR": lambda: constant(rng, model),
    }
    usual = [name for name, attribute in schema.attributes.items() if attribute.type.name in makers]
    if usual:
        name = rng.choice(sorted(usual))
        kept = [attribute for attribute in node.attribute if attribute.name != name]
        value = makers[schema.attributes[name].type.name]()
        made = helper.make_attribute(name, value, attr_type=schema.attributes[name].type.value)
        del node.attribute[:]
        node.attribute.extend([*kept, made])


def add_node(rng: random.Random, model: onnx.ModelProto) -> None:
    """A new node stands on an edge; what else it reads is there already, or a new constant."""
    graph = model.graph
    at = rng.randrange(len(graph.node))
    reader = graph.node[at]
    if not reader.input:
        return
    place, made = rng.randrange(len(reader.input)), f"added{rng.randrange(10**6)}"
    others = []
    for k in range(rng.choice([0, 1, 1, 2, 3, 4])):
        graph.initializer.append(constant(rng, model, f"{made}_{k}"))
        others.append(rng.choice([f"{made}_{k}", f"{made}_{k}", *edges(model)]))
    read = [reader.input[place], *others]
    if rng.random() < 0.2:
        rng.shuffle(read)
    reader.input[place] = made
    graph.node.insert(at, onnx.NodeProto(op_type=rng.choice(OPERATORS), input=read, output=[made]))


def constant(rng: random.Random, model: onnx.ModelProto, name: str = "") -> onnx.TensorProto:
    """Small numbers, in a shape of sizes that are in the model."""
    shape = [rng.choice([1, 2, 3, *sizes(model)]) for _ in range(rng.randrange(4))]
    if not 0 <= np.prod(shape, dtype=float) < 1000 or min(shape, default=0) < 0:
        shape = [1]
    whole = rng.random() < 0.5
    values = np.array(
        [rng.randint(-2, 4) if whole else rng.uniform(-1, 1) for _ in range(int(np.prod(shape)))]
    )
    return numpy_helper.from_array(
        values.reshape(shape).astype(np.int64 if whole else np.float32), name
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    atheris.Setup(sys.argv, converts_or_is_refused, custom_mutator=changed_file)
    atheris.Fuzz()
