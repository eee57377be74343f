"""What all commands share in how they speak: --json, examples under --help, progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stepwell.memory import HELP as MEMORY_HELP
from stepwell.memory import at_most
from stepwell.text import printable

if TYPE_CHECKING:
    from stepwell.boards.build import Image
    from stepwell.model import Model

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object instead of text."
)


max_memory_option = click.option(
    "--max-memory",
    metavar="SIZE",
    expose_value=False,
    callback=lambda context, _, size: context.with_resource(at_most(size)),
    help=MEMORY_HELP,
)


def columns_option(command: Callable) -> Callable:
    """--columns, --header and --max-memory: for all commands that read tables."""
    columns = click.option(
        "--columns",
        help="Columns of a csv file in the order of the model's inputs, by header name: s2,s3,s4. "
        "Without a header by number from 0: 1,2,3. Default: by the names the model was made with.",
    )
    header = click.option(
        "--header/--no-header",
        default=None,
        help="Line 1 of a csv file is a header, or data (default: by its looks).",
    )
    return columns(header(max_memory_option(command)))


def split_columns(text: str | None) -> list[str] | None:
    return [name.strip() for name in text.split(",")] if text else None


def examples(*lines: str) -> str:
    """An epilog that click leaves unwrapped."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def print_json(value: Any) -> None:
    text = json.dumps(value, indent=2, sort_keys=False)
    # the one character that JSON leaves and a terminal obeys
    click.echo(text.replace("\x7f", "\\u007f"))


@contextmanager
def progress(label: str, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A callback ``(done, total)`` that draws a bar on stderr; silent when stderr is not a terminal
    or ``quiet``.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    terminal = getattr(sys.stderr, "unescaped", sys.stderr)  # the bar moves the cursor
    with click.progressbar(length=1, label=printable(label), file=terminal) as bar:

        def update(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        yield update


def float_source(model: Model, model_file: str, given: str | None) -> tuple[Path, dict[str, Any]]:
    """The float model to compare ``model`` with, and what --json says of it; a warning when it is
    not the model's source.
    """
    from stepwell.check import find_source, is_source

    path = find_source(model, Path(model_file), given)
    facts = {"file": str(path), "is_source": is_source(model, path)}
    if facts["is_source"] is False:
        made_from = model.notes["source"].get("file", "")
        click.echo(
            f"stepwell: {path} is not the file that {model_file} was made from ('{made_from}', by "
            "SHA-256)",
            err=True,
        )
    return path, facts


def kilo(n_bytes: int) -> str:
    """Bytes as people write them: 640 B, 12.4 kB."""
    return f"{n_bytes} B" if n_bytes < 10000 else f"{n_bytes / 1000:.1f} kB"


def print_image_costs(image: Image) -> None:
    """What an image takes of its board: flash, RAM and the stack of a step."""
    sizes = image.sizes
    click.echo(
        f"  flash       {kilo(sizes.flash)}, of which the model's constants {kilo(sizes.constants)}"
    )
    click.echo(
        f"  RAM         {kilo(sizes.ram)}, of which the stream {sizes.stream_ram} B; "
        f"{sizes.stack} B stack reserved"
    )
    if image.step_stack is None:
        click.echo(
            "  stack       of a step: not known, its bound needs the frames and calls that gcc "
            "tells (10 or later, and avr-gcc)"
        )
    else:
        whole = (
            f"{image.program_stack} B"
            if image.program_stack
            else "not known, as code of the board hides its calls"
        )
        click.echo(
            f"  stack       of a step: at most {image.step_stack} B, by gcc's frames and calls; of "
            f"the whole program: {whole}"
        )
