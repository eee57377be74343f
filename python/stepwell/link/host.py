"""``host:`` - the engine of this process with the methods of a link: a test written for one runs on
the other.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stepwell._engine import lib
from stepwell.errors import LinkError, ModelError, SampleError
from stepwell.info import ram_bytes
from stepwell.link.board import CAUSES, Bench, Info, Memory, Stat, Unit, UpdateStatus, wrong_model
from stepwell.link.messages import MTU, PROTOCOL, Error
from stepwell.link.update import Sign, Updated
from stepwell.model import Model


class HostLink:
    """A model on this machine. Costs are None: a desktop's time says nothing about a board."""

    cost_unit = None
    cost_per_step = None
    retries = 0
    damaged = 0

    def __init__(self, model: Model, url: str = "host:"):
        self.url, self._model, self._stream = url, model, model.stream()
        self._steps = 0

    def __enter__(self) -> HostLink:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing to close."""

    def connect(self, model: Model | None = None) -> Info:
        """LinkError when ``model`` is another one."""
        if model is not None and model.id != self._model.id:
            raise wrong_model(self.url, self._model.id, model.id)
        return self.info()

    def info(self) -> Info:
        m, ram = self._model, ram_bytes(self._model)
        total, version = ram["state"] + ram["scratch"], int(lib.stw_version())
        return Info(
            "host",
            PROTOCOL,
            MTU,
            m.n_in,
            m.n_out,
            m.y_frac,
            0,
            0,
            version,
            m.id,
            total,
            ram["snapshot"],
            0,
            0,
        )

    def reset(self) -> None:
        self._stream.reset()

    def step(
        self, x_q: np.ndarray, progress: Callable[[int], object] = lambda steps: None
    ) -> np.ndarray:
        try:
            y_q = self._stream.run_q(x_q)
        except SampleError as error:
            raise LinkError(f"{self.url}: {error}") from error
        self._steps += len(y_q)
        progress(len(y_q))
        return y_q

    def get_state(self) -> bytes:
        return self._stream.save()

    def set_state(self, snapshot: bytes) -> None:
        try:
            self._stream.load(snapshot)
        except ModelError as error:
            raise LinkError(f"{self.url}: {error}") from error

    def probe(
        self, layer: int, x_q: np.ndarray, first: int = 0, n: int | None = None
    ) -> list[Unit]:
        try:
            seen = [
                self._stream.probe(layer, x_q, unit)
                for unit in range(first, first + (1 if n is None else n))
            ]
        except SampleError as error:
            raise LinkError(f"{self.url}: {error}") from error
        return [Unit(tuple(u["z"]), tuple(u["gates"]), u["c"], u["h"]) for u in seen]

    def bench(self) -> Bench:
        return Bench(None, None)

    def mem(self) -> Memory:
        return Memory(0, 0, 0, self.info().ram_bytes)

    def echo(self, data: bytes) -> bytes:
        return bytes(data)

    def stat(self) -> Stat:
        return Stat(0, 0, self._steps, 0)

    def update_status(self) -> UpdateStatus:
        return UpdateStatus(0, 0, self.info().ram_bytes, 0, None, "plain")

    def update(
        self,
        model: Model,
        version: int | None = None,
        sign: Sign | None = None,
        progress: Callable[[int, int], object] = lambda done, total: None,
    ) -> Updated:
        """LinkError: this machine loads another model instead."""
        raise LinkError(f"{self.url}: {CAUSES[Error.NO_UPDATE]}")
