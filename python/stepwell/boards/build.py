"""build: a model and a board become an image (.elf, .bin, .hex, for some boards .uf2), with gcc or
with ziglang from PyPI.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile
from intelhex import IntelHex

from stepwell.boards import Board, flags, load_board, stack
from stepwell.emit import emit, lean_flags
from stepwell.errors import BuildError, WrongUse
from stepwell.files import check_can_make, folder_for, write_all
from stepwell.info import ram_bytes
from stepwell.link.messages import MOST_IN, MOST_OUT, MOST_SNAPSHOT
from stepwell.model import Model
from stepwell.sources import firmware

MOST_FLASH = 1 << 28  # bytes between the first and the last one of an image
NAME = "app_model"  # C name of the model in an image
SUFFIXES = (".elf", ".bin", ".hex", ".uf2")  # of the files of an image
IMAGE = "image.elf"  # name of an image in the folder where it is made
BOARD_SECTION = ".stepwell.board"  # holds the board's name; in the ELF alone, not in flash
ENTRIES = ("cpu_start", "Reset_Handler")  # where C begins on each kind of CPU
# calls through pointers in the test program, and what they may reach
POINTERS = {"service_byte": "on_.*", "run_handler": "on_.*", "frame_send": "board_putc"}
AVR_ARRAY = 32767
COMPILERS = ("gcc", "zig")
# lines of compilers and linkers that say what is wrong
TELLING = re.compile("error|overflow|do not fit|undefined")
PACKAGES = {
    "arm-none-eabi-gcc": "gcc-arm-none-eabi",
    "riscv64-unknown-elf-gcc": "gcc-riscv64-unknown-elf",
}
PACKAGES |= {"avr-gcc": "gcc-avr"}


@dataclass(frozen=True)
class Sizes:
    """Bytes. ``flash``: everything stored; ``ram``: .data + .bss, without the stack; ``constants``:
    the model's arrays and structs in flash; ``stream_ram``: of one stream; ``stack``: reserved.
    """

    flash: int
    ram: int
    stack: int
    constants: int
    stream_ram: int


@dataclass(frozen=True)
class Image:
    """A built image. ``elf`` for emulators and debuggers; ``bin`` (from the start of flash),
    ``hex`` and, where board.mk gives a UF2_FAMILY, ``uf2`` for flash tools.

    ``step_stack``, ``program_stack``: bytes of stack that stw_step and the whole program take at
    most, by gcc's frames and calls; None where zig built it, or a gcc before 10 other than AVR's.
    ``program_stack`` is also None where a C file of the board calls through pointers.
    """

    board: str
    compiler: str
    model_id: int
    elf: Path
    bin: Path
    hex: Path
    uf2: Path | None
    sizes: Sizes
    step_stack: int | None
    program_stack: int | None

    @property
    def files(self) -> list[Path]:
        return [path for path in (self.elf, self.bin, self.hex, self.uf2) if path]

    def costs(self) -> dict[str, Any]:
        """Bytes of flash, RAM and stack, for which board and by which compiler."""
        return {
            "name": self.board,
            "compiler": self.compiler,
            "sizes": asdict(self.sizes),
            "step_stack": self.step_stack,
            "program_stack": self.program_stack,
        }

    def to_json(self) -> dict[str, Any]:
        paths = {path.suffix[1:]: str(path) for path in self.files}
        return asdict(self) | {"uf2": None} | paths | {"model_id": f"{self.model_id:08x}"}


def build(
    model: Model,
    board: str | Board,
    out_dir: str | Path,
    compiler: str | None = None,
    *,
    mlperf: bool = False,
    updates: bool = False,
) -> Image:
    """Build the test program with ``model`` for ``board`` into ``out_dir``; the files appear whole
    or not at all.

    ``board``: as for load_board, or what it gave. ``compiler``: "gcc", "zig", or None for that of
    the environment variable STEPWELL_COMPILER, and without one for the first that is installed.
    ``mlperf``: with the text interface of MLPerf Tiny's runners in place of the link that
    ``connect`` speaks. ``updates``: takes other models in the field, so it has the whole engine and
    RAM for them (docs/update.md). BuildError: unknown board, one without an update area, no
    compiler, a model that does not fit, or the compiler's own words.
    """
    facts = board if isinstance(board, Board) else load_board(board)
    if updates and not facts.has_update_area:
        raise BuildError(
            f"{facts.name} has no update area: docs/update.md says what its board.mk and port need"
        )
    if updates and mlperf:
        raise WrongUse("MLPerf's text interface takes no updates: build with one of the two")
    if not updates:
        facts = facts.without_update_area()
    _check_fits_link(model)
    _check_fits_compiler(model, facts)
    kind = _pick(compiler, facts)
    check_can_make(out_dir, *(f"{facts.name}{suffix}" for suffix in SUFFIXES))
    with tempfile.TemporaryDirectory(prefix="stepwell-build-") as folder:
        work = Path(folder)
        emit(model, work / "model", NAME, facts.target)
        options = ["-DAPP_MLPERF"] if mlperf else []
        if not updates:  # models to come may need what this one does without
            options += lean_flags(model, facts.target)
        elf = compile_image(facts, kind, work, None, *options, *graph_flags(kind, facts))
        graph = call_graph(kind, facts, work)
        sizes = image_sizes(elf, facts)
        step_stack, program_stack = _stack_bounds(graph, sizes.stack, facts)
        contents = {elf: elf.read_bytes()} | image_files(elf, facts)
        targets = {
            Path(out_dir) / f"{facts.name}{path.suffix}": content
            for path, content in contents.items()
        }
        with folder_for(Path(out_dir)):
            written = {path.suffix: path for path in write_all(targets)}
        return Image(
            board=facts.name,
            compiler=kind,
            model_id=model.id,
            elf=written[".elf"],
            bin=written[".bin"],
            hex=written[".hex"],
            uf2=written.get(".uf2"),
            sizes=sizes,
            step_stack=step_stack,
            program_stack=program_stack,
        )


def graph_flags(kind: str, board: Board) -> tuple[str, ...]:
    """What makes the compiler write its frames and, if it can, its call graph."""
    if kind != "gcc":
        return ()
    major = _printed(*_driver(kind, board), "-dumpversion").split(".")[0]
    return stack.FLAGS if major.isdigit() and int(major) >= 10 else stack.FRAME_FLAGS


def call_graph(kind: str, board: Board, work: Path) -> stack.CallGraph | None:
    """Of the program that compile_image has put into ``work`` with graph_flags; None: this compiler
    does not tell.
    """
    if files := list(work.glob("*.ci")):
        return stack.read_call_graph(files)
    if board.text("CPU") != "avr" or kind != "gcc":
        return None
    objdump = _printed(*_driver(kind, board), "-print-prog-name=objdump").strip()
    return stack.read_avr_graph(
        work.glob("*.su"), _printed(objdump, "-d", "--no-show-raw-insn", str(work / IMAGE))
    )


def _stack_bounds(
    graph: stack.CallGraph | None, reserved: int, board: Board
) -> tuple[int | None, int | None]:
    """Of a step and of the whole program, where they can be told; BuildError when the stack cannot
    hold what is known.
    """
    if graph is None:
        return None, None
    graph.resolve(POINTERS)
    step = graph.bound("stw_step")
    try:
        program = graph.bound(next(entry for entry in ENTRIES if entry in graph.calls))
    except BuildError:
        program = None
    what, needed = ("a step", step) if program is None else ("the program with this model", program)
    if needed > reserved:
        raise BuildError(
            f"board {board.name}: {what} takes up to {needed} B of stack, and STACK_BYTES = "
            f"{reserved}: make it {needed} or more"
        )
    return step, program


def _printed(*command: str) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False
    ).stdout


def _check_fits_link(model: Model) -> None:
    """One step must fit a frame, or service.c refuses to compile; places in a snapshot have 16 bits
    on the line.
    """
    snapshot = ram_bytes(model)["snapshot"]
    if snapshot > MOST_SNAPSHOT:
        raise BuildError(
            f"the model's snapshot has {snapshot} bytes; the test program's link carries at most "
            f"{MOST_SNAPSHOT}: "
            "use `stepwell emit` and your own program"
        )
    if model.n_in > MOST_IN or model.n_out > MOST_OUT:
        raise BuildError(
            f"the model has {model.n_in} inputs and {model.n_out} outputs; the test program's "
            f"link carries at most {MOST_IN} and {MOST_OUT} a step: use `stepwell emit` and your "
            "own program"
        )


def _check_fits_compiler(model: Model, board: Board) -> None:
    """avr-gcc takes no array above AVR_ARRAY bytes, however much flash there is."""
    if board.text("CPU") != "avr":
        return
    for index, (layer, packed) in enumerate(zip(model.layers, model.packed(), strict=True)):
        arrays = (packed.w, packed.r, packed.rows)
        largest = max((array.nbytes for array in arrays if array is not None), default=0)
        if largest > AVR_ARRAY:
            raise BuildError(
                f"layer {index} ({layer.kind}) has {largest} bytes of weights in one array, and "
                f"avr-gcc takes {AVR_ARRAY} at "
                f"most: fewer units, --precision w4a16, or another board than {board.name}"
            )


def why_not(compiler: str, board: Board | None = None) -> str | None:
    """The reason why ``compiler`` cannot be used (for ``board``), with what to install; None when
    it can.
    """
    if compiler == "gcc":
        program = _facts(board)["GCC"]
        return None if shutil.which(program) else f"{program} is not installed: {_install(program)}"
    if board is not None and not board.words("CPU_ZIG"):
        return f"zig does not compile for {board.name}: {_install(_facts(board)['GCC'])}"
    return (
        None
        if importlib.util.find_spec("ziglang")
        else "ziglang is not installed: pip install ziglang"
    )


def no_compiler(board: Board | None = None) -> str | None:
    """The reason why nothing here can build (for ``board``), with what to install; None when a
    compiler can.
    """
    wanted = os.environ.get("STEPWELL_COMPILER")
    if wanted:
        return why_not(_known(wanted), board)
    reasons = {compiler: why_not(compiler, board) for compiler in COMPILERS}
    if None in reasons.values():
        return None
    ways = [_install(_facts(board)["GCC"])]
    if board is None or board.words("CPU_ZIG"):
        ways.append("pip install ziglang")
    return f"no compiler for {board.name if board else 'boards'}: {', or '.join(ways)}"


def _install(program: str) -> str:
    return f"apt-get install {PACKAGES[program]}" if program in PACKAGES else f"install {program}"


def _facts(board: Board | None) -> dict[str, str]:
    """Flags of all boards, and what ``board`` says instead."""
    return flags() | (board.facts if board else {})


def _known(compiler: str) -> str:
    if compiler not in COMPILERS:
        raise WrongUse(f"unknown compiler '{compiler}'; there are: {', '.join(COMPILERS)}")
    return compiler


def _pick(compiler: str | None, board: Board) -> str:
    wanted = compiler or os.environ.get("STEPWELL_COMPILER")
    reason = why_not(_known(wanted), board) if wanted else no_compiler(board)
    if reason:
        raise BuildError(reason)
    return wanted or next(candidate for candidate in COMPILERS if why_not(candidate, board) is None)


def _driver(kind: str, board: Board) -> list[str]:
    """How to call the compiler; ziglang is a program inside a Python package."""
    words = _facts(board)[kind.upper()].split()
    return [sys.executable, "-m", "ziglang", *words[1:]] if kind == "zig" else words


def _defines(board: Board, keys: Iterable[str]) -> list[str]:
    facts = _facts(board)
    return [f"-DBOARD_{key}={facts.get(key) or board.text(key)}" for key in keys]


def compile_image(
    board: Board, kind: str, work: Path, program: Sequence[Path] | None = None, *more: str
) -> Path:
    """What firmware/Makefile does, from the same facts: the model in ``work``/model and a program,
    the app if none is given.
    """
    facts, root = _facts(board), firmware()
    cpu_dir = root / "cpu" / board.text("CPU")
    cpu = board.text(f"CPU_{kind.upper()}").split()
    layout, elf = work / "link.ld", work / IMAGE
    defines = _defines(board, facts["LD_FACTS"].split())
    _run(
        [
            *_driver(kind, board),
            *cpu,
            "-E",
            "-P",
            "-x",
            "c",
            *defines,
            cpu_dir / "link.ld.in",
            "-o",
            layout,
        ],
        work,
    )
    options = " ".join(
        facts[key] for key in ("CFLAGS", f"{kind.upper()}_FLAGS", "WARNINGS")
    ).split()
    folders = [work / "model", *(root / folder for folder in facts["APP_DIRS"].split()), cpu_dir]
    includes = [f"-I{folder}" for folder in folders] + ["-isystem", root / "cpu" / "freestanding"]
    model_sources = sorted(path for path in (work / "model").glob("*.c") if path.name != "main.c")
    own = [root / source for source in facts["APP"].split()] if program is None else list(program)
    sources = [
        *model_sources,
        *own,
        *sorted(cpu_dir.glob("*.c")),
        *sorted((root / "cpu" / "freestanding").glob("*.c")),
    ]
    sources += [board.port, *board.more_sources]
    _check_names(sources)
    link = [
        *facts["LDFLAGS"].split(),
        "-T",
        layout,
        *sources,
        *facts[f"{kind.upper()}_LIBS"].split(),
        "-o",
        elf,
    ]
    _run(
        [
            *_driver(kind, board),
            *cpu,
            *options,
            *_defines(board, [*facts["C_FACTS"].split(), *board.words("PORT_FACTS")]),
            *includes,
            *more,
            *link,
        ],
        work,
    )
    return elf


def _check_names(sources: Sequence[Path]) -> None:
    """Of two files with the same name the compiler would keep one's frames and calls only."""
    for name, n in Counter(source.name for source in sources).items():
        if n > 1:
            places = ", ".join(str(source) for source in sources if source.name == name)
            raise BuildError(f"{n} C files are called {name}: {places}: give yours another name")


