"""Reproduce the paper's tables: printed figures, grids, runs of ``compare``, pages.

:mod:`.paper` has the printed figures and :mod:`.paper_settings` the grids. :mod:`.grid` carries
the grids out, :mod:`.beside` sets our figures beside the paper's, :mod:`.page` writes them.
"""

from typing import Any

from ..target import Reproducible
from . import paper_settings
from .cost import CostTable
from .table import TrainedTable

_ALL: dict[str, Reproducible[Any]] = {
    **{name: TrainedTable(name, table) for name, table in paper_settings.TABLES.items()},
    "table6": CostTable(),
}
TABLES = {name: _ALL[name] for name in sorted(_ALL)}
"""The tables, by name."""

__all__ = ["TABLES"]
