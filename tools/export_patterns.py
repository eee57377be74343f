#!/usr/bin/env python3
"""Export a matrix of recurrent models from PyTorch: one ONNX file for each pattern that an importer
meets, with inputs and outputs.

    pip install torch onnxscript
    python tools/export_patterns.py patterns/            # all of them
    python tools/export_patterns.py patterns/ legacy     # those whose name holds "legacy"

Each NAME.onnx comes with NAME_io.npz: "x", the input in the model's own layout, and "y", what torch
computes for it. The tests export the same matrix into a temporary folder and import it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch

N_IN, N_HIDDEN, N_OUT, STEPS = 5, 8, 3, 12
ACTIVATIONS = {
    "none": None,
    "relu": torch.nn.ReLU,
    "tanh": torch.nn.Tanh,
    "sigmoid": torch.nn.Sigmoid,
    "softmax": lambda: torch.nn.Softmax(dim=-1),
}


@dataclass(frozen=True)
class Case:
    """One export.

    ``readout``: "every" step, the "last" one by indexing, or "hidden" (h_n[-1], the same by another
    way). ``head``: the activation after the dense layer, or "bare" (no dense layer), "deep" (dense,
    relu, dense), "lstm_relu" (no dense layer, relu after the LSTM). ``front``: a dense layer before
    the LSTM. ``dynamic``: "", "time" or "time batch".
    """

    exporter: str
    opset: int = 17
    cell: str = "lstm"
    batch_first: bool = True
    n_layers: int = 1
    readout: str = "every"
    head: str = "none"
    dynamic: str = ""
    batch: int = 1
    steps: int = STEPS
    n_in: int = N_IN
    external: bool = False
    state: bool = False
    bias: bool = True
    front: bool = False
    optimize: bool = True
    dropout: bool = False
    proj: int = 0
    bidirectional: bool = False

    @property
    def name(self) -> str:
        """Every field that is not the default."""
        fields = type(self).__dataclass_fields__
        changed = {
            k: getattr(self, k)
            for k, f in fields.items()
            if k != "exporter" and getattr(self, k) != f.default
        }
        parts = (
            k if v is True else f"no_{k}" if v is False else f"{k}_{v}" for k, v in changed.items()
        )
        return "-".join([self.exporter, *parts]).replace(" ", "_")


class Net(torch.nn.Module):
    """A recurrent stack with an optional dense layer before and dense layers after it, as ``case``
    says.
    """

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.front = torch.nn.Linear(case.n_in, N_IN) if case.front else torch.nn.Identity()
        self.recurrent = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[
            case.cell
        ](
            N_IN if case.front else case.n_in,
            N_HIDDEN,
            case.n_layers,
            batch_first=case.batch_first,
            bias=case.bias,
            dropout=0.25 if case.dropout else 0.0,
            bidirectional=case.bidirectional,
            **({"proj_size": case.proj} if case.proj else {}),
        )
        self.width = (case.proj or N_HIDDEN) * (1 + case.bidirectional)
        self.head = self._head(case)

    def _head(self, case: Case) -> torch.nn.Module:
        if case.head == "bare":
            return torch.nn.Identity()
        if case.head == "lstm_relu":
            return torch.nn.ReLU()
        if case.head == "deep":
            return torch.nn.Sequential(
                torch.nn.Linear(self.width, 7), torch.nn.ReLU(), torch.nn.Linear(7, N_OUT)
            )
        layers = [torch.nn.Linear(self.width, N_OUT, bias=case.bias)]
        layers += [torch.nn.Dropout(0.5)] if case.dropout else []
        layers += [ACTIVATIONS[case.head]()] if ACTIVATIONS[case.head] else []
        return torch.nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._read_out(*self.recurrent(self.front(x)))

    def _read_out(
        self, y: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | torch.Tensor
    ) -> torch.Tensor:
        if self.case.readout == "last":
            y = y[:, -1] if self.case.batch_first else y[-1]
        elif self.case.readout == "hidden":
            y = (state[0] if self.case.cell == "lstm" else state)[-1]
        return self.head(y)


class StepNet(Net):
    """The same with the state as inputs and outputs."""

    def forward(self, x: torch.Tensor, h0: torch.Tensor, c0: torch.Tensor):
        y, state = self.recurrent(self.front(x), (h0, c0))
        return self._read_out(y, state), *state


def cases() -> Iterator[Case]:
    """The matrix: each dimension in turn, and the crossings that have broken importers."""
    for exporter in ("legacy", "dynamo"):
        opsets = range(9, 21) if exporter == "legacy" else (18, 20)
        for opset in opsets:
            yield Case(exporter, opset, readout="last")
            yield Case(exporter, opset, readout="every", batch_first=False, n_layers=2)
        for head in ("relu", "tanh", "sigmoid", "softmax", "bare", "deep", "lstm_relu"):
            yield Case(
                exporter, 18, head=head, readout="last" if head in ("softmax", "bare") else "every"
            )
        for opset in (11, 13, 20) if exporter == "legacy" else (20,):
            yield Case(exporter, opset, dynamic="time batch", readout="last", batch=2)
            yield Case(
                exporter, opset, dynamic="time batch", batch_first=False, n_layers=2, batch=2
            )
            yield Case(exporter, opset, head="softmax", readout="last")
            yield Case(exporter, opset, readout="hidden", n_layers=2, batch=2)
        yield Case(exporter, 18, dynamic="time", n_layers=3)
        yield Case(exporter, 18, n_layers=3, readout="last", batch=4)
        yield Case(exporter, 18, readout="hidden")
        yield Case(exporter, 18, bias=False, readout="last")
        yield Case(exporter, 18, front=True, dropout=True, n_layers=2)
        yield Case(exporter, 18, n_in=1, readout="last")
        yield Case(exporter, 18, external=True)
        yield Case(exporter, 18, state=True, steps=1)
        yield Case(exporter, 18, state=True, steps=1, n_layers=2, batch_first=False)
        yield Case(exporter, 18, state=True, n_layers=2, readout="last")
        for cell in (
            ("gru", "rnn") if exporter == "legacy" else ("gru",)
        ):  # dynamo unrolls torch.nn.RNN
            for opset in (11, 17) if exporter == "legacy" else (20,):
                yield Case(exporter, opset, cell, n_layers=2, readout="last")
            yield Case(exporter, 18, cell, batch_first=False, head="deep")
            yield Case(exporter, 18, cell, n_layers=3, readout="hidden", batch=2, head="softmax")
            yield Case(exporter, 18, cell, bias=False)
            yield Case(exporter, 18, cell, dynamic="time batch", batch=2, head="tanh")
    yield Case("dynamo", 18, optimize=False, batch=2)


def crossing() -> Iterator[Case]:
    """Every cell, with projection or in both directions, x layers x exporter x layout x head."""
    cells: list[dict] = [
        {"cell": cell, "bidirectional": both}
        for cell in ("lstm", "gru", "rnn")
        for both in (False, True)
    ]
    cells.append({"cell": "lstm", "proj": 3})
    for exporter, fields, n_layers in product(("legacy", "dynamo"), cells, (1, 2, 3)):
        for batch_first, head in product((True, False), ("bare", "none")):
            yield Case(
                exporter, 18, batch_first=batch_first, n_layers=n_layers, head=head, **fields
            )


def export(case: Case, folder: Path) -> Path:
    """Write NAME.onnx (with NAME.onnx.data when external) and NAME_io.npz; returns the path of the
    first.
    """
    torch.manual_seed(3)  # one whose relu heads are not all zero
    net = (StepNet if case.state else Net)(case).eval()
    x = torch.randn(
        (case.batch, case.steps, case.n_in)
        if case.batch_first
        else (case.steps, case.batch, case.n_in)
    )
    # two tensors: dynamo takes one given twice for one input
    state = [torch.zeros(case.n_layers, case.batch, N_HIDDEN) for _ in "hc"] if case.state else []
    path = folder / f"{case.name}.onnx"
    with _silence():
        if case.exporter == "legacy":
            _export_legacy(case, net, (x, *state), path)
        else:
            _export_dynamo(case, net, (x, *state), path)
    with torch.no_grad():
        y = net(x, *state)
    np.savez(folder / f"{case.name}_io.npz", x=x.numpy(), y=(y[0] if case.state else y).numpy())
    return path


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Both exporters have much to say, on every channel."""
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


