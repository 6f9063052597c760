"""Many adapters and large ones, on a small scale; ``make reliability`` does it on a large one."""

from __future__ import annotations

from pathlib import Path

import load_trials


def test_adapters_saved_and_loaded_in_turn_leave_nothing_behind(tmp_path: Path) -> None:
    result = load_trials.saved_and_loaded(30, tmp_path)
    assert result["difference of the last adapter"] == 0
    assert result["layers left behind"] == 0
    # of so few, what libraries cache is a part; an adapter that is kept would show all the same
    growth = result["growth of resident memory, bytes an adapter"]
    assert growth < result["bytes of one adapter"]


def test_adapters_switched_at_random_give_their_own_outputs() -> None:
    result = load_trials.switched(adapters=8, times=40)
    assert result["different outputs"] == 8
    assert result["outputs of another adapter"] == 0


def test_a_refresh_takes_memory_of_the_bases_size() -> None:
    result = load_trials.refreshed(layers=64, rank=64, width=256)
    assert result["largest |QᵀQ − I|"] < 1e-5
    for mode, bound in load_trials.BOUNDS.items():
        taken = result[f"memory of a {mode} refresh, in sizes of the bases"]
        assert bound / 2 < taken <= bound
