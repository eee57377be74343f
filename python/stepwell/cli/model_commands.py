"""convert, check, info, emit, run: everything that needs no board."""

from __future__ import annotations

import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click
import numpy as np

import stepwell
from stepwell.blob import MAGIC
from stepwell.cli.output import (
    columns_option,
    examples,
    float_source,
    json_option,
    kilo,
    print_image_costs,
    print_json,
    progress,
    split_columns,
)
from stepwell.errors import FidelityWarning, ImportRefused, SampleError, WrongUse
from stepwell.files import check_can_write
from stepwell.graph import Graph
from stepwell.integer.packing import TARGETS, packing_for
from stepwell.integer.precision import HELP as BITS_HELP
from stepwell.integer.precision import parse_precision
from stepwell.metrics import HELP as METRIC_HELP
from stepwell.metrics import find_metric
from stepwell.quantize.calibrate import HELP as RANGE_HELP
from stepwell.quantize.search import Trial
from stepwell.scaler import KEYS as SCALER_KEYS
from stepwell.scaler import MISSING, Scaler, as_scaler
from stepwell.windowing import CARRY, Mode, parse_mode
from stepwell.windowing import HELP as MODE_HELP

if TYPE_CHECKING:
    from stepwell.boards.build import Image
    from stepwell.samples import RowReader

MAX_DROP = "0.5%"


