"""When a model gives an output, and from which steps: one long stream, or windows as it was trained
on.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stepwell.errors import WrongUse

if TYPE_CHECKING:
    from stepwell.layers import Timing

KINDS = ("carry", "tumble", "slide", "stagger")  # STW_CARRY .. STW_STAGGER
WINDOW_MAX = 65535
HELP = "carry, tumble:T, slide:T, slide:T/S (an output every S steps) or stagger:T/K (K streams, an output every T/K steps)"


@dataclass(frozen=True)
class Mode:
    """``kind`` one of KINDS; ``window``: its steps T; ``stride``: steps from one output to the
    next.

    carry: the state runs on. tumble: it is reset every T steps; outputs at every step (stride 1) or
    at each window's last (stride T). slide: each output is that of the last T steps from a reset,
    every ``stride`` steps. stagger: T / stride states, started ``stride`` steps apart, give the
    outputs of slide:T/stride with less work and more RAM.
    """

    kind: str = "carry"
    window: int = 0
    stride: int = 1

    def __str__(self) -> str:
        if self.kind == "carry":
            return "carry"
        if self.kind == "stagger":
            return f"stagger:{self.window}/{self.window // self.stride}"
        return f"{self.kind}:{self.window}" + (
            f"/{self.stride}" if self.kind == "slide" and self.stride > 1 else ""
        )

    def __post_init__(self) -> None:
        """WrongUse when the numbers make no sense; a Mode that exists is one the engine can run."""
        if self.kind not in KINDS:
            raise WrongUse(f"mode '{self.kind}' is not one of {HELP}")
        given = (self.window, self.stride)
        fits = (
            given == (0, 1)
            if self.kind == "carry"
            else 1 <= self.stride <= self.window <= WINDOW_MAX
        )
        if self.kind == "tumble":
            fits = fits and self.stride in (1, self.window)
        if self.kind == "stagger":
            fits = fits and self.window % self.stride == 0
        if not fits:
            raise WrongUse(
                f"mode {self.kind} with a window of {self.window} and a stride of {self.stride} "
                f"steps: give {HELP}"
            )

    @property
    def n_copies(self) -> int:
        """States that a stream carries."""
        return self.window // self.stride if self.kind == "stagger" else 1

    @property
    def first(self) -> int:
        """The step (from 0) of the first output."""
        return (
            0
            if self.kind == "carry" or (self.kind == "tumble" and self.stride == 1)
            else self.window - 1
        )

    def is_new(self, step: int, timing: Timing, lag: int = 0) -> bool:
        """Whether ``step`` (from 0, since the reset) makes a new output.

        ``timing``: of the last layer, ``lag``: how many steps after a window's end it runs last.
        """
        if self.kind == "carry":
            return timing.at(step)
        if self.kind == "tumble" and self.stride == 1:
            into = step % self.window
            ends = into == self.window - 1
            return timing.at(into) or (
                ends and timing.runs(self.window + lag) > timing.runs(self.window)
            )
        return step >= self.first and (step - self.first) % self.stride == 0

    def repeats(self, timing: Timing) -> bool:
        """Whether some step after the first output makes no new one; ``timing``: of the last layer."""
        if self.stride > 1 or self.kind == "slide":
            return self.stride > 1
        return timing.every > 1 or (self.kind == "tumble" and timing.first > 0)

    def never(self, timing: Timing, lag: int = 0) -> str:
        """Why windows never give an output of a model; empty when they do.

        ``timing``: of the last layer, ``lag``: how many steps after a window's end it runs last.
        """
        if self.kind == "carry":
            return ""
        end = self.window + lag
        if timing.first >= end:
            return f"mode {self}: the model's first output comes after {timing.first + 1} steps: take a longer window"
        at_the_end = self.kind == "stagger" or (self.kind == "tumble" and self.stride > 1)
        if at_the_end and timing.runs(end) == timing.runs(self.window - 1):
            return f"mode {self}: the model gives an output every {timing.every} steps, and none at the window's last"
        return ""


CARRY = Mode()

Run = Callable[
    [np.ndarray, np.ndarray], np.ndarray
]  # (x [..., T, n_in], held [..., n_out]) -> [..., T, n_out], from a reset


def run_windows(
    mode: Mode, run: Run, known: np.ndarray, n_past: int, n_seen: int, held: np.ndarray
) -> np.ndarray:
    """Outputs [..., T, n_out] of a mode other than carry: what the C library does step by step,
    said in one go.

    ``known`` [..., n_past + T, n_in]: the new steps and as many before them as a window needs;
    ``n_seen``: steps before the new ones since the reset; ``held`` [..., n_out]: the last output.
    """
    n_new = known.shape[-2] - n_past
    if mode.kind == "tumble" and mode.stride == 1:
        return _tumbling(mode, run, known, n_past, n_seen, held)
    due = [
        t
        for t in range(n_new)
        if n_seen + t >= mode.first and (n_seen + t - mode.first) % mode.stride == 0
    ]
    outputs = held[..., None, :]
    if due:
        windows = np.stack(
            [known[..., n_past + t + 1 - mode.window : n_past + t + 1, :] for t in due], axis=-3
        )
        nothing = np.zeros((*windows.shape[:-2], held.shape[-1]), held.dtype)
        outputs = np.concatenate([outputs, run(windows, nothing)[..., -1, :]], axis=-2)
    return outputs[..., [sum(d <= t for d in due) for t in range(n_new)], :]


def _tumbling(
    mode: Mode, run: Run, known: np.ndarray, n_past: int, n_seen: int, held: np.ndarray
) -> np.ndarray:
    """Outputs at every step, from a reset at the start of each window."""
    parts, t, n_new = [], 0, known.shape[-2] - n_past
    while t < n_new:
        into = (n_seen + t) % mode.window
        n = min(mode.window - into, n_new - t)
        y = run(known[..., n_past + t - into : n_past + t + n, :], held)
        parts.append(y[..., into:, :])
        held = y[..., -1, :]
        t += n
    return (
        np.concatenate(parts, axis=-2)
        if parts
        else np.zeros((*known.shape[:-2], 0, held.shape[-1]), held.dtype)
    )


def parse_mode(text: str | Mode, readout: str = "every") -> Mode:
    """A Mode from text as in HELP. ``readout`` "last": a tumbling window gives its last output
    only. WrongUse on nonsense.
    """
    if isinstance(text, Mode):
        return text
    match = re.fullmatch(
        r"(carry)|(tumble|slide|stagger):(\d{1,6})(?:/(\d{1,6}))?", str(text).strip()
    )
    if not match:
        raise WrongUse(f"mode '{text}' is not one of {HELP}")
    if match[1]:
        return CARRY
    kind, window, part = match[2], int(match[3]), None if match[4] is None else int(match[4])
    if not 1 <= window <= WINDOW_MAX:
        raise WrongUse(f"mode '{text}': a window has 1 to {WINDOW_MAX} steps")
    if part == 0:
        raise WrongUse(f"mode '{text}': the number after the / is at least 1")
    if kind == "tumble" and part:
        raise WrongUse(f"mode '{text}': tumble takes no second number, it gives {HELP}")
    if kind == "tumble":
        return Mode(kind, window, window if readout == "last" else 1)
    if kind == "slide":
        stride = part or 1
        if stride > window:
            raise WrongUse(
                f"mode '{text}': an output every {stride} steps would skip inputs of a window of "
                f"{window}"
            )
        return Mode(kind, window, stride)
    if not part or window % part:
        raise WrongUse(f"mode '{text}': stagger:T/K needs a number of streams K that divides T")
    return Mode(kind, window, window // part)