def _names(case: Case) -> dict[str, list[str]]:
    state = case.state
    return {
        "input_names": ["x", "h0", "c0"][: 3 if state else 1],
        "output_names": ["y", "hn", "cn"][: 3 if state else 1],
    }


def _export_legacy(case: Case, net: Net, inputs: tuple, path: Path) -> None:
    batch, time = (0, 1) if case.batch_first else (1, 0)
    axes = {
        axis: name
        for axis, name in ((time, "time"), (batch, "batch"))
        if name in case.dynamic.split()
    }
    torch.onnx.export(
        net,
        inputs,
        path,
        dynamo=False,
        opset_version=case.opset,
        dynamic_axes={"x": axes} if axes else None,
        **_names(case),
    )
    if case.external:
        import onnx

        model = onnx.load(path)
        onnx.save(
            model, path, save_as_external_data=True, location=path.name + ".data", size_threshold=0
        )


def _export_dynamo(case: Case, net: Net, inputs: tuple, path: Path) -> None:
    batch, time = (0, 1) if case.batch_first else (1, 0)
    wanted = ((time, "time"), (batch, "batch"))
    axes = {axis: torch.export.Dim(name) for axis, name in wanted if name in case.dynamic.split()}
    shapes = {"x": axes} if axes else None
    torch.onnx.export(
        net,
        inputs,
        path,
        dynamo=True,
        opset_version=case.opset,
        dynamic_shapes=shapes,
        external_data=case.external,
        optimize=case.optimize,
        verbose=False,
        **_names(case),
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("part", nargs="?", default="", help="only patterns whose name holds this")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for case in (*cases(), *crossing()):
        if args.part in case.name:
            try:
                print(export(case, args.folder).name)
            except (
                Exception
            ) as error:  # one pattern that torch cannot export must not stop the others
                failed += 1
                print(
                    f"{case.name}: torch does not export it: {str(error).splitlines()[0][:150]}",
                    file=sys.stderr,
                )
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
