"""Hardware in the loop: the same data through a board and through the host engine, every output bit
compared.

When they differ, the first wrong step is found by bisection and the board's units are probed
against the trace of the NumPy reference: the report names the layer, gate and unit that went wrong
first, with both values.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from threading import Event
from typing import Any

import numpy as np

from stepwell.columns import is_table
from stepwell.errors import LinkError, SampleError, StepwellError
from stepwell.layers import RecurrentLayer
from stepwell.link import HostLink, Link, Unit
from stepwell.model import Model
from stepwell.network import Part, state_parts
from stepwell.reference import Reference

SNAPSHOT_HEADER = 8  # magic with the format number, model id
COMES_AND_GOES = "a second run was right: the fault comes and goes, look at power, clock and memory"
BATCH = 256  # steps between two calls of progress
POLL = 0.2  # seconds between two looks at boards that run side by side

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Difference:
    """The first value that differs. ``quantity``: "z", "gate", "c", "h" (with ``layer``, ``unit``),
    "y" (``unit``: output), or "state" when a wrong state at the end of the sequence did not come
    back.

    ``before``: the state differed already before the step, so an earlier step or the memory is to
    blame.
    """

    sequence: int
    step: int
    layer: str
    quantity: str
    gate: str | None
    unit: int
    board: int
    expected: int
    before: bool
    note: str = ""

    def __str__(self) -> str:
        gate = f" of gate {self.gate}" if self.gate else ""
        when = "the state before this step: " if self.before else ""
        place = f"{when}layer {self.layer}, unit {self.unit}, {self.quantity}{gate}"
        note = f" ({self.note})" if self.note else ""
        values = f"board {self.board}, expected {self.expected}"
        return f"first wrong step {self.step} of sequence {self.sequence}: {place}: {values}{note}"


@dataclass(frozen=True)
class HilReport:
    """Result of ``run_hil``. ``mismatches``: wrong output values, plus one for each sequence that
    ended in a wrong state.

    The line: ``frames`` and damaged ones (``damaged_at_board``) that the board received, damaged
    ones that came back (``damaged_here``), requests that were sent again (``retries``) and that the
    board had done already (``repeats``).

    ``cost_per_step`` is in ``cost_unit``: "instructions" (QEMU, the simulator: exact), "cycles"
    (simavr, rp2040js, hardware), "ticks" of the board's timer, or None (host).
    """

    board: str
    url: str
    model: str
    model_id: str
    sequences: int
    steps: int
    mismatches: int
    first: Difference | None
    cost_unit: str | None
    cost_per_step: float | None
    step_cost: float | None
    stack_bytes: int | None
    stack_peak_bytes: int
    ram_bytes: int
    static_bytes: int
    frames: int
    damaged_at_board: int
    damaged_here: int
    retries: int
    repeats: int
    seconds: float

    @property
    def ok(self) -> bool:
        return self.mismatches == 0

    def to_json(self) -> dict[str, Any]:
        """Plain types; the cost appears under its unit (``instructions_per_step`` or
        ``cycles_per_step``), too.
        """
        cost = {f"{unit}_per_step": None for unit in ("instructions", "cycles")}
        if self.cost_unit:
            cost[f"{self.cost_unit}_per_step"] = self.cost_per_step
        speed = round(self.steps / self.seconds, 1) if self.seconds else None
        return asdict(self) | cost | {"steps_per_second": speed, "equal": self.ok}


def run_hil(
    link: Link | HostLink,
    model: Model,
    sequences: Sequence[np.ndarray],
    progress: Progress = lambda done, total: None,
) -> HilReport:
    """Stream ``sequences`` (float [T_i, n_in] each, quantised by the model; the state is reset
    between them) through the board.

    DataFrames are matched by the names of the model's columns. Compares all outputs and the state
    after each sequence with the host engine. ``progress(done, total)`` counts steps. Raises
    LinkError when the board fails to answer, runs another model or has used up its stack,
    SampleError on bad data.
    """
    sequences = [sequences] if is_table(sequences) else sequences
    sequences = [model.wanted.of_rows(sequence) for sequence in sequences]
    if not sequences or not all(len(sequence) for sequence in sequences):
        raise SampleError("no steps to stream: give at least one sequence, and none that is empty")
    info = link.connect(model)
    total, done, codes = sum(map(len, sequences)), 0, []
    for sequence in sequences:
        codes.append(Reference(model).codes(sequence))
        progress(0, total)
    mismatches, first = 0, None
    stream = model.stream()
    before, retries, damaged = link.stat(), link.retries, link.damaged
    started = time.monotonic()
    for index, x_q in enumerate(codes):
        link.reset()
        stream.reset()
        parts = []
        for start in range(0, len(x_q), BATCH):
            parts.append(link.step(x_q[start : start + BATCH]))
            done += len(parts[-1])
            progress(done, total)
        y_q = np.concatenate(parts)
        wrong = int(np.count_nonzero(y_q != stream.run_q(x_q)))
        wrong += wrong == 0 and link.get_state() != stream.save()
        if wrong and first is None:
            first = find_first(link, model, x_q, index, y_q)
        mismatches += wrong
    seconds = time.monotonic() - started
    bench, mem, after = link.bench(), link.mem(), link.stat()
    if mem.stack_size and mem.stack_used >= mem.stack_size:
        raise LinkError(
            f"{link.url}: all {mem.stack_size} B that {info.board} reserves for the stack were "
            "used: it runs into the RAM of the model, or stands right before it. Raise "
            "STACK_BYTES in its board.mk and build again"
        )
    return HilReport(
        board=info.board,
        url=link.url,
        model=model.name,
        model_id=f"{model.id:08x}",
        sequences=len(codes),
        steps=total,
        mismatches=int(mismatches),
        first=first,
        cost_unit=link.cost_unit,
        cost_per_step=link.cost_per_step,
        step_cost=bench.cost,
        stack_bytes=bench.stack_bytes,
        stack_peak_bytes=mem.stack_used,
        ram_bytes=info.ram_bytes,
        static_bytes=mem.static_bytes,
        frames=after.frames - before.frames,
        damaged_at_board=after.damaged - before.damaged,
        damaged_here=link.damaged - damaged,
        retries=link.retries - retries,
        repeats=after.repeats - before.repeats,
        seconds=round(seconds, 3),
    )


def run_side_by_side(
    runs: Sequence[Callable[[Progress], HilReport]], progress: Progress = lambda done, total: None
) -> list[HilReport | StepwellError]:
    """Several boards at once, a thread for each: the results in the order of ``runs``, an error in
    place of a failed run's.

    ``progress(done, total)`` counts the steps of all. Interrupted, it ends the threads before it
    raises.
    """
    counts = [(0, 0)] * len(runs)
    stopped = Event()

    def one(index: int) -> HilReport | StepwellError:
        def count(done: int, total: int) -> None:
            if stopped.is_set():
                raise LinkError("interrupted")
            counts[index] = done, total

        try:
            return runs[index](count)
        except StepwellError as error:
            return error
        except Exception as error:  # one board's surprise must not take the others' results along
            traceback.print_exc()
            return LinkError(f"{type(error).__name__}: {error}")

    with ThreadPoolExecutor(max(1, len(runs))) as threads:
        futures = [threads.submit(one, index) for index in range(len(runs))]
        try:
            while wait(futures, POLL).not_done:
                progress(sum(done for done, _ in counts), max(1, sum(total for _, total in counts)))
        finally:
            stopped.set()
    return [future.result() for future in futures]


# ---- finding the first wrong value ----

_Found = tuple[str, str, str | None, int, int, int]  # layer, quantity, gate, unit, board, expected


def find_first(
    link: Link | HostLink, model: Model, x_q: np.ndarray, sequence: int, y_board: np.ndarray
) -> Difference:
    """Where the board first leaves the host engine on the codes ``x_q`` int16 [T, n_in].

    ``y_board`` int32 [T, n_out]: what the board gave before; the search runs the sequence again,
    from a reset and then from states that the host knows to be right, halving the stretch that goes
    wrong.
    """
    replay = _Replay(link, model, x_q)
    link.reset()
    difference = state_difference(model, link.get_state(), replay.state(0))
    if difference:
        return _located(difference, sequence, 0, before=True, note="right after the reset")
    start, stop = 0, len(x_q)
    if replay.equal(start, stop):
        return _passed(model, x_q, sequence, y_board)
    while stop - start > 1:
        middle = (start + stop) // 2
        link.set_state(replay.state(start))
        start, stop = (middle, stop) if replay.equal(start, middle) else (start, middle)
    return _blame(link, model, replay, start, sequence)


class _Replay:
    """Stretches of a sequence on the board, compared with the host."""

    def __init__(self, link: Link | HostLink, model: Model, x_q: np.ndarray):
        self._link, self._stream, self.x_q = link, model.stream(), x_q

    def state(self, n: int) -> bytes:
        """The host's snapshot after ``n`` steps."""
        self._stream.reset()
        self._stream.run_q(self.x_q[:n])
        return self._stream.save()

    def board(self, start: int, stop: int) -> tuple[bytes, np.ndarray]:
        """State after and outputs of the steps ``start`` .. ``stop``, from the state that the board
        is in.
        """
        y_q = self._link.step(self.x_q[start:stop])
        return self._link.get_state(), y_q

    def host(self, start: int, stop: int) -> tuple[bytes, np.ndarray]:
        self._stream.load(self.state(start))
        y_q = self._stream.run_q(self.x_q[start:stop])
        return self._stream.save(), y_q

    def equal(self, start: int, stop: int) -> bool:
        (state_a, y_a), (state_b, y_b) = self.board(start, stop), self.host(start, stop)
        return state_a == state_b and np.array_equal(y_a, y_b)


