#!/usr/bin/env python3
"""Does block-sparse pruning beat weights of 4 bits at the same bytes of flash? The table in
docs/accuracy.md.

    pip install torch onnxscript onnxruntime
    python tools/pruning_experiment.py --data ../shared/data          # about 5 minutes on one core

The LSTM of each task of accuracy_table.py loses the blocks of least magnitude until what is left, 8
bits a weight and one bit a block to say whether it is there, takes the bytes of w4a16. All else
speaks for pruning: its weights are not even rounded, and of two learning rates the better counts.
Blocks are 1 x 4 (four inputs of one row) or 4 x 1 (the four gates of a unit, one input).
"""

from __future__ import annotations

import argparse
import copy
import logging
from dataclasses import replace
from pathlib import Path

import accuracy_table as table
import numpy as np
import stepwell
import torch
from stepwell.check import task_metric
from stepwell.importer import import_onnx
from stepwell.metrics import sqnr_db
from stepwell.stream import FloatStream
from train_hybrids import fit

BLOCK = 4
# of the weights: with a bit a block they take half of what all would
DENSITY = 0.5 - 1 / (8 * BLOCK)
RATES = (3e-4, 1e-3)


def blocks(weight: torch.Tensor, shape: str) -> torch.Tensor:
    """Magnitude of the block that each weight [4H, K] belongs to."""
    square = weight.detach() ** 2
    if shape == "4 x 1":
        return square.view(4, -1, square.shape[1]).sum(0).repeat(4, 1)
    padded = torch.nn.functional.pad(square, (0, -square.shape[1] % BLOCK))
    sums = padded.view(len(square), -1, BLOCK).sum(2)
    return sums.repeat_interleave(BLOCK, dim=1)[:, : square.shape[1]]


def pruned(task: table.Task, shape: str, rate: float) -> table.Task:
    """The task's net without its weakest blocks, trained on as w4a16 is fine-tuned unless ``rate``
    is zero.
    """
    net = copy.deepcopy(task.net)
    weights = [net.lstm.weight_ih_l0, net.lstm.weight_hh_l0]
    magnitudes = [blocks(weight, shape) for weight in weights]
    least = torch.quantile(torch.cat([m.ravel() for m in magnitudes]), 1 - DENSITY)
    masks = [(m > least).float() for m in magnitudes]

    def mask() -> None:
        with torch.no_grad():
            for weight, kept in zip(weights, masks, strict=True):
                weight *= kept

    mask()
    optimiser = torch.optim.Adam(net.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, table.QAT_STEPS)
    for _ in range(table.QAT_STEPS if rate else 0):
        x, _ = task.batch()
        with torch.no_grad():
            wanted = task.net(x)
        error = ((net(x) - wanted) ** 2).mean() / (wanted**2).mean()
        optimiser.zero_grad()
        error.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        mask()
        schedule.step()
    return replace(task, net=net)


def measured(name: str, seed: int, folder: Path, out: Path) -> dict[str, tuple[float, float]]:
    """Column -> metric and SQNR."""
    torch.manual_seed(seed)
    task = table.TASKS[name](folder, np.random.default_rng(seed))
    fit(
        task.net,
        task.batch,
        lambda y, target: task.loss(y, target),
        task.steps,
        f"{name}, seed {seed}",
    )
    path = out / f"{name}_{seed}.onnx"
    table.exported(task, path)
    graph, targets = import_onnx(path).graph, task.test.targets
    exact = [FloatStream(graph).run(x) for x in task.test.sequences]

    def scored(outputs: list[np.ndarray]) -> tuple[float, float]:
        found = task_metric(targets, exact, outputs, task.metric)
        return found["integer"] * task.unit, sqnr_db(np.concatenate(exact), np.concatenate(outputs))

    def of_net(changed: table.Task) -> tuple[float, float]:
        table.exported(changed, out / "pruned.onnx")
        other = import_onnx(out / "pruned.onnx").graph
        return scored([FloatStream(other).run(x) for x in task.test.sequences])

    def of_model(model: stepwell.Model) -> tuple[float, float]:
        return scored([model.stream().run(x) for x in task.test.sequences])

    best = max if task.metric.higher_is_better else min
    columns = {
        "float": (task_metric(targets, exact, exact, task.metric)["float"] * task.unit, np.inf)
    }
    columns["w4a16"] = of_model(stepwell.convert(path, task.calib.astype(float), precision="w4a16"))
    for shape in ("1 x 4", "4 x 1"):
        columns[f"{shape} pruned"] = of_net(pruned(task, shape, 0.0))
    columns["w4a16 tuned"] = of_model(table.fine_tuned(task, path))
    for shape in ("1 x 4", "4 x 1"):
        columns[f"{shape} tuned"] = best(
            (of_net(pruned(task, shape, rate)) for rate in RATES), key=lambda found: found[0]
        )
    return columns


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, type=Path, help="folder with the data sets")
    parser.add_argument("--out", default=Path("accuracy"), type=Path, help="where models go")
    parser.add_argument("--tasks", default="turbofan,digits,gestures,pm25")
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    lines: list[str] = []
    for name in args.tasks.split(","):
        for seed in range(1, args.seeds + 1):
            found = measured(name, seed, args.data, args.out)
            cells = [
                f"{score:.4g} ({sqnr:.1f} dB)" if np.isfinite(sqnr) else f"{score:.4g}"
                for score, sqnr in found.values()
            ]
            header = [
                "| task | seed | " + " | ".join(found) + " |",
                "|" + "---|" * (len(found) + 2),
            ]
            lines = lines or header
            lines.append(f"| {name} | {seed} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
