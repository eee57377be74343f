"""torch.fx symbolic tracing in which every node is interpreted as it is made.

Shapes, dtypes and everything computed from constants are given to the user's code as they are; only
what depends on the input is a proxy. Code that looks at sizes (``torch.zeros(1, x.size(0), n)``,
``if x.dim() == 3``) therefore traces.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.nn.utils import rnn

from stepwell.errors import ImportRefused
from stepwell.importer.torch.handlers import MODULES, OPERATIONS, REFUSED, REFUSED_MODULES
from stepwell.importer.torch.signals import (
    Signal,
    Stack,
    StateArgument,
    Walk,
    WidthFound,
    described,
)

PROPERTIES = (
    "shape",
    "ndim",
    "dtype",
    "device",
    "T",
    "mT",
    "data",
    "is_cuda",
    "requires_grad",
    "real",
)


@dataclasses.dataclass(frozen=True)
class Refused:
    """What a node that was refused has made: no output can be made from it."""

    error: ImportRefused


TRACED = (Signal, Stack, StateArgument, Refused)
ONNX_WAY = "export it with torch.onnx.export and convert the file, or give the submodules as an nn.Sequential"


class Traced(fx.Proxy):
    """A proxy that knows what it stands for."""

    def __init__(self, node: fx.Node, tracer: Tracer, value: Any):
        super().__init__(node, tracer)
        self.value = value

    def __getattr__(self, name: str) -> Any:
        if name in PROPERTIES:
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return super().__getattr__(name)

    def __len__(self) -> int:
        return self.shape[0]


class Tracer(fx.Tracer):
    """Collects the layers of a module in ``walk``; ``result`` is what its forward returns, traced
    values in it.

    ``with_states``: arguments with default None are states handed in, too. ``go_on``: what cannot
    be streamed is refused only where an output is made of it.
    """

    def __init__(self, walk: Walk, with_states: bool, go_on: bool):
        packing = (rnn.pack_padded_sequence, rnn.pad_packed_sequence, rnn.pack_sequence)
        super().__init__(autowrap_functions=packing)
        self.walk = walk
        self.with_states = with_states
        self.go_on = go_on
        self.result: Any = None
        self.n_nodes = 0

    # ---- what fx asks ----

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        name = library_class(m)
        return (
            name in MODULES
            or name in REFUSED_MODULES
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(self, m: torch.nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        if not any(isinstance(a, fx.Proxy) for a in (*args, *kwargs.values())):
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict) -> Any:
        return attr_val  # parameters stay tensors

    def create_arg(self, a: Any) -> None:
        # fx calls it for the result only: create_proxy makes nodes without arguments
        self.result = mapped(_without_dataclasses(a), self._result)

    def to_bool(self, obj: fx.Proxy) -> bool:
        raise self.walk.refuse(
            f"control flow depends on the values of {described(obj.value)}: a stream has none; "
            f"{ONNX_WAY}"
        )

    def iter(self, obj: fx.Proxy) -> Any:
        self._value(obj)
        if isinstance(obj.value, Stack):
            return iter([obj[k] for k in range(len(obj))])
        raise self.walk.refuse(
            "a loop over the tensor: give a module whose forward is one step (x, state), or use "
            "nn.LSTM / nn.GRU / nn.RNN"
        )

    def create_proxy(
        self, kind: str, target: Any, args: tuple, kwargs: dict, name: str | None = None, **_: Any
    ) -> Any:
        node = self.create_node(kind, target, (), {}, name)
        self.n_nodes += 1
        try:
            args, kwargs = mapped(args, self._value), mapped(kwargs, self._value)
            result = self._interpreted(node, args, kwargs)
        except ImportRefused as error:
            if not self.go_on:
                raise
            result = Refused(error)
        return mapped(
            result, lambda value: Traced(node, self, value) if isinstance(value, TRACED) else value
        )

    # ---- how a node is read ----

    def _value(self, a: Any) -> Any:
        value = self._result(a)
        if isinstance(value, Refused):
            raise value.error
        return value

    def _result(self, a: Any) -> Any:
        if isinstance(a, Traced):
            return a.value
        if isinstance(a, fx.Proxy):
            raise self.walk.refuse(
                f"attribute '{getattr(a, 'attr', '')}' of a tensor is not understood; {ONNX_WAY}"
            )
        return a

    def _interpreted(self, node: fx.Node, args: tuple, kwargs: dict) -> Any:
        if node.op == "placeholder":
            return self._argument(node.target, args)
        if node.op == "call_module":
            return self._module_call(
                self.root.get_submodule(node.target), node.target, args, kwargs
            )
        name = operation_name(node.target)
        path = next(reversed(self.module_stack.values()))[0] if self.module_stack else ""
        self.walk.name = node.name
        self.walk.where = f"node '{node.name}' ({name}{f', in {path}' if path else ''})"
        return self._called(
            OPERATIONS.get(name), REFUSED.get(name, ""), f"torch's {name}", args, kwargs
        )

    def _argument(self, name: str, default: tuple) -> Any:
        if name.startswith("*"):
            return {} if name.startswith("**") else ()
        if self.n_nodes == 1:
            return self.walk.input
        if default and not (self.with_states and default[0] is None):
            return default[0]
        return StateArgument((name,))

    def _module_call(self, module: torch.nn.Module, path: str, args: tuple, kwargs: dict) -> Any:
        kind = library_class(module)
        self.walk.name = path
        self.walk.where = f"{path} ({type(module).__name__})"
        return self._called(
            MODULES.get(kind),
            REFUSED_MODULES.get(kind, ""),
            f"a {type(module).__name__}",
            (module, *args),
            kwargs,
        )

    def _called(
        self, handler: Callable | None, advice: str, what: str, args: tuple, kwargs: dict
    ) -> Any:
        if handler is None:
            raise self.walk.refuse(
                advice or f"{what} cannot be streamed or is not understood; {ONNX_WAY}"
            )
        try:
            bound = inspect.signature(handler).bind(self.walk, *args, **kwargs)
        except TypeError as error:
            raise self.walk.refuse(
                f"called in a way that is not understood ({error}); {ONNX_WAY}"
            ) from error
        return handler(*bound.args, **bound.kwargs)


def trace(module: torch.nn.Module, walk: Walk, with_states: bool, go_on: bool = False) -> Tracer:
    """Trace ``module``; what goes wrong is an ImportRefused (WidthFound passes)."""
    tracer = Tracer(walk, with_states, go_on)
    try:
        tracer.trace(module)
    except (ImportRefused, WidthFound):
        raise
    except Exception as error:  # the user's code runs: there is no telling what it raises
        raise ImportRefused(
            f"after {walk.where}: {type(module).__name__}.forward cannot be traced "
            f"({type(error).__name__}: {str(error)[:300]}): {ONNX_WAY}"
        ) from error
    return tracer


def library_class(module: torch.nn.Module) -> str:
    """The torch.nn class whose forward the module runs; empty for the user's own."""
    forward = type(module).forward
    library = (c for c in type(module).__mro__ if c.__module__.startswith("torch.nn.modules"))
    return next((c.__name__ for c in library if c.forward is forward), "")


