"""Finds out how a module takes its input, and makes the graph of what the trace has found."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from stepwell.errors import ImportRefused
from stepwell.graph import Graph, Source
from stepwell.importer.imported import Imported
from stepwell.importer.outputs import (
    Head,
    PartRefused,
    advised,
    outputs_of,
    places,
    side_by_side,
    unique_names,
)
from stepwell.importer.source import SourceModel
from stepwell.importer.torch import activations, arithmetic, layers, plumbing, recurrent  # noqa: F401  they fill the tables
from stepwell.importer.torch.handlers import array
from stepwell.importer.torch.plumbing import pick, unsqueeze
from stepwell.importer.torch.replay import Outputs, Part, answers, replay
from stepwell.importer.torch.signals import Chain, Path, Signal, Stack, Walk, WidthFound
from stepwell.importer.torch.tracing import TRACED, Refused, items_of, library_class, trace
from stepwell.layers import Layer
from stepwell.text import printable

# how a module may take its input; the first that can be traced to the end is the one
LAYOUTS = (("B", "T", "F"), ("T", "B", "F"), ("B", "F", "T"), ("B", "T"), ("T", "B"))
STEP_LAYOUTS = (("B", "F"), ("B", "", "F"), ("", "B", "F"))
GUESSED_WIDTH = 997  # until the first layer that reads the input tells
RECURRENT = ("LSTM", "GRU", "RNN")
CELLS = ("LSTMCell", "GRUCell", "RNNCell")
NARROW = {torch.float16: "float16", torch.bfloat16: "bfloat16"}


def converted(
    module: torch.nn.Module,
    verify: bool,
    steps: int | None,
    n_in: int | None,
    wanted: tuple[str, ...],
) -> Imported:
    """See import_torch."""
    original = _unwrapped(module)
    notes = _dtype_notes(original)
    with _undisturbed():
        own = _copied(original)
        walk, outputs = _traced(own, steps, n_in, wanted)
        graph = _graph(walk, outputs, _source(original), notes)
        proof = replay(own, walk, outputs, graph) if verify else None

    def run(x: np.ndarray) -> np.ndarray:
        with _undisturbed():
            return answers(own, walk, outputs, graph, x)

    return Imported(graph, proof, SourceModel(run, steps, shapeless=not walk.one_step))


# ---- the module ----


def _unwrapped(module: Any) -> torch.nn.Module:
    """The module itself, without torch.compile and DataParallel."""
    module = getattr(module, "_orig_mod", module)
    if isinstance(module, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
        module = module.module
    if isinstance(module, torch.jit.ScriptModule):
        raise ImportRefused(
            f"{type(module).__name__} is scripted: give the module before torch.jit"
        )
    if isinstance(module, dict):
        raise ImportRefused("weights without a module: build the module and load_state_dict them")
    if not isinstance(module, torch.nn.Module) or isinstance(module, type):
        raise ImportRefused(f"expected a torch.nn.Module, got {module!r:.80}")
    return module


def _dtype_notes(module: torch.nn.Module) -> list[str]:
    """Sentences on half precision; refuses complex and uninitialised weights, and what is already
    quantised.
    """
    kinds = set()
    for name, parameter in (*module.named_parameters(), *module.named_buffers()):
        if isinstance(parameter, torch.nn.parameter.UninitializedTensorMixin):
            raise ImportRefused(f"{name} has no values yet: run the lazy module once")
        if parameter.is_complex() or parameter.is_quantized:
            raise ImportRefused(
                f"{name} is {parameter.dtype}: give the real float model, stepwell quantises it "
                "itself"
            )
        if parameter.is_meta:
            raise ImportRefused(f"{name} is on the meta device and has no values: load the weights")
        if parameter.is_floating_point() and not parameter.isfinite().all():
            raise ImportRefused(f"{name} holds NaN or infinity: the training has diverged")
        kinds.add(NARROW.get(parameter.dtype, ""))
    names = ", ".join(sorted(kinds - {""}))
    return (
        [f"weights are {names}: converted to float64, compared with the source in float64"]
        if names
        else []
    )


def _copied(module: torch.nn.Module) -> torch.nn.Module:
    """A copy in float64 and eval mode; a lone recurrent layer or a Sequential of them as a module
    of its own.
    """
    try:
        own = copy.deepcopy(module).to("cpu", torch.float64).eval()
    except Exception as error:
        raise ImportRefused(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: "
            f"{str(error)[:200]}): detach tensors that "
            "it keeps from the last call, or build it anew and load_state_dict"
        ) from error
    if library_class(own) in (*RECURRENT, *CELLS):
        return RecurrentSequence({"": own})
    if type(own) is torch.nn.Sequential and any(
        library_class(m) in (*RECURRENT, *CELLS) for m in own
    ):
        return RecurrentSequence(dict(own.named_children()))
    return own


class RecurrentSequence(torch.nn.Module):
    """Modules one after the other, each given the output of the one before; cells hand their states
    on.

    What an nn.Sequential of recurrent modules means: torch itself would pass (output, state) to the
    next one.
    """

    def __init__(self, modules: dict[str, torch.nn.Module]):
        super().__init__()
        self.steps = list(modules.values())
        self.is_cell = [library_class(step) in CELLS for step in self.steps]
        for name, step in modules.items():
            self.add_module(name or library_class(step).lower(), step)

    def forward(self, x: torch.Tensor, states: Any = None) -> Any:
        after = []
        for step, is_cell in zip(self.steps, self.is_cell, strict=True):
            state = states[len(after)] if is_cell and states is not None else None
            x = step(x, state) if is_cell else step(x)
            if is_cell:
                after.append(x)
            x = x[0] if isinstance(x, tuple) else x
        return (x, tuple(after)) if after else x


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """float64 as torch's default, no gradients, no traces in the random generator, none of torch's
    warnings.
    """
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_default_dtype(default)


# ---- the trace ----


def _traced(
    module: torch.nn.Module, steps: int | None, n_in: int | None, wanted: tuple[str, ...]
) -> tuple[Walk, Outputs]:
    """The walk of the first layout that works. What is refused on the way to outputs that are not
    wanted does not matter.
    """
    if wanted:
        return _first_traced(module, steps, n_in, wanted, True)
    try:
        return _first_traced(module, steps, n_in, (), False)
    except PartRefused:
        raise
    except ImportRefused as error:
        try:
            _first_traced(module, steps, n_in, (), True)
        except PartRefused:  # the same, with the outputs that convert
            raise
        except ImportRefused:
            pass
        raise error


def _first_traced(
    module: torch.nn.Module,
    steps: int | None,
    n_in: int | None,
    wanted: tuple[str, ...],
    go_on: bool,
) -> tuple[Walk, Outputs]:
    """The walk of the first layout that works; ImportRefused of the one in which most layers were
    understood.
    """
    failures = []
    for axes in (*LAYOUTS, *STEP_LAYOUTS):
        walk = Walk(axes, n_in or GUESSED_WIDTH, n_in is not None, steps)
        if "F" not in axes:
            walk = Walk(axes, 1, True, steps)
        try:
            return _traced_in(module, walk, wanted, go_on)
        except WidthFound as found:
            walk = Walk(axes, found.width, True, steps)
        except ImportRefused as error:
            failures.append((isinstance(error, PartRefused), walk.progress, error))
            continue
        try:
            return _traced_in(module, walk, wanted, go_on)
        except ImportRefused as error:
            failures.append((isinstance(error, PartRefused), walk.progress, error))
    raise max(failures, key=lambda failure: failure[:2])[2]


def _traced_in(
    module: torch.nn.Module, walk: Walk, wanted: tuple[str, ...], go_on: bool
) -> tuple[Walk, Outputs]:
    # a forward may keep things in its module
    tracer = trace(copy.deepcopy(module), walk, with_states=walk.one_step, go_on=go_on)
    walk.where = "the output"
    outputs = _outputs(walk, tracer.result, wanted)
    if not walk.n_in_known:
        raise walk.refuse(
            "how wide the model's input is cannot be told from its layers: give it, n_in="
        )
    return walk, outputs


# ---- the graph ----


@dataclass(frozen=True)
class _Leaf:
    """A tensor in what forward returns, where it is, and the key or field that names it (None in
    tuples and lists).
    """

    path: Path
    name: str | None
    value: Any

    @property
    def state(self) -> tuple[int, str] | None:
        return getattr(self.value, "state", None)


def _outputs(walk: Walk, result: Any, wanted: tuple[str, ...]) -> Outputs:
    """The wanted results of forward side by side, or all that are data, and where the states are."""
    leaves = [
        leaf
        for leaf in _leaves(result, (), "")
        if isinstance(leaf.value, (Signal, Stack, Refused, torch.Tensor))
    ]
    if not any(isinstance(leaf.value, (Signal, Stack)) for leaf in leaves):
        for refused in (leaf.value for leaf in leaves if isinstance(leaf.value, Refused)):
            raise refused.error
        raise walk.refuse("forward returns nothing that depends on its input")
    states = {leaf.state: leaf.path for leaf in leaves if leaf.state}
    data = _data(leaves)
    named = dict(
        zip(
            unique_names(leaf.name or f"output{k}" for k, leaf in enumerate(data)),
            data,
            strict=True,
        )
    )
    chosen = list(named)
    if wanted:
        also = {leaf.name: leaf for leaf in leaves if leaf.name}  # a state with a name
        named |= {name: leaf for name, leaf in also.items() if name not in named}
        chosen = [list(named)[k] for k in places(list(named), wanted)]
    try:
        outputs = _joined(walk, [(name, named[name]) for name in chosen], states)
    except ImportRefused as error:
        raise advised(
            error, chosen, lambda name: _joined(walk, [(name, named[name])], states)
        ) from error.__cause__
    if len(named) == 1 and not data[0].name:
        return replace(outputs, named=())
    return outputs


def _data(leaves: list[_Leaf]) -> list[_Leaf]:
    """Those that are no states. A new hidden state is data where nothing else is, or where the same
    state comes again.
    """
    data = [
        leaf
        for k, leaf in enumerate(leaves)
        if not isinstance(leaf.value, Stack)
        and (not leaf.state or any(later.state == leaf.state for later in leaves[k + 1 :]))
    ]
    if any(isinstance(leaf.value, Signal) for leaf in data):
        return data
    return [next(leaf for leaf in leaves if isinstance(leaf.value, (Signal, Stack)))]


def _joined(
    walk: Walk, chosen: list[tuple[str, _Leaf]], states: dict[tuple[int, str], Path]
) -> Outputs:
    several = len(chosen) > 1
    parts, heads = [], []
    for name, leaf in chosen:
        walk.where = f"output '{name}'" if several else "the output"
        part = _part(walk, leaf)
        is_constant = isinstance(part.content, np.ndarray)
        size = len(part.content) if is_constant else part.content.width
        parts.append(part)
        heads.append(
            Head(name, 0, size, False, part.content)
            if is_constant
            else Head(name, part.content.value, size, part.content.last)
        )
    value = side_by_side(walk.layers, walk.reads, heads)
    first = next(part.content for part in parts if isinstance(part.content, Signal))
    signal = (
        replace(first, value=value, width=sum(head.size for head in heads)) if several else first
    )
    return Outputs(signal, tuple(parts), outputs_of(heads), states)


def _part(walk: Walk, leaf: _Leaf) -> Part:
    """A result as data; a constant's rows must be alike."""
    value = leaf.value
    if isinstance(value, Refused):
        raise value.error
    if isinstance(value, torch.Tensor):
        rows = array(value).reshape(-1, value.shape[-1] if value.ndim else 1)
        if not value.is_floating_point() or not rows.size or (rows != rows[0]).any():
            raise walk.refuse(
                "a constant that is no row of numbers: it does not depend on the input"
            )
        return Part(leaf.path, rows[0])
    if isinstance(value, Stack):
        if len(value.parts) != 1:
            raise walk.refuse(
                "forward returns the final states of several layers: return one of them, h_n[-1]"
            )
        value = unsqueeze(walk, pick(walk, value, 0), 0)
    return Part(leaf.path, walk.plain(value))


