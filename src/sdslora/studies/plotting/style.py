"""The style of all pictures: sizes, markers, and colours that colour-blind readers tell apart."""

from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_COLOURS = matplotlib.color_sequences["petroff6"]  # made for colour-blind readers
_MARKERS = "osD^vP"


def blank(columns: int, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure with its panels, row by row."""
    figure = Figure(figsize=(5.2 * columns, 4.2 * rows), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels: list[Axes] = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axes in panels:
        axes.grid(alpha=0.3)
    return figure, panels


def line(place: int) -> dict[str, Any]:
    """Return colour and marker of the series at this place."""
    return {
        "color": _COLOURS[place % len(_COLOURS)],
        "marker": _MARKERS[place % len(_MARKERS)],
        "markersize": 4,
        "linewidth": 1.4,
    }
