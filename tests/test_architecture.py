"""The house stays in order: no circle, and a layer kind is named in its own places only."""

from __future__ import annotations

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import stepwell
from conftest import ROOT
from stepwell import layers
from stepwell.layers.base import IntLayer, Layer
from stepwell.sources import csrc

PACKAGE = Path(stepwell.__file__).parent
MAY_NAME_KINDS = ("layers", "importer", "quantize", "qat")
BASES = {"Layer", "IntLayer", "Recurrent", "RecurrentLayer", "Cell"}
TOGETHER = "Add, Mul, Concat, Slice, MaxPool, Embedding, ArgMax"  # one section of docs/numerics.md
TITLES = {  # of docs/numerics.md, where a kind's is not its name
    "lstm": "One LSTM step",
    "gru": "One GRU step",
    "gru_before": "One GRU step",
    "rnn": "One RNN step",
    "layer_norm": "LayerNorm",
} | dict.fromkeys(("add", "mul", "concat", "slice", "max_pool", "embedding", "arg_max"), TOGETHER)


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = ast.parse(path.read_text())
    return found


def imported(tree: ast.Module) -> set[str]:
    """The package's modules that one imports, at its top, in functions, and for types alone."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inside & modules().keys()) or {node.module}
    return found & modules().keys()


def test_no_module_imports_itself_by_way_of_others():
    graph = {name: imported(tree) - {name} for name, tree in modules().items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("room", ["integer", "layers"])
def test_lower_rooms_do_not_import_upper_ones(room):
    may = {"integer": {"integer"}, "layers": {"integer", "layers"}}[room] | {"errors", "text"}
    for name, tree in modules().items():
        if name.startswith(f"stepwell.{room}"):
            rooms = {other.split(".")[1] for other in imported(tree) if other != "stepwell"}
            assert rooms <= may, name


def kind_classes() -> set[str]:
    classes = {name for name in layers.__all__ if isinstance(getattr(layers, name), type)}
    kinds = {name for name in classes if issubclass(getattr(layers, name), Layer | IntLayer)}
    return kinds - BASES


def test_there_are_kinds():
    assert {"Lstm", "LstmLayer", "Attention"} <= kind_classes() and len(layers.KINDS) >= 16


@pytest.mark.parametrize(
    "name", [n for n in modules() if n.split(".")[1:2] and n.split(".")[1] not in MAY_NAME_KINDS]
)
def test_no_kind_is_named_outside_its_places(name):
    tree, kinds = modules()[name], kind_classes()
    words = {kind.kind for kind in layers.KINDS}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            assert node.id not in kinds, f"line {node.lineno}"
        elif isinstance(node, ast.Attribute):
            assert node.attr not in kinds, f"line {node.lineno}"
        elif isinstance(node, ast.ImportFrom):
            assert not kinds & {alias.name for alias in node.names}, f"line {node.lineno}"
        elif isinstance(node, ast.Compare) and asks_for_kind(node):
            literals = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
            assert not words & literals, f"line {node.lineno}"


def asks_for_kind(node: ast.Compare) -> bool:
    sides = (node.left, *node.comparators)
    return any(isinstance(side, ast.Attribute) and side.attr == "kind" for side in sides)


# ---- what a kind has elsewhere ----


@pytest.mark.parametrize("kind", layers.KINDS, ids=lambda kind: kind.kind)
class TestKind:
    def test_number_is_that_of_c(self, kind):
        numbers = dict(re.findall(r"STW_(\w+)\s*=\s*(\d+)", (csrc() / "stepwell.h").read_text()))
        assert int(numbers[kind.kind.upper()]) == kind.number

    def test_knob_is_that_of_c(self, kind):
        assert f"STW_WITH_{kind.knob} " in (csrc() / "stw_config.h").read_text().replace("\n", " ")

    def test_numerics_has_its_section(self, kind):
        titles = re.findall(r"^## (.*)$", (ROOT / "docs" / "numerics.md").read_text(), re.MULTILINE)
        title = TITLES.get(kind.kind, kind.kind.capitalize())
        assert any(found.startswith(title) for found in titles)

    def test_format_has_its_row(self, kind):
        text = (ROOT / "docs" / "format.md").read_text()
        assert re.search(rf"^\| {kind.number} ", text, re.MULTILINE)


def test_numbers_are_unique():
    assert len(layers.BY_NUMBER) == len(layers.KINDS)
