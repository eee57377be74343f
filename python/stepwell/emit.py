"""A model as C source: NAME.h, NAME.c, the engine's files, an example and a README - a folder that any C99 compiler builds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from stepwell import info
from stepwell._version import __version__
from stepwell.blob import packed_channels, packed_extra, parameters, places
from stepwell.errors import StepwellError, WrongUse
from stepwell.files import folder_for, write_all
from stepwell.model import FORMAT, IntLayer, Model, RecurrentLayer
from stepwell.packing import packed_rows, packed_weights, packing_for, packing_of
from stepwell.sources import csrc

# the engine's files, and for those that a model may do without the knobs of stw_config.h that need them
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
# the knob STW_WITH_... that a layer kind needs, where it is not the kind's own name
KNOB_OF_KIND = {"gru_before": "GRU", "layer_norm": "NORM"} | dict.fromkeys(
    ("add", "mul", "concat", "slice", "max_pool", "embedding", "arg_max"), "MIX"
)
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
CELL = "header: parts, flags, clip, formats; tables, peephole, h0, c0, projection"
EXTRA_WHAT = dict.fromkeys(("lstm", "gru", "gru_before", "rnn"), CELL) | {"layer_norm": "epsilon"}
C_KEYWORDS = frozenset(
    (
        "auto break case char const continue default do double else enum extern float for goto if inline int long register "
        "restrict return short signed sizeof static struct switch typedef union unsigned void volatile while "
        "main class new template"
    ).split()
)


# names that C, its library, the engine or the folder's other files use already
TAKEN = re.compile(
    r"(?i:stw_.*|stepwell|main|readme|the_model)|u?int\w*_t|size_t|ptrdiff_t|NULL|printf|scanf|stderr|fprintf"
)


def emit(model: Model, folder: str | Path, name: str | None = None, target: str = "any") -> list[Path]:
    """Write the folder and return its files, none of which is put in its place before all are written.

    ``name`` (default: the model's) becomes the C identifier and the file names. ``target``: the core whose packing the weights
    get (packing.TARGETS); every core can run every packing, with the same bits. Deterministic: the same model gives the same
    bytes. WrongUse when ``name`` is not a C identifier or the target is unknown, StepwellError when a file is in the way.
    """
    name = name or c_name(model.name)
    if not _usable(name):
        raise WrongUse(
            f"'{name}' cannot name a C object and its files: use letters, digits and _, start with a letter, and take no C "
            "keyword, no name of the C library, of the engine, main or readme"
        )
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise StepwellError(f"{folder} is a file: give a folder")
    facts = _facts(model, name, target)
    environment = Environment(
        loader=PackageLoader("stepwell"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    generated = {
        f"{name}.h": "model.h.j2",
        f"{name}.c": "model.c.j2",
        "main.c": "main.c.j2",
        "README.md": "README.md.j2",
    }
    contents = {folder / file: environment.get_template(t).render(facts) for file, t in generated.items()}
    contents |= _engine_files(folder)
    _refuse_to_overwrite(contents)
    with folder_for(folder):
        return write_all(contents)


def _refuse_to_overwrite(targets: Iterable[Path]) -> None:
    """What an earlier ``emit`` wrote may be replaced; a file of the user's may not."""
    for target in targets:
        if target.exists() and not _is_ours(target.name, target.read_bytes()[:300]):
            raise StepwellError(f"{target} exists and was not written by stepwell: give another folder or --name")


def _is_ours(name: str, beginning: bytes) -> bool:
    """What is generated names its maker, what belongs to the engine its own name."""
    return b"stepwell" in beginning or beginning.startswith(f"/* {name} - ".encode())


def copy_engine(folder: Path) -> list[Path]:
    """Copy the C library into ``folder``."""
    return write_all(_engine_files(folder))


def _engine_files(folder: Path) -> dict[Path, bytes]:
    files = sorted(path for path in csrc().iterdir() if path.suffix in (".c", ".h"))
    return {folder / path.name: path.read_bytes() for path in files}


def c_name(text: str) -> str:
    """A C identifier as close to ``text`` as possible."""
    cleaned = re.sub(r"[^A-Za-z0-9_]", "_", text)
    return cleaned if _usable(cleaned) else f"m_{cleaned}"


def _usable(name: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name)) and not TAKEN.fullmatch(name) and name not in C_KEYWORDS


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
        "info": described | {"name": _comment(model.name)},
        "source": {k: _comment(model.notes.get("source", {}).get(k, "")) for k in ("file", "sha256")},
        "readout": model.notes.get("readout", "every"),
        "outputs": _output_macros(described["outputs"]),
        "layers": [_layer_facts(model, index, packing) for index in range(len(model.layers))],
        "struct_bytes": {"model": info.MODEL_STRUCT_BYTES, "layer": info.LAYER_STRUCT_BYTES},
        "engine_sources": list(sources),
        "lean_sources": [source for source, knobs in sources.items() if not knobs or set(knobs) - unused],
        "lean_flags": lean_flags(model, target),
        "window": model.mode.window,
        "stride": model.mode.stride,
        "mode_macro": f"STW_{model.mode.kind.upper()}",
        "missing_macro": f"STW_MISSING_{model.scaler.missing.upper()}",
        "scaled": _scaled(model),
        "channels": None if channels is None else [f"{{{', '.join(map(str, c))}}}" for c in channels.tolist()],
        "optional_sources": OPTIONAL_SOURCES,
    }


