"""The page itself: HTML by Jinja, which escapes every name and value from a file."""

from collections.abc import Sequence

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ... import __version__
from ..plotting import palette
from . import configuration, curves, summary
from .heat_map import heat_map
from .runs import Run

TITLE_END = " · sdslora report"
_CHARTS = (curves.loss, curves.learning_rate, curves.means, heat_map)


def page(runs: Sequence[Run], numbers: Sequence[str]) -> str:
    """Return one HTML file that needs no other file and no server.

    Args:
        runs: of the report.
        numbers: names of the CSV files beside the page.
    """
    environment = Environment(
        loader=PackageLoader(__package__, "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    configurations = configuration.table(runs)
    return environment.get_template("page.html").render(
        runs=runs,
        title=names(runs) + TITLE_END,
        answers=summary.answers(runs),
        charts=[chart for draw in _CHARTS if (chart := draw(runs)) is not None],
        numbers=numbers,
        summary=summary.table(runs),
        differences=configuration.differences(configurations),
        configurations=configurations,
        environment=configuration.environment(runs),
        palette=palette,
        # Vega, Vega-Lite and vega-embed
        library=Markup(vl_convert.javascript_bundle()),  # type: ignore[call-arg]
        version=__version__,
    )


def names(runs: Sequence[Run]) -> str:
    """Return the names of the runs, as the title of the page has them."""
    return ", ".join(run.name for run in runs)