def _passed(model: Model, x_q: np.ndarray, sequence: int, y_board: np.ndarray) -> Difference:
    """The second run was right: all that is known is the first wrong output of the first run."""
    y_host = model.stream().run_q(x_q)
    wrong = np.argwhere(y_board != y_host)
    note = COMES_AND_GOES
    if not len(wrong):  # only the state at the end was wrong
        return Difference(
            sequence, len(x_q) - 1, "all", "state", None, 0, 0, 0, before=False, note=note
        )
    step, output = (int(v) for v in wrong[0])
    values = (int(y_board[step, output]), int(y_host[step, output]))
    return Difference(
        sequence, step, model.layers[-1].name, "y", None, output, *values, before=False, note=note
    )


def _blame(
    link: Link | HostLink, model: Model, replay: _Replay, step: int, sequence: int
) -> Difference:
    """What goes wrong in ``step``, before which the states are equal: units by PROBE, then the
    stored state, then outputs.
    """
    before = replay.state(step)
    link.set_state(before)
    difference = _probed_difference(link, model, before, replay.x_q[step])
    if difference:
        return _located(difference, sequence, step)
    (state, y), (expected_state, expected_y) = (
        replay.board(step, step + 1),
        replay.host(step, step + 1),
    )
    difference = state_difference(model, state, expected_state)
    if difference:
        return _located(
            difference,
            sequence,
            step,
            note="the units compute it right, but the stored state is wrong",
        )
    if np.array_equal(y, expected_y):
        return Difference(
            sequence, step, "-", "y", None, 0, 0, 0, before=False, note=COMES_AND_GOES
        )
    output = int(np.argmax(y[0] != expected_y[0]))
    values = (int(y[0][output]), int(expected_y[0][output]))
    last = model.layers[-1].name
    return Difference(
        sequence,
        step,
        last,
        "y",
        None,
        output,
        *values,
        before=False,
        note="all recurrent units are right",
    )


