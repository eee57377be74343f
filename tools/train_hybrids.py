#!/usr/bin/env python3
"""Train three hybrids on real data, export them, convert them, and print what the integers cost.

    pip install torch
    python tools/train_hybrids.py --data ../shared/data --out hybrids

    digits     causal Conv1d (one depthwise) + BatchNorm + LSTM + Linear: spoken digits, 16 log-mel features a frame, 10 classes,
               read at the last frame (Free Spoken Digit Dataset, Zohar Jackson et al., CC BY-SA 4.0)
    turbofan   LSTM + additive attention over the last 30 cycles + Linear: remaining useful life (NASA C-MAPSS FD001, public domain)
    occupancy  GRU + LayerNorm + Linear at every minute, on raw sensor units: the scaler travels with the integer model
               (UCI Occupancy Detection, Candanedo & Feldheim 2016, CC BY 4.0)

Each is written as NAME.onnx (legacy exporter), NAME.dynamo.onnx, NAME_calib.npz and NAME_test.npz;
the import proves each file to be what the stream computes. The test data are looked at once, at the
end.
"""

import argparse
import csv
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from stepwell import convert
from stepwell.check import compare
from stepwell.importer import import_onnx
from stepwell.samples import Samples
from train_turbofan import CAP, SENSORS

WINDOW = 30  # cycles that the turbofan model sees
FRAMES = 40  # of a spoken digit, the last ones; shorter ones start with silence
Batch = tuple[torch.Tensor, torch.Tensor]


class Digits(torch.nn.Module):
    """Log-mel frames [batch, time, 16] -> logits [batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = torch.nn.Conv1d(16, 24, 3)
        self.norm = torch.nn.BatchNorm1d(24)
        self.deep = torch.nn.Conv1d(24, 24, 3, dilation=2, groups=24)
        self.lstm = torch.nn.LSTM(24, 32, batch_first=True)
        self.head = torch.nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.pad(x.transpose(1, 2), (2, 0))
        x = torch.relu(self.norm(self.wide(x)))
        x = torch.relu(self.deep(torch.nn.functional.pad(x, (4, 0))))
        return self.head(self.lstm(x.transpose(1, 2))[0][:, -1])


class Turbofan(torch.nn.Module):
    """Sensors [batch, WINDOW, 14] -> remaining useful life / CAP, [batch, 1]. Attention: Bahdanau
    et al. 2015, without a query.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(len(SENSORS), 32, batch_first=True)
        self.look = torch.nn.Linear(32, 16)
        self.score = torch.nn.Linear(16, 1, bias=False)
        self.head = torch.nn.Linear(32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.lstm(x)[0]
        weights = torch.softmax(self.score(torch.tanh(self.look(h))), dim=1)
        return self.head((weights * h).sum(dim=1))


class Occupancy(torch.nn.Module):
    """Normalised temperature, humidity, CO2 and humidity ratio [batch, time, 4] -> logit [batch,
    time, 1].
    """

    def __init__(self) -> None:
        super().__init__()
        self.gru = torch.nn.GRU(4, 24, batch_first=True)
        self.norm = torch.nn.LayerNorm(24)
        self.head = torch.nn.Linear(24, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.gru(x)[0]))


# ---- data ----