def _leaves(result: Any, path: Path, name: str) -> Iterator[_Leaf]:
    """Names of fields and keys are joined by points; a place in a tuple or list has none, unless
    within something named.
    """
    items = None if isinstance(result, TRACED) else items_of(result)
    if items is None:
        yield _Leaf(path, name or None, result)
        return
    for key, part in items:
        own = (
            printable(str(key)) if name or isinstance(key, str) or isinstance(result, dict) else ""
        )
        yield from _leaves(part, (*path, key), f"{name}.{own}" if name else own)


def _graph(walk: Walk, outputs: Outputs, source: Source, notes: list[str]) -> Graph:
    signal = outputs.signal
    if not signal.value:
        raise ImportRefused("the output is the input: a graph needs at least one recurrent layer")
    chain = Chain(walk.layers, walk.reads).pruned(signal.value).fused()
    readout = "last" if signal.last else "every"
    chained, notes = tuple(_named_apart(chain.layers)), (*notes, *walk.notes)
    graph = Graph(chained, readout, source, notes, tuple(chain.reads), outputs.named)
    if graph.lags[-1] and not signal.last:
        sentence = "a convolution looks ahead (padding after the sequence's end): in mode carry outputs come"
        graph = replace(graph, notes=(*graph.notes, f"{sentence} {graph.lags[-1]} steps late"))
    return graph


def _named_apart(chain: list[Layer]) -> Iterator[Layer]:
    """The layers, of which two may have one name: a convolution and the same one cropped."""
    taken: set[str] = set()
    for layer in chain:
        name, copy_ = layer.name, 2
        while name in taken:
            name, copy_ = f"{layer.name}_{copy_}", copy_ + 1
        taken.add(name)
        yield layer if name == layer.name else replace(layer, name=name)


def _source(module: torch.nn.Module) -> Source:
    digest = hashlib.sha256()
    for name, value in sorted((*module.named_parameters(), *module.named_buffers())):
        digest.update(f"{name} {list(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().double().numpy().tobytes())
    return Source(type(module).__name__, digest.hexdigest(), f"torch {torch.__version__}")
