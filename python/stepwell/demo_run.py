"""The main job on real data: NASA turbofan engines, from a trained ONNX file to C, to this machine,
to an emulated board.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from stepwell.api import convert
from stepwell.check import compare
from stepwell.emit import emit
from stepwell.files import check_can_make, write_whole
from stepwell.model import Model
from stepwell.samples import Samples, samples_for

FILES = ("turbofan.onnx", "turbofan_calib.npz", "turbofan_test.npz")
BOARD = "netduinoplus2"
HIL_SEQUENCES = 50  # engines that are streamed through the board
CYCLES = 125  # the model's output is remaining useful life / 125 flights

Tell = Callable[[str], None]


def run_demo(folder: Path, tell: Tell, progress: Callable | None = None) -> dict[str, Any]:
    """Do everything in ``folder``; ``tell`` gets lines for a person. Returns the figures as JSON
    types.
    """
    check_can_make(folder, *FILES)
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        write_whole(folder / name, (resources.files("stepwell") / "demo" / name).read_bytes())
    tell(f"1. A trained LSTM and real data: {folder}/turbofan.onnx, {FILES[1]}, {FILES[2]}")
    tell(
        "   NASA C-MAPSS FD001: 14 sensors of a turbofan engine, one row a flight; how many "
        "flights are left?"
    )

    model = convert(folder / FILES[0], folder / FILES[1])
    model.save(folder / "turbofan.stw")
    checked = model.notes["source_check"]
    tell(f"2. Converted to int8: {folder}/turbofan.stw, id {model.id:08x}")
    within = f"within {checked['error']:.0e} of the output's range ({checked['oracle']})"
    tell(f"   stream = source {within}; no accumulator can overflow")

    samples = samples_for(model, folder / FILES[2])
    accuracy = _accuracy(model, folder, samples, tell)
    c_folder = folder / "turbofan"
    emit(model, c_folder, "turbofan")
    facts = model.info()
    tell(
        f"4. Exported as C: {c_folder}/turbofan.c (the command to compile it is in "
        f"{c_folder}/README.md)"
    )
    sizes = f"{facts['flash_bytes']} bytes of constants, {facts['ram_bytes']} bytes of RAM a stream"
    tell(f"   {sizes}, no malloc, no float, no division")
    result = {"folder": str(folder), "id": f"{model.id:08x}", "accuracy": accuracy, "info": facts}
    result["host_us_per_step"] = _host(model, samples, tell)
    result["board"] = _board(model, samples, folder, tell, progress)
    return result


def _accuracy(model: Model, folder: Path, samples: Samples, tell: Tell) -> dict[str, Any]:
    from stepwell.importer import import_onnx

    result = compare(model, import_onnx(folder / FILES[0], verify=False).graph, samples)
    rmse = result["metric"]
    tell(
        f"3. Float against integer on {result['sequences']} test engines, {result['steps']} "
        "flights:"
    )
    tell(
        f"   RMSE {rmse['float'] * CYCLES:.3f} flights (float), {rmse['integer'] * CYCLES:.3f} "
        f"(integer): {rmse['change_percent']:+.3f} %; SQNR {result['sqnr_db']:.1f} dB"
    )
    return result


def _host(model: Model, samples: Samples, tell: Tell) -> float:
    stream, rows = model.stream(), [row for sequence in samples.sequences for row in sequence]
    start = time.perf_counter()
    for row in rows:
        stream.step(row)
    microseconds = (time.perf_counter() - start) / len(rows) * 1e6
    tell(
        f"5. Streamed on this machine: {len(rows)} steps, about {microseconds:.1f} us each from "
        "Python"
    )
    return microseconds


def emulator_at_hand() -> str | None:
    """ "sim" (unicorn) or "qemu", whichever can run here together with a compiler for boards; None
    when neither can.
    """
    from stepwell.boards import load_board
    from stepwell.boards.build import no_compiler
    from stepwell.link.emulators import EMULATORS

    if no_compiler():
        return None
    return next(
        (name for name in ("sim", "qemu") if EMULATORS[name].why_not(load_board(BOARD)) is None),
        None,
    )


def _board(
    model: Model, samples: Samples, folder: Path, tell: Tell, progress: Callable | None
) -> dict[str, Any] | None:
    kind = emulator_at_hand()
    if kind is None:
        tell(
            '6. No emulated board here: pip install "stepwell[sim]" (from a checkout: pip install '
            '".[sim]") brings one'
        )
        return None
    from stepwell.boards.build import build
    from stepwell.link import connect
    from stepwell.link.hil import run_hil

    image = build(model, BOARD, folder)
    sizes = image.sizes
    tell(
        f"6. Built for an STM32F405 (Cortex-M4F, {image.compiler}): {image.elf}, also .bin and "
        ".hex: a real board's image"
    )
    with connect(f"{kind}:{BOARD}", model=model, image=image.elf) as link:
        report = run_hil(link, model, samples.sequences[:HIL_SEQUENCES], progress=progress)
    figures = report.to_json()
    verdict = (
        "the same bits on every step"
        if figures["mismatches"] == 0
        else f"{figures['mismatches']} VALUES DIFFER"
    )
    tell(
        f"   Emulated ({kind}), streamed over its serial line: {figures['steps']} steps, {verdict}"
    )
    tell(
        f"   {figures['instructions_per_step']:.0f} instructions a step, {figures['stack_bytes']} "
        f"bytes of stack, image {sizes.flash} bytes of flash, {sizes.ram} bytes of RAM (test "
        "program included)"
    )
    return figures