@click.command(
    epilog=examples(
        "stepwell convert motor.onnx --calib train.npz",
        "stepwell convert motor.onnx --calib log.csv --columns vibration,current -o m.stw",
        "stepwell convert motor.keras --calib train.npz",
        "stepwell convert motor.onnx --calib train.npz --precision w4a16",
        "stepwell convert motor.onnx --calib train.npz --precision auto --data test.npz "
        "--max-drop 0.5%",
        "stepwell convert motor.onnx --calib windows.npz --mode slide:50",
        "stepwell convert motor.onnx --calib train.npz --min-sqnr 40",
        "stepwell convert motor.onnx --calib adc.csv --scaler scaler.json --raw int16 --missing "
        "hold",
        "stepwell convert policy.onnx --calib train.npz --outputs mu --outputs value",
    )
)
@click.argument("source", metavar="MODEL.onnx")
@click.option(
    "--calib",
    required=True,
    help="Sample sequences like real input: .npz (x [n,T,n_in]), .npy or .csv.",
)
@click.option("-o", "--output", help="The .stw file to write (default: beside the source).")
@click.option("--name", help="Name of the model (default: the file's).")
@click.option(
    "--precision",
    default="w8a16",
    show_default=True,
    help=f"Bits of weights and activations: {BITS_HELP}; auto.",
)
@click.option(
    "--data", help="With --precision auto: test sequences, with targets 'y' for the metric."
)
@click.option(
    "--max-drop", show_default=MAX_DROP, help="With auto: how much the metric may drop, relative."
)
@click.option("--max-flash", type=int, help="With auto: most bytes of constants.")
@click.option("--metric", help=f"With auto: {METRIC_HELP}.")
@click.option(
    "--calibration", default="auto", show_default=True, help=f"The input's range: {RANGE_HELP}."
)
@click.option(
    "--mode", default="carry", show_default=True, help=f"How windows are treated: {MODE_HELP}."
)
@click.option(
    "--min-sqnr",
    type=float,
    metavar="DB",
    help="Refuse a model that follows its source less closely.",
)
@click.option(
    "--auto-scale/--no-auto-scale",
    default=True,
    show_default=True,
    help="Where input channels differ in size or stand far from zero: an offset and a scale each, folded into the weights.",
)
@click.option("--scaler", help=f"Normalisation of inputs, .json or .npz: {SCALER_KEYS}.")
@click.option(
    "--raw",
    type=click.Choice(["int16", "int32"]),
    help="The device is given raw counts (stw_step_raw).",
)
@click.option(
    "--missing", type=click.Choice(MISSING), help="What a missing sample (NaN, empty cell) becomes."
)
@click.option(
    "--outputs",
    metavar="NAME",
    multiple=True,
    help="An output of the source to keep; repeat it for several (default: all).",
)
@columns_option
@json_option
def convert(
    source: str,
    calib: str,
    output: str | None,
    name: str | None,
    precision: str,
    data: str | None,
    max_drop: str | None,
    max_flash: int | None,
    metric: str | None,
    calibration: str,
    mode: str,
    min_sqnr: float | None,
    auto_scale: bool,
    scaler: str | None,
    raw: str | None,
    missing: str | None,
    outputs: tuple[str, ...],
    columns: str | None,
    header: bool | None,
    as_json: bool,
) -> None:
    """Import an ONNX file (or .keras), calibrate and quantise it: MODEL.stw."""
    _check_auto(
        precision,
        {"--data": data, "--max-drop": max_drop, "--max-flash": max_flash, "--metric": metric},
    )
    if not Path(source).is_file():
        raise ImportRefused(
            f"{source}: "
            f"{'is a folder: give the file in it' if Path(source).is_dir() else 'no such file'}"
        )
    plan, allowed = (
        None if precision == "auto" else parse_precision(precision),
        _percent(max_drop or MAX_DROP),
    )
    target = Path(output) if output else Path(source).with_suffix(".stw")
    if target.is_file() and target.read_bytes()[:4] != MAGIC:
        raise SampleError(f"{target} exists and is no .stw file: give another name with -o")
    check_can_write(target)
    options = {
        "name": name,
        "columns": split_columns(columns),
        "header": header,
        "mode": mode,
        "scaler": _scaler(scaler, raw, missing),
        "calibration": calibration,
        "min_sqnr": min_sqnr,
        "outputs": outputs,
        "auto_scale": auto_scale,
    }
    # printed below, as all that is worth a warning
    warnings.simplefilter("ignore", FidelityWarning)
    tried: list[Trial] = []
    with progress("calibrating", quiet=as_json) as tick:
        if plan:
            model = stepwell.convert(source, calib, precision=plan, progress=tick, **options)
        else:
            limits = {"max_drop": allowed, "max_flash": max_flash, "metric": metric}
            show = None if as_json else _print_trial
            model, tried = stepwell.smallest(
                source, calib, data, **limits, tried=show, progress=tick, **options
            )
    model.save(target)
    info = model.info()
    if as_json:
        trials = {"tried": [t.to_json() for t in tried]} if tried else {}
        print_json({"file": str(target), **info, "warnings": _warnings(model)} | trials)
        return
    notes = model.notes
    click.echo(f"{target}: {info['name']}, id {info['id']}, {info['precision']}")
    verified = notes["source_check"]
    click.echo(
        f"  import      stream = source ({verified['oracle']}), largest relative difference "
        f"{verified['error']:.1e}"
    )
    click.echo(
        f"  calibrated  {notes['calibration']['sequences']} sequences, "
        f"{notes['calibration']['steps']} steps"
    )
    if len(info["outputs"]) > 1:
        click.echo(f"  values      {_outputs_text(info['outputs'])}")
    _print_fidelity(model)
    _print_costs(info)
    _print_notes(model)


def _print_fidelity(model: stepwell.Model) -> None:
    """What was measured on the calibration data, in words."""
    from stepwell.quantize.fidelity import gap_text, unfilled_text

    found, window = model.notes.get("fidelity"), model.notes.get("window")
    if not found:
        return
    if not found.get("answers", 1):
        click.echo(f"  fidelity    not measured: {unfilled_text(model)}")
        return
    followed = "equal to" if found["sqnr_db"] is None else f"SQNR {found['sqnr_db']:.1f} dB against"
    length = window or model.mode.window
    trained = f"windows of {length} steps" if length else "whole sequences"
    click.echo(f"  fidelity    {followed} the source, on the calibration data in {trained}")
    if found["carry_gap"] is not None:
        click.echo(f"  windows     {gap_text(found['carry_gap'], window)}")


