#!/usr/bin/env python3
"""Instructions, code, RAM and stack of one timestep on microcontroller cores, counted in QEMU.

    python tools/bench_mcu.py --core m4 --size 16x64
    python tools/bench_mcu.py --core m4 --size 16x64 --precision w8a16 --json
    python tools/bench_mcu.py                                   all cores and sizes, with the peer's figures
    python tools/bench_mcu.py --check                           against tools/mcu/recorded.json, as CI does

QEMU runs with -icount, so that each instruction moves the board's timer by the same amount: counts
are exact and the same on every machine. They are instructions, not cycles. Before each measurement
the counter must give three loops of known length. The model is one LSTM (or GRU) layer with random
weights, and nothing else. Code is what the image links of the engine, tables included; RAM is that
of one stream; stack is what a step takes.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import stepwell
from elftools.elf.elffile import ELFFile
from stepwell.boards import Board, load_board
from stepwell.boards.build import NAME, compile_image, why_not
from stepwell.emit import emit, lean_flags
from stepwell.graph import Graph
from stepwell.integer.packing import packing_for
from stepwell.layers import Gru, Lstm
from stepwell.link import qemu

HERE = Path(__file__).resolve().parent
RECORDED = HERE / "mcu" / "recorded.json"
COSTS = HERE.parent / "python" / "stepwell" / "costs.json"
MAY_RISE = 1.03
CORES = {
    "m0": "microbit",
    "m3": "mps2-an385",
    "m4": "mps2-an386",
    "m7": "mps2-an500",
    "m33": "mps2-an505",
    "m55": "mps3-an547",
    "rv32": "rv32-virt",
}
SIZES = ["4x16", "8x32", "16x64", "32x128", "40x256"]
RECORDED_RUNS = [
    ("m4", "4x16", "w8a16", "lstm"),
    ("m4", "16x64", "w8a8", "lstm"),
    ("m4", "16x64", "w8a16", "gru"),
]
RECORDED_RUNS += [
    (core, "16x64", "w8a16", "lstm") for core in ("m0", "m3", "m4", "m7", "m33", "m55", "rv32")
]
# CMSIS-NN's LSTM s8, counted the same way: QEMU, gcc 12.2 -O2, one step at a time, memory without
# wait states
CMSIS_NN = {
    ("m4", "4x16"): 13_313,
    ("m4", "8x32"): 29_649,
    ("m4", "16x64"): 76_711,
    ("m4", "32x128"): 228_448,
    ("m4", "40x256"): 716_231,
    ("m33", "16x64"): 77_000,
    ("m33", "32x128"): 229_000,
    ("m7", "16x64"): 76_200,
    ("m7", "32x128"): 227_000,
    ("m55", "16x64"): 27_400,
    ("m55", "32x128"): 72_100,
    ("m3", "16x64"): 97_900,
    ("m3", "32x128"): 318_000,
    ("m0", "16x64"): 205_000,
    ("m0", "32x128"): 641_000,
    ("rv32", "16x64"): 139_000,
    ("rv32", "32x128"): 481_000,
}
# symbols of the program around the engine
AROUND = re.compile(
    r"bench_.*|board_.*|cpu_.*|main|vectors|fault|Reset_Handler|mem(cpy|move|set)|__aeabi_mem.*|"
    + NAME
    + ".*"
)
SECONDS = 120


class CounterError(Exception):
    """The counter does not count instructions."""


def layer(kind: str, n_in: int, n_units: int):
    rng = np.random.default_rng(1)
    gates, bound = {"lstm": 4, "gru": 3}[kind], 2 / np.sqrt(n_units)
    w, r = (rng.uniform(-bound, bound, (gates * n_units, n)) for n in (n_in, n_units))
    bias = rng.uniform(-bound, bound, gates * n_units)
    return Lstm("lstm", w, r, bias) if kind == "lstm" else Gru("gru", w, r, bias, bias[::-1].copy())


def random_model(kind: str, size: str, precision: str) -> stepwell.Model:
    n_in, n_units = map(int, size.split("x"))
    calib = np.random.default_rng(2).normal(size=(2, 40, n_in))
    return stepwell.convert(Graph((layer(kind, n_in, n_units),)), calib, precision=precision)


def run(board: Board, elf: Path) -> list[tuple[str, int]]:
    """What the image says: (word, number) of each line."""
    options = [
        "-nographic",
        "-monitor",
        "none",
        "-serial",
        "stdio",
        "-icount",
        f"shift={qemu.ICOUNT_SHIFT}",
    ]
    command = [*board.words("QEMU"), *options, "-kernel", str(elf)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        watch = threading.Timer(SECONDS, process.kill)
        watch.start()
        lines = []
        for line in process.stdout:
            word, number = line.split()
            lines.append((word, int(number, 16)))
            if word == "done":
                break
        watch.cancel()
        process.kill()
    if not lines or lines[-1][0] != "done":
        raise CounterError(f"{board.name}: the image did not come to its end within {SECONDS} s")
    return lines


def instructions(board: Board, lines: list[tuple[str, int]]) -> dict[str, list[int]]:
    """Instructions of each kind of line, beyond those of reading the counter. CounterError when
    known loops are not seen.
    """
    ticks = board.number("QEMU_TIMER_HZ") * 1e-9 * (1 << qemu.ICOUNT_SHIFT)
    found: dict[str, list[int]] = {}
    nothing = dict(lines)["nothing"]
    for word, number in lines:
        found.setdefault(word, []).append(round((number - nothing) % 2**32 / ticks))
    steps = np.diff(found["known"])
    if any(abs(step - 2000) > 1 for step in steps):
        raise CounterError(
            f"{board.name}: loops of 2000 instructions more count as {steps.tolist()} more"
        )
    return found


def engine_bytes(elf: Path) -> int:
    """Code and tables of the engine in the image."""
    with elf.open("rb") as file:
        parsed = ELFFile(file)
        stored = {
            i
            for i, s in enumerate(parsed.iter_sections())
            if s["sh_type"] == "SHT_PROGBITS" and s["sh_flags"] & 2
        }
        symbols = [
            s
            for s in parsed.get_section_by_name(".symtab").iter_symbols()
            if s["st_shndx"] in stored
        ]
        places = {
            s["st_value"]: s["st_size"]
            for s in symbols
            if s["st_size"] and not AROUND.fullmatch(s.name)
        }
    return sum(places.values())  # by place: some have two names


def measure(
    core: str,
    size: str,
    precision: str = "w8a16",
    kind: str = "lstm",
    compiler: str = "gcc",
    target: str | None = None,
) -> dict:
    """The figures of one core, size and precision, packed for the core unless ``target`` is
    another.
    """
    board, model = load_board(CORES[core]), random_model(kind, size, precision)
    target = target or board.target
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        emit(model, work / "model", NAME, target)
        elf = compile_image(
            board, compiler, work, [HERE / "mcu" / "bench.c"], *lean_flags(model, target)
        )
        lines = run(board, elf)
        found, code = instructions(board, lines), engine_bytes(elf)
    x = np.array(
        [
            [((t * 7919 + k * 12345) * 31 + 2**15) % 2**16 - 2**15 for k in range(model.n_in)]
            for t in range(6)
        ]
    )
    stream = model.stream()
    stream.run_q(x.astype(np.int16))
    if dict(lines)["digest"] != stream.digest():
        raise CounterError(f"{board.name}: other bits than the host's")
    steps, macs = found["step"][1:], model.info()["macs_per_step"]
    if len(set(steps)) > 2 or max(steps) - min(steps) > 1:  # a count may round to either side
        raise CounterError(f"{board.name}: steps take {steps} instructions")
    peer = CMSIS_NN.get((core, size)) if kind == "lstm" else None
    return {
        "core": core,
        "size": size,
        "cell": kind,
        "precision": precision,
        "instructions_per_step": steps[0],
        "instructions_per_mac": round(steps[0] / macs, 3),
        "code_bytes": code,
        "ram_bytes": model.info()["ram_bytes"],
        "stack_bytes": dict(lines)["stack"],
        "cmsis_nn_s8": peer,
        "ratio": round(steps[0] / peer, 3) if peer else None,
    }


# ---- the cost model of `stepwell bench` and the report ----

FITTED = {
    "lstm8": ("lstm", "w8a16"),
    "lstm4": ("lstm", "w4a16"),
    "gru8": ("gru", "w8a16"),
    "gru4": ("gru", "w4a16"),
}
FIT_SIZES = ["4x16", "8x32", "16x64", "32x128"]
TRIED_SIZES = ["7x21", "12x30", "7x20"]  # others: what the fit misses there, it says


def fit(core: str) -> dict[str, object]:
    """Instructions a step = a * MACs + b * units + c, for each cell and width, and what of it the
    fit misses at most.
    """
    found, missed = {}, 0.0
    targets = {load_board(CORES[core]).target, "any"}
    for name, (kind, precision) in FITTED.items():
        for target in targets if precision == "w8a16" else {"any"}:
            packing = packing_for(target)
            sizes = [
                size
                for size in FIT_SIZES + TRIED_SIZES
                if random_model(kind, size, precision).layers[0].packing(packing) == packing
            ]
            costs = [
                measure(core, size, precision, kind, target=target)["instructions_per_step"]
                for size in sizes
            ]
            shapes = np.array([tuple(map(int, size.split("x"))) for size in sizes], float).T
            n_in, units = shapes
            macs = {"lstm": 4, "gru": 3}[kind] * units * (n_in + units)
            terms = (
                np.column_stack([macs, units, np.ones(len(costs))])
                / np.array(costs, float)[:, None]
            )
            answer = np.linalg.lstsq(terms[: len(FIT_SIZES)], np.ones(len(FIT_SIZES)), rcond=None)[
                0
            ]
            missed = max(missed, float(np.abs(terms @ answer - 1).max()))
            found[name + (" pairs" if packing == "pairs" else "")] = [
                round(float(v), 3) for v in answer
            ]
    return found | {"missed": round(missed, 4)}


def write_costs() -> int:
    costs = {}
    for core, board in CORES.items():
        costs[load_board(board).target] = fit(core)
        print(core, costs, flush=True)
    COSTS.write_text(json.dumps(costs, indent=1) + "\n")
    return 0


def reason(core: str, compiler: str) -> str | None:
    board = load_board(CORES[core])
    return qemu.why_not(board) or why_not(compiler, board)


def check(update: bool) -> int:
    """Compare with the recorded counts, or record them anew."""
    kept = {} if update else json.loads(RECORDED.read_text())
    fresh, bad = {}, 0
    for core, size, precision, cell in RECORDED_RUNS:
        name = f"{core} {cell} {size} {precision}"
        fresh[name] = measure(core, size, precision, cell)["instructions_per_step"]
        before = fresh[name] if update else kept.get(name, 0)
        verdict = (
            "not recorded"
            if not before
            else "too many"
            if fresh[name] > MAY_RISE * before
            else "ok"
        )
        bad += verdict != "ok"
        print(
            f"{name:<22} {fresh[name]:>8} instructions a step, recorded {before:>8}: {verdict}",
            flush=True,
        )
    if update:
        RECORDED.write_text(json.dumps(fresh, indent=2) + "\n")
    return int(bad > 0)


def row(found: dict) -> str:
    ratio = f"{found['ratio']:.3f}" if found["ratio"] else ""
    figures = [found["instructions_per_step"], found["instructions_per_mac"], ratio]
    sizes = [found[f"{what}_bytes"] for what in ("code", "ram", "stack")]
    return (
        "| "
        + " | ".join(map(str, [found["core"], found["size"], found["precision"], *figures, *sizes]))
        + " |"
    )


def plot(found: list[dict], path: Path) -> None:
    """Instructions a step as a part of the peer's, for what has a peer. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [f for f in found if f["cmsis_nn_s8"]]
    figure, axes = pyplot.subplots(figsize=(8, 0.26 * len(rows) + 1), layout="constrained")
    axes.barh(range(len(rows)), [f["ratio"] for f in rows], 0.7, color="#1f6fb2")
    for at, f in enumerate(rows):
        counts = f"{f['instructions_per_step']:,} of {f['cmsis_nn_s8']:,}"
        axes.text(f["ratio"] + 0.01, at, f"{f['ratio']:.2f}   {counts}", va="center", fontsize=8)
    axes.set_yticks(
        range(len(rows)), [f"{f['core']} {f['size']} {f['precision']}" for f in rows], fontsize=8
    )
    axes.set(xlim=(0, 1.15), xlabel="instructions a step (emulated), CMSIS-NN LSTM s8 = 1")
    axes.axvline(1, color="#888888", linewidth=1)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


