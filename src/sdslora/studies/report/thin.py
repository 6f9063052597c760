"""Fewer points than were recorded, so that a page of any run stays small and quick.

Curves keep their extremes (MinMaxLTTB: Van Der Donckt et al., arXiv 2305.00332); cells are means
over successive steps; marks that would touch are drawn once.
"""

import numpy as np
import pandas as pd
from tsdownsample import MinMaxLTTBDownsampler

from .recordings import KEYS

POINTS = 1000  # of one curve
CELLS = 24_000  # of all heat maps of a page
MARKS = 300  # along one time axis


def curve(series: pd.DataFrame, points: int = POINTS) -> pd.DataFrame:
    """Return at most ``points`` rows of ``step`` and ``value``, first and last among them.

    Args:
        series: with finite values, in order of steps.
        points: an even number, as the algorithm takes them two at a time.
    """
    if len(series) <= points:
        return series
    step, value = (series[name].to_numpy(np.float64) for name in ("step", "value"))
    return series.iloc[MinMaxLTTBDownsampler().downsample(step, value, n_out=points)]


def cells(layers: pd.DataFrame, limit: int = CELLS) -> pd.DataFrame:
    """Average over successive steps, so that at most ``limit`` cells, or one a layer, are left.

    Returns:
        ``layers`` with ``step`` the first of a cell's and ``end`` the next cell's.
    """
    steps = np.sort(layers["step"].unique())
    number = max(1, min(len(steps), limit // layers["layer"].nunique()))
    firsts = np.array([part[0] for part in np.array_split(steps, number)])
    # the last cell has the usual width
    ends = np.append(firsts[1:], steps[-1] + (np.median(np.diff(steps)) if len(steps) > 1 else 1))
    place = np.searchsorted(firsts, layers["step"], side="right") - 1
    table = layers.assign(step=firsts[place], end=ends[place].astype(int))
    return table.groupby([*KEYS, "end"], sort=False, as_index=False).mean()


def marks(events: pd.DataFrame, last_step: int, limit: int = MARKS) -> pd.DataFrame:
    """Return at most one event of a kind in each of ``limit`` stretches of the time axis."""
    stretch = events["step"] * limit // (last_step + 1)
    return events[~events.assign(stretch=stretch).duplicated(["stretch", "action"])]
