"""Every engine trains, saves, resumes and exports what a single process would have."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import ENGINES, Engine, batch, loaded
from jobs import SAVED, STEPS, WARMUP, accumulated, alone, lives, refused, tuned, uneven
from ranks import together

from sdslora import SdsLoraScheduler
from toys import logits

pytestmark = pytest.mark.distributed

RELATIVE = 1e-5
"""Of the losses, in float32, over all steps."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    folder = tmp_path_factory.mktemp("lives")
    return folder, together(lives, list(ENGINES), folder)


@pytest.fixture(scope="module")
def single() -> tuple[list[float], torch.nn.Module]:
    result, engine = alone()
    return result["losses"], engine.peft.eval()


@pytest.mark.parametrize("name", ENGINES)
def test_losses_are_those_of_a_single_process(name, results, single):
    for of_rank in results[1]:
        assert len(of_rank[name]["losses"]) == STEPS
        assert of_rank[name]["losses"] == pytest.approx(single[0], rel=RELATIVE)
        assert of_rank[name]["refreshes"] == results[1][0][name]["refreshes"] > 10


@pytest.mark.parametrize("name", ENGINES)
def test_bases_have_the_same_bits_everywhere(name, results):
    for of_rank in results[1]:
        assert of_rank[name]["same_bases"]
        assert of_rank[name]["shared"]
        assert of_rank[name]["sharded"] == name.endswith(("FSDP2", "ZeRO-3"))


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("begin", SAVED)
def test_resumed_bit_for_bit(name, begin, results):
    """After the very step that reset the optimizer, too."""
    for of_rank in results[1]:
        assert of_rank[name]["resumed"][begin] == of_rank[name]["losses"][begin:]


@pytest.mark.parametrize("name", ENGINES)
def test_the_adapter_loads_in_one_process(name, results, single, input_ids):
    found = logits(loaded(results[0] / name / "adapter"), input_ids)
    torch.testing.assert_close(found, logits(single[1], input_ids), atol=1e-5, rtol=1e-5)


def test_more_processes_than_layers_of_a_shape_and_rows():
    """Some have no layer to compute and no part of a matrix."""
    single, _ = alone(end=WARMUP + 5, r=2)
    for of_rank in together(uneven, world=3):
        assert of_rank["losses"] == pytest.approx(single["losses"], rel=RELATIVE)
        assert of_rank["same_bases"]


@pytest.mark.parametrize("use_hira", [False, True])
def test_tuned(use_hira, tmp_path):
    """A and B move too, and the momentum; drift and jump are means over all layers."""
    # a short ramp, so that its end is seen too
    single, _ = alone(end=WARMUP + 5, preset="tuned", ramp_steps=3, use_hira=use_hira)
    assert single["report"][0] > 1e-3
    for of_rank in together(partial(tuned, use_hira=use_hira), tmp_path):
        assert len(of_rank) >= 2
        for found in of_rank.values():
            assert found["losses"] == pytest.approx(single["losses"], rel=RELATIVE)
            assert found["report"] == pytest.approx(single["report"], rel=1e-3, abs=1e-6)
            assert found["same_bases"]
            assert found["again"] == found["losses"][WARMUP:]


def test_accumulated_gradients():
    """``no_sync`` in all but the last batch of a step; the schedule counts steps."""
    single, _ = alone(end=WARMUP + 5, batches=2)
    for of_rank in together(accumulated):
        assert of_rank["losses"] == pytest.approx(single["losses"], rel=RELATIVE)
        assert of_rank["refreshes"] == single["refreshes"] > 0


def test_a_layout_that_is_not_known_is_refused():
    """A sum of the processes' parts, that nobody has formed yet."""
    assert all("does not support adapter parameters placed as" in m for m in together(refused))


def test_an_optimizer_that_has_lost_its_count_is_refused():
    """As torch's distributed checkpoints leave it where the scheduler is made after the load."""
    engine = Engine()
    engine.step(batch(1))
    with pytest.raises(ValueError, match=r"does not say how many .* give completed_steps"):
        SdsLoraScheduler(engine.model, engine.optimizer, STEPS)
    SdsLoraScheduler(engine.model, engine.optimizer, STEPS, completed_steps=0)