HEADER = """| core | I x H | precision | instructions a step | a MAC | CMSIS-NN s8 = 1 | code B | RAM B | stack B |
|---|---|---|---|---|---|---|---|---|"""


def main() -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument(
        "--core", default=",".join(CORES), help=f"of {', '.join(CORES)}; several with commas"
    )
    parser.add_argument(
        "--size", default=",".join(SIZES), help="inputs x units, several with commas"
    )
    parser.add_argument("--precision", default="w8a16", help="several with commas")
    parser.add_argument("--cell", default="lstm", choices=["lstm", "gru"])
    parser.add_argument("--compiler", default="gcc", choices=["gcc", "zig"])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw what has a peer")
    parser.add_argument(
        "--check", action="store_true", help="exit 1 when a count is 3 %% above the recorded one"
    )
    parser.add_argument("--record", action="store_true", help="write the recorded counts anew")
    parser.add_argument(
        "--fit",
        action="store_true",
        help="write python/stepwell/costs.json, what estimates are made of",
    )
    args = parser.parse_args()
    if args.fit:
        return write_costs()
    if args.check or args.record:
        return check(args.record)
    found = []
    for core in args.core.split(","):
        if core not in CORES:
            parser.error(f"unknown core '{core}'; there are: {', '.join(CORES)}")
        if why := reason(core, args.compiler):
            print(f"{core}: {why}", file=sys.stderr)
            continue
        for size in args.size.split(","):
            if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", size):
                parser.error(f"a size is inputs x units, as 16x64, not '{size}'")
            for precision in args.precision.split(","):
                try:
                    found.append(measure(core, size, precision, args.cell, args.compiler))
                except (
                    stepwell.StepwellError
                ) as error:  # does not fit the board's flash, an unknown precision
                    print(f"{core} {size} {precision}: {error}", file=sys.stderr)
                    continue
                if not args.json:
                    print("\n".join([HEADER] * (len(found) == 1) + [row(found[-1])]), flush=True)
    if args.plot:
        plot(found, args.plot)
    if args.json:
        print(json.dumps(found[0] if len(found) == 1 else found, indent=2))
    return 0 if found else 1


if __name__ == "__main__":
    raise SystemExit(main())