def _run(command: list[str | Path], work: Path) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=work, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if TELLING.search(line)]
        reason = (
            "\n  ".join(_explained(line) for line in said[:6])
            or done.stderr.strip()[-600:]
            or f"exit code {done.returncode}"
        )
        raise BuildError(f"{words[0]} failed:\n  {reason}")


def _explained(line: str) -> str:
    """A linker's or compiler's line, with what to do where the reader may not know."""
    more = re.search(r"region .?FLASH.? overflowed by (\d+) bytes", line)
    return (
        f"{line}: the image is {more[1]} bytes larger than the board's flash: take a smaller "
        "model or --precision"
        if more
        else line
    )


def image_sizes(elf: Path, board: Board) -> Sizes:
    """Sizes of an ELF, from its segments and symbols."""
    with elf.open("rb") as file:
        parsed = ELFFile(file)
        segments = [s for s in parsed.iter_segments("PT_LOAD") if s["p_memsz"]]
        origin, n_bytes = board.number("RAM_ORIGIN"), board.number("RAM_BYTES")
        ram = sum(s["p_memsz"] for s in segments if origin <= s["p_vaddr"] < origin + n_bytes)
        stored = sum(s["p_filesz"] for s in segments)
        symbols = {
            s.name: s["st_size"] for s in parsed.get_section_by_name(".symtab").iter_symbols()
        }
    constants = sum(
        size for name, size in symbols.items() if name == NAME or name.startswith(f"{NAME}_")
    )
    return Sizes(stored, ram, board.number("STACK_BYTES"), constants, symbols.get("stream_ram", 0))


