#!/usr/bin/env python3
"""Train the demo's model: remaining useful life of turbofan engines, NASA C-MAPSS FD001, and write
the demo's data.

    pip install torch
    python tools/train_turbofan.py --data cmapss_fd001.npz

The data set (train and test runs of 100 engines each, 24 columns a flight cycle) is a work of the
US Government in the public domain: Saxena & Goebel 2008, NASA Ames Prognostics Data Repository.
Cite it as such. The .npz holds train_unit, train_x, test_unit, test_x, test_rul and the column
names.

The network is trained as it will run: as a stream, one output a cycle, from a zero state at any
point of an engine's life. The target is the number of cycles left, capped at 125 (Heimes 2008),
divided by 125. A fifth of the training engines is held back to choose the epoch; the test engines
are looked at once, at the end.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

OUT = Path(__file__).resolve().parent.parent / "python" / "stepwell" / "demo"
SENSORS = [
    "s2",
    "s3",
    "s4",
    "s7",
    "s8",
    "s9",
    "s11",
    "s12",
    "s13",
    "s14",
    "s15",
    "s17",
    "s20",
    "s21",
]
CAP = 125.0  # cycles: the largest remaining life that is told apart
HIDDEN = 32
CROP = 80  # cycles of a training sequence
NOISE = 0.4  # in standard deviations
SHIPPED = 50  # last cycles of each test engine that the demo ships


class Turbofan(torch.nn.Module):
    """Sensors [batch, time, 14] -> remaining useful life / 125, [batch, time, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(len(SENSORS), HIDDEN, batch_first=True)
        self.head = torch.nn.Linear(HIDDEN, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0])


def runs(x: np.ndarray, unit: np.ndarray) -> list[np.ndarray]:
    """One array [T_i, 14] for each engine."""
    return [x[unit == u].astype(np.float32) for u in np.unique(unit)]


def crops(
    engines: list[np.ndarray], n: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """``n`` random stretches: inputs [n, CROP, 14] and targets [n, CROP, 1]."""
    xs, ys = [], []
    for _ in range(n):
        run = engines[rng.integers(len(engines))]
        start = rng.integers(0, len(run) - CROP + 1)
        left = len(run) - 1 - np.arange(start, start + CROP)
        xs.append(run[start : start + CROP])
        ys.append(np.minimum(left, CAP) / CAP)
    return torch.tensor(np.stack(xs)), torch.tensor(np.stack(ys), dtype=torch.float32)[..., None]


def rmse_at_the_end(model: Turbofan, engines: list[np.ndarray], rul: np.ndarray) -> float:
    """RMSE in cycles of the output at each engine's last cycle, targets capped like the training's."""
    with torch.no_grad():
        predicted = (
            np.array(
                [model(torch.tensor(run[-SHIPPED:])[None])[0, -1, 0].item() for run in engines]
            )
            * CAP
        )
    return float(np.sqrt(np.mean((np.clip(predicted, 0, CAP) - np.minimum(rul, CAP)) ** 2)))


def truncated(
    engines: list[np.ndarray], rng: np.random.Generator
) -> tuple[list[np.ndarray], np.ndarray]:
    """Training engines cut at random points, as the test engines are: a validation set with its own
    RUL.
    """
    cuts = [(run, int(rng.integers(SHIPPED, len(run)))) for run in engines for _ in range(10)]
    return [run[:cut] for run, cut in cuts], np.array([len(run) - cut for run, cut in cuts], float)


def train(
    engines: list[np.ndarray], held_back: list[np.ndarray], epochs: int, seed: int
) -> Turbofan:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = Turbofan()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    validation, rul = truncated(held_back, rng)
    best, best_state = np.inf, None
    for epoch in range(epochs):
        for _ in range(20):
            x, y = crops(engines, 64, rng)
            # 80 engines are few: keeps the network from learning them by heart
            noisy = x + NOISE * torch.randn_like(x)
            # the first cycles after a reset are warm-up
            loss = torch.mean((model(noisy) - y)[:, 10:] ** 2)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
        schedule.step()
        error = rmse_at_the_end(model, validation, rul)
        if error < best:
            best, best_state = error, {k: v.clone() for k, v in model.state_dict().items()}
        if epoch % 10 == 0:
            print(
                f"epoch {epoch}: loss {loss.item():.5f}, validation RMSE {error:.2f} cycles (best "
                f"{best:.2f})",
                flush=True,
            )
    model.load_state_dict(best_state)
    return model


def padded(engines: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The last SHIPPED cycles of each run, left aligned: x [n, SHIPPED, 14] and lengths [n]."""
    lengths = np.array([min(len(run), SHIPPED) for run in engines])
    x = np.zeros((len(engines), SHIPPED, len(SENSORS)), np.float32)
    for k, run in enumerate(engines):
        x[k, : lengths[k]] = run[-lengths[k] :]
    return x, lengths


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="cmapss_fd001.npz")
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    data = np.load(args.data)
    columns = [list(data["columns"]).index(name) for name in SENSORS]
    mean, std = data["train_x"][:, columns].mean(0), data["train_x"][:, columns].std(0)
    train_runs = runs((data["train_x"][:, columns] - mean) / std, data["train_unit"])
    test_runs = runs((data["test_x"][:, columns] - mean) / std, data["test_unit"])
    model = train(train_runs[20:], train_runs[:20], args.epochs, args.seed)
    rul = data["test_rul"].astype(float)
    print(
        f"test RMSE {rmse_at_the_end(model, test_runs, rul):.2f} cycles (last {SHIPPED} cycles of "
        f"{len(rul)} engines)"
    )

    OUT.mkdir(exist_ok=True)
    example = torch.zeros(1, SHIPPED, len(SENSORS))
    torch.onnx.export(  # the legacy exporter: its file needs no second one for the weights
        model.eval(),
        (example,),
        OUT / "turbofan.onnx",
        dynamo=False,
        opset_version=17,
        input_names=["sensors"],
        output_names=["rul"],
        dynamic_axes={"sensors": {1: "time"}, "rul": {1: "time"}},
    )
    facts = {
        "columns": np.array(SENSORS),
        "mean": mean.astype(np.float32),
        "std": std.astype(np.float32),
    }
    x, lengths = padded(train_runs[20:84])
    np.savez_compressed(OUT / "turbofan_calib.npz", x=x.round(3), lengths=lengths, **facts)
    x, lengths = padded(test_runs)
    y = np.minimum(rul, CAP)[:, None] / CAP
    np.savez_compressed(OUT / "turbofan_test.npz", x=x.round(3), lengths=lengths, y=y, **facts)


if __name__ == "__main__":
    main()
