#!/usr/bin/env python3
"""Write tests/golden: small models, inputs, and the outputs of the NumPy reference. ``--check``
compares and writes nothing.

The models themselves are made once (``--new-models``): requantising depends on the machine's linear
algebra, the integer arithmetic does not, and it is the arithmetic that must never change.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np
import stepwell
from stepwell.integer.precision import PRECISIONS

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
# in every precision
CELLS = (
    "gru rnn lstm gru",
    "gru before",
    "projection",
    "coupled peephole clip",
    "one unit of each",
)
WINDOWED = ("one unit of each", "strided conv and residual")
MODES = ("tumble:9", "slide:9/2", "stagger:9/3")
sys.path.insert(0, str(ROOT / "tests"))


def new_models() -> None:
    from shapes import SHAPES, graph_of, sequences_for
    from test_modes import BACKWARD

    wanted = [
        (name, graph_of(name, number), "carry")
        for number, name in enumerate(SHAPES)
        if name != "lstm dense"
    ]
    wanted += [(f"{name} {mode}", graph_of(name), mode) for name in WINDOWED for mode in MODES]
    wanted += [(name, graph, "slide:7") for name, graph in BACKWARD.items()]
    wanted = [(*some, "w8a16") for some in wanted]
    wanted += [
        (f"{name} {bits}", graph_of(name), "carry", bits)
        for name in CELLS
        for bits in PRECISIONS
        if bits != "w8a16"
    ]
    for number, (name, graph, mode, bits) in enumerate(wanted, start=100):
        slug = re.sub(r"\W+", "_", name)
        sequences = sequences_for(graph, number, 16, 40)
        stepwell.convert(graph, sequences, name=slug, mode=mode, precision=bits).save(
            GOLDEN / f"{slug}.stw"
        )


def values(path: Path) -> dict:
    model = stepwell.load(path)
    rng = np.random.default_rng(model.n_in)
    x_q = rng.integers(-32768, 32768, (24, model.n_in)).astype(np.int16)
    x_q[8:16] //= 64  # full-scale noise first, then ordinary values, then silence
    x_q[16:] = 0
    reference, stream = model.reference(), model.stream()
    y_q = reference.run_q(x_q)
    stream.run_q(x_q)
    return {
        "id": f"{model.id:08x}",
        "x_q": x_q.tolist(),
        "y_q": y_q.tolist(),
        "digest": stream.digest(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 when a golden file differs")
    parser.add_argument(
        "--new-models", action="store_true", help="make the models anew (their ids change)"
    )
    args = parser.parse_args()
    if args.new_models:
        new_models()
    stale = 0
    for path in sorted(GOLDEN.glob("*.stw")):
        text = json.dumps(values(path)) + "\n"
        target = path.with_suffix(".json")
        if args.check and target.read_text() != text:
            print(f"{target} differs from what the reference gives", file=sys.stderr)
            stale = 1
        elif not args.check:
            target.write_text(text)
    return stale


if __name__ == "__main__":
    raise SystemExit(main())
