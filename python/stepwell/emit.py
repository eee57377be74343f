"""A model as C source: NAME.h, NAME.c, the engine's files, an example and a README - a folder that
any C99 compiler builds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stepwell import info
from stepwell._version import __version__
from stepwell.blob import packed_channels, places
from stepwell.c_names import C_KEYWORDS, is_library_name
from stepwell.errors import StepwellError, WrongUse
from stepwell.files import check_can_make, folder_for, kind_of, remove_left, write_all
from stepwell.integer.packing import packing_for
from stepwell.model import Model
from stepwell.network import FORMAT
from stepwell.sources import csrc
from stepwell.text import render

# the engine's files, and for those that a model may do without the knobs of stw_config.h that need
# them
ENGINE_SOURCES: dict[str, tuple[str, ...]] = {
    "stepwell.c": (),
    "stw_check.c": (),
    "stw_cell.c": (),
    "stw_lstm.c": ("LSTM",),
    "stw_dot_v6m.c": ("LSTM",),
    "stw_dot_riscv.c": ("LSTM",),
    "stw_dot_avr.c": (),
    "stw_pairs.c": ("PAIRS",),
    "stw_gru.c": ("GRU",),
    "stw_rnn.c": ("RNN",),
    "stw_dense.c": (),
    "stw_window.c": ("WINDOW",),
    "stw_attention.c": ("ATTENTION",),
    "stw_norm.c": ("NORM",),
    "stw_softmax.c": ("SOFTMAX", "ATTENTION"),
    "stw_mode.c": ("MODES",),
    "stw_table.c": (),
}
OPTIONAL_SOURCES = ("stw_state.c", "stw_probe.c", "stw_blob.c", "stw_crc.c")
KNOBS = (
    "LSTM",
    "GRU",
    "RNN",
    "DENSE",
    "ACTIVATION",
    "SOFTMAX",
    "MIX",
    "WINDOW",
    "NORM",
    "ATTENTION",
    "MODES",
    "VARIANTS",
    "PAIRS",
    "W4",
)
# the last line of every file that is emitted, with a hash of the lines above it
MARK = re.compile(
    rb"(?:/\*|<!--) stepwell emit wrote the lines above: ([0-9a-f]{32}) (?:\*/|-->)\n"
)
GUARD = "stepwell.h"  # every other file needs it
INTERRUPTED = '#error "stepwell emit was interrupted here: run it again"\n'


def emit(
    model: Model,
    folder: str | Path,
    name: str | None = None,
    target: str = "any",
    force: bool = False,
) -> list[Path]:
    """Write the folder and return its files, none of which is put in its place before all are
    written.

    ``name`` (default: the model's) becomes the C identifier and the file names. ``target``: the
    core whose packing the weights get (packing.TARGETS); every core can run every packing, with the
    same bits. Deterministic: the same model gives the same bytes. WrongUse when ``name`` is not a C
    identifier or the target is unknown. StepwellError when a file is in the way that stepwell did
    not write, or that was changed since: it is named and kept, and nothing is written, unless
    ``force``.

    A process that is killed leaves the old files, the new ones, or a folder that #error refuses to
    compile.
    """
    name = name or c_name(model.name)
    if not _usable(name):
        raise WrongUse(
            f"'{name}' cannot name a C object and its files: use letters, digits and _, start "
            "with a letter, and take no C or C++ keyword, no name of the C library or its "
            "headers, of the engine, main or readme"
        )
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise StepwellError(f"{folder} is a {kind_of(folder)}: give a folder")
    facts = _facts(model, name, target)
    generated = {
        f"{name}.c": "model.c.j2",
        f"{name}.h": "model.h.j2",
        "main.c": "main.c.j2",
        "README.md": "README.md.j2",
    }
    contents = {
        folder / file: _marked(file, render(t, **facts).encode()) for file, t in generated.items()
    }
    contents |= _engine_files(folder)
    check_can_make(folder, *(path.name for path in contents))
    changed = _to_write(contents, force)
    with folder_for(folder):
        if not changed:
            remove_left(folder)
        else:
            # the guard is written, too, even when it stays as it is
            changed |= {folder / GUARD: contents[folder / GUARD]}
            write_all(changed, folder / GUARD, _marked(GUARD, INTERRUPTED.encode()))
    return list(contents)


def _to_write(contents: Mapping[Path, bytes], force: bool) -> dict[Path, bytes]:
    """Those of ``contents`` that are not there yet. StepwellError when one would replace a file of
    the user's.
    """
    there = {path: path.read_bytes() for path in contents if path.exists()}
    changed = {path: content for path, content in contents.items() if there.get(path) != content}
    kept = [path for path in there if path in changed and not _is_ours(there[path], changed[path])]
    if kept and not force:
        names, verb = (
            " and ".join(map(str, kept)),
            "exist and were" if len(kept) > 1 else "exists and was",
        )
        raise StepwellError(
            f"{names} {verb} not written by stepwell, or changed since: nothing was written; "
            "give another folder or --name, or replace with --force"
        )
    return changed


def _marked(name: str, content: bytes) -> bytes:
    """``content`` with the line that tells stepwell's own files."""
    begin, end = ("<!--", "-->") if name.endswith(".md") else ("/*", "*/")
    return (
        content + f"{begin} stepwell emit wrote the lines above: {_hash(content)} {end}\n".encode()
    )


def _is_ours(content: bytes, new: bytes) -> bool:
    """Whether stepwell wrote ``content`` and nobody changed it, but for the ends of lines; or it is
    ``new`` without its mark.
    """
    content = content.replace(b"\r\n", b"\n")
    lines = content.splitlines(keepends=True)
    mark = MARK.fullmatch(lines[-1]) if lines else None
    is_marked = mark is not None and mark[1].decode() == _hash(b"".join(lines[:-1]))
    return is_marked or content == b"".join(new.splitlines(keepends=True)[:-1])


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def copy_engine(folder: Path) -> list[Path]:
    """Copy the C library into ``folder``."""
    return write_all(_engine_files(folder))


def _engine_files(folder: Path) -> dict[Path, bytes]:
    files = sorted(path for path in csrc().iterdir() if path.suffix in (".c", ".h"))
    return {folder / path.name: _marked(path.name, path.read_bytes()) for path in files}


def c_name(text: str) -> str:
    """A C identifier as close to ``text`` as possible, of 63 characters at most, as C tells no more
    apart.
    """
    cleaned = re.sub(r"[^A-Za-z0-9_]", "_", text)[:61]
    return cleaned if _usable(cleaned) else f"m_{cleaned}"


def _usable(name: str) -> bool:
    return (
        bool(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name))
        and not is_library_name(name)
        and name not in C_KEYWORDS
    )


