"""Which commands there are, and how their errors end."""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import Any

import click

from stepwell._version import __version__
from stepwell.errors import StepwellError, WrongUse
from stepwell.text import escape_output

FAILED, WRONG_USE = 1, 2

# command -> (module, function): modules are imported when their command runs, so that --help stays
# fast
COMMANDS = {
    "convert": ("model_commands", "convert"),
    "check": ("model_commands", "check"),
    "report": ("report_command", "report"),
    "info": ("model_commands", "info"),
    "emit": ("model_commands", "emit"),
    "run": ("model_commands", "run"),
    "bench": ("bench_command", "bench"),
    "boards": ("board_commands", "boards"),
    "build": ("board_commands", "build"),
    "flash": ("board_commands", "flash"),
    "hil": ("board_commands", "hil"),
    "update": ("board_commands", "update"),
    "demo": ("demo_command", "demo"),
}


class _LazyGroup(click.Group):
    def main(self, *args: Any, **options: Any) -> Any:
        """All that a command prints is escaped, also where it runs inside another program."""
        streams = sys.stdout, sys.stderr
        escape_output()
        try:
            return super().main(*args, **options)
        finally:
            sys.stdout, sys.stderr = streams

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, function = COMMANDS[name]
        return getattr(importlib.import_module(f"stepwell.cli.{module}"), function)


@click.group(
    cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "color": True}
)  # escaped, not stripped
@click.version_option(__version__, prog_name="stepwell")
def cli() -> None:
    """Trained LSTM -> int8 fixed-point C -> host, emulator, microcontroller: the same bits everywhere.

    \b
    stepwell demo                                    the whole way on real data
    stepwell convert motor.onnx --calib train.npz    -> motor.stw
    stepwell check motor.stw --data test.npz         what int8 costs in accuracy
    stepwell report motor.stw --data test.npz        -> a page: where it costs, and which knob repairs it
    stepwell bench motor.stw --deadline 5ms --clock 64MHz    instructions a step on each core
    stepwell emit motor.stw -o motor/                -> C source, any C99 compiler
    tail -f sensor.csv | stepwell run motor.stw -    stream on this machine
    stepwell hil --port qemu:mps2-an386 motor.stw --data test.npz    the same bits on a board?
    stepwell boards                                  which boards, ports and tools there are
    stepwell update --port /dev/ttyACM0 new.stw      another model into the running board, power-cut safe
    """


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    """One line, without the place in the code."""
    click.echo(f"stepwell: {message}", err=True)


def run() -> int:
    """The command that was typed, and its exit code: errors that stepwell raises on purpose become
    one line on stderr.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = cli(standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.UsageError as error:
        error.show()
        return WRONG_USE
    except click.ClickException as error:
        click.echo(f"stepwell: {error.format_message()}", err=True, color=True)
        return FAILED
    except click.Abort:  # click's word for Ctrl-C
        raise KeyboardInterrupt from None
    except BrokenPipeError:  # the reader went away: `stepwell run ... | head`
        sys.stderr.close()
        return FAILED
    except (StepwellError, OSError) as error:
        named = isinstance(error, OSError) and error.filename and error.strerror
        text = f"{error.filename}: {error.strerror}" if named else str(error)
        click.echo(f"stepwell: {text}", err=True, color=True)
        return WRONG_USE if isinstance(error, WrongUse) else FAILED