def image_board(elf: Path) -> str | None:
    """The board that an ELF was built for, by its own words; None when it does not say. BuildError:
    no ELF file.
    """
    with _damage_named(elf), elf.open("rb") as file:
        section = ELFFile(file).get_section_by_name(BOARD_SECTION)
        return section.data().decode() if section else None


def speaks_mlperf(elf: Path) -> bool:
    """Whether an ELF was built with ``mlperf``, by its symbols; then it does not know the link."""
    with _damage_named(elf), elf.open("rb") as file:
        symbols = ELFFile(file).get_section_by_name(".symtab")
        return symbols is not None and symbols.get_symbol_by_name("mlperf_byte") is not None


@contextmanager
def _damage_named(elf: Path) -> Iterator[None]:
    """pyelftools raises whatever a damaged file leads it to."""
    try:
        yield
    except OSError as error:
        raise BuildError(f"{elf}: {error.strerror}: run `stepwell build` first") from error
    except Exception as error:
        raise BuildError(f"{elf}: no ELF file that `stepwell build` wrote") from error


def image_files(elf: Path, board: Board) -> dict[Path, bytes]:
    """The files that belong beside an ELF: .bin, .hex and, when board.mk names a UF2_FAMILY, .uf2."""
    binary, origin = flash_bytes(elf), board.number("FLASH_ORIGIN")
    files = {
        elf.with_suffix(".bin"): binary,
        elf.with_suffix(".hex"): intel_hex(binary, origin).encode(),
    }
    if "UF2_FAMILY" in board.facts:
        files[elf.with_suffix(".uf2")] = _uf2(binary, origin, board.number("UF2_FAMILY"))
    return files


def _uf2(binary: bytes, origin: int, family: int) -> bytes:
    from adafruit_uf2 import uf2conv

    uf2conv.appstartaddr, uf2conv.familyid = origin, family  # that is how it takes them
    return uf2conv.convert_to_uf2(binary)


def flash_bytes(elf: Path) -> bytes:
    """Flash contents from the first stored byte on, gaps filled with 0xFF. BuildError: damaged, or
    nothing is for flash.
    """
    flash = IntelHex()
    flash.padding = 0xFF
    with _damage_named(elf), elf.open("rb") as file:
        for segment in ELFFile(file).iter_segments("PT_LOAD"):
            if segment["p_filesz"]:
                flash.puts(segment["p_paddr"], segment.data())
    if not len(flash) or flash.maxaddr() - flash.minaddr() > MOST_FLASH:
        raise BuildError(
            f"{elf}: nothing in it, or more than any flash holds: not an ELF file that `stepwell "
            "build` wrote"
        )
    return flash.tobinstr()


def intel_hex(data: bytes, origin: int) -> str:
    """``data`` at ``origin`` as Intel HEX."""
    flash, text = IntelHex(), io.StringIO()
    flash.puts(origin, data)
    flash.write_hex_file(text)
    return text.getvalue()
