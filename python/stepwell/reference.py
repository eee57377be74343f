"""The integer specification as a stream: the oracle that every other implementation must equal.

The arithmetic is in ``integer.fixed`` and in the layers, written from docs/numerics.md alone.
Any leading dimensions are allowed: many sequences can be run side by side.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stepwell.codes import as_numbers, check_codes, check_input
from stepwell.errors import SampleError
from stepwell.network import LAST_OUTPUT, Network, Part
from stepwell.stream import LayerStream, at_steps
from stepwell.windowing import run_windows

Array = np.ndarray


class Reference:
    """One stream (or many side by side) of the integer model; the methods of ``engine.Stream``.

    ``observe(layer_index, name, values)`` is called with the integer values, [..., steps, width].
    For a recurrent layer: "x", "h" (the hidden state that enters a step), "acc" (what RQ takes),
    "z" [..., records*H], "gates" (stacked: [..., gates, H]), "c_wide" (the cell before it
    saturates), "c", "unit_h" (before a projection) and "h_new"; for the others "x" ("x0", "x1", ..
    of several sources), "v" (before the activation, where there is one) and "y".

    A mode other than carry is what docs/numerics.md says it is: the layers run over the last steps
    from a reset.
    """

    def __init__(self, model: Network, observe: Callable[[int, str, Array], None] | None = None):
        self.model = model
        self._layers = LayerStream(model.layers, model.sources, model.timing, observe)
        self.reset()

    def reset(self) -> None:
        """The initial state in every layer; no step seen."""
        self._layers.reset()
        self.fresh = False  # whether the last step made a new output
        self._seen: Array | None = None  # inputs, as far as a window mode needs them
        self._n_seen = 0
        self._held: Array | None = None
        self._last: Array | None = None  # codes to hold where a sample is missing

    @property
    def state(self) -> dict[int, tuple[Array, ...]]:
        """What each layer keeps, by its index: of a recurrent one h and c."""
        return self._layers.state

    def restore(self, parts: list[Part]) -> None:
        """The state of a snapshot of a model in mode carry (hil.snapshot_parts), without codes that
        stand for missing ones.
        """
        self.reset()
        for part in parts:
            if part.index >= 0:
                layer = self.model.layers[part.index]
                kept = layer.restored(part.c.astype(np.int64), part.h.astype(np.int64))
                self._layers.state[part.index] = kept
            elif part.name == "clock" and part.n_cells:
                self._layers.steps = int(part.c[0])
            elif part.name == LAST_OUTPUT and part.n_cells:
                self._held = part.c.astype(np.int64)

    # ---- modes ----

    def step_q(self, x_q: Array) -> Array:
        """One timestep on codes: int16 [..., n_in] -> int32 [..., n_out] in Q(y_frac); the last
        output where none is new.
        """
        return self.run_q(check_codes(x_q, self.model.n_in)[..., None, :])[..., 0, :]

    def run_q(self, x_q: Array) -> Array:
        """A sequence of codes: int16 [..., T, n_in] -> int32 [..., T, n_out]."""
        x_q = check_codes(x_q, self.model.n_in)
        if x_q.ndim < 2:
            raise SampleError(
                f"codes have shape {list(x_q.shape)}, expected [T, {self.model.n_in}]"
            )
        x = x_q.astype(np.int64)
        if self._held is None:
            self._held = np.zeros((*x.shape[:-2], self.model.n_out), np.int64)
        mode, timing = self.model.mode, self.model.timing[-1]
        seen = self._layers.steps if mode.kind == "carry" else self._n_seen
        y = self._carried(x, self._held) if mode.kind == "carry" else self._windowed(x)
        if y.shape[-2]:
            self._held = y[..., -1, :]
            self.fresh = mode.is_new(seen + y.shape[-2] - 1, timing, self.model.lags[-1])
        return y.astype(np.int32)

    def _carried(self, x: Array, held: Array, ends: bool = False) -> Array:
        """The layers over the steps of x; outputs held where none is new."""
        before = self._layers.steps
        made = self._layers.run(x, ends)
        return at_steps(held, made, self.model.timing[-1], before, self._layers.steps, ends)

    def _windowed(self, x: Array) -> Array:
        """Each output is that of a window from a reset; see Mode."""
        known = x if self._seen is None else np.concatenate([self._seen, x], axis=-2)
        n_past = known.shape[-2] - x.shape[-2]
        y = run_windows(self.model.mode, self._from_reset, known, n_past, self._n_seen, self._held)
        self._n_seen += x.shape[-2]
        self._seen = known[..., max(0, known.shape[-2] - self.model.mode.window) :, :]
        return y

    def _from_reset(self, x: Array, held: Array) -> Array:
        self._layers.reset()
        return self._carried(x, held, ends=x.shape[-2] == self.model.mode.window)

    # ---- real numbers ----

    def step(self, x: Array) -> Array:
        """One timestep on real numbers: float [..., n_in] -> float64 [..., n_out]. SampleError on
        NaN, inf or a wrong width.
        """
        row = as_numbers(self.model.wanted.of_row(x))
        return self.run(row[..., None, :])[..., 0, :]

    def run(self, x: Array) -> Array:
        """float [..., T, n_in] -> float64 [..., T, n_out]; state carries on."""
        return self.model.dequantize(self.run_q(self.codes(x)))

    def run_window(self, x: Array) -> Array:
        """The layers over one window of the model's mode, or its first steps, from a reset: float
        [..., n, n_in], n <= T.
        """
        codes = self.codes(x).astype(np.int64)
        held = np.zeros((*codes.shape[:-2], self.model.n_out), np.int64)
        return self.model.dequantize(self._from_reset(codes, held))

    def codes(self, x: Array) -> Array:
        """float [..., T, n_in] -> int16 codes, what is missing held or filled. SampleError on a
        wrong width or value.
        """
        x, may_miss = self.model.wanted.of_rows(x), self.model.scaler.missing != "refuse"
        x = check_input(x, self.model.n_in, may_miss)
        codes = self.model.quantize(x)
        return (
            self._held_codes(codes, np.isnan(x)) if self.model.scaler.missing == "hold" else codes
        )

    def _held_codes(self, codes: Array, missing: Array) -> Array:
        """``codes`` [..., T, n_in] with the last code of the channel where a sample is missing;
        fill codes before the first.
        """
        for t in range(codes.shape[-2]):
            now = codes[..., t, :]
            if self._last is not None:
                now[...] = np.where(missing[..., t, :], self._last, now)
            self._last = now.copy()
        return codes