def _outputs_text(outputs: list[dict[str, Any]]) -> str:
    """mu 0..5, value 6: which values are which output."""
    ends = [
        (output["name"], output["first"], output["first"] + output["size"] - 1)
        for output in outputs
    ]
    return ", ".join(
        f"{name} {first}" if first == last else f"{name} {first}..{last}"
        for name, first, last in ends
    )


def _check_auto(precision: str, options: dict[str, object]) -> None:
    """WrongUse when an option of the search would do nothing, or when the search lacks its data."""
    given = [name for name, value in options.items() if value is not None]
    if precision != "auto" and given:
        raise WrongUse(
            f"{given[0]} does something with --precision auto only: add that, or leave {given[0]} "
            "out"
        )
    if precision == "auto" and not options["--data"]:
        raise WrongUse("--precision auto needs test sequences: --data FILE")


def _percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise WrongUse(f"--max-drop {text}: expected a percentage such as {MAX_DROP}")
    return value


def _print_trial(trial: Trial) -> None:
    if trial.refused:
        click.echo(f"  tried       {trial.plan!s:<24} refused: {trial.refused}")
        return
    drop = "-" if trial.drop_percent is None else f"{trial.drop_percent:+.3f} %"
    verdict = "taken" if trial.fits else "too much"
    click.echo(
        f"  tried       {trial.plan!s:<24} {kilo(trial.flash_bytes):>9}, SQNR "
        f"{_db(trial.sqnr_db)}, drop {drop}: {verdict}"
    )


def _scaler(file: str | None, raw: str | None, missing: str | None) -> Scaler:
    """The file's scaler with what the options say on top."""
    given = {"raw": raw, "missing": missing}
    return replace(as_scaler(file), **{name: value for name, value in given.items() if value})


def _print_costs(info: dict[str, Any]) -> None:
    click.echo(f"  flash       {kilo(info['flash_bytes'])} of constants (engine code on top)")
    whole = info["ram_bytes"] + info["stream_struct_bytes"]
    parts = f"{info['state_bytes']} state + {info['scratch_bytes']} scratch"
    click.echo(
        f"  RAM         {info['ram_bytes']} B a stream ({parts}), {whole} B with its struct "
        "stw_stream"
    )
    click.echo(f"  work        {info['macs_per_step']} multiply-accumulates a step")
    timing = info["timing"]
    if info["mode"] != "carry":
        click.echo(
            f"  mode        {info['mode']}: an output depends on {timing['remembers_steps']} steps"
        )
    if timing["first_output"] or timing["output_every"] > 1:
        every = (
            "at every step"
            if timing["output_every"] == 1
            else f"every {timing['output_every']} steps"
        )
        click.echo(
            f"  outputs     {every}, the first after {timing['first_output'] + 1} steps; held in "
            "between"
        )


def _warnings(model: stepwell.Model) -> list[str]:
    """All that is worth a warning: of quantisation, and of what was measured against the source."""
    from stepwell.quantize.fidelity import texts

    return [*model.notes.get("warnings", []), *texts(model)]


def _print_notes(model: stepwell.Model) -> None:
    notes = model.notes
    for note in notes.get("import_notes", []):
        click.echo(f"  note        {note}")
    for row in notes.get("repaired_rows", []):
        click.echo(f"  repaired    {row}")
    for warning in _warnings(model):
        click.echo(f"  warning     {warning}", err=True)


