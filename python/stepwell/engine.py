"""The host engine: the C library behind cffi. Stream is one sensor's state; Batch is many in flat
memory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from stepwell._engine import ffi, lib
from stepwell.blob import blob_of, fault_of
from stepwell.codes import as_numbers, check_codes, check_input
from stepwell.errors import ModelError, SampleError
from stepwell.layers.base import IntLayer
from stepwell.network import Network


def use_kernel(name: str) -> str:
    """Choose what computes LSTM steps and batches on this machine: one of KERNELS; "auto" is the
    fastest that the CPU has.

    Gives the name of what is used: the best that the CPU has, up to the one asked for. All give the
    same bits. The environment variable STEPWELL_KERNEL chooses at import. SampleError for an
    unknown name.
    """
    if name not in KERNELS:
        raise SampleError(f"unknown kernel '{name}'; there are: {', '.join(KERNELS)}")
    return KERNELS[
        1 + lib.stw_host_kernel(len(KERNELS) if name == "auto" else KERNELS.index(name) - 1)
    ]


KERNELS = ("auto", "portable", "avx2", "avx-vnni", "avx512-vnni")
kernel = use_kernel(os.environ.get("STEPWELL_KERNEL", "auto"))


def status_text(status: int) -> str:
    return ffi.string(lib.stw_strerror(status)).decode()


class OpenModel:
    """A blob opened by stw_blob_open, with the memory it needs: the aligned blob and the layer
    table.

    Raises ModelError with the C library's reason when the blob is damaged, foreign, or could
    overflow an accumulator.
    """

    def __init__(self, blob: bytes):
        # int32: the blob must be 4-byte aligned
        self._blob = ffi.new("int32_t[]", len(blob) // 4 + 1)
        ffi.memmove(self._blob, blob, len(blob))
        n_layers = int.from_bytes(blob[6:8], "little") if len(blob) >= 8 else 0
        self._layers = ffi.new("stw_layer[]", max(1, n_layers))
        self.model = ffi.new("stw_model *")
        status = lib.stw_blob_open(
            self.model, self._layers, max(1, n_layers), self._blob, len(blob)
        )
        if status != lib.STW_OK:
            raise ModelError((status == lib.STW_E_SHAPE and fault_of(blob)) or status_text(status))


class _Session:
    """A stw_session with its buffers; NumPy arrays look into the same memory, so a call copies
    nothing.
    """

    def __init__(self, model: Network):
        self.model = model
        self.n_in, self.n_out = model.n_in, model.n_out
        self._open = OpenModel(blob_of(model))
        c_model = self._open.model
        self._ram_bytes = int(lib.stw_ram_bytes(c_model))
        self._ram = ffi.new("int32_t[]", self._ram_bytes // 4 + 1)
        self._x, self._y = np.zeros(self.n_in), np.zeros(self.n_out)
        self._x_q, self._y_q = np.zeros(self.n_in, np.int16), np.zeros(self.n_out, np.int32)
        self._session = session = ffi.new("stw_session *")
        self._bind_scaler(session)
        session.y_unit = 2.0**-model.y_frac
        session.x, session.y = _pointer("double *", self._x), _pointer("double *", self._y)
        session.x_q, session.y_q = (
            _pointer("int16_t *", self._x_q),
            _pointer("int32_t *", self._y_q),
        )
        self._stream = ffi.addressof(session, "stream")
        status = lib.stw_init(self._stream, c_model, self._ram, self._ram_bytes)
        if status != lib.STW_OK:
            raise ModelError(status_text(status))
        lib.stw_session_reset(session)

    def serve_many(self) -> None:
        """Gives the session the memory with which stw_session_batch takes the weights once for many
        streams.
        """
        self._many = ffi.new("uint8_t[]", max(1, int(lib.stw_session_many_bytes(self._session))))
        self._session.many = self._many if len(self._many) > 1 else ffi.NULL

    @property
    def may_miss(self) -> bool:
        """Whether NaN stands for a missing sample."""
        return self.model.scaler.missing != "refuse"

    def _bind_scaler(self, session) -> None:
        """The way from the user's numbers to codes (Scaler.codes, in C)."""
        scaler, n = self.model.scaler, self.n_in
        fields = {name: scaler.field(name, n) for name in ("low", "high")}
        fields |= {
            "offset": scaler.field("mean", n),
            "x_codes": scaler.factors(n, self.model.x_scale),
        }
        self._scaling = {name: np.ascontiguousarray(values) for name, values in fields.items()}
        for name, values in self._scaling.items():
            setattr(session, name, _pointer("double *", values))
        self._fill, self._raw = (
            scaler.codes(np.full(n, np.nan), self.model.x_scale),
            np.zeros(n, np.int32),
        )
        session.fill, session.raw = (
            _pointer("int16_t *", self._fill),
            _pointer("int32_t *", self._raw),
        )
        mode = self.model.mode
        session.held_at = mode.window * n if mode.kind == "slide" else 0