def _probed_difference(
    link: Link | HostLink, model: Model, before: bytes, x_q: np.ndarray
) -> _Found | None:
    """The first wrong unit in the step after ``before``; in mode carry only, others run many steps
    at once.
    """
    if model.mode.kind != "carry":
        return None
    seen: dict[int, dict[str, np.ndarray]] = {}

    def observe(index: int, name: str, values: np.ndarray) -> None:
        seen.setdefault(index, {})[name] = values[0]

    reference = Reference(model, observe)
    reference.restore(snapshot_parts(model, before))
    reference.step_q(x_q)
    for index, layer in enumerate(model.layers):
        if layer.is_recurrent and index in seen:
            units = link.probe(index, seen[index]["x"], 0, layer.n_units)
            difference = _unit_difference(layer, units, seen[index])
            if difference:
                return difference
    return None


def snapshot_parts(model: Model, snapshot: bytes) -> list[Part]:
    """What a snapshot holds, in its order: counters, inputs and the state of each layer. LinkError
    when its size is wrong.
    """
    parts = state_parts(model)
    n_cells, n_hidden = sum(p.n_cells for p in parts), sum(p.n_hidden for p in parts)
    expected_bytes = SNAPSHOT_HEADER + 4 * n_cells + 2 * n_hidden + 4
    if len(snapshot) != expected_bytes:
        raise LinkError(f"a snapshot of this model has {expected_bytes} bytes, not {len(snapshot)}")
    c = np.frombuffer(snapshot, "<i4", n_cells, SNAPSHOT_HEADER)
    h = np.frombuffer(snapshot, "<i2", n_hidden, SNAPSHOT_HEADER + 4 * n_cells)
    filled = []
    for part in parts:
        filled.append(replace(part, c=c[: part.n_cells], h=h[: part.n_hidden]))
        c, h = c[part.n_cells :], h[part.n_hidden :]
    return filled


