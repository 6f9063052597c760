"""Reproduce the paper's tables: printed figures, grids, runs of ``compare``, pages.

:mod:`.paper` has the printed figures and :mod:`.paper_settings` the grids. :mod:`.grid` carries
the grids out, :mod:`.beside` sets our figures beside the paper's, :mod:`.page` writes them.
"""

from ..target import AnyReproducible
from . import paper_settings
from .cost import CostTable
from .table import TrainedTable

_ALL: dict[str, AnyReproducible] = {
    **{name: TrainedTable(name, table) for name, table in paper_settings.TABLES.items()},
    "table6": CostTable(),
}
TABLES = {name: _ALL[name] for name in sorted(_ALL)}
"""The tables, by name."""

__all__ = ["TABLES"]
