#!/usr/bin/env python3
"""Write csrc/stw_table.c: the activation tables of docs/numerics.md. CI runs it with --check and
fails on a difference.
"""

import argparse
import hashlib
import struct
import sys
from decimal import ROUND_FLOOR, Decimal, getcontext
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "csrc" / "stw_table.c"
SIGMOID_SHA256 = "7427db7b494af32776851d7b86e90f1e9c81eb1bc9373605d4c5ea12757ae306"
getcontext().prec = 50  # decimal arithmetic: the literals must not depend on a libm


def floor_half_up(value: Decimal) -> int:
    return int((value + Decimal("0.5")).to_integral_value(rounding=ROUND_FLOOR))


def sigmoid_table() -> list[int]:
    """T[k] = min(65535, round(65536 / (1 + exp(-k / 32)))), k = 0..352."""
    return [min(65535, floor_half_up(65536 / (1 + (Decimal(-k) / 32).exp()))) for k in range(353)]


def exp2_table() -> list[int]:
    """P[k] = round(2^15 * 2^(-k / 64)), k = 0..64."""
    return [floor_half_up(32768 * (Decimal(-k) / 64 * Decimal(2).ln()).exp()) for k in range(65)]


def c_array(name: str, kind: str, comment: str, values: list[int]) -> str:
    rows = [", ".join(f"{v:5d}" for v in values[i : i + 16]) for i in range(0, len(values), 16)]
    body = ",\n    ".join(rows)
    return f"/* {comment} */\nconst STW_ROM {kind} {name}[{len(values)}] = {{\n    {body}}};\n"


def sigmoid_array(centred: list[int]) -> str:
    """The array as specified; with STW_LONG_TABLE its last value again and again, up to index 513."""
    comment = "T[k] - 2^15, T[k] = min(65535, round(65536 / (1 + exp(-k / 32))))"
    assert centred[-2:] == [32767, 32767]
    text = c_array("stw_sigmoid_table", "int16_t", comment, centred).replace(
        "[353]", "[STW_SIGMOID_ENTRIES]"
    )
    more = [32767] * (514 - len(centred))
    rows = [", ".join(map(str, more[i : i + 16])) for i in range(0, len(more), 16)]
    return text.replace(
        "};\n", "\n#if STW_LONG_TABLE\n    , " + ",\n    ".join(rows) + "\n#endif\n};\n"
    )


def render() -> str:
    sigmoid = sigmoid_table()
    digest = hashlib.sha256(struct.pack("<353H", *sigmoid)).hexdigest()
    assert digest == SIGMOID_SHA256, f"table differs from the specification: {digest}"
    centred = [value - 32768 for value in sigmoid]  # 0 .. 32767: fits the signed 16-bit multipliers
    return "\n".join(
        [
            "/* stw_table.c - activation tables; written by tools/make_tables.py, do not edit. */",
            '#include "stw_table.h"\n\n#include "stw_config.h"\n',
            "/* clang-format off */",
            sigmoid_array(centred),
            "#if STW_WITH_SOFTMAX || STW_WITH_ATTENTION",
            c_array("stw_exp2_table", "uint16_t", "round(2^15 * 2^(-k / 64))", exp2_table())
            + "#endif\n",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when the file is stale"
    )
    if parser.parse_args().check:
        if TARGET.read_text() != render():
            print(f"{TARGET} is stale: run tools/make_tables.py", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(render())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
