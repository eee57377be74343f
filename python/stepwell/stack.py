"""The deepest stack of a function, before anything has run: the longest path of frames in the call graph that gcc writes.

``-fcallgraph-info=su`` gives a .ci file for each source: nodes with the bytes of their frames, edges for calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from stepwell.errors import BuildError

FLAGS = ("-fcallgraph-info=su",)
NODE = re.compile(r'^node: \{ title: "([^"]+)" label: "[^"]*?(?:\\n(\d+) bytes \(([^)]*)\)[^"]*)?"', re.MULTILINE)
EDGE = re.compile(r'^edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"', re.MULTILINE)
INDIRECT = "__indirect_call"
# What gcc cannot count, bytes: assembly of csrc that pushes on its own, and what libgcc has for Cortex-M0 (12.2's rounded up).
ASSEMBLY = {
    "stw_dot4_v6m": 40,
    "stw_pairs_dsp_unit": 52,
    "stw_pairs_dsp_sums": 52,
    "__aeabi_lmul": 32,
    "__aeabi_llsl": 16,
    "__aeabi_llsr": 16,
    "__aeabi_lasr": 16,
}


@dataclass
class CallGraph:
    """``frames``: bytes of each function whose source was compiled; ``calls``: whom it calls."""

    frames: dict[str, int] = field(default_factory=dict)
    calls: dict[str, set[str]] = field(default_factory=dict)
    unbounded: set[str] = field(default_factory=set)  # with alloca or arrays of variable length

    def deepest(self, function: str) -> tuple[int, list[str]]:
        """Bytes of the longest path from ``function`` down, its own frame included, and the path.

        BuildError, naming the function, for recursion, a call through a pointer, a frame of no fixed size, and code that was
        not compiled here.
        """
        return self._deepest(function, ())

    def _deepest(self, function: str, above: tuple[str, ...]) -> tuple[int, list[str]]:
        way = " -> ".join([*above, function])
        if function in above:
            raise BuildError(f"the stack has no bound: {way} is a recursion")
        if function == INDIRECT:
            raise BuildError(f"the stack has no bound that can be seen: {way} goes through a pointer")
        if function in self.unbounded:
            raise BuildError(f"the stack has no bound: the frame of {way} has no fixed size")
        if function not in self.frames and function not in ASSEMBLY:
            raise BuildError(f"the stack has no bound that can be seen: {way} was not compiled with the rest")
        below = [self._deepest(called, (*above, function)) for called in sorted(self.calls.get(function, ()))]
        deepest, path = max(below, key=lambda found: found[0], default=(0, []))
        return self.frames.get(function, 0) + ASSEMBLY.get(function, 0) + deepest, [function.rpartition(":")[2], *path]


def read_call_graph(files: Iterable[Path]) -> CallGraph:
    """The graph of a program from the .ci files of all its sources."""
    graph = CallGraph()
    for file in files:
        text = file.read_text()
        for name, size, kind in NODE.findall(text):
            if size:
                graph.frames[name] = int(size)
                if "dynamic" in kind and "bounded" not in kind:
                    graph.unbounded.add(name)
        for caller, called in EDGE.findall(text):
            graph.calls.setdefault(caller, set()).add(called)
    return graph
