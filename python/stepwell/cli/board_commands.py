"""boards, build, flash, hil, update: everything that ends on a board, real or emulated."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

import stepwell
from stepwell.cli.output import (
    columns_option,
    examples,
    json_option,
    kilo,
    print_image_costs,
    print_json,
    progress,
    split_columns,
)
from stepwell.errors import StepwellError, WrongUse

if TYPE_CHECKING:
    import numpy as np

    from stepwell.link.hil import HilReport

MISMATCH = 1

board_option = click.option(
    "--board",
    required=True,
    help="Board name (`stepwell boards` lists them), or your own board's folder: ./myboard.",
)

no_reset_option = click.option(
    "--no-reset",
    is_flag=True,
    help="Open the serial port with DTR and RTS low, so that an ESP runs on; for an Arduino see docs/hil.md.",
)


@click.command(epilog=examples("stepwell boards", "stepwell boards --json"))
@json_option
def boards(as_json: bool) -> None:
    """List the boards, the serial ports that are plugged in, and the tools that are installed or
    missing.
    """
    from stepwell.boards.inventory import inventory

    found = inventory()
    if as_json:
        print_json(found)
        return
    click.echo("boards")
    for board in found["boards"]:
        runners = " ".join(board["runners"]) or "nothing to flash"
        click.echo(f"  {board['name']:<18}{board['core']:<15}{board['label']:<17}{runners}")
        click.echo(f"  {'':<18}{board['title']}")
    click.echo("serial ports")
    for port in found["ports"]:
        fitting = f": could be {' or '.join(port['boards'])}" if port["boards"] else ""
        click.echo(
            f"  {port['device']:<18}{port['vid_pid'] or 'no USB':<15}{port['description']}{fitting}"
        )
    if not found["ports"]:
        click.echo("  none")
    click.echo("tools")
    for tool in found["tools"]:
        state = "installed" if tool["installed"] else f"missing: {tool['install']}"
        click.echo(f"  {tool['name']:<28}{tool['kind']:<10}{state}")


@click.command(
    epilog=examples(
        "stepwell build --board microbit motor.stw",
        "stepwell build --board netduinoplus2 motor.stw -o build/ --compiler zig",
        "stepwell build --board microbit motor.stw --updates",
    )
)
@click.argument("model_file", metavar="MODEL.stw")
@board_option
@click.option(
    "-o",
    "--output",
    default=".",
    show_default=True,
    help="Folder for BOARD.elf, .bin, .hex (and .uf2).",
)
@click.option(
    "--compiler", help="gcc or zig (default: STEPWELL_COMPILER, else the first that is installed)."
)
@click.option(
    "--mlperf", is_flag=True, help="With the text interface of MLPerf Tiny's and EEMBC's runners."
)
@click.option(
    "--updates",
    is_flag=True,
    help="Takes other models in the field: the whole engine, RAM for them.",
)
@json_option
def build(
    model_file: str,
    board: str,
    output: str,
    compiler: str | None,
    mlperf: bool,
    updates: bool,
    as_json: bool,
) -> None:
    """Build the test program with MODEL for a board."""
    from stepwell.boards import load_board
    from stepwell.boards.build import build as build_image

    if mlperf and updates:
        raise WrongUse(
            "--mlperf and --updates do not go together: MLPerf's text interface takes no updates"
        )
    facts = load_board(board)
    model = stepwell.load(model_file)
    image = build_image(model, facts, output, compiler, mlperf=mlperf, updates=updates)
    if as_json:
        print_json(image.to_json() | {"label": facts.label})
        return
    files = ", ".join([str(image.elf), *(path.suffix for path in image.files[1:])])
    click.echo(
        f"{files}: {model.name}, id {model.id:08x}, by {image.compiler}; {facts.name} is "
        f"*{facts.label}*"
    )
    print_image_costs(image)


@click.command(
    epilog=examples(
        "stepwell flash --board microbit --dry-run",
        "stepwell flash --board netduinoplus2 --image build/netduinoplus2.elf --runner openocd",
        "stepwell flash --board netduinoplus2 --runner stm32loader --port /dev/ttyUSB0",
    )
)
@board_option
@click.option(
    "--image", help="The .elf; the other files are beside it (default: BOARD.elf in this folder)."
)
@click.option(
    "--runner", help="The program to use (default: the first of the board's that is installed)."
)
@click.option(
    "--port",
    help="Serial port of a bootloader; serial number of a probe, if there are several; place of a drive.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check the image, print the commands of all runners (or of --runner), write nothing.",
)
@json_option
def flash(
    board: str,
    image: str | None,
    runner: str | None,
    port: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write an image to a board with the program that can."""
    from stepwell.boards import load_board
    from stepwell.boards.flash import RUNNERS, Files, check_image, choose, runners
    from stepwell.boards.flash import flash as run_runner

    facts = load_board(board)
    files = Files(Path(image or f"{facts.name}.elf"))
    if dry_run:
        names = [choose(facts, runner)] if runner else runners(facts)
        if files.elf.exists():
            check_image(facts, files)
        else:
            click.echo(
                f"stepwell: {files.elf} is not there yet: `stepwell build` writes it", err=True
            )
        commands = {name: RUNNERS[name](facts, files, port) for name in names}
        if as_json:
            print_json({"board": facts.name, "commands": commands})
        else:
            for name, command in commands.items():
                click.echo(f"{name + ':':<12} {shlex.join(command)}")
        return
    chosen = run_runner(facts, files, runner, port)
    if as_json:
        print_json({"board": facts.name, "runner": chosen, "image": str(files.elf)})
    else:
        click.echo(f"{files.elf} written to {facts.name} by {chosen}")


