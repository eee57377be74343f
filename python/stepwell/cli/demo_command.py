"""demo: the whole way, on data that ships with the package."""

from __future__ import annotations

from pathlib import Path

import click

from stepwell.cli.output import examples, json_option, print_json, progress


@click.command(epilog=examples("stepwell demo", "stepwell demo -o /tmp/demo --json"))
@click.option(
    "-o", "--output", default="stepwell-demo", show_default=True, help="The folder to write."
)
@json_option
def demo(output: str, as_json: bool) -> None:
    """From a trained LSTM to C to an emulated board, on real data."""
    from stepwell.demo_run import run_demo

    tell = (lambda line: None) if as_json else click.echo
    with progress("   on the board", quiet=as_json) as tick:
        result = run_demo(Path(output), tell, tick)
    if as_json:
        print_json(result)
    board = result["board"]
    if board and board["mismatches"]:
        raise click.ClickException("the board's outputs differ from the host's")
    if not as_json:
        click.echo(
            "Next: your own model: stepwell convert MODEL.onnx --calib DATA.npz (files of this "
            f"demo: {output}/)"
        )
