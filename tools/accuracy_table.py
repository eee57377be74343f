#!/usr/bin/env python3
"""What each precision costs on five real tasks: trains small LSTMs, quantises them in every way,
writes docs/accuracy.md's table.

    pip install torch onnxscript onnxruntime
    python tools/accuracy_table.py --data ../shared/data --out accuracy          # all, about 15 minutes on one core
    python tools/accuracy_table.py --data ../shared/data --tasks digits --seeds 1

    turbofan   LSTM-32, remaining useful life at the last of 30 cycles, RMSE in cycles (NASA C-MAPSS FD001, public domain)
    digits     LSTM-32, spoken digits, accuracy at the last frame (Free Spoken Digit Dataset, Zohar Jackson et al., CC BY-SA 4.0)
    gestures   LSTM-32, pen strokes of digits, accuracy at the last point (magic wand digits, Pete Warden, Apache-2.0)
    pm25       LSTM-32, air pollution in 6 hours, RMSE at the last of 48 hours (Beijing PM2.5, Liang et al. 2015, CC BY 4.0)
    occupancy  LSTM-16, is the room occupied, F1 at every minute of one long stream (Candanedo & Feldheim 2016, CC BY 4.0)

The same test data for all columns, looked at once. "dynamic int8" is onnxruntime's quantize_dynamic
of the same ONNX file.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gzip
import io
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import stepwell
import torch
from stepwell import qat
from stepwell.check import compare
from stepwell.files import write_whole
from stepwell.importer import import_onnx
from stepwell.metrics import METRICS, Metric, sqnr_db
from stepwell.samples import Samples
from stepwell.stream import FloatStream
from train_hybrids import CAP, crops, fit, picks, rooms, spoken_digits, turbofan_windows

PRECISIONS = ("w8a16", "w8x16h8", "w8a8", "w4a16")
QAT_STEPS, QAT_RATE = 200, 3e-4
HOURS, AHEAD = 48, 6
POINTS = 64  # of a stroke
ROOT = Path(__file__).resolve().parent.parent


class Net(torch.nn.Module):
    """[batch, T, n_in] -> [batch, T, n_out] at every step."""

    def __init__(self, n_in: int, n_hidden: int, n_out: int):
        super().__init__()
        self.lstm = torch.nn.LSTM(n_in, n_hidden, batch_first=True)
        self.head = torch.nn.Linear(n_hidden, n_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0])


@dataclass(frozen=True, eq=False)
class Task:
    """``batch`` gives training data; ``loss(outputs at every step, targets)``; ``calib`` [n, T,
    n_in]; ``test`` with targets.
    """

    net: Net
    batch: Callable
    loss: Callable
    calib: np.ndarray
    test: Samples
    metric: Metric
    steps: int
    unit: float = 1.0  # what the metric is multiplied with to be in the task's own unit


def last(loss: Callable) -> Callable:
    return lambda y, target: loss(y[:, -1], target)


def turbofan(folder: Path, rng: np.random.Generator) -> Task:
    x, left = turbofan_windows(folder, "train", rng)
    test_x, test_left = turbofan_windows(folder, "test", rng)
    test = Samples(tuple(test_x.astype(float)), tuple(test_left.astype(float)), "turbofan")
    loss, batch = last(torch.nn.functional.mse_loss), picks(x, left, rng, 0.3)
    return Task(
        Net(14, 32, 1),
        batch,
        loss,
        x[rng.permutation(len(x))[:64]],
        test,
        METRICS["rmse"],
        800,
        CAP,
    )


def digits(folder: Path, rng: np.random.Generator) -> Task:
    x, label, held_out = spoken_digits(folder)
    test = Samples(tuple(x[held_out].astype(float)), tuple(label[held_out]), "digits")
    loss, batch = (
        last(torch.nn.functional.cross_entropy),
        picks(x[~held_out], label[~held_out], rng, 0.3),
    )
    calib = x[~held_out][rng.permutation(int((~held_out).sum()))[:64]]
    return Task(Net(16, 32, 10), batch, loss, calib, test, METRICS["accuracy"], 800)


def gestures(folder: Path, rng: np.random.Generator) -> Task:
    data = np.load(folder / "magic_wand_digits.npz")
    ends = np.cumsum(data["length"].astype(int))
    strokes = [
        data["points_q7"][end - n : end] / 128
        for end, n in zip(ends, data["length"].astype(int), strict=True)
    ]
    x = np.stack([_resampled(stroke) for stroke in strokes]).astype(np.float32)
    label, held_out = data["label"].astype(np.int64), data["index_in_file"] >= 80
    test = Samples(tuple(x[held_out].astype(float)), tuple(label[held_out]), "gestures")
    loss, batch = (
        last(torch.nn.functional.cross_entropy),
        picks(x[~held_out], label[~held_out], rng, 0.05),
    )
    calib = x[~held_out][rng.permutation(int((~held_out).sum()))[:64]]
    return Task(Net(4, 32, 10), batch, loss, calib, test, METRICS["accuracy"], 1000)


def _resampled(stroke: np.ndarray) -> np.ndarray:
    """POINTS points, centred, scaled to the stroke's size, and their steps from one to the next:
    [POINTS, 4].
    """
    at = np.linspace(0, len(stroke) - 1, POINTS)
    points = np.stack(
        [np.interp(at, np.arange(len(stroke)), column) for column in stroke.T], axis=1
    )
    points = (points - points.mean(0)) / (np.abs(points - points.mean(0)).max() or 1.0)
    return np.hstack([points, 10 * np.diff(points, axis=0, prepend=points[:1])])


def pm25(folder: Path, rng: np.random.Generator) -> Task:
    with gzip.open(folder / "beijing_pm25.csv.gz", "rt") as lines:
        rows = list(csv.DictReader(lines))
    values = np.array(
        [float(row["pm2.5"]) if row["pm2.5"] not in ("", "NA") else np.nan for row in rows]
    )
    for k in np.flatnonzero(np.isnan(values)):  # hold the last one: no look ahead
        values[k] = values[k - 1] if k and not np.isnan(values[k - 1]) else 90.0
    names = ("DEWP", "TEMP", "PRES", "Iws")
    weather = np.array([[float(row[name]) for name in names] for row in rows])
    x = np.column_stack([np.log1p(values), weather])
    in_2014 = np.array([row["year"] == "2014" for row in rows])
    mean, std = x[~in_2014].mean(0), x[~in_2014].std(0)
    x, first_test = ((x - mean) / std).astype(np.float32), int(np.argmax(in_2014))
    train = rng.integers(HOURS, first_test - AHEAD, 12000)
    tests = np.arange(first_test + HOURS, len(x) - AHEAD, 12)
    windows = [np.stack([x[end - HOURS : end] for end in ends]) for ends in (train, tests)]
    targets = [
        (x[ends - 1 + AHEAD, :1] - x[ends - 1, :1]).astype(np.float32) for ends in (train, tests)
    ]
    test = Samples(tuple(windows[1].astype(float)), tuple(targets[1].astype(float)), "pm25")
    loss, batch = last(torch.nn.functional.mse_loss), picks(windows[0], targets[0], rng, 0.0)
    return Task(Net(5, 32, 1), batch, loss, windows[0][:64], test, METRICS["rmse"], 800)


def occupancy(folder: Path, rng: np.random.Generator) -> Task:
    x, occupied = rooms(folder, "train")
    test_x, test_occupied = rooms(folder, "test1")
    mean, std = x.mean(0), x.std(0)
    x, test_x = (x - mean) / std, (test_x - mean) / std
    calib = np.stack([x[k : k + 120] for k in rng.integers(0, len(x) - 120, 64)])
    test = Samples((test_x,), (test_occupied[:, 0].astype(int),), "occupancy")
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    return Task(Net(4, 16, 1), crops(x, occupied, rng), loss, calib, test, METRICS["f1"], 400)


TASKS = {task.__name__: task for task in (turbofan, digits, gestures, pm25, occupancy)}


# ---- one model in every precision ----


def exported(task: Task, path: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(
            task.net,
            (torch.tensor(task.calib[:1], dtype=torch.float32),),
            path,
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "batch", 1: "time"}},
        )


def fine_tuned(task: Task, path: Path) -> stepwell.Model:
    """w4a16, trained on towards the outputs of the float net at every step: no labels are needed."""
    student = qat.prepare(path, task.calib.astype(float), precision="w4a16")
    optimiser = torch.optim.Adam(student.parameters(), lr=QAT_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, QAT_STEPS)
    for _ in range(QAT_STEPS):
        x, _ = task.batch()
        with torch.no_grad():
            wanted = task.net(x).double()
        error = ((student(x) - wanted) ** 2).mean() / (wanted**2).mean()
        optimiser.zero_grad()
        error.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return student.model()


def dynamic_int8(task: Task, path: Path) -> dict[str, float]:
    """onnxruntime's dynamically quantised form of the same file: metric and SQNR."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = path.with_suffix(".int8.onnx")
    quantize_dynamic(path, target, weight_type=QuantType.QInt8)
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    outputs = [
        session.run(None, {"x": x[None].astype(np.float32)})[0][0] for x in task.test.sequences
    ]
    exact = [FloatStream(import_onnx(path, verify=False).graph).run(x) for x in task.test.sequences]
    sqnr = sqnr_db(np.concatenate(exact), np.concatenate(outputs))
    every = len(np.ravel(task.test.targets[0])) == len(outputs[0])
    score = task.metric.score(task.test.targets, [y if every else y[-1] for y in outputs])
    return {"metric": score * task.unit, "sqnr_db": sqnr}