@click.command(
    epilog=examples(
        "stepwell hil --port sim:netduinoplus2 motor.stw --data test.npz",
        "stepwell hil --port qemu:mps2-an386 motor.stw --data test.npz --image mps2-an386.elf",
        "stepwell hil --port /dev/ttyACM0 --baud 115200 motor.stw --data test.npz --json",
        "stepwell hil --port /dev/ttyACM0 motor.stw --data test.npz --steps 1000000 --html "
        "soak.html",
        "stepwell hil --port /dev/ttyACM0 --port rfc2217://bench2:4000 motor.stw --data test.npz",
    )
)
@click.argument("model_file", metavar="MODEL.stw")
@click.option(
    "--port",
    "ports",
    required=True,
    multiple=True,
    envvar="HIL_PORT",
    help="Serial port, pyserial URL, qemu:BOARD, sim:BOARD, simavr:BOARD, rp2040js:BOARD or host:. Several: boards side by side.",
)
@click.option("--data", required=True, help="Test sequences: .npz (x), .npy or .csv.")
@columns_option
@click.option(
    "--image", help="ELF for the emulator (default: built from MODEL, in a temporary folder)."
)
@click.option(
    "--baud",
    type=click.IntRange(min=1),
    default=115200,
    show_default=True,
    help="Of a serial port.",
)
@no_reset_option
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="Stream STEPS timesteps: the first ones, or the data again and again (default: the data once).",
)
@click.option("--log", type=click.File("a"), help="Append the board's own messages to this file.")
@click.option("--html", metavar="FILE", help="Write the result as a page, too.")
@json_option
def hil(
    model_file: str,
    ports: tuple[str, ...],
    data: str,
    columns: str | None,
    header: bool | None,
    image: str | None,
    baud: int,
    no_reset: bool,
    steps: int | None,
    log: click.utils.LazyFile | None,
    html: str | None,
    as_json: bool,
) -> None:
    """Stream data through a board and compare every output bit with this machine.

    On a difference: the first wrong step, layer, gate and unit, and exit code 1.
    """
    from stepwell.files import check_can_write
    from stepwell.link import connect
    from stepwell.link.hil import run_hil, run_side_by_side
    from stepwell.report.hil_page import run_of, write_page
    from stepwell.samples import samples_for

    _check_ports(ports, image)
    if html:
        check_can_write(html)
    model = stepwell.load(model_file)
    samples = samples_for(model, data, split_columns(columns), header)
    sequences = as_many_steps(samples.sequences, steps)

    def run(port: str, tick: Callable[[int, int], object]) -> HilReport:
        with connect(port, model=model, image=image, baud=baud, log=log, no_reset=no_reset) as link:
            return run_hil(link, model, sequences, tick)

    with progress(", ".join(ports), quiet=as_json) as tick:
        results = run_side_by_side([partial(run, port) for port in ports], tick)
    if as_json:
        _print_json(ports, results)
    else:
        for port, result in zip(ports, results, strict=True):
            _print_error(port, result) if isinstance(result, StepwellError) else _print_report(
                result
            )
    if html:
        write_page(
            html,
            f"{model.name} on {len(ports)} board{'s'[: len(ports) > 1]}",
            map(run_of, ports, results),
        )
    if not all(_passed(result) for result in results):
        raise SystemExit(MISMATCH)


def _check_ports(ports: Sequence[str], image: str | None) -> None:
    """What can be said before anything runs: UsageError, or WrongUse."""
    from stepwell.link.emulators import EMULATORS
    from stepwell.link.urls import check_url

    if image and len(ports) > 1:
        raise click.UsageError("--image is for one --port")
    for port in ports:
        check_url(port, image)
        if ports.count(port) > 1 and port.partition(":")[0] not in (*EMULATORS, "host"):
            raise click.UsageError(f"--port {port} is given twice: a board has one line")


def _passed(result: HilReport | StepwellError) -> bool:
    return not isinstance(result, StepwellError) and result.ok


def _print_json(ports: Sequence[str], results: Sequence[HilReport | StepwellError]) -> None:
    """One report as it is; several in a list, with an error in place of one."""
    reports = [
        {"url": port, "error": str(result)}
        if isinstance(result, StepwellError)
        else result.to_json()
        for port, result in zip(ports, results, strict=True)
    ]
    several = {"equal": all(_passed(result) for result in results), "boards": reports}
    print_json(reports[0] if len(reports) == 1 else several)


