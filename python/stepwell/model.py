"""The integer model as users hold it: a network with the ways to run, save and describe it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from stepwell import blob
from stepwell.engine import Batch, Stream
from stepwell.files import write_whole
from stepwell.info import describe
from stepwell.network import Network
from stepwell.reference import Reference


@dataclass(frozen=True, eq=False, repr=False)
class Model(Network):
    """A quantised recurrent network. ``Network`` tells its fields.

    Outputs are int32 in Q(``y_frac``), inputs int16 codes, each worth ``x_scale``.
    """

    def __repr__(self) -> str:
        kinds = ", ".join(f"{layer.kind} {layer.n_in}->{layer.n_out}" for layer in self.layers)
        return f"<stepwell.Model {self.name} {self.id:08x}: {kinds}>"

    @classmethod
    def of(cls, network: Network) -> Model:
        """The network as a model."""
        return cls(**{field.name: getattr(network, field.name) for field in fields(network)})

    @classmethod
    def loads(cls, content: bytes) -> Model:
        """The model in a blob that stw_blob_open has accepted, with the very bytes for its
        ``blob``.
        """
        model = cls.of(blob.unpack(content))
        blob.remember(model, content)
        return model

    @property
    def blob(self) -> bytes:
        """The packed form (.stw): what ``save`` writes, what the host engine opens, what can be
        sent to a device.
        """
        return blob.blob_of(self)

    @property
    def id(self) -> int:
        """CRC-32 of all constants that reach the device; ties snapshots and boards to this model."""
        return blob.model_id(self.blob)

    def save(self, path: str | Path) -> None:
        """Write the .stw file, whole or not at all."""
        write_whole(path, self.blob)

    def stream(self) -> Stream:
        """One stream with state of its own, computed by the C kernel; any number may share this
        model.
        """
        return Stream(self)

    def batch(self, n_streams: int, threads: int = 1) -> Batch:
        """``n_streams`` streams in flat memory, stepped together, by so many threads."""
        return Batch(self, n_streams, threads)

    def reference(self) -> Reference:
        """The NumPy oracle: same methods as a stream, same bits, slow."""
        return Reference(self)

    def info(self) -> dict[str, Any]:
        """Sizes, formats, scales and layers as plain JSON types."""
        return describe(self)
