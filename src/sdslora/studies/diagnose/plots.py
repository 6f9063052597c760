"""The figures as pictures: the spectrum of ΔW, and every layer's ranks and cosines."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...app.recording import Figures
from ..plotting.layer_names import rows, short_names
from ..plotting.style import blank, line

_LABELS = 60  # names of layers along an axis

_WEIGHTS = {
    "Effective rank of the factors": {"A": "effective_rank_A", "B": "effective_rank_B"},
    "Condition number": {"A": "condition_A", "B": "condition_B", "ΔW": "condition_delta"},
}
_GRADIENTS = {
    f"Effective rank: gradient of {side}": {
        "as the optimizer gets it": f"gradient_rank_{side}",
        "without singular values": f"direction_rank_{side}",
    }
    for side in "AB"
} | {
    "Cosine with the full gradient": {
        "this adapter": "alignment",
        "SDS-LoRA, same ΔW": "alignment_sds",
        "the most any step can have": "alignment_bound",
    }
}


def all_of(layers: Mapping[str, Figures]) -> dict[str, Figure]:
    """Return the pictures by the names of their files."""
    with_data = "alignment" in next(iter(layers.values()))
    return {
        "spectrum": spectrum(layers),
        "layers": by_layer(layers, _GRADIENTS if with_data else _WEIGHTS),
    }


def spectrum(layers: Mapping[str, Figures]) -> Figure:
    """Draw the singular values of ΔW over the largest: a line a layer, and their median."""
    figure, (axes,) = blank(1)
    curves = [np.array(figures["singular_values"]) for figures in layers.values()]
    # a layer without a change has no spectrum
    curves = [curve / curve[0] for curve in curves if curve[0] > 0]
    longest = max(map(len, curves))
    table = np.full((len(curves), longest), np.nan)
    for row, curve in zip(table, curves, strict=True):
        row[: len(curve)] = np.where(curve > np.finfo(np.float32).eps, curve, np.nan)
    order = np.arange(1, longest + 1)
    axes.plot(order, table.T, color="#888888", linewidth=0.7, alpha=0.3)
    has_values = ~np.isnan(table).all(axis=0)
    axes.plot(order[has_values], np.nanmedian(table[:, has_values], axis=0), **line(0))
    axes.set(
        yscale="log",
        xlabel="singular value of ΔW",
        ylabel="over the largest",
        title=f"Spectrum of ΔW: {len(curves)} layers and their median",
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def by_layer(layers: Mapping[str, Figures], panels: Mapping[str, Mapping[str, str]]) -> Figure:
    """Draw a panel a measure and a row a layer; layers of a kind stand together."""
    names = rows(pd.Series(list(layers)))
    figure, grid = blank(len(panels))
    figure.set_figheight(min(max(0.05 * len(names), 4.2), 11))
    for axes, (title, measures) in zip(grid, panels.items(), strict=True):
        for place, (label, key) in enumerate(measures.items()):
            values = [layers[name][key] for name in names]
            # hollow, so that none hides another
            style = line(place) | {"linewidth": 0, "markerfacecolor": "none"}
            axes.plot(np.array(values, float), np.arange(len(names)), **style, label=label)
        axes.set_title(title, fontsize=10)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=2.5, fontsize=8)
        axes.invert_yaxis()
        # without a condition number there is nothing to put on a logarithmic axis
        if title.startswith("Condition") and np.isfinite(axes.dataLim.x1):
            axes.set_xscale("log")
    _name_rows(grid[0], short_names(names))
    for axes in grid[1:]:
        axes.tick_params(labelleft=False)
    return figure


def _name_rows(axes: Axes, names: list[str]) -> None:
    every = -(-len(names) // _LABELS)
    # a name with dollar signs is no formula
    axes.set_yticks(np.arange(0, len(names), every), names[::every], fontsize=6, parse_math=False)
