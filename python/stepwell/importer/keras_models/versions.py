"""What differs between the Keras that saved a file and the Keras 3 that reads it."""

from __future__ import annotations

import contextlib
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from stepwell.errors import ImportRefused
from stepwell.importer.keras_models.activations import keras_2_hard_sigmoid

HARD_SIGMOID = (
    "hard_sigmoid has the slope 0.2 of Keras {version}, which saved the file (in Keras 3 it is 1/6)"
)


def as_saved(model, path: Path) -> tuple[str, ...]:
    """Gives a model that was read from ``path`` the functions that it was trained with; sentences
    on what that changed.

    hard_sigmoid was clip(0.2 x + 0.5, 0, 1) before Keras 3. Raises ImportRefused where the file
    does not tell its version.
    """
    places = list(_hard_sigmoids(model))
    if not places:
        return ()
    version = saved_by(path)
    if not version:
        raise ImportRefused(
            f"{path}: it has hard_sigmoid, whose slope is 0.2 before Keras 3 and 1/6 since, and "
            "does not say which version saved it: load it where it was trained, and save it anew"
        )
    if int(version.split(".")[0]) >= 3:
        return ()
    for layer, name in places:
        setattr(layer, name, keras_2_hard_sigmoid)
    return (HARD_SIGMOID.format(version=version),)


def saved_by(path: Path) -> str:
    """The version of Keras that saved a .keras or .h5 file, such as "2.2.4-tf"; empty where it does
    not say.
    """
    version = _version_in(path)
    return version if re.fullmatch(r"\d{1,3}\.[\w.+-]{1,40}", version, re.ASCII) else ""


def _version_in(path: Path) -> str:
    if zipfile.is_zipfile(path):
        with (
            contextlib.suppress(KeyError, ValueError, AttributeError),
            zipfile.ZipFile(path) as archive,
        ):
            return str(json.loads(archive.read("metadata.json")).get("keras_version", ""))
        return ""
    import h5py

    with h5py.File(path, "r") as file:
        version = file.attrs.get("keras_version", "")
    return version.decode(errors="replace") if isinstance(version, bytes) else str(version)


def _hard_sigmoids(model) -> Iterator[tuple[object, str]]:
    """(layer, name of its attribute) for each layer and cell that applies hard_sigmoid."""
    import keras

    for layer in model._flatten_layers():
        for name in ("activation", "recurrent_activation"):
            of_its_cell = isinstance(getattr(type(layer), name, None), property)
            if not of_its_cell and getattr(layer, name, None) is keras.activations.hard_sigmoid:
                yield layer, name
