"""A model as boards take it over the link: manifest, blob, signature (docs/update.md;
firmware/app/update.h has the slots).
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from stepwell.blob import pack
from stepwell.errors import StepwellError
from stepwell.link.messages import MANIFEST
from stepwell.model import Model

MOST_VERSION = 2**32 - 2  # behind the last one no other could come

Sign = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Update:
    """What is sent: ``manifest`` with BLOB_BEGIN, ``body`` (blob and signature) with BLOB_WRITE."""

    manifest: bytes
    body: bytes


@dataclass(frozen=True)
class Updated:
    """Result of ``Link.update``. ``sent``: bytes of blob and signature; 0 when the board ran this
    model and version already.

    ``resumed_at``: the byte at which an interrupted update went on. ``retries``: requests that were
    sent again.
    """

    board: str
    url: str
    model: str
    model_id: str
    version: int
    sent: int
    resumed_at: int
    retries: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def make_update(
    model: Model, version: int, packing: str = "plain", sign: Sign | None = None
) -> Update:
    """The update that makes a board with cores of ``packing`` run ``model`` as ``version`` (1 ..
    2^32 - 2).

    ``sign`` gets the bytes to sign, manifest and blob, and gives the signature. It is called again
    when the length of the signature, which the manifest holds, is another than before;
    StepwellError when it is another each time.
    """
    if not 1 <= version <= MOST_VERSION:
        raise StepwellError(
            f"version {version}: give 1 .. {MOST_VERSION} (0 is the model inside the image)"
        )
    blob = pack(model, packing, with_notes=False)
    signature = b""
    for _ in range(3 if sign else 1):
        manifest = MANIFEST.pack(len(blob), model.id, version, len(signature))
        if sign is None:
            return Update(manifest, blob)
        length, signature = len(signature), sign(manifest + blob)
        if len(signature) == length:
            return Update(manifest, blob + signature)
    raise StepwellError(
        "the signatures have another length each time: sign with a scheme of fixed length "
        "(Ed25519: 64)"
    )


def sign_with(command: list[str]) -> Sign:
    """Sign by a program that reads the bytes on its stdin and writes the signature to its stdout.
    StepwellError when it fails.
    """

    def sign(message: bytes) -> bytes:
        try:
            done = subprocess.run(command, input=message, capture_output=True, check=False)
        except OSError as error:
            raise StepwellError(f"signing: {command[0]}: {error.strerror}") from error
        said = done.stderr.decode(errors="replace").strip()
        because = f": {said}" if said else ""
        if done.returncode:
            raise StepwellError(
                f"signing: {command[0]} failed with exit code {done.returncode}{because}"
            )
        if not done.stdout:
            raise StepwellError(f"signing: {command[0]} wrote no signature to its stdout{because}")
        return done.stdout

    return sign