def measured(name: str, seed: int, folder: Path, out: Path) -> dict[str, dict[str, float]]:
    """Column -> metric, SQNR and bytes of constants."""
    torch.manual_seed(seed)
    task = TASKS[name](folder, np.random.default_rng(seed))
    fit(
        task.net,
        task.batch,
        lambda y, target: task.loss(y, target),
        task.steps,
        f"{name}, seed {seed}",
    )
    path = out / f"{name}_{seed}.onnx"
    exported(task, path)
    graph, columns = import_onnx(path).graph, {}
    models = {
        bits: stepwell.convert(path, task.calib.astype(float), precision=bits)
        for bits in PRECISIONS
    }
    models["w4a16 + fine-tuning"] = fine_tuned(task, path)
    for column, model in models.items():
        model.save(
            out / f"{name}_{seed}.{column.split()[0]}{'_tuned' if 'tuning' in column else ''}.stw"
        )
        found = compare(model, graph, task.test, metric=task.metric)
        assert found["engine_mismatches"] == 0
        columns.setdefault("float", {"metric": found["metric"]["float"] * task.unit})
        columns[column] = {
            "metric": found["metric"]["integer"] * task.unit,
            "sqnr_db": found["sqnr_db"],
            "flash_bytes": model.info()["flash_bytes"],
        }
    columns["dynamic int8"] = dynamic_int8(task, path)
    for column, values in columns.items():
        print(f"  {name} {seed}: {column:22} {json.dumps(values)}", flush=True)
    return columns