def operation_name(target: Any) -> str:
    """relu for torch.relu, Tensor.relu_, torch.nn.functional.relu; add for operator.add, iadd,
    __radd__.
    """
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return name.strip("_")


def items_of(result: Any) -> list[tuple[Any, Any]] | None:
    """(key or field or place, part) of a dict, dataclass, namedtuple, tuple or list; None for
    anything else.
    """
    if isinstance(result, dict):
        return list(result.items())
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return [(field.name, getattr(result, field.name)) for field in dataclasses.fields(result)]
    if isinstance(result, tuple) and hasattr(result, "_fields"):
        return list(zip(result._fields, result, strict=True))
    return list(enumerate(result)) if isinstance(result, (tuple, list)) else None


def _without_dataclasses(result: Any) -> Any:
    """Dataclasses as dicts of their fields, at any depth of dicts, tuples and lists."""
    items = items_of(result)
    if items is None:
        return result
    parts = [(key, _without_dataclasses(part)) for key, part in items]
    if isinstance(result, (tuple, list)):
        values = [part for _, part in parts]
        return type(result)(*values) if hasattr(result, "_fields") else type(result)(values)
    return dict(parts)


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """``function`` on every leaf of nested tuples, lists and dicts."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(v, function) for v in value))
    if type(value) in (tuple, list):
        return type(value)(mapped(v, function) for v in value)
    if isinstance(value, dict):
        return {key: mapped(v, function) for key, v in value.items()}
    return function(value)