def as_many_steps(sequences: Sequence[np.ndarray], steps: int | None) -> list[np.ndarray]:
    """``sequences``, repeated and cut so that they hold ``steps`` timesteps together (None: as they
    are).
    """
    if steps is None or not sum(map(len, sequences)):
        return list(sequences)
    kept: list[np.ndarray] = []
    for sequence in itertools.cycle(sequences):
        if steps <= 0:
            break
        kept.append(sequence[:steps])
        steps -= len(sequence)
    return kept


def _print_error(port: str, error: StepwellError) -> None:
    text = str(error)
    click.echo(
        f"stepwell: {text}" if text.startswith(port) else f"stepwell: {port}: {text}", err=True
    )


def _print_report(report: HilReport) -> None:
    rate = report.steps / report.seconds if report.seconds else 0.0
    click.echo(f"{report.board} ({report.url}) runs {report.model}, id {report.model_id}")
    click.echo(
        f"  data        {report.sequences} sequences, {report.steps} steps in {report.seconds:.1f} "
        f"s ({rate:.0f}/s)"
    )
    if report.cost_unit:
        note = " (executed instructions, not cycles)" if report.cost_unit == "instructions" else ""
        click.echo(f"  cost        {report.cost_per_step:g} {report.cost_unit} a step{note}")
        click.echo(
            f"  stack       {report.stack_bytes} B for a step, {report.stack_peak_bytes} B for "
            "the whole program"
        )
    click.echo(
        f"  RAM         {report.ram_bytes} B the stream"
        + (f", {report.static_bytes} B in all" if report.static_bytes else "")
    )
    if report.frames:
        damaged = f"{report.damaged_at_board} + {report.damaged_here} damaged (to the board, back)"
        click.echo(
            f"  line        {report.frames} frames, {damaged}, {report.retries} requests sent again"
        )
    if report.ok:
        click.echo("  outputs     equal, bit for bit")
    else:
        click.echo(f"  outputs     DIFFERENT in {report.mismatches} values\n  {report.first}")


def _program(
    context: click.Context, parameter: click.Parameter, command: str | None
) -> list[str] | None:
    """The words of ``command``; BadParameter when there are none, as of a variable that is not set."""
    if command is None:
        return None
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise click.BadParameter(f"{command}: {error}") from error
    if not words:
        raise click.BadParameter("names no program: is a variable unset?")
    return words


@click.command(
    epilog=examples(
        "stepwell update --port /dev/ttyACM0 motor2.stw",
        "stepwell update --port /dev/ttyACM0 motor2.stw --version 7 --json",
        'stepwell update --port socket://gateway:4000 motor2.stw --sign "python sign_ed25519.py '
        'key.pem"',
    )
)
@click.argument("model_file", metavar="MODEL.stw")
@click.option(
    "--port",
    required=True,
    envvar="HIL_PORT",
    help="Serial port, pyserial URL, qemu:BOARD or sim:BOARD.",
)
@click.option(
    "--version",
    type=click.IntRange(min=1),
    help="Higher than that of the running model (default: higher by one).",
)
@click.option(
    "--sign",
    metavar="COMMAND",
    callback=_program,
    help="Program that reads the update on stdin and writes its signature to stdout.",
)
@click.option("--image", help="ELF for an emulator, which runs another model.")
@click.option(
    "--baud",
    type=click.IntRange(min=1),
    default=115200,
    show_default=True,
    help="Of a serial port.",
)
@no_reset_option
@click.option("--log", type=click.File("a"), help="Append the board's own messages to this file.")
@json_option
def update(
    model_file: str,
    port: str,
    version: int | None,
    sign: list[str] | None,
    image: str | None,
    baud: int,
    no_reset: bool,
    log: click.utils.LazyFile | None,
    as_json: bool,
) -> None:
    """Send MODEL to a board that runs another one.

    The board checks it, keeps the old one until the new one is whole in its flash, and runs the new
    one from then on, after a restart, too. Sent again, an interrupted update goes on where it was.
    """
    from stepwell.link import connect
    from stepwell.link.emulators import EMULATORS
    from stepwell.link.update import sign_with

    if image is None and port.partition(":")[0] in EMULATORS:
        raise click.UsageError(
            f"--port {port} needs --image, an image from `stepwell build --updates`"
        )
    model = stepwell.load(model_file)
    signer = sign_with(sign) if sign else None
    with (
        connect(port, image=image, baud=baud, log=log, no_reset=no_reset) as link,
        progress(port, quiet=as_json) as tick,
    ):
        done = link.update(model, version, signer, tick)
    if as_json:
        print_json(done.to_json())
    elif done.sent == 0:
        click.echo(
            f"{done.board} ({done.url}) runs {done.model}, id {done.model_id}, version "
            f"{done.version} already"
        )
    else:
        click.echo(
            f"{done.board} ({done.url}) runs {done.model}, id {done.model_id}, version "
            f"{done.version} now"
        )
        resumed = f", from byte {done.resumed_at} on" if done.resumed_at else ""
        again = f", {done.retries} requests sent again" if done.retries else ""
        click.echo(f"  sent        {kilo(done.sent)}{resumed} in {done.seconds:.1f} s{again}")