FLOAT64 = np.dtype(np.float64)
_session_step = lib.stw_session_step


def _pointer(kind: str, array: np.ndarray):
    return ffi.cast(kind, array.ctypes.data)


def _rows(x: object, model: Network, what: str) -> np.ndarray:
    """``x`` as contiguous float64 [n, n_in]; SampleError when its shape is another. Values are
    checked in C.
    """
    x, n_in = as_numbers(model.wanted.of_rows(x)), model.n_in
    if x.ndim != 2 or x.shape[1] != n_in:
        raise SampleError(f"input has shape {list(x.shape)}, expected [{what}, {n_in}]")
    return x


def units(layer: IntLayer) -> int:
    """Units that can be probed."""
    return layer.n_units if layer.is_recurrent else layer.n_out


class Stream:
    """One stream of a model: state carried from step to step until ``reset``. Not for two threads
    at once.

    Where a step makes no new output (a window mode, strides, a warm-up) the last one is given
    again, zeros before the first: ``fresh`` tells.
    """

    def __init__(self, model: Network):
        self.model = model
        self._s = session = _Session(model)
        # what ``advance`` reads and writes: float64 [n_in], [n_out]
        self.x, self.y = (
            session._x,
            session._y,
        )
        self._shape, self._session = session._x.shape, session._session

    def step(self, x: Sequence[float] | np.ndarray) -> np.ndarray:
        """One timestep: float [n_in] -> float64 [n_out].

        SampleError on a wrong shape, NaN or inf; then the state is unchanged.
        A dict or a pandas Series is matched by the names of the model's columns.
        """
        fits = type(x) is np.ndarray and x.dtype is FLOAT64
        row = x if fits else as_numbers(self.model.wanted.of_row(x))
        if row.shape != self._shape:
            self._refuse(row)
        self.x[:] = row
        if _session_step(self._session):
            self._refuse(row)
        return self.y.copy()

    def advance(self) -> None:
        """One timestep on what stands in ``x``; the output then stands in ``y``. Nothing is
        allocated or copied.

        SampleError on NaN or inf; then the state is unchanged.
        """
        if _session_step(self._session):
            self._refuse(self.x)

    @property
    def fresh(self) -> bool:
        """Whether the last step made a new output; False before the first step, after ``reset`` and
        after ``load``.
        """
        return bool(self._session.fresh)

    def _refuse(self, x: object) -> None:
        x = check_input(x, self._s.n_in, self._s.may_miss)
        raise SampleError(f"input has shape {list(x.shape)}, expected [{self._s.n_in}]")

    def run(self, x: np.ndarray) -> np.ndarray:
        """A sequence, the loop in C: float [T, n_in] -> float64 [T, n_out].

        State carries on; unchanged on SampleError. A DataFrame is matched by the names of the
        model's columns: extra ones are ignored, missing ones refused.
        """
        s = self._s
        x = _rows(x, self.model, "T")
        y = np.empty((len(x), s.n_out))
        if lib.stw_session_run(
            s._session, len(x), _pointer("double *", x), _pointer("double *", y)
        ):
            check_input(x, s.n_in, s.may_miss)
        return y

    def step_q(self, x_q: Sequence[int] | np.ndarray) -> np.ndarray:
        """One timestep on codes: int16 [n_in] -> int32 [n_out] in Q(y_frac)."""
        codes = check_codes(x_q, self._s.n_in)
        if codes.ndim != 1:
            raise SampleError(f"codes have shape {list(codes.shape)}, expected [{self._s.n_in}]")
        return self.run_q(codes[None])[0]

    def run_q(self, x_q: np.ndarray) -> np.ndarray:
        """Codes int16 [T, n_in] -> int32 [T, n_out]. SampleError when a code does not fit int16."""
        s = self._s
        codes = check_codes(x_q, s.n_in)
        if codes.ndim != 2:
            raise SampleError(f"codes have shape {list(codes.shape)}, expected [T, {s.n_in}]")
        y_q = np.empty((len(codes), s.n_out), np.int32)
        lib.stw_session_run_q(
            s._session, len(codes), _pointer("int16_t *", codes), _pointer("int32_t *", y_q)
        )
        return y_q

    def reset(self) -> None:
        """A new sequence starts from the initial state; outputs are zero until the first new one."""
        lib.stw_session_reset(self._s._session)

    def save(self) -> bytes:
        """Snapshot of the state and of the output that held steps give again, as stw_save writes
        it.

        Any stream of the same model, on any machine, can load it.
        """
        size = int(lib.stw_snapshot_bytes(self._s._open.model))
        buffer = ffi.new("uint8_t[]", size)
        lib.stw_save(self._s._stream, buffer, size)
        return bytes(ffi.buffer(buffer))

    def load(self, snapshot: bytes) -> None:
        """Restore a snapshot; ``y`` becomes the output that it holds.

        ModelError when it is damaged, of another model or of another format; then the state is
        unchanged.
        """
        if not isinstance(snapshot, (bytes, bytearray, memoryview)):
            raise ModelError(f"a snapshot is bytes, not {type(snapshot).__name__}")
        status = lib.stw_session_load(self._session, bytes(snapshot), len(snapshot))
        if status != lib.STW_OK:
            raise ModelError(f"snapshot refused: {status_text(status)}")

    def digest(self) -> int:
        """FNV-1a-32 of the state: a short way to compare streams."""
        return int(lib.stw_digest(self._s._stream))

    def probe(self, layer: int, x_q: np.ndarray, unit: int) -> dict[str, object]:
        """What ``unit`` of recurrent ``layer`` would do next for layer input ``x_q`` (int16): z
        [4], gates [4], c, h.

        The state stays as it is.
        """
        x_q = np.ascontiguousarray(x_q, dtype=np.int16)
        layers = self.model.layers
        if (
            not 0 <= layer < len(layers)
            or x_q.shape != (layers[layer].n_in,)
            or not 0 <= unit < units(layers[layer])
        ):
            raise SampleError(f"no unit {unit} in layer {layer} with {x_q.size} inputs")
        out = ffi.new("stw_unit *")
        status = lib.stw_probe(self._s._stream, layer, _pointer("int16_t *", x_q), unit, out)
        if status != lib.STW_OK:
            raise SampleError(f"layer {layer} cannot be probed: {status_text(status)}")
        return {"z": list(out.z), "gates": list(out.gate), "c": out.c, "h": out.h}


