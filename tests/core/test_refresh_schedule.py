"""``RefreshSchedule`` against Table 7, its boundaries and what it rejects."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest

from sdslora import RefreshSchedule


def actions(schedule: RefreshSchedule) -> list[str]:
    """What follows steps 1 to T."""
    return [schedule.action(step) for step in range(1, schedule.total_steps + 1)]


@pytest.mark.parametrize(
    ("phases", "share"), [(3, 0.611), (4, 0.522), (5, 0.456), (6, 0.408), (7, 0.371)]
)
def test_shares_of_table_7(phases, share):
    """Refreshes per step at the paper's T = 3125; Eq. (8) counts as the first basis computation."""
    schedule = RefreshSchedule(3125, warmup_steps=0, phases=phases)
    assert actions(schedule).count("refresh") / 3125 == pytest.approx(share, abs=1e-3)


@pytest.mark.parametrize("phases", range(1, 9))
def test_the_share_is_the_harmonic_mean_of_the_intervals(phases):
    """H_τ / τ, as phase k of τ refreshes every k-th step."""
    schedule = RefreshSchedule(840 * 100, warmup_steps=0, phases=phases)
    harmonic = sum(1 / k for k in range(1, phases + 1)) / phases
    assert actions(schedule).count("refresh") / 84_000 == pytest.approx(harmonic, abs=2e-4)


def test_phase_k_refreshes_every_kth_step():
    schedule = RefreshSchedule(100, warmup_steps=10, phases=5)
    refreshed = [step for step in range(101) if schedule.action(step) == "refresh"]
    assert refreshed == [
        *range(11, 20),
        *range(20, 40, 2),
        *range(42, 60, 3),
        *range(60, 80, 4),
        *range(80, 100, 5),
    ]


def test_the_phases_are_numbered_from_the_warmup_to_tau():
    schedule = RefreshSchedule(100, warmup_steps=10, phases=5)
    phases = [schedule.phase(step) for step in range(101)]
    assert phases == [0] * 10 + [1] * 10 + [2] * 20 + [3] * 20 + [4] * 20 + [5] * 21
    uniform = RefreshSchedule(100, warmup_steps=10, every=3)
    assert [uniform.phase(step) for step in (9, 10, 60, 100)] == [0, 1, 1, 1]


def test_reparameterizes_once_at_the_end_of_the_warmup():
    schedule = RefreshSchedule(100, warmup_steps=10)
    assert [step for step in range(101) if schedule.action(step) == "reparameterize"] == [10]
    assert {schedule.action(step) for step in range(10)} == {"none"}
    assert schedule.action(11) == "refresh"


def test_without_a_warmup_nothing_is_reparameterized():
    assert set(actions(RefreshSchedule(50, warmup_steps=0))) == {"none", "refresh"}
    # step 0 is before the first step: there is nothing to refresh
    assert RefreshSchedule(50, warmup_steps=0).action(0) == "none"
    assert RefreshSchedule(50, warmup_steps=0).action(1) == "refresh"


def test_uniform_interval():
    schedule = RefreshSchedule(40, warmup_steps=10, every=7)
    assert [t for t in range(41) if schedule.action(t) == "refresh"] == [14, 21, 28, 35]
    assert {schedule.interval(step) for step in range(41)} == {7}
    assert actions(RefreshSchedule(40, 10, every=1)).count("refresh") == 30


def test_interval_grows_by_one_from_phase_to_phase():
    schedule = RefreshSchedule(100, phases=5)
    intervals = [schedule.interval(step) for step in range(100)]
    assert intervals[0] == 1
    assert intervals[-1] == 5
    assert all(later - earlier in (0, 1) for earlier, later in pairwise(intervals))
    assert [schedule.interval(step) for step in (19, 20, 39, 40)] == [1, 2, 2, 3]


def test_boundaries_are_exact_integers():
    """τ t / T in floating point would be off at some of these: 3 · 7 / 21 is 1, not 0.999…"""
    for total in range(11, 400):
        schedule = RefreshSchedule(total, phases=3)
        for phase in range(1, 4):
            start = -(-total * (phase - 1) // 3)
            assert schedule.interval(start) == phase


def test_is_a_pure_value():
    schedule = RefreshSchedule(100)
    assert (schedule.warmup_steps, schedule.phases, schedule.every) == (10, 5, None)
    assert schedule == RefreshSchedule(100, 10, 5)
    assert actions(schedule) == actions(schedule)
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.phases = 3


@pytest.mark.parametrize("total", [0, 1, 9, 10])
def test_refuses_a_training_that_ends_in_its_warmup(total):
    with pytest.raises(ValueError, match=f"total_steps={total} with warmup_steps=10"):
        RefreshSchedule(total, warmup_steps=10)


def test_the_shortest_training():
    assert actions(RefreshSchedule(11, warmup_steps=10))[-2:] == ["reparameterize", "none"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps must be an integer of 0 or more, not -1"),
        ({"phases": 0}, "phases must be an integer of 1 or more, not 0"),
        ({"phases": -2}, "phases must be an integer of 1 or more, not -2"),
        ({"every": 0}, "every must be an integer of 1 or more, not 0"),
        ({"every": -1}, "every must be an integer of 1 or more, not -1"),
    ],
)
def test_refuses_numbers_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        RefreshSchedule(100, **options)
