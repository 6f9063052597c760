"""Fewer points, and what they must keep."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdslora.studies.report import thin


def series(number: int, seed: int = 0) -> pd.DataFrame:
    value = np.random.default_rng(seed).normal(size=number).cumsum()
    return pd.DataFrame({"step": np.arange(1, number + 1), "value": value})


@pytest.mark.parametrize("number", [0, 1, 50, 51, 1000, 100_000])
def test_a_curve_keeps_ends_and_extremes(number: int) -> None:
    whole = series(number)
    kept = thin.curve(whole, 50)
    assert len(kept) == min(number, 50)
    assert kept["step"].is_monotonic_increasing
    assert set(kept.itertuples(index=False)) <= set(whole.itertuples(index=False))
    if number:
        assert kept.iloc[[0, -1]].equals(whole.iloc[[0, -1]])
        spread = np.ptp(whole["value"])
        # MinMaxLTTB chooses among the extremes of small stretches
        assert kept["value"].max() >= whole["value"].max() - 0.05 * spread
        assert kept["value"].min() <= whole["value"].min() + 0.05 * spread


def test_one_spike_survives() -> None:
    whole = series(100_000) * 0 + pd.DataFrame({"step": np.arange(100_000), "value": 0.0})
    whole.loc[61_803, "value"] = 1.0
    assert thin.curve(whole)["value"].max() == 1.0


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(st.integers(1, 500), min_size=1, max_size=30, unique=True).map(sorted),
    number=st.integers(1, 4),
    limit=st.integers(1, 60),
)
def test_cells_are_means_over_successive_steps(steps: list[int], number: int, limit: int) -> None:
    rng = np.random.default_rng(len(steps))
    rows = [(step, f"layer {n}", rng.normal()) for step in steps for n in range(number)]
    layers = pd.DataFrame(rows, columns=["step", "layer", "x"])
    cells = thin.cells(layers, limit)
    assert len(cells) <= max(limit, number)
    assert len(cells) == len(layers) or len(layers) > limit
    for _, cell in cells.iterrows():
        inside = [
            x
            for step, layer, x in rows
            if layer == cell["layer"] and cell["step"] <= step < cell["end"]
        ]
        assert cell["x"] == pytest.approx(np.mean(inside))
    firsts, ends = sorted(set(cells["step"])), sorted(set(cells["end"]))
    assert firsts[1:] == ends[:-1], "without gaps"


def test_a_value_that_was_not_measured_is_left_out_of_a_mean() -> None:
    layers = pd.DataFrame({"step": [1, 2], "layer": ["a", "a"], "x": [np.nan, 3.0]})
    assert thin.cells(layers, 1)["x"].tolist() == [3.0]


def test_marks_keep_each_kind_and_spread_over_the_time() -> None:
    steps = np.arange(10, 100_001)
    events = pd.DataFrame({"step": steps, "action": "refresh"})
    events.loc[0, "action"] = "reparameterize"
    kept = thin.marks(events, 100_000, 300)
    assert len(kept) <= 301
    assert kept["action"].tolist().count("reparameterize") == 1
    gaps = np.diff(kept["step"])
    assert gaps[1:].max() <= 2 * 100_000 / 300
    few = events.iloc[::50_000]
    assert thin.marks(few, 100_000, 300).equals(few)