@click.command(
    epilog=examples(
        "stepwell info motor.stw",
        "stepwell info motor.stw --board microbit",
        "stepwell info motor.stw --json | jq .ram_bytes",
    )
)
@click.argument("model_file", metavar="MODEL.stw")
@click.option(
    "--board",
    help="Compile for this board, too: flash and RAM of the image, deepest stack of a step.",
)
@json_option
def info(model_file: str, board: str | None, as_json: bool) -> None:
    """Sizes, formats, layers and provenance of a model."""
    model = stepwell.load(model_file)
    facts = model.info()
    image = _trial_build(model, board) if board else None
    if as_json:
        print_json(facts | ({"board": image.costs()} if image else {}))
        return
    click.echo(f"{facts['name']}, id {facts['id']}, format {facts['format']}, {facts['precision']}")
    _print_input(facts)
    named = f": {_outputs_text(facts['outputs'])}" if facts["outputs"] else ""
    click.echo(f"  output      {facts['n_out']} x int32 in {facts['output']['format']}{named}")
    if not model.scaler.is_identity:
        click.echo(f"  scaler      {_scaler_text(facts['scaler'])}")
    _print_costs(facts)
    click.echo("  layers")
    for k, layer in enumerate(facts["layers"]):
        act = "" if layer["activation"] == "none" else f" {layer['activation']}"
        size = f"{layer['n_in']} -> {layer['n_out']}"
        margin = (
            f"overflow margin {layer['overflow_margin_bits']} bits" if layer["macs"] else "no sums"
        )
        memory = f", looks back {layer['looks_back']} steps" if layer.get("looks_back") else ""
        memory += f", ahead {layer['looks_ahead']}" if layer.get("looks_ahead") else ""
        wait = f", from step {layer['first']}" if layer["first"] else ""
        rate = f", every {layer['every']} steps" if layer["every"] > 1 else ""
        text = (
            f"{layer['kind']}{act} '{layer['name']}' {size}, {kilo(layer['flash_bytes'])}, {margin}"
        )
        click.echo(f"    {k} {text}{memory}{wait}{rate}")
    source = facts["notes"].get("source", {})
    if source.get("file"):
        click.echo(
            f"  source      {source['file']} (SHA-256 {source['sha256'][:16]}...), "
            f"{source['producer']}"
        )
    _print_fidelity(model)
    _print_notes(model)
    if image:
        click.echo(
            f"  on {image.board}, by {image.compiler}, with the test program around the model:"
        )
        print_image_costs(image)
    else:
        click.echo(
            "  --board BOARD adds the flash and RAM of a whole image and the deepest stack of a "
            "step"
        )


def _print_input(facts: dict[str, Any]) -> None:
    """The range of the input, channel by channel where they differ."""
    shared, names = facts["input"]["range"], facts["notes"].get("columns") or []
    text = f", range {shared[0]:.4g} .. {shared[1]:.4g}" if shared else ""
    click.echo(f"  input       {facts['n_in']} x int16, scale {facts['input']['scale']:.6g}{text}")
    for k, (low, high) in enumerate([] if shared else facts["input"]["ranges"]):
        name = f" {names[k]}" if k < len(names) else ""
        click.echo(f"    channel {k}{name}: {low:.4g} .. {high:.4g}")


def _trial_build(model: stepwell.Model, board: str) -> Image:
    """The image, for its figures alone: its files are gone."""
    from stepwell.boards.build import build

    with tempfile.TemporaryDirectory(prefix="stepwell-info-") as folder:
        return build(model, board, folder)


def _scaler_text(scaler: dict[str, Any]) -> str:
    names = [
        name for name in ("mean", "std", "low", "high", "fill", "y_mean", "y_std") if name in scaler
    ]
    names += ["the source's own mean, std"] if "source_std" in scaler else []
    raw = f"raw {scaler['raw']} counts, " if scaler["raw"] else ""
    return f"{raw}missing samples: {scaler['missing']}" + (
        f"; per channel {', '.join(names)}" if names else ""
    )