class Batch:
    """``n`` streams of one model in flat memory, stepped together: ``state_bytes`` each.

    ``threads`` share the streams of a step between them; each has scratch of its own. It pays from
    about 64 streams a thread. A child process that fork made may go on with the batch: its threads
    are started anew there.
    """

    def __init__(self, model: Network, n: int, threads: int = 1):
        for what, number in (("streams", n), ("threads", threads)):
            if not isinstance(number, (int, np.integer)) or number < 1:
                raise SampleError(
                    f"a batch needs a whole number of {what}, at least one, got {number}"
                )
        self.model, self.n = model, n
        self._sessions = [_Session(model) for _ in range(min(threads, n))]
        for session in self._sessions:
            session.serve_many()
        self._s = self._sessions[0]
        self._pool, self._pool_of = None, -1  # threads, and the process in which they run
        self._edges = [n * k // len(self._sessions) for k in range(len(self._sessions) + 1)]
        self.state_bytes = int(lib.stw_state_bytes(self._s._open.model))
        self._states = ffi.new("int32_t[]", max(1, self.state_bytes // 4 * n))
        self._y = np.zeros((n, model.n_out))
        self.reset()

    def step(self, x: np.ndarray) -> np.ndarray:
        """One timestep of every stream: float [n, n_in] -> float64 [n, n_out].

        A DataFrame, a row a stream, is matched by the names of the model's columns. No state
        changes on SampleError.
        """
        s = self._s
        x = _rows(x, self.model, "n")
        if len(x) != self.n:
            raise SampleError(f"input has {len(x)} rows, the batch has {self.n} streams")
        if len(self._sessions) == 1:
            if self._part(0, x):
                check_input(x, s.n_in, s.may_miss)
        else:
            if lib.stw_session_unusable(s._session, x.size, _pointer("double *", x)):
                check_input(x, s.n_in, s.may_miss)
            list(
                self._threads().map(
                    self._part, range(len(self._sessions)), [x] * len(self._sessions)
                )
            )
        return self._y.copy()

    @property
    def fresh(self) -> bool:
        """Whether the last step made new outputs: one bool, as all streams run in step. False
        before the first step.
        """
        return bool(self._s._session.fresh)

    def _threads(self) -> ThreadPoolExecutor:
        """The threads of this process: those of the one that forked it do not exist here."""
        if self._pool_of != os.getpid():
            self._pool, self._pool_of = ThreadPoolExecutor(len(self._sessions)), os.getpid()
        return self._pool

    def _part(self, k: int, x: np.ndarray) -> int:
        """The streams of thread ``k``. The call into C lets other threads run."""
        start, end = self._edges[k], self._edges[k + 1]
        states = ffi.cast("uint8_t *", self._states) + start * self.state_bytes
        rows, y = _pointer("double *", x[start:end]), _pointer("double *", self._y[start:end])
        return lib.stw_session_batch(self._sessions[k]._session, end - start, states, rows, y)

    def reset(self) -> None:
        """All streams start anew."""
        lib.stw_session_reset(self._s._session)
        start = bytes(ffi.buffer(self._s._ram, self.state_bytes))
        ffi.memmove(self._states, start * self.n, self.state_bytes * self.n)
        self._y[:] = 0
