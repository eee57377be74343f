"""The LSTM, GRU and RNN node cases of onnx's own backend test suite, float and integer;
docs/onnx-cases.md is their table.

The cases give weights as inputs: they become initialisers. A case that gives initial states or
lengths as constants keeps them. Run ``python tests/test_backend_cases.py`` to write the table anew.
"""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import stepwell
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests
from stepwell.errors import ImportRefused
from stepwell.importer import import_onnx
from stepwell.stream import FloatStream

TABLE = Path(__file__).resolve().parent.parent / "docs" / "onnx-cases.md"
PREFIXES = ("test_lstm", "test_gru", "test_simple_rnn", "test_rnn")
FLOAT_TOLERANCE = 1e-5
# largest difference of a hidden state, of magnitude at most 1: rounding of weights to 8 bits over
# these few steps
INTEGER_TOLERANCE = 1e-2

with warnings.catch_warnings():  # the suite builds its cases of all operators, some with overflows
    warnings.simplefilter("ignore")
    CASES = {c.name: c for c in load_model_tests(kind="node") if c.name.startswith(PREFIXES)}


@dataclass(frozen=True)
class Outcome:
    """``refused``: the sentence, or empty; errors are the largest absolute differences from the
    case's expected output.
    """

    refused: str = ""
    float_error: float = 0.0
    integer_error: float = 0.0

    def row(self, name: str) -> str:
        if self.refused:
            return f"| `{name}` | refused: {self.refused} | |"
        return f"| `{name}` | {'equal' if self.float_error <= FLOAT_TOLERANCE else 'DIFFERS'} | within {INTEGER_TOLERANCE:g} |"


def with_initialisers(name: str, folder: Path) -> tuple[Path, np.ndarray, np.ndarray, str]:
    """The case as a file with its weights stored, its input, its first output, and that output's
    name.
    """
    case = CASES[name]
    model, (inputs, outputs) = onnx.ModelProto(), case.data_sets[0]
    model.CopyFrom(case.model)
    graph = model.graph
    for value, array in list(zip(graph.input, inputs, strict=True))[1:]:
        graph.initializer.append(numpy_helper.from_array(np.asarray(array), value.name))
    del graph.input[1:]
    main = graph.output[0].name
    del graph.output[1:]
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    return path, np.asarray(inputs[0]), np.asarray(outputs[0]), main


def arranged(x: np.ndarray, layout: int) -> np.ndarray:
    """[T, B, D], or [B, T, D] with layout 1 -> [B, T, D]"""
    return x if layout else x.swapaxes(0, 1)


def expected_in_stream_order(y: np.ndarray, main: str, layout: int) -> np.ndarray:
    """Y [T, D, B, H] (layout 1: [B, T, D, H]) or Y_h [D, B, H] ([B, D, H]) -> [B, T, D * H] or [B,
    D * H], D directions.
    """
    if main == "Y_h":
        y = y if layout else y.swapaxes(0, 1)
        return y.reshape(len(y), -1)
    y = y if layout else y.transpose(2, 0, 1, 3)
    return y.reshape(*y.shape[:2], -1)


def outcome(name: str, folder: Path) -> Outcome:
    path, x, expected, main = with_initialisers(name, folder)
    node = CASES[name].model.graph.node[0]
    layout = next((a.i for a in node.attribute if a.name == "layout"), 0)
    try:
        graph = import_onnx(path).graph
    except ImportRefused as error:
        return Outcome(refused=str(error).split(": ", 1)[1])
    x, expected = (
        arranged(x, layout).astype(np.float64),
        expected_in_stream_order(expected, main, layout),
    )

    model = stepwell.convert(
        graph, x, mode=f"slide:{x.shape[1]}" if graph.needs_window else "carry"
    )
    integer = model.reference().run(x)
    for sequence, y in zip(x, integer, strict=True):
        assert np.array_equal(model.stream().run(sequence), y)
    in_float = FloatStream(graph).run(x)
    float_error = np.abs((in_float[:, -1] if main == "Y_h" else in_float) - expected).max()
    # a window's output is its last step's
    last = expected if main == "Y_h" else expected[:, -1]
    whole = integer if main != "Y_h" and not graph.needs_window else integer[:, -1]
    integer_error = np.abs(whole - (expected if whole.ndim == 3 else last)).max()
    return Outcome("", float(float_error), float(integer_error))


def table(folder: Path) -> str:
    rows = [outcome(name, folder).row(name) for name in sorted(CASES)]
    return "\n".join(
        [
            "# onnx's backend test cases",
            "",
            "The LSTM, GRU and RNN node cases of the onnx package. Float: the stream equals the "
            "expected output",
            f"within {FLOAT_TOLERANCE:g}.",
            "Integer: the int8 model, calibrated on the case's own input, is within "
            f"{INTEGER_TOLERANCE:g} of it (hidden states",
            "are at most 1),",
            "and the C engine equals the NumPy reference in every bit. Written by `python "
            "tests/test_backend_cases.py`.",
            "",
            "| case | float | integer |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def test_all_recurrent_cases_are_here():
    assert len(CASES) >= 11


@pytest.mark.parametrize("name", sorted(CASES))
def test_case(name, tmp_path):
    result = outcome(name, tmp_path)
    assert not result.refused, result.refused
    assert result.float_error <= FLOAT_TOLERANCE
    assert result.integer_error <= INTEGER_TOLERANCE


def test_table_is_fresh(tmp_path, capsys):
    text = table(tmp_path)
    print(text)
    assert TABLE.read_text() == text


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        TABLE.write_text(table(Path(folder)))
    print(TABLE.read_text())