@click.command(
    epilog=examples(
        "stepwell check motor.stw --data test.npz",
        "stepwell check motor.stw --data log.csv --float motor.onnx",
        "stepwell check motor.stw --data test.npz --metric f1",
        "stepwell check motor.stw --data test.npz --metric mine.py:score",
        "stepwell check motor.stw --data log.npz --modes carry,tumble:50,slide:50,stagger:50/5",
    )
)
@click.argument("model_file", metavar="MODEL.stw")
@click.option(
    "--data", required=True, help="Test sequences: .npz (x, optionally targets y), .npy or .csv."
)
@click.option(
    "--float", "float_file", help="The file it was made from (default: found by name and SHA-256)."
)
@click.option(
    "--metric", help=f"The task's metric: {METRIC_HELP} (default: accuracy for labels, else rmse)."
)
@click.option(
    "--modes",
    help="Window modes to compare, separated by commas (default: the model's and carry, if they differ).",
)
@columns_option
@json_option
def check(
    model_file: str,
    data: str,
    float_file: str | None,
    metric: str | None,
    modes: str | None,
    columns: str | None,
    header: bool | None,
    as_json: bool,
) -> None:
    """Compare the source on whole sequences, its float stream and the integer model on your data.

    SQNR, errors, saturation, the task's metric and memory, and window modes with --modes.
    """
    from stepwell.check import compare, compare_modes, reimported, warm_up
    from stepwell.samples import samples_for

    model, wanted = stepwell.load(model_file), find_metric(metric) if metric else None
    source, source_facts = float_source(model, model_file, float_file)
    imported = reimported(model, source)
    graph = imported.graph
    asked = _modes(modes, model, graph)
    samples = samples_for(model, data, split_columns(columns), header)
    with progress("comparing", quiet=as_json) as tick:
        result = compare(model, graph, samples, tick, wanted, imported.source)
    if asked:
        with progress("modes", quiet=as_json) as tick:
            result["modes"] = compare_modes(model, graph, samples, asked, tick, wanted)
    result |= {"warm_up": warm_up(model, samples.sequences), "float": source_facts}
    if as_json:
        print_json(result)
    else:
        _print_check(result)
    if result["engine_mismatches"]:
        raise click.ClickException(
            f"C and reference differ in {result['engine_mismatches']} values: please report this"
        )


def _modes(text: str | None, model: stepwell.Model, graph: Graph) -> list[Mode]:
    """The modes to compare: those asked for, else the model's beside carry, where the graph can run
    in it.
    """
    if text:
        return [parse_mode(part, graph.readout) for part in text.split(",")]
    return [] if model.mode == CARRY or graph.needs_window else [model.mode, CARRY]


def _print_check(result: dict[str, Any]) -> None:
    click.echo(
        f"{result['model']} (id {result['id']}) on {result['data']}: {result['sequences']} "
        f"sequences, {result['steps']} steps"
    )
    if result["no_output"]:
        click.echo(f"  {result['no_output']}")
    else:
        _print_figures(result)
    rails = {place: count for place, count in result["saturation"].items() if count["saturated"]}
    for place, count in rails.items():
        click.echo(f"  saturated   {place}: {count['saturated']} of {count['values']} values")
    if not rails:
        click.echo("  saturated   nothing")
    if result["warm_up"]:
        click.echo(f"  memory      {_warm_up_text(result['warm_up'])}")
    for mode in result.get("modes", []):
        click.echo(f"  mode {mode['mode']:<14} {_mode_text(mode)}")
    click.echo(f"  C = reference: {result['engine_mismatches']} mismatches")


def _print_figures(result: dict[str, Any]) -> None:
    source = result["source"] or {"why_not": "there is no source to run"}
    compared = source["why_not"] is None
    if compared:
        where = f"windows of {source['window']} steps" if source["window"] else "whole sequences"
        click.echo(f"  source      run on {where}, {source['answers']} answers")
    else:
        click.echo(f"  source      not compared: {source['why_not']}")
    click.echo(
        "              integer/stream"
        + ("  stream/source  integer/source" if compared else "")
        + "  largest error"
    )
    rows = [
        (f"output {o['output']}", o["sqnr_db"], f"{o['max_abs_error']:.3g}")
        for o in result["outputs"]
    ]
    sides = (
        list(zip(source["float_outputs"], source["outputs"], strict=True))
        if compared
        else [()] * len(rows)
    )
    for (label, value, error), side in zip(rows, sides, strict=True):
        click.echo(_figures_row(label, value, side, error))
    side = (source["float_sqnr_db"], source["sqnr_db"]) if compared else ()
    click.echo(_figures_row("all outputs", result["sqnr_db"], side, "").rstrip())
    metric = result["metric"]
    if metric:
        change = (
            f"{metric['change_percent']:+.3f} %" if metric["change_percent"] is not None else "-"
        )
        name = f"{metric['name']} ({metric['at']})"
        exact = "" if metric["source"] is None else f"source {metric['source']:.6g}, "
        scores = f"float stream {metric['float']:.6g}, integer {metric['integer']:.6g}"
        click.echo(f"  {name}: {exact}{scores}, change {change}")


