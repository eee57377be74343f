"""stepwell report."""

from __future__ import annotations

from pathlib import Path

import click

import stepwell
from stepwell.cli.output import (
    columns_option,
    examples,
    float_source,
    json_option,
    print_json,
    progress,
    split_columns,
)
from stepwell.errors import SampleError
from stepwell.metrics import HELP as METRIC_HELP
from stepwell.metrics import find_metric


@click.command(
    epilog=examples(
        "stepwell report motor.stw --data test.npz -o report.html",
        "stepwell report motor.stw --data test.npz --steps 100000 --metric mae",
        "stepwell report motor.stw --data test.npz --json | jq .advice",
    )
)
@click.argument("model_file", metavar="MODEL.stw")
@click.option(
    "--data", required=True, help="Test sequences: .npz (x, optionally targets y), .npy or .csv."
)
@click.option("-o", "--output", help="The page to write (default: beside the model, .html).")
@click.option(
    "--float", "float_file", help="The file it was made from (default: found by name and SHA-256)."
)
@click.option(
    "--steps",
    type=click.IntRange(min=100),
    default=10_000,
    show_default=True,
    help="Length of the run without a reset.",
)
@click.option(
    "--metric", help=f"The task's metric: {METRIC_HELP} (default: accuracy for labels, else rmse)."
)
@columns_option
@json_option
def report(
    model_file: str,
    data: str,
    output: str | None,
    float_file: str | None,
    steps: int,
    metric: str | None,
    columns: str | None,
    header: bool | None,
    as_json: bool,
) -> None:
    """One page on what quantisation costs and where: pictures, tables, and which knob to turn.
    Reads without scripts.
    """
    from stepwell.check import no_output, reimported
    from stepwell.files import check_can_write
    from stepwell.report import analyse, to_json, write_report
    from stepwell.report.pictures import require_matplotlib
    from stepwell.samples import samples_for

    page = Path(output) if output else None if as_json else Path(model_file).with_suffix(".html")
    if page:  # before a long measurement, not after
        require_matplotlib()
        check_can_write(page)
    model, wanted = stepwell.load(model_file), find_metric(metric) if metric else None
    source, source_facts = float_source(model, model_file, float_file)
    graph = reimported(model, source).graph
    samples = samples_for(model, data, split_columns(columns), header)
    if nothing := no_output(model, samples.sequences):
        raise SampleError(f"{data}: {nothing}")
    with progress("measuring", quiet=as_json) as tick:
        analysis = analyse(model, graph, samples, steps, wanted, tick)
    if as_json:
        print_json(to_json(analysis) | {"float": source_facts})
    if page:
        path = write_report(analysis, page)
        click.echo(f"{path}: {path.stat().st_size // 1024} kB", err=as_json)
    if not as_json:
        for line in [*analysis.facts["advice"], *model.notes.get("warnings", [])]:
            click.echo(f"  {line}")