def _output_macros(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where each of several outputs begins, how long it is, and a name for macros: letters, digits and _, each name once."""
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
    return {name: [f"{float(np.clip(v, -1e300, 1e300)):.17g}" for v in values] for name, values in fields.items()}


def lean_flags(model: Model, target: str = "any") -> list[str]:
    """Compiler flags that leave out of the engine what ``model`` does without."""
    unused = _unused_knobs(model, packing_for(target))
    return [f"-DSTW_WITH_{knob}=0" for knob in KNOBS if knob in unused]


def _unused_knobs(model: Model, packing: str) -> set[str]:
    """Knobs of stw_config.h for what the model does without."""
    used = {KNOB_OF_KIND.get(layer.kind, layer.kind.upper()) for layer in model.layers}
    used |= {layer.activation.upper() for layer in model.layers}
    used |= {"MODES"} if model.mode.kind != "carry" else set()
    used |= {"VARIANTS"} if any(_has_variants(layer) for layer in model.layers) else set()
    used |= {packing_of(layer, packing).upper() for layer in model.layers}
    used |= {f"W{layer.weight_bits}" for layer in model.layers if isinstance(layer, RecurrentLayer)}
    return set(KNOBS) - used


def _has_variants(layer: IntLayer) -> bool:
    return isinstance(layer, RecurrentLayer) and packed_extra(layer) is not None


def _layer_facts(model: Model, index: int, packing: str) -> dict[str, object]:
    layer = model.layers[index]
    w, r = packed_weights(layer, packing)
    rows, extra = packed_rows(layer, packing), packed_extra(layer)
    packed = packing_of(layer, packing)
    timing = model.timing[index]
    return {
        "name": _comment(layer.name),
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
        "row_type": "stw_row" if packed == "plain" else "stw_pairs_rows",
        "row_fields": "bias, mult, kx, shift" if packed == "plain" else "of a unit: bias, kx, mult * 2^(32 - shift)",
        "n_extra": 0 if extra is None else len(extra),
        "extra": None if extra is None else _numbers(extra),
        "extra_what": EXTRA_WHAT.get(layer.kind, "table of the activation"),
        "sources": _struct((*model.sources[index], 0, 0)[:3]),
        "parameters": _struct(parameters(layer, packing)),
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


def _comment(text: str) -> str:
    """Text that is safe inside a C comment."""
    return re.sub(r"[^\x20-\x7e]|\*/|/\*", "?", text)