def _facts(model: Model, name: str, target: str) -> dict[str, object]:
    packing = packing_for(target)
    described = info.describe(model, packing)
    unused = _unused_knobs(model, packing)
    channels = packed_channels(model)
    sources = ENGINE_SOURCES | ({} if channels is None else {"stw_raw.c": ()})
    return {
        "name": name,
        "macro": name.upper(),
        "version": __version__,
        "format": FORMAT,
        "info": described,
        "source": {k: model.notes.get("source", {}).get(k, "") for k in ("file", "sha256")},
        "readout": model.notes.get("readout", "every"),
        "outputs": _output_macros(described["outputs"]),
        "layers": [_layer_facts(model, index, packing) for index in range(len(model.layers))],
        "struct_bytes": {"model": info.MODEL_STRUCT_BYTES, "layer": info.LAYER_STRUCT_BYTES},
        "engine_sources": list(sources),
        "lean_sources": [
            source for source, knobs in sources.items() if not knobs or set(knobs) - unused
        ],
        "lean_flags": lean_flags(model, target),
        "window": model.mode.window,
        "stride": model.mode.stride,
        "mode_macro": f"STW_{model.mode.kind.upper()}",
        "missing_macro": f"STW_MISSING_{model.scaler.missing.upper()}",
        "scaled": _scaled(model),
        "channels": None
        if channels is None
        else [f"{{{', '.join(map(str, c))}}}" for c in channels.tolist()],
        "optional_sources": OPTIONAL_SOURCES,
    }