def _figures_row(label: str, value: float | None, side: tuple, error: str) -> str:
    cells = f"{_db(value):>14}" + "".join(
        f"{_db(v):>{n}}" for v, n in zip(side, (15, 16), strict=False)
    )
    return f"  {label:<12}{cells}{error:>15}"


def _warm_up_text(found: dict[str, Any]) -> str:
    if found["steps"] is None:
        return f"the state still shows its start after {found['of']} steps: give longer sequences, or let it run on"
    return f"the state has forgotten its start after {found['steps']} steps ({found['sequences']} sequences, 1 % of the range)"


def _mode_text(mode: dict[str, Any]) -> str:
    if mode["no_output"]:
        return mode["no_output"]
    metric = mode["metric"]
    scores = (
        f"{metric['name']} float {metric['float']:.6g}, integer {metric['integer']:.6g}, "
        if metric
        else ""
    )
    return f"{scores}SQNR {_db(mode['sqnr_db'])}, {mode['macs_per_step']} MACs a step, RAM {mode['ram_bytes']} B a stream"


def _db(value: float | None) -> str:
    return "exact" if value is None else f"{value:5.1f} dB"


@click.command(
    epilog=examples(
        "stepwell emit motor.stw -o motor/",
        "stepwell emit motor.stw -o motor/ --target cortex-m4",
        "stepwell emit motor.stw -o src/ --name pump",
    )
)
@click.argument("model_file", metavar="MODEL.stw")
@click.option("-o", "--output", help="The folder to write (default: the model's name).")
@click.option("--name", help="C identifier and file names (default: the model's name).")
@click.option(
    "--target",
    default="any",
    show_default=True,
    help=f"The core to be fast on: {', '.join(TARGETS)}.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Replace files that stepwell did not write, or that were changed since.",
)
@json_option
def emit(
    model_file: str, output: str | None, name: str | None, target: str, force: bool, as_json: bool
) -> None:
    """Write the model as C source with the engine: a folder any C99 compiler builds."""
    from stepwell.emit import c_name
    from stepwell.emit import emit as write
    from stepwell.info import describe

    model = stepwell.load(model_file)
    name = name or c_name(model.name)
    folder = Path(output or name)
    files = write(model, folder, name, target, force)
    facts = describe(model, packing_for(target))
    if as_json:
        sizes = {key: facts[key] for key in ("flash_bytes", "ram_bytes")}
        print_json({"folder": str(folder), "name": name, "files": [p.name for p in files], **sizes})
        return
    click.echo(
        f"{folder}/: {name}.h, {name}.c, the engine ({len(files) - 4} files), main.c, README.md"
    )
    _print_costs(facts)
    click.echo(f"  build it    the command is in {folder}/README.md")


