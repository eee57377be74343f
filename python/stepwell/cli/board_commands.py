"""boards, build, flash, hil: everything that ends on a board, real or emulated."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

import stepwell
from stepwell.cli.output import columns_option, examples, json_option, kilo, print_json, progress, split_columns

MISMATCH = 1

board_option = click.option(
    "--board", required=True, help="Board name (`stepwell boards` lists them), or your own board's folder: ./myboard."
)


@click.command(epilog=examples("stepwell boards", "stepwell boards --json"))
@json_option
def boards(as_json: bool) -> None:
    """List the boards, the serial ports that are plugged in, and the tools that are installed or missing."""
    from stepwell.inventory import inventory

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
        click.echo(f"  {port['device']:<18}{port['vid_pid'] or 'no USB':<15}{port['description']}{fitting}")
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
    )
)
@click.argument("model_file", metavar="MODEL.stw")
@board_option
@click.option("-o", "--output", default=".", show_default=True, help="Folder for BOARD.elf, .bin, .hex (and .uf2).")
@click.option("--compiler", help="gcc or zig (default: the first that is installed).")
@json_option
def build(model_file: str, board: str, output: str, compiler: str | None, as_json: bool) -> None:
    """Build the test program with MODEL for a board."""
    from stepwell.boards import load_board
    from stepwell.build import build as build_image

    facts = load_board(board)
    model = stepwell.load(model_file)
    image = build_image(model, facts, output, compiler)
    if as_json:
        print_json(image.to_json() | {"label": facts.label})
        return
    sizes = image.sizes
    files = ", ".join([str(image.elf), *(path.suffix for path in image.files[1:])])
    click.echo(f"{files}: {model.name}, id {model.id:08x}, by {image.compiler}; {facts.name} is *{facts.label}*")
    click.echo(f"  flash       {kilo(sizes.flash)}, of which the model's constants {kilo(sizes.constants)}")
    click.echo(
        f"  RAM         {kilo(sizes.ram)}, of which the stream {sizes.stream_ram} B; {sizes.stack} B stack reserved"
    )


@click.command(
    epilog=examples(
        "stepwell flash --board microbit --dry-run",
        "stepwell flash --board netduinoplus2 --image build/netduinoplus2.elf --runner openocd",
        "stepwell flash --board netduinoplus2 --runner stm32loader --port /dev/ttyUSB0",
    )
)
@board_option
@click.option("--image", help="The .elf; the other files are beside it (default: BOARD.elf in this folder).")
@click.option("--runner", help="The program to use (default: the first of the board's that is installed).")
@click.option(
    "--port", help="Serial port of a bootloader; serial number of a probe, if there are several; place of a drive."
)
@click.option("--dry-run", is_flag=True, help="Print the commands of all runners (or of --runner) and do nothing.")
@json_option
def flash(board: str, image: str | None, runner: str | None, port: str | None, dry_run: bool, as_json: bool) -> None:
    """Write an image to a board with the program that can."""
    from stepwell.boards import load_board
    from stepwell.flash import RUNNERS, Files, choose, runners
    from stepwell.flash import flash as run_runner

    facts = load_board(board)
    files = Files(Path(image or f"{facts.name}.elf"))
    if dry_run:
        names = [choose(facts, runner)] if runner else runners(facts)
        commands = {name: RUNNERS[name](facts, files, port) for name in names}
        if as_json:
            print_json({"board": facts.name, "commands": commands})
        else:
            for name, command in commands.items():
                click.echo(f"{name + ':':<12} {shlex.join(command)}")
        return
    chosen = choose(facts, runner)
    if not files.elf.is_file():
        raise click.ClickException(
            f"no {files.elf}: run stepwell build --board {board} MODEL.stw first, or give --image"
        )
    run_runner(facts, files, chosen, port)
    if as_json:
        print_json({"board": facts.name, "runner": chosen, "image": str(files.elf)})
    else:
        click.echo(f"{files.elf} written to {facts.name} by {chosen}")


@click.command(
    epilog=examples(
        "stepwell hil --port sim:netduinoplus2 motor.stw --data test.npz",
        "stepwell hil --port qemu:mps2-an386 motor.stw --data test.npz --image mps2-an386.elf",
        "stepwell hil --port /dev/ttyACM0 --baud 115200 motor.stw --data test.npz --json",
        "stepwell hil --port host: motor.stw --data test.npz",
    )
)
@click.argument("model_file", metavar="MODEL.stw")
@click.option(
    "--port",
    required=True,
    envvar="HIL_PORT",
    help="Serial port, pyserial URL, qemu:BOARD, sim:BOARD, simavr:BOARD or host:.",
)
@click.option("--data", required=True, help="Test sequences: .npz (x), .npy or .csv.")
@columns_option
@click.option("--image", help="ELF for the emulator (default: built from MODEL, in a temporary folder).")
@click.option("--baud", default=115200, show_default=True, help="Baud rate of a serial port.")
@click.option("--steps", type=click.IntRange(min=1), help="Use the first STEPS timesteps only.")
@click.option("--log", type=click.File("a"), help="Append the board's own messages to this file.")
@json_option
def hil(
    model_file: str,
    port: str,
    data: str,
    columns: str | None,
    image: str | None,
    baud: int,
    steps: int | None,
    log: click.utils.LazyFile | None,
    as_json: bool,
) -> None:
    """Stream data through a board and compare every output bit with this machine.

    On a difference: the first wrong step, layer, gate and unit, and exit code 1.
    """
    from stepwell.hil import run_hil
    from stepwell.link import connect
    from stepwell.samples import load_samples

    model = stepwell.load(model_file)
    sequences = first_steps(load_samples(data, model.n_in, columns=split_columns(columns)).sequences, steps)
    with (
        connect(port, model=model, image=image, baud=baud, log=log) as link,
        progress(f"{port}", quiet=as_json) as tick,
    ):
        report = run_hil(link, model, sequences, tick)
    if as_json:
        print_json(report.to_json())
    else:
        _print_report(report)
    if not report.ok:
        raise SystemExit(MISMATCH)


def first_steps(sequences, steps: int | None) -> list:
    """``sequences`` cut so that they hold ``steps`` timesteps together (None: all)."""
    if steps is None:
        return list(sequences)
    kept = []
    for sequence in sequences:
        if steps > 0:
            kept.append(sequence[:steps])
        steps -= len(sequence)
    return kept


def _print_report(report) -> None:
    rate = report.steps / report.seconds if report.seconds else 0.0
    click.echo(f"{report.board} ({report.url}) runs {report.model}, id {report.model_id}")
    click.echo(
        f"  data        {report.sequences} sequences, {report.steps} steps in {report.seconds:.1f} s ({rate:.0f}/s)"
    )
    if report.cost_unit:
        note = " (executed instructions, not cycles)" if report.cost_unit == "instructions" else ""
        click.echo(f"  cost        {report.cost_per_step:g} {report.cost_unit} a step{note}")
        click.echo(
            f"  stack       {report.stack_bytes} B for a step, {report.stack_peak_bytes} B for the whole program"
        )
    click.echo(
        f"  RAM         {report.ram_bytes} B the stream"
        + (f", {report.static_bytes} B in all" if report.static_bytes else "")
    )
    if report.retries:
        click.echo(f"  line        {report.retries} requests were sent again")
    if report.ok:
        click.echo("  outputs     equal, bit for bit")
    else:
        click.echo(f"  outputs     DIFFERENT in {report.mismatches} values\n  {report.first}")