def _output_macros(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where each of several outputs begins, how long it is, and a name for macros: letters, digits
    and _, each name once.
    """
    taken = {"FRAC"}  # of NAME_Y_FRAC
    made = []
    for k, output in enumerate(outputs if len(outputs) > 1 else []):
        words = re.sub(r"[^A-Za-z0-9]+", "_", output["name"]).strip("_").upper() or f"OUTPUT{k}"
        name, number = words, 2
        while not taken.isdisjoint((name, f"{name}_SIZE")):
            name, number = f"{words}_{number}", number + 1
        taken |= {name, f"{name}_SIZE"}
        made.append({"macro": name, "first": output["first"], "size": output["size"]})
    return made


def _scaled(model: Model) -> dict[str, list[str]] | None:
    """The scaler's arrays as C numbers; None for a model whose inputs are only scaled by x_scale."""
    scaler, n = model.scaler, model.n_in
    if all(value is None for value in (scaler.mean, scaler.std, scaler.low, scaler.high)):
        return None
    fields = {name: scaler.field(name, n) for name in ("low", "high", "mean")}
    fields["codes"] = scaler.factors(n, model.x_scale)
    return {
        name: [f"{float(np.clip(v, -1e300, 1e300)):.17g}" for v in values]
        for name, values in fields.items()
    }


def lean_flags(model: Model, target: str = "any") -> list[str]:
    """Compiler flags that leave out of the engine what ``model`` does without."""
    unused = _unused_knobs(model, packing_for(target))
    return [f"-DSTW_WITH_{knob}=0" for knob in KNOBS if knob in unused]


def _unused_knobs(model: Model, packing: str) -> set[str]:
    """Knobs of stw_config.h for what the model does without."""
    used = {layer.knob for layer in model.layers}
    used |= {layer.activation.upper() for layer in model.layers}
    used |= {"MODES"} if model.mode.kind != "carry" else set()
    used |= {layer.packing.upper() for layer in model.packed(packing)}
    recurrent = [layer for layer in model.layers if layer.is_recurrent]
    used |= {"VARIANTS"} if any(not layer.cell.is_plain for layer in recurrent) else set()
    used |= {f"W{layer.weight_bits}" for layer in recurrent}
    return set(KNOBS) - used


def _layer_facts(model: Model, index: int, packing: str) -> dict[str, object]:
    layer, timing, packed = model.layers[index], model.timing[index], model.packed(packing)[index]
    w, r, rows, extra = packed.arrays
    return {
        "name": layer.name,
        "kind": layer.kind,
        "kind_macro": f"STW_{layer.kind.upper()}",
        "act_macro": f"STW_{layer.activation.upper()}",
        "activation": layer.activation,
        "n_in": layer.n_in,
        "n_out": layer.n_out,
        "w": None if w is None else _numbers(w),
        "r": None if r is None else _numbers(r),
        "w_type": "int8_t" if r is not None else "int16_t",
        "w_shape": "" if w is None else "][".join(map(str, w.shape)),
        "r_shape": "" if r is None else "][".join(map(str, r.shape)),
        "n_w": 0 if w is None else w.size,
        "n_r": 0 if r is None else r.size,
        "n_rows": 0 if rows is None else len(rows),
        "rows": None if rows is None else [_record(row) for row in rows.tolist()],
        "row_type": "stw_row" if packed.packing == "plain" else "stw_pairs_rows",
        "row_fields": "bias, mult, kx, shift"
        if packed.packing == "plain"
        else "of a unit: bias, kx, mult * 2^(32 - shift)",
        "n_extra": 0 if extra is None else len(extra),
        "extra": None if extra is None else _numbers(extra),
        "extra_what": layer.extra_what,
        "sources": _struct((*model.sources[index], 0, 0)[:3]),
        "parameters": _struct(packed.p),
        "place": places(model)[index],
        "first": timing.first,
        "every": timing.every,
    }


def _record(fields: Iterable[int | list[int]]) -> str:
    return _struct(_struct(field) if hasattr(field, "__iter__") else field for field in fields)


def _struct(values: Iterable[object]) -> str:
    return f"{{{', '.join(map(str, values))}}}"


def _numbers(array: np.ndarray) -> list[str]:
    """The array as lines of numbers, at most 24 a line."""
    return list(_lines(array.reshape(-1).tolist(), 24))


def _lines(values: list[int], per_line: int) -> Iterator[str]:
    for start in range(0, len(values), per_line):
        yield ",".join(str(v) for v in values[start : start + per_line])
