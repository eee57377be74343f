#!/usr/bin/env python3
"""Write tests/golden: small models, inputs, and the outputs of the NumPy reference. ``--check`` compares and writes nothing.

The models themselves are made once (``--new-models``): requantising depends on the machine's linear algebra, the integer
arithmetic does not, and it is the arithmetic that must never change.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import stepwell
from stepwell.graph import Graph

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
sys.path.insert(0, str(ROOT / "tests"))


def new_models() -> None:
    from conftest import SHAPES, random_sequences

    for number, (name, make) in enumerate(SHAPES.items()):
        if name in ("two lstm, three dense", "softmax", "tanh, sigmoid after lstm", "gru rnn lstm gru"):
            graph = Graph(make(np.random.default_rng(number)))
            sequences = random_sequences(np.random.default_rng(number + 100), 16, 40, graph.n_in)
            slug = name.replace(",", "").replace(" ", "_")
            stepwell.convert(graph, sequences, name=slug).save(GOLDEN / f"{slug}.stw")


def values(path: Path) -> dict:
    model = stepwell.load(path)
    rng = np.random.default_rng(model.n_in)
    x_q = rng.integers(-32768, 32768, (24, model.n_in)).astype(np.int16)
    x_q[8:16] //= 64  # full-scale noise first, then ordinary values, then silence
    x_q[16:] = 0
    reference, stream = model.reference(), model.stream()
    y_q = reference.run_q(x_q)
    stream.run_q(x_q)
    return {"id": f"{model.id:08x}", "x_q": x_q.tolist(), "y_q": y_q.tolist(), "digest": stream.digest()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 when a golden file differs")
    parser.add_argument("--new-models", action="store_true", help="make the models anew (their ids change)")
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
