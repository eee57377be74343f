"""stepwell bench."""

from __future__ import annotations

import re

import click

import stepwell
from stepwell.cli.output import examples, json_option, print_json
from stepwell.errors import WrongUse

UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "Hz": 1.0, "kHz": 1e3, "MHz": 1e6, "GHz": 1e9}
MISSED = 1


def quantity(text: str, option: str, units: tuple[str, ...]) -> float:
    """ "5ms" -> 0.005. WrongUse when it is no positive number with one of ``units``."""
    match = re.fullmatch(r"([0-9.]+(?:e-?[0-9]+)?)\s*([a-zA-Z]*)", text.strip())
    try:
        if match is None or match[2] not in units:
            raise ValueError
        value = float(match[1]) * UNITS[match[2]]
        if not value > 0:
            raise ValueError
    except ValueError:
        raise WrongUse(
            f"{option} {text}: expected a positive number and one of "
            f"{', '.join(filter(None, units))}"
        ) from None
    return value


@click.command(
    epilog=examples(
        "stepwell bench motor.stw",
        "stepwell bench motor.stw --core cortex-m4 --deadline 5ms --clock 64MHz",
        "stepwell bench motor.stw --json | jq '.cores[].instructions_per_step'",
    )
)
@click.argument("model_file", metavar="MODEL.stw")
@click.option("--core", help="Cores, with commas (default: all that are known).")
@click.option("--deadline", help="Time for a step: 5ms, 200us.")
@click.option("--clock", help="Clock of the core: 64MHz.")
@json_option
def bench(
    model_file: str, core: str | None, deadline: str | None, clock: str | None, as_json: bool
) -> None:
    """Instructions of one step on each core: counted in an emulator, or estimated and said so.

    Exit code 1 when a deadline is missed even at one cycle an instruction.
    """
    from stepwell.report.bench import LIKELY_CPI, Deadline
    from stepwell.report.bench import bench as run

    if (deadline is None) != (clock is None):
        raise WrongUse("--deadline and --clock go together: 5ms at 64MHz, say")
    limit = None
    if deadline and clock:
        seconds = quantity(deadline, "--deadline", ("s", "ms", "us"))
        limit = Deadline(seconds, quantity(clock, "--clock", ("Hz", "kHz", "MHz", "GHz")))
    model = stepwell.load(model_file)
    cores = [name.strip() for name in core.split(",")] if core else None
    figures = run(
        model, cores, lambda name: None if as_json else click.echo(f"  {name} ...", err=True)
    )
    verdicts = [limit.verdict(f.instructions_per_step) if limit else None for f in figures]
    macs = model.info()["macs_per_step"]
    if as_json:
        print_json(
            {
                "model": model.name,
                "macs_per_step": macs,
                "cores": [
                    f.to_json()
                    | (
                        {"verdict": v[0], "seconds_least": v[1], "seconds_likely": v[2]}
                        if v
                        else {}
                    )
                    for f, v in zip(figures, verdicts, strict=True)
                ],
            }
        )
    else:
        click.echo(f"{model.name}: {macs} MACs a step; instructions, not cycles")
        for figure, verdict in zip(figures, verdicts, strict=True):
            how = (
                figure.how
                if figure.is_measured
                else f"estimated, within {100 * figure.error:.0f} % on LSTMs and GRUs"
            )
            stack = f", {figure.stack_bytes} B stack" if figure.stack_bytes else ""
            click.echo(f"  {figure.core:<12} {figure.instructions_per_step:>9} ({how}{stack})")
            if figure.note:
                click.echo(f"  {'':<12} {figure.note}")
            if verdict:
                word, least, likely = verdict
                click.echo(
                    f"  {'':<12} {word} {deadline}: {1e3 * least:.3g} ms at 1 cycle an "
                    f"instruction, {1e3 * likely:.3g} ms at {LIKELY_CPI}"
                )
    if any(v and v[0] == "misses" for v in verdicts):
        raise SystemExit(MISSED)