@click.command(
    epilog=examples(
        "stepwell run motor.stw log.csv > outputs.csv",
        "tail -f sensor.csv | stepwell run motor.stw -",
        "stepwell run motor.stw log.csv --json",
    )
)
@click.argument("model_file", metavar="MODEL.stw")
@click.argument("data_file", metavar="[DATA.csv|-]", default="-")
@columns_option
@click.option("--codes", is_flag=True, help="Print the integer outputs instead of real numbers.")
@click.option(
    "--skip-bad",
    is_flag=True,
    help="Report a bad row on stderr and go on; the state stays as it was.",
)
@click.option(
    "--held", is_flag=True, help="Print the last output again at steps that make no new one."
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help='One JSON object a line: {"row": 1, "y": [...], "new": true}.',
)
def run(
    model_file: str,
    data_file: str,
    columns: str | None,
    header: bool | None,
    codes: bool,
    skip_bad: bool,
    held: bool,
    as_json: bool,
) -> None:
    """Stream a csv file or stdin: one line in, one line out, at once. Steps that make no new output
    print nothing.
    """
    from stepwell.samples import RowReader

    model = stepwell.load(model_file)
    name = "stdin" if data_file == "-" else data_file
    may_miss = model.scaler.missing != "refuse"
    reader = RowReader(model.n_in, split_columns(columns), name, may_miss, model.columns, header)
    # bytes that are no UTF-8 become characters that are no numbers, so that the row's own error
    # names them
    if data_file == "-":
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="replace")
        _run_lines(model, sys.stdin, reader, codes, skip_bad, held, as_json)
    else:
        with open(data_file, encoding="utf-8-sig", errors="replace") as file:
            _run_lines(model, file, reader, codes, skip_bad, held, as_json)


def _clipping(model: stepwell.Model, x: np.ndarray) -> str:
    """The range that a value leaves, as text; empty when none does, or when the scaler clamps
    anyway.
    """
    low, high = model.scaler.range(model.n_in, model.x_scale)
    outside = (x < low) | (x > high)
    if model.scaler.low is not None or model.scaler.high is not None or not outside.any():
        return ""
    channel = int(np.argmax(outside))
    return f"input {channel} is outside {low[channel]:.4g} .. {high[channel]:.4g}"


def _run_lines(
    model: stepwell.Model,
    lines: TextIO,
    reader: RowReader,
    codes: bool,
    skip_bad: bool,
    held: bool,
    as_json: bool,
) -> None:
    from stepwell.samples import numbered_lines

    stream, name = model.stream(), reader.name
    n_rows, n_bad, n_printed, clipped = 0, 0, 0, False
    for number, line in numbered_lines(lines):
        try:
            x = reader.parse(line, number)
        except SampleError as error:
            if not skip_bad:
                raise
            click.echo(f"stepwell: {error}", err=True)
            n_bad += 1
            continue
        if x is None:  # a header, or a blank line
            continue
        n_rows += 1
        if not clipped and (text := _clipping(model, x)):
            clipped = True
            click.echo(
                f"stepwell: {name} line {number}: {text}, clipped: scaled as in training?", err=True
            )
        real = stream.step(x)
        if not (stream.fresh or held):
            continue
        if n_printed == 0 and not as_json and len(model.notes.get("outputs", ())) > 1:
            click.echo(_output_header(model))
        n_printed += 1
        y = [round(v * 2**model.y_frac) for v in real] if codes else [float(v) for v in real]
        click.echo(_json_row(number, y, stream.fresh) if as_json else ",".join(_cell(v) for v in y))
        sys.stdout.flush()
    if n_rows == 0 and (n_bad or not skip_bad):
        raise SampleError(f"{name}: no rows" + (f": all {n_bad} were bad" if n_bad else ""))
    if n_rows and not n_printed:
        first = model.info()["timing"]["first_output"] + 1
        click.echo(
            f"stepwell: {name}: {n_rows} rows made no output, the first comes after {first}",
            err=True,
        )


def _output_header(model: stepwell.Model) -> str:
    """Names of all values of an output, as a line of csv; of an output of several values NAME[0],
    NAME[1], ..
    """
    import csv
    import io

    line = io.StringIO()
    names = [(output["name"], int(output["size"])) for output in model.notes["outputs"]]
    csv.writer(line, lineterminator="").writerow(
        f"{name}[{k}]" if size > 1 else name for name, size in names for k in range(size)
    )
    return line.getvalue()


def _json_row(number: int, y: list[float] | list[int], new: bool) -> str:
    import json

    return json.dumps({"row": number, "y": y, "new": new})


def _cell(value: float | int) -> str:
    return str(value) if isinstance(value, int) else f"{value:.9g}"