def state_difference(model: Model, board: bytes, expected: bytes) -> _Found | None:
    """The first cell that differs between two snapshots: (layer, "c" or "h", None, unit, board's
    value, expected).
    """
    for found, right in zip(
        snapshot_parts(model, board), snapshot_parts(model, expected), strict=True
    ):
        for quantity, values, wanted in (("c", found.c, right.c), ("h", found.h, right.h)):
            if not np.array_equal(values, wanted):
                unit = int(np.argmax(values != wanted))
                return found.name, quantity, None, unit, int(values[unit]), int(wanted[unit])
    return None


def _unit_difference(
    layer: RecurrentLayer, units: list[Unit], seen: dict[str, np.ndarray]
) -> _Found | None:
    """The first unit of a layer that differs from the trace, and in it the first quantity in order
    of computation.
    """
    z = seen["z"].reshape(-1, layer.n_units)
    gates = seen.get("gates", np.empty((0, layer.n_units)))  # an RNN has none
    for unit, board in enumerate(units):
        for quantity, names, values, wanted in (
            ("z", layer.records, board.z, z[:, unit]),
            ("gate", layer.gates, board.gates, gates[:, unit]),
        ):
            for name, value, right in zip(names, values, wanted, strict=False):
                if value != right:
                    return layer.name, quantity, name, unit, value, int(right)
        state = [("c", board.c, seen["c"][unit])] if layer.n_cells else []
        for quantity, value, wanted in (*state, ("h", board.h, seen["unit_h"][unit])):
            if value != wanted:
                return layer.name, quantity, None, unit, value, int(wanted)
    return None


def _located(
    found: _Found, sequence: int, step: int, before: bool = False, note: str = ""
) -> Difference:
    layer, quantity, gate, unit, board, expected = found
    return Difference(sequence, step, layer, quantity, gate, unit, board, expected, before, note)
