"""The deepest stack of a function, before anything has run: the longest path of frames in the call
graph.

From gcc 10 on, ``-fcallgraph-info=su`` gives a .ci file for each source: nodes with the bytes of
their frames, edges for calls. avr-gcc is older: ``-fstack-usage`` gives a .su file with the frames
alone, and the calls are read from the image's code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stepwell.errors import BuildError

FLAGS = ("-fcallgraph-info=su",)
FRAME_FLAGS = ("-fstack-usage",)
NODE = re.compile(
    r'^node: \{ title: "([^"]+)" label: "[^"]*?(?:\\n(\d+) bytes \(([^)]*)\)[^"]*)?"', re.MULTILINE
)
EDGE = re.compile(r'^edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"', re.MULTILINE)
INDIRECT = "__indirect_call"
WORD = 4
# What gcc cannot count, bytes: assembly of csrc that pushes on its own, and what libgcc has for
# Cortex-M0 (12.2's rounded up).
ASSEMBLY = {
    "stw_dot4_v6m": 40,
    "stw_pairs_dsp_unit": 52,
    "stw_pairs_dsp_sums": 52,
    "__aeabi_lmul": 32,
    "__aeabi_llsl": 16,
    "__aeabi_llsr": 16,
    "__aeabi_lasr": 16,
}

FRAME = re.compile(r"^[^\t\n]*:([\w.]+)\t(\d+)\t(\S+)$", re.MULTILINE)
AVR_FUNCTION = re.compile(r"^[0-9a-f]+ <([^>]+)>:\n((?:.+\n)*)", re.MULTILINE)
AVR_JUMP = re.compile(r"\t(r?call|r?jmp|br\w\w)\t.*<([^>+]+)(\+0x[0-9a-f]+)?>$", re.MULTILINE)
AVR_INDIRECT = re.compile(r"\te?i(?:call|jmp)\b")
AVR_LAST = re.compile(r"\t(?:reti?|e?ijmp|r?jmp)\b[^\n]*\n\Z")
AVR_VECTORS = "cpu_vectors"
AVR_SWITCH = "__tablejump2__"  # of libgcc: on to a case of the same function
AVR_STACK_STAYS = (AVR_SWITCH, "Reset_Handler")  # reset begins with an empty stack
# bytes of a return address on the largest ones, 2 on others; frames in .su files hold theirs
AVR_RETURN = 3


@dataclass
class CallGraph:
    """``frames``: bytes of each function whose source was compiled; ``calls``: whom it calls.

    ``handlers``: of interrupts, one of which may come at any moment, on top of whatever runs.
    """

    frames: dict[str, int] = field(default_factory=dict)
    calls: dict[str, set[str]] = field(default_factory=dict)
    unbounded: set[str] = field(default_factory=set)  # with alloca or arrays of variable length
    handlers: set[str] = field(default_factory=set)

    def resolve(self, pointers: Mapping[str, str]) -> None:
        """Say where calls through pointers go: function -> pattern of the names that it may call."""
        for caller, called in self.calls.items():
            if INDIRECT in called and plain(caller) in pointers:
                pattern = pointers[plain(caller)]
                found = {
                    function for function in self.frames if re.fullmatch(pattern, plain(function))
                }
                called.difference_update({INDIRECT} if found else ())
                called.update(found)

    def bound(self, function: str) -> int:
        """Bytes that ``function`` takes at most, interrupts included, in whole words. BuildError as
        for ``deepest``.
        """
        interrupted = max((self.deepest(handler)[0] for handler in self.handlers), default=0)
        return -(-(self.deepest(function)[0] + interrupted) // WORD) * WORD

    def deepest(self, function: str) -> tuple[int, list[str]]:
        """Bytes of the longest path from ``function`` down, its own frame included, and the path.

        BuildError, naming the function, for recursion, a call through a pointer, a frame of no
        fixed size, and code that was not compiled here.
        """
        return self._deepest(function, ())

    def _deepest(self, function: str, above: tuple[str, ...]) -> tuple[int, list[str]]:
        way = " -> ".join([*above, function])
        if function in above:
            raise BuildError(f"the stack has no bound: {way} is a recursion")
        if function == INDIRECT:
            raise BuildError(
                f"the stack has no bound that can be seen: {way} goes through a pointer"
            )
        if function in self.unbounded:
            raise BuildError(f"the stack has no bound: the frame of {way} has no fixed size")
        if function not in self.frames and function not in ASSEMBLY:
            raise BuildError(
                f"the stack has no bound that can be seen: {way} was not compiled with the rest"
            )
        below = [
            self._deepest(called, (*above, function))
            for called in sorted(self.calls.get(function, ()))
        ]
        deepest, path = max(below, key=lambda found: found[0], default=(0, []))
        return self.frames.get(function, 0) + ASSEMBLY.get(function, 0) + deepest, [
            plain(function),
            *path,
        ]


def plain(function: str) -> str:
    """A function's name without its file and without what gcc adds to the name of a clone."""
    return function.rpartition(":")[2].split(".")[0]


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
    for title in (
        graph.frames
    ):  # a weak function has its file in its title; the linker may take another of that name
        if (name := title.rpartition(":")[2]) != title and name in graph.frames:
            graph.calls.setdefault(title, set()).add(name)
    return graph


def read_avr_graph(files: Iterable[Path], code: str) -> CallGraph:
    """The graph of an AVR program from the .su files of all its sources and its disassembly by
    objdump.

    Functions that no compiler made (libgcc's) take what they push and their return address. Of
    functions with the same name the largest frame counts.
    """
    graph, compiled = CallGraph(), _read_frames(files)
    functions = AVR_FUNCTION.findall(code)
    for (name, body), (behind, _) in zip(functions, [*functions[1:], ("the end", "")], strict=True):
        frame, kind = compiled.get(name, (body.count("\tpush\t") + AVR_RETURN, "static"))
        graph.frames[name] = frame
        if kind != "static":
            graph.unbounded.add(name)
        calls = {
            called
            for jump, called, inside in AVR_JUMP.findall(body)
            if called not in (name, *AVR_STACK_STAYS)
            or (called == name and "call" in jump and not inside)
        }
        if AVR_INDIRECT.search(body) and name != AVR_SWITCH:
            calls.add(INDIRECT)
        if not AVR_LAST.search(body):
            calls.add(behind)  # the code goes on there
        graph.calls.setdefault(name, set()).update(calls)
    graph.handlers = graph.calls.get(AVR_VECTORS, set())
    return graph


def _read_frames(files: Iterable[Path]) -> dict[str, tuple[int, str]]:
    """Function -> bytes of its largest frame, and whether they are "static"."""
    frames: dict[str, tuple[int, str]] = {}
    for file in files:
        for name, size, kind in FRAME.findall(file.read_text()):
            frames[name] = max(frames.get(name, (0, "")), (int(size), kind))
    return frames
