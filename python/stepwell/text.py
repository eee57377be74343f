"""Text that stepwell did not write, made safe for the place it goes to: C source, a page, Markdown,
the terminal.

Names, notes, headers of files, a board's words and paths may hold anything. Each place has one
function here, and one door that applies it: ``render`` for every template, ``escape_output`` for
every command.
"""

from __future__ import annotations

import html
import re
import sys
from typing import Any, TextIO


def printable(text: str, keep: str = "") -> str:
    """``text`` with an escape such as \\x1b for each character that cannot be seen, unless ``keep`` holds it.

    These are controls, marks that turn the direction of writing, spaces other than " ", and halves of surrogate pairs.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )


def terminal_text(text: str, encoding: str | None = None) -> str:
    """``text`` as lines that a terminal shows and does not obey, in the characters of ``encoding``."""
    encoding = encoding or "utf-8"
    return printable(text, "\n").encode(encoding, "backslashreplace").decode(encoding)


def c_text(text: str) -> str:
    """``text`` as it may stand in a C comment or between the quotes of a C string: one line of
    ASCII that ends neither.
    """
    safe = printable(text).encode("ascii", "backslashreplace").decode()
    safe = safe.replace("\\", "\\\\").replace('"', '\\"')
    safe = re.sub(r"\*(?=/)|/(?=\*)", r"\g<0> ", safe)
    return re.sub(r"\?(?=\?)", r"?\\", safe)  # no trigraph


def markdown_text(text: str) -> str:
    """``text`` as it may stand in Markdown outside of code: no tag, link, code or cell of a table
    begins in it.
    """
    return re.sub(
        r"[`\[\]|]", lambda m: f"&#{ord(m[0])};", html.escape(printable(text), quote=False)
    )


def html_text(text: str) -> str:
    """``text`` as it may stand in HTML, between tags or in a quoted attribute. Lines stay lines."""
    return html.escape(printable(text, "\n"))


ESCAPES = {".html.j2": html_text, ".md.j2": markdown_text, ".c.j2": c_text, ".h.j2": c_text}


def render(template: str, **facts: Any) -> str:
    """A template with ``facts`` put in. Every text in them is escaped for the language that the
    template's name tells.

    Markup alone is put in as it stands: the report's own pictures.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined  # slow to import
    from markupsafe import Markup

    escape = next(escape for ending, escape in ESCAPES.items() if template.endswith(ending))

    def finalize(value: Any) -> Any:
        return (
            Markup(escape(value))
            if isinstance(value, str) and not isinstance(value, Markup)
            else value
        )

    environment = Environment(
        loader=PackageLoader("stepwell"),
        undefined=StrictUndefined,
        autoescape=escape is html_text,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(facts)


class EscapedStream:
    """A text stream whose ``write`` passes through ``terminal_text``; the rest is that of
    ``unescaped``.
    """

    buffer = None  # click would write to it where the encoding is ASCII

    def __init__(self, unescaped: TextIO):
        self.unescaped = unescaped

    def write(self, text: str) -> int:
        self.unescaped.write(terminal_text(text, self.unescaped.encoding))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unescaped, name)


def escape_output() -> None:
    """From now on all that this process prints is escaped: results, errors, warnings and
    tracebacks.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, EscapedStream):
            setattr(sys, name, EscapedStream(stream))
