"""The paper's tables, made anew: settings as data, the grid as runs of ``compare``, a page.

:mod:`.settings` holds what the tables are, :mod:`.grid` carries them out, :mod:`.page` writes them.
"""

from ..target import Reproducible
from . import paper_settings
from .cost import CostTable
from .table import TrainedTable

_ALL: dict[str, Reproducible] = {
    **{name: TrainedTable(name, table) for name, table in paper_settings.TABLES.items()},
    "table6": CostTable(),
}
TABLES = {name: _ALL[name] for name in sorted(_ALL)}
"""By name."""

__all__ = ["TABLES"]
