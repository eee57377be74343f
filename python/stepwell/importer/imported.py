"""What every importer gives."""

from __future__ import annotations

from dataclasses import dataclass

from stepwell.graph import Graph
from stepwell.importer.replay import Replay
from stepwell.importer.source import SourceModel


@dataclass(frozen=True)
class Imported:
    """The graph, how well it replays its source (None when not asked for), and the source itself."""

    graph: Graph
    replay: Replay | None
    source: SourceModel
