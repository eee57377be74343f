#!/usr/bin/env python3
"""Code bytes of each C file per core and level, written into csrc/README.md. Needs
arm-none-eabi-gcc.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

CSRC = Path(__file__).resolve().parent.parent / "csrc"
README = CSRC / "README.md"
HEADERS = CSRC.parent / "firmware" / "cpu" / "freestanding"  # string.h, for a compiler without libc
CORES = {"Cortex-M0": "-mcpu=cortex-m0", "Cortex-M4": "-mcpu=cortex-m4"}
CORE = ["stepwell.c", "stw_check.c", "stw_cell.c", "stw_dense.c", "stw_table.c"]
MORE = [
    "ACTIVATION",
    "SOFTMAX",
    "STRINGS",
    "MIX",
    "WINDOW",
    "NORM",
    "ATTENTION",
    "MODES",
    "VARIANTS",
    "PAIRS",
    "W4",
]
LSTM = ["stw_lstm.c", "stw_dot_v6m.c", "stw_dot_riscv.c"]
EVERYTHING = [*CORE, *LSTM, "stw_pairs.c", "stw_gru.c", "stw_rnn.c"]
EVERYTHING += ["stw_window.c", "stw_attention.c", "stw_norm.c", "stw_softmax.c", "stw_mode.c"]
LEVELS = {
    "core, LSTM + dense": ([*CORE, *LSTM], ["GRU", "RNN", *MORE]),
    "core, LSTM in pairs + dense": (
        [*CORE, *LSTM, "stw_pairs.c"],
        ["GRU", "RNN", *(k for k in MORE if k != "PAIRS")],
    ),
    "core, GRU + dense": ([*CORE, "stw_gru.c"], ["LSTM", "RNN", *MORE]),
    "core, conv + LSTM + dense": (
        [*CORE, *LSTM, "stw_window.c"],
        ["GRU", "RNN", *(k for k in MORE if k != "WINDOW")],
    ),
    "core, everything": (EVERYTHING, []),
    "+ raw input": (["stw_raw.c"], []),
    "+ state": (["stw_state.c", "stw_crc.c"], []),
    "+ blob": (["stw_blob.c"], []),
    "+ probe": (["stw_probe.c"], []),
}
BEGIN, END = "<!-- sizes:begin -->", "<!-- sizes:end -->"


def code_bytes(source: str, cpu: str, off: list[str], folder: Path) -> int:
    """text + data of one object file compiled with -Os."""
    flags = [
        cpu,
        "-mthumb",
        "-std=c99",
        "-Os",
        "-ffreestanding",
        f"-I{HEADERS}",
        *(f"-DSTW_WITH_{knob}=0" for knob in off),
    ]
    target = folder / "x.o"
    subprocess.run(["arm-none-eabi-gcc", *flags, "-c", CSRC / source, "-o", target], check=True)
    row = subprocess.run(
        ["arm-none-eabi-size", target], check=True, capture_output=True, text=True
    ).stdout.splitlines()[1]
    text, data, _ = (int(v) for v in row.split()[:3])
    return text + data


def table() -> str:
    lines = ["| level | " + " | ".join(CORES) + " |", "|---|" + "---|" * len(CORES)]
    with tempfile.TemporaryDirectory() as folder:
        for level, (sources, off) in LEVELS.items():
            sizes = [
                sum(code_bytes(s, cpu, off, Path(folder)) for s in sources)
                for cpu in CORES.values()
            ]
            lines.append(f"| {level} | " + " | ".join(str(size) for size in sizes) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when the table is stale"
    )
    args = parser.parse_args()
    text = README.read_text()
    before, rest = text.split(BEGIN)
    fresh = f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"
    if args.check:
        if text != fresh:
            print(f"{README}: the table is stale, run tools/sizes.py", file=sys.stderr)
        return int(text != fresh)
    README.write_text(fresh)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