def spoken_digits(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x [n, FRAMES, 16] normalised, label [n], and which are for testing: recordings 0 to 4 of each
    speaker and digit.
    """
    data = np.load(folder / "fsdd_logmel16.npz")
    ends = np.cumsum(data["length"].astype(int))
    frames, test = data["frames"].astype(np.float32), data["index"] < 5
    x = np.full((len(ends), FRAMES, 16), frames.min(), np.float32)
    for k, (end, length) in enumerate(zip(ends, data["length"].astype(int), strict=True)):
        kept = min(length, FRAMES)
        x[k, FRAMES - kept :] = frames[end - kept : end]
    mean, std = x[~test].mean((0, 1)), x[~test].std((0, 1))
    return (x - mean) / std, data["label"].astype(np.int64), test


def turbofan_windows(
    folder: Path, part: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """x [n, WINDOW, 14] and remaining life / CAP [n, 1]: many windows of each training engine, the
    last one of each test engine.
    """
    data = np.load(folder / "cmapss_fd001.npz")
    columns = [list(data["columns"]).index(name) for name in SENSORS]
    mean, std = data["train_x"][:, columns].mean(0), data["train_x"][:, columns].std(0)
    x = ((data[f"{part}_x"][:, columns] - mean) / std).astype(np.float32)
    windows, left = [], []
    for k, unit in enumerate(np.unique(data[f"{part}_unit"])):
        run = x[data[f"{part}_unit"] == unit]
        ends = rng.integers(WINDOW, len(run) + 1, 60) if part == "train" else [len(run)]
        rest = 0 if part == "train" else int(data["test_rul"][k])
        windows += [run[end - WINDOW : end] for end in ends]
        left += [len(run) - end + rest for end in ends]
    return np.stack(windows), (np.minimum(left, CAP) / CAP).astype(np.float32)[:, None]


def rooms(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """One recording: x [T, 4] in the sensors' units and whether the room is occupied [T, 1]."""
    names = ("Temperature", "Humidity", "CO2", "HumidityRatio")
    with gzip.open(folder / "occupancy.csv.gz", "rt") as lines:
        rows = [row for row in csv.DictReader(lines) if row["split"] == part]
    x = np.array([[float(row[name]) for name in names] for row in rows])
    return x, np.array([[float(row["Occupancy"])] for row in rows], np.float32)


# ---- training ----


def fit(
    model: torch.nn.Module, batch: Callable[[], Batch], loss: Callable, steps: int, name: str
) -> torch.nn.Module:
    """Adam with a cosine schedule; in eval mode afterwards."""
    optimiser = torch.optim.Adam(model.parameters(), lr=4e-3, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        x, y = batch()
        error = loss(model(x), y)
        optimiser.zero_grad()
        error.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 200 == 0:
            print(f"{name}: step {step} of {steps}, loss {error.item():.4f}", flush=True)
    return model.eval()


def picks(
    x: np.ndarray, y: np.ndarray, rng: np.random.Generator, noise: float, n: int = 128
) -> Callable[[], Batch]:
    """Random batches with noise of ``noise`` standard deviations."""

    def batch() -> Batch:
        k = rng.integers(0, len(x), n)
        chosen = torch.tensor(x[k], dtype=torch.float32)
        return chosen + noise * torch.randn_like(chosen), torch.tensor(y[k])

    return batch


def crops(
    x: np.ndarray, y: np.ndarray, rng: np.random.Generator, length: int = 120, n: int = 64
) -> Callable[[], Batch]:
    """Random stretches of one recording."""

    def batch() -> Batch:
        starts = rng.integers(0, len(x) - length, n)
        parts = [np.stack([a[s : s + length] for s in starts]).astype(np.float32) for a in (x, y)]
        return torch.tensor(parts[0]), torch.tensor(parts[1])

    return batch


# ---- export, conversion, report ----


def export(
    model: torch.nn.Module, example: np.ndarray, name: str, out: Path, dynamic: bool
) -> list[Path]:
    x = torch.tensor(example, dtype=torch.float32)
    files = [out / f"{name}.onnx", out / f"{name}.dynamo.onnx"]
    axes = {"x": {1: "time"}} if dynamic else None
    torch.onnx.export(
        model,
        (x,),
        files[0],
        dynamo=False,
        opset_version=17,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes=axes,
    )
    shapes = ({1: torch.export.Dim("time", min=2, max=4096)},) if dynamic else None
    torch.onnx.export(
        model,
        (x,),
        files[1],
        dynamo=True,
        external_data=False,
        dynamic_shapes=shapes,
        input_names=["x"],
        output_names=["y"],
    )
    return files


def report(
    name: str,
    files: list[Path],
    calib: np.ndarray,
    test: Samples,
    score: Callable | None = None,
    **how,
) -> None:
    """Convert both exports; print SQNR and the task's metric in float and integer."""
    for file in files:
        model = convert(file, calib, name=name, **how)
        model.save(file.with_suffix(".stw"))
        found = compare(model, import_onnx(file, verify=False).graph, test)
        info, metric = model.info(), found["metric"]
        line = f"{file.name}: SQNR {found['sqnr_db']:.1f} dB, {info['flash_bytes']} B flash, {info['ram_bytes']} B RAM"
        if score is None:
            print(
                f"{line}, {metric['name']} float {metric['float']:.4f}, integer "
                f"{metric['integer']:.4f}",
                flush=True,
            )
        else:
            y = np.concatenate([model.stream().run(x) for x in test.sequences])
            print(f"{line}, F1 integer {score(y):.4f}", flush=True)
        assert found["engine_mismatches"] == 0


def digits(folder: Path, out: Path, rng: np.random.Generator, effort: float) -> None:
    x, label, test = spoken_digits(folder)
    loss = torch.nn.functional.cross_entropy
    model = fit(
        Digits(), picks(x[~test], label[~test], rng, 0.3), loss, int(1200 * effort), "digits"
    )
    files = export(model, x[:1], "digits", out, dynamic=True)
    calib = x[~test][rng.permutation(int((~test).sum()))[:64]]
    np.savez_compressed(out / "digits_calib.npz", x=calib)
    np.savez_compressed(out / "digits_test.npz", x=x[test], y=label[test])
    report("digits", files, calib, Samples(tuple(x[test]), tuple(label[test]), "digits"))


def turbofan(folder: Path, out: Path, rng: np.random.Generator, effort: float) -> None:
    x, left = turbofan_windows(folder, "train", rng)
    test_x, test_left = turbofan_windows(folder, "test", rng)
    loss = torch.nn.functional.mse_loss
    model = fit(Turbofan(), picks(x, left, rng, 0.3), loss, int(1500 * effort), "turbofan")
    files = export(model, x[:1], "turbofan", out, dynamic=False)
    calib = x[rng.permutation(len(x))[:64]]
    np.savez_compressed(out / "turbofan_calib.npz", x=calib)
    np.savez_compressed(out / "turbofan_test.npz", x=test_x, y=test_left)
    test = Samples(tuple(test_x), tuple(test_left), "turbofan")
    for mode in (f"tumble:{WINDOW}", f"slide:{WINDOW}"):
        print(f"mode {mode}")
        report("turbofan", files, calib, test, mode=mode)


def occupancy(folder: Path, out: Path, rng: np.random.Generator, effort: float) -> None:
    x, occupied = rooms(folder, "train")
    test_x, test_occupied = rooms(folder, "test1")
    scaler = {"mean": x.mean(0).tolist(), "std": x.std(0).tolist(), "missing": "hold"}
    normal = (x - scaler["mean"]) / scaler["std"]
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    model = fit(Occupancy(), crops(normal, occupied, rng), loss, int(500 * effort), "occupancy")
    files = export(model, normal[None, :120], "occupancy", out, dynamic=True)
    calib = np.stack([x[k : k + 120] for k in rng.integers(0, len(x) - 120, 32)])
    np.savez_compressed(out / "occupancy_calib.npz", x=calib)
    np.savez_compressed(out / "occupancy_test.npz", x=test_x[None], y=test_occupied[None])

    def f1(logits: np.ndarray) -> float:
        guess, truth = logits[:, 0] > 0, test_occupied[:, 0] > 0
        hits = int((guess & truth).sum())
        return 2 * hits / (int(guess.sum()) + int(truth.sum()))

    with torch.no_grad():
        logits = model(
            torch.tensor((test_x - scaler["mean"]) / scaler["std"], dtype=torch.float32)[None]
        )[0].numpy()
    print(f"occupancy: F1 float {f1(logits):.4f}")
    report(
        "occupancy",
        files,
        calib,
        Samples((test_x,), (test_occupied,), "occupancy"),
        f1,
        scaler=scaler,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, type=Path, help="folder with the data sets")
    parser.add_argument("--out", default=Path("hybrids"), type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--effort", type=float, default=1.0, help="training steps, relative to the usual"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the same numbers whatever the machine
    for task in (digits, turbofan, occupancy):
        torch.manual_seed(args.seed)
        task(args.data, args.out, np.random.default_rng(args.seed), args.effort)


if __name__ == "__main__":
    main()
