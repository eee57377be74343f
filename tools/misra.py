#!/usr/bin/env python3
"""Deviations of csrc from MISRA C:2012 as cppcheck's addon sees them, written into docs/misra.md
with why they stay.

    tools/misra.py           writes the tables anew
    tools/misra.py --check   exit 1 when a rule, or a file's count for a rule, has risen above what is written there

A rule without a reason here is refused: either mend the code or give the reason. Needs cppcheck
(2.10 wrote the tables).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CSRC, DOC = ROOT / "csrc", ROOT / "docs" / "misra.md"
BEGIN, END = "<!-- misra:begin -->", "<!-- misra:end -->"
COMMAND = "cppcheck --addon=misra --std=c99 --quiet --suppress=toomanyconfigs --template={file}:{line}:{id}".split()
ROW = re.compile(r"^\| (\d+\.\d+) \| .*? \| (.*?) \| \d+ \|", re.MULTILINE)

VALUES = "both compilers check conversions with -Wconversion and -Wsign-conversion as errors"
INLINE = "the CPU's own code: registers and addresses have no other form"
# rule -> what it asks for, in our words, and why the library deviates
REASONS = {
    "2.3": ("no unused types", "types that refuse a compiler whose arithmetic differs, or keep a file from being empty"),
    "2.4": ("no unused tags", "tags of public structs and enums: users may name them"),
    "2.5": ("no unused macros", "public macros, and one that a build leaves unused when it leaves out a layer kind"),
    "2.7": ("no unused parameters", "a naked function takes its arguments from registers"),
    "5.5": ("macros and identifiers differ", "a macro stands in for the function where the CPU or the build has another"),
    "5.6": ("typedef names are unique", "struct and typedef share the name, as in all of the library"),
    "5.7": ("tags are unique", "struct and typedef share the name, as in all of the library"),
    "5.9": ("internal names are unique", "static functions of two files may have one name"),
    "8.4": ("declared before defined", "a switch for tests, declared where it is used"),
    "8.7": ("internal when used in one file", "functions for the user, or for code that a build leaves out"),
    "8.11": ("extern arrays have a size", "a label in assembly: it has an address and no size"),
    "9.2": ("braces around aggregates", "zeros for a vector of vectors, on x86-64 alone"),
    "10.1": ("operands of fitting type", f"shifts and masks of signed numbers: stw_fix.h refuses compilers that differ; {VALUES}"),
    "10.3": ("no narrowing assignment", f"constants and booleans that fit; {VALUES}"),
    "10.4": ("both operands of one category", f"int constants with size_t and unsigned; {VALUES}"),
    "10.6": ("no wider assignment of a product", "the product is bounded and the assignment widens it"),
    "10.7": ("no wider operand beside a product", "the narrow part is bounded: docs/numerics.md"),
    "10.8": ("no cast of an expression", "the cast is the operation: bits as a signed number, bounded by docs/numerics.md"),
    "11.3": ("no cast between object pointers", "numbers of streams side by side, seen as vectors and as words, on x86-64 alone"),
    "11.4": ("no address as a number", INLINE),
    "11.5": ("no void pointer to object pointer", "ram, blob and weights come as void *; alignment is checked before"),
    "11.6": ("no void pointer as a number", "to check that it is aligned"),
    "11.8": ("no cast that drops const", "only scratch is written, which is free between steps"),
    "11.9": ("NULL, not 0", "0 is the null pointer here: no header is needed for it"),
    "12.1": ("parentheses for precedence", "compilers warn (-Wall -Wextra) where precedence is doubtful"),
    "12.2": ("shifts below the width", "1u is an int of 32 bits; the addon takes it for one of 8"),
    "12.3": ("no comma operator", "declarations of two variables, and one (void)a, (void)b"),
    "13.3": ("++ stands alone", "the usual *p++ of a walk over bytes"),
    "13.4": ("no result of an assignment used", "two outputs of one value"),
    "14.2": ("for loops of one form", "a loop that subtracts instead of dividing"),
    "14.4": ("conditions are boolean", "a pointer, a count or a bit is a condition, as in C's own idiom"),
    "15.5": ("one return at the end", "checks return at once: nesting would hide them"),
    "15.7": ("else if ends with else", "the rest has nothing to do"),
    "16.3": ("switch clauses end with break", "the last clause"),
    "17.7": ("results are used", "those of memcpy, memset and memmove, and a length that stw_cell_open tells"),
    "17.8": ("parameters are not changed", "walking a pointer or a count that came as an argument"),
    "18.4": ("no + and - on pointers", "arrays are walked; every offset was checked by stw_model_check and stw_blob_open"),
    "20.1": ("#include stands at the top", "code of one CPU, in place of the portable function beside it"),
    "20.5": ("no #undef", "a macro that ends with its use"),
    "20.7": ("parentheses around macro arguments", "the argument is a name that is pasted"),
    "20.10": ("no # and ##", "names of the kernels for each set of instructions"),
}  # fmt: skip


def why_not() -> str | None:
    return None if shutil.which("cppcheck") else "cppcheck not installed: apt-get install cppcheck"


def deviations(csrc: Path = CSRC) -> dict[str, Counter[str]]:
    """rule -> file -> how many."""
    done = subprocess.run(
        [*COMMAND, f"-I{csrc}", csrc], capture_output=True, text=True, check=False
    )
    found: dict[str, Counter[str]] = {}
    for path, rule in re.findall(r"^(\S+?):\d+:misra-c2012-(\d+\.\d+)$", done.stderr, re.MULTILINE):
        found.setdefault(rule, Counter())[Path(path).name] += 1
    if done.returncode or not found:
        raise RuntimeError(f"cppcheck gave no report:\n{done.stderr[-1000:]}")
    return found


def table(found: dict[str, Counter[str]]) -> str:
    lines = ["| rule | what it asks for | where | count | why it stays |", "|---|---|---|---|---|"]
    for rule in sorted(found, key=lambda name: [int(part) for part in name.split(".")]):
        what, why = REASONS[rule]
        places = ", ".join(f"{file} {count}" for file, count in sorted(found[rule].items()))
        lines.append(f"| {rule} | {what} | {places} | {found[rule].total()} | {why} |")
    return "\n".join(lines)


def recorded(text: str) -> dict[str, dict[str, int]]:
    """What the table of docs/misra.md says."""
    rows = ROW.findall(text)
    return {
        rule: {f: int(n) for f, n in (place.split() for place in places.split(", "))}
        for rule, places in rows
    }


def risen(found: dict[str, Counter[str]], before: dict[str, dict[str, int]]) -> list[str]:
    """One line for each rule and file that has more than before."""
    return [
        f"rule {rule}: {file} has {count}, {before.get(rule, {}).get(file, 0)} are written down"
        for rule, files in found.items()
        for file, count in files.items()
        if count > before.get(rule, {}).get(file, 0)
    ]


def main() -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    if why := why_not():
        print(why, file=sys.stderr)
        return 1
    found, text = deviations(), DOC.read_text()
    if args.check:
        new = risen(found, recorded(text))
        print(
            "\n".join(
                [*new, "mend them, or run tools/misra.py to accept them"]
                if new
                else ["no new deviations"]
            )
        )
        return int(bool(new))
    if without := sorted(set(found) - set(REASONS)):
        print(
            f"no reason is given for rules {', '.join(without)}: mend the code or add them here",
            file=sys.stderr,
        )
        return 1
    before, rest = text.split(BEGIN)
    DOC.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{rest.split(END)[1]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
