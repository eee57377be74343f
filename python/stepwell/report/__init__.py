"""The report: what quantisation costs a model, where, and which knob repairs it; one file that
reads without scripts.

``analysis`` measures, ``pictures`` draws (matplotlib, the extra "report"), the template
``report.html.j2`` puts it on a page.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stepwell.files import write_whole
from stepwell.report.analysis import Analysis, analyse
from stepwell.text import render

__all__ = ["Analysis", "analyse", "to_json", "write_report"]


def to_json(analysis: Analysis) -> dict[str, Any]:
    """Everything the page says, without the curves."""
    return json.loads(json.dumps(analysis.facts))


def write_report(analysis: Analysis, path: str | Path) -> Path:
    """The page, with its pictures inside. StepwellError when matplotlib is not installed."""
    from stepwell.report.pictures import draw

    page = render("report.html.j2", a=analysis.facts, pictures=draw(analysis))
    return write_whole(Path(path), page)