# ---- the page ----


def page(results: dict[str, dict[str, dict[str, dict[str, float]]]]) -> str:
    """Markdown: a row for each task and seed."""
    columns = ["float", *PRECISIONS, "w4a16 + fine-tuning", "dynamic int8"]
    lines = [
        "| task, metric | seed | " + " | ".join(columns) + " |",
        "|" + "---|" * (len(columns) + 2),
    ]
    for name, seeds in results.items():
        for seed, found in seeds.items():
            metric = {"turbofan": "RMSE, cycles", "pm25": "RMSE", "occupancy": "F1"}.get(
                name, "accuracy"
            )
            cells = [_cell(found[column]) for column in columns]
            lines.append(f"| {name}, {metric} | {seed} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: dict[str, float]) -> str:
    sqnr = f" ({values['sqnr_db']:.1f} dB)" if values.get("sqnr_db") else ""
    return f"{values['metric']:.4g}{sqnr}"


def write_page(results: dict) -> None:
    """The table in docs/accuracy.md; what is written around it stays."""
    target = ROOT / "docs" / "accuracy.md"
    before, rest = target.read_text().split(BEGIN)
    after = rest.split(END)[1]
    write_whole(target, f"{before}{BEGIN}\n\n{page(results)}\n\n{END}{after}")


BEGIN, END = "<!-- written by tools/accuracy_table.py -->", "<!-- end -->"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, type=Path, help="folder with the data sets")
    parser.add_argument("--out", default=Path("accuracy"), type=Path, help="where models go")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    results: dict[str, dict] = {}
    for name in args.tasks.split(","):
        results[name] = {
            str(seed): measured(name, seed, args.data, args.out)
            for seed in range(1, args.seeds + 1)
        }
    (args.out / "results.json").write_text(json.dumps(results, indent=1))
    if list(results) == list(TASKS):
        write_page(results)


if __name__ == "__main__":
    main()
