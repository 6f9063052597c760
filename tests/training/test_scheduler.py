"""``SdsLoraScheduler``: what it does, after exactly which steps, and what it rejects."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from observing import REFRESHED, action_between, adapter_parameters, loss_of, snapshot, trainable
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from sdslora import SdsLoraConfig, SdsLoraScheduler
from toys import make_llama, sds_model, train


def adamw(model: nn.Module, **options: object) -> torch.optim.AdamW:
    return torch.optim.AdamW(trainable(model), lr=1e-2, weight_decay=0.0, **options)


def observe(
    model: nn.Module, total_steps: int = 12, adapters: tuple[str, ...] = ("default",)
) -> dict[str, dict[int, str]]:
    """Train to the end; what the scheduler did to each adapter, by step, where it did something."""
    optimizer = adamw(model)
    scheduler = SdsLoraScheduler(model, optimizer, total_steps)
    seen: dict[str, dict[int, str]] = {adapter: {} for adapter in adapters}
    for step in range(1, total_steps + 1):
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        before = {adapter: snapshot(model, adapter) for adapter in adapters}
        scheduler.step()
        for adapter in adapters:
            action = action_between(before[adapter], snapshot(model, adapter))
            if action != "none":
                seen[adapter][step] = action
    return seen


@pytest.mark.parametrize("mode", ["qr", "preserve"])
def test_acts_after_exactly_the_steps_of_the_schedule(tiny_llama, mode):
    model = sds_model(tiny_llama, refresh_mode=mode)
    expected = {3: "reparameterize"} | dict.fromkeys(REFRESHED, f"refresh:{mode}")
    assert observe(model) == {"default": expected}


def test_refresh_every_replaces_the_phases(tiny_llama):
    model = sds_model(tiny_llama, refresh_every=3, warmup_steps=4)
    assert observe(model)["default"] == {
        4: "reparameterize",
        6: "refresh:qr",
        9: "refresh:qr",
        12: "refresh:qr",
    }


def test_refresh_phases_is_tau(tiny_llama):
    """τ = 1 refreshes after every step but the last, whose interval is 2 (T = 11 is odd)."""
    model = sds_model(tiny_llama, refresh_phases=1)
    assert set(observe(model, total_steps=11)["default"]) == set(range(3, 11))


def test_several_adapters_each_follow_their_own_schedule(tiny_llama):
    model = sds_model(tiny_llama)
    second = SdsLoraConfig(
        r=2, target_modules=["q_proj", "up_proj"], warmup_steps=5, refresh_mode="preserve",
        refresh_every=4,
    )  # fmt: skip
    model.add_adapter("second", second)
    model.base_model.set_adapter(["default", "second"])
    assert observe(model, adapters=("default", "second")) == {
        "default": {3: "reparameterize"} | dict.fromkeys(REFRESHED, "refresh:qr"),
        "second": {5: "reparameterize", 8: "refresh:preserve", 12: "refresh:preserve"},
    }


def test_an_adapter_that_is_not_trained_is_left_alone(tiny_llama):
    model = sds_model(tiny_llama)
    train(model)
    frozen = snapshot(model)
    model.add_adapter("second", SdsLoraConfig(r=2, target_modules=["q_proj"], warmup_steps=5))
    model.set_adapter("second")
    assert min(observe(model, adapters=("second",))["second"]) == 5
    assert snapshot(model).equal(frozen)


@pytest.fixture
def process_group() -> Iterator[None]:
    """A group of this process alone, without a network."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_the_model_may_be_inside_another(tiny_llama, process_group):
    model = sds_model(tiny_llama)
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = adamw(parallel)
    scheduler = SdsLoraScheduler(parallel, optimizer, 12)
    for step in range(1, 5):
        loss_of(parallel, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        before = snapshot(model)
        scheduler.step()
    assert action_between(before, snapshot(model)) == "refresh:qr"


def test_two_peft_models_in_one_module_are_both_driven():
    """As text encoder and denoiser of a diffusion pipeline are, with adapters of any names."""
    first = sds_model(make_llama())
    second = get_peft_model(
        make_llama(1),
        SdsLoraConfig(r=2, target_modules=["q_proj"], warmup_steps=4),
        adapter_name="other",
    )
    both = nn.ModuleDict({"first": first, "second": second})
    optimizer = adamw(both)
    scheduler = SdsLoraScheduler(both, optimizer, 12)
    gates = []
    for step in range(1, 6):
        (loss_of(first, step) + loss_of(second, step)).backward()
        optimizer.step()
        scheduler.step()
        gates.append((snapshot(first).gate(), snapshot(second, "other").gate()))
    assert gates == [(1, 1), (1, 1), (0, 1), (0, 0), (0, 0)]


def test_its_figures(tiny_llama):
    """Phase: 0, then 1 to τ. Refreshes: from the first one. Steps: the optimizer's."""
    model = sds_model(tiny_llama)
    optimizer = adamw(model)
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    assert (scheduler.phase, scheduler.refresh_count, scheduler.completed_steps) == (0, 0, 0)
    figures = []
    for step in range(1, 13):
        loss_of(model, step).backward()
        optimizer.step()
        scheduler.step()
        figures.append((scheduler.phase, scheduler.refresh_count, scheduler.completed_steps))
    assert figures == [
        (0, 0, 1), (0, 0, 2), (2, 0, 3), (2, 1, 4), (3, 1, 5), (3, 2, 6),
        (3, 2, 7), (4, 3, 8), (4, 3, 9), (5, 4, 10), (5, 4, 11), (5, 5, 12),
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["qr", "preserve"])
def test_the_report_of_a_refresh_against_dense_matrices(tiny_llama, mode):
    model = sds_model(tiny_llama, refresh_mode=mode)
    optimizer = adamw(model)
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    for step in range(1, 7):
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        before = snapshot(model)
        report = scheduler.step(measure=step == 6)
        assert (report is not None) == (step == 6)
    after = snapshot(model)
    drifts, jumps = [], []
    for layer in {name for name, _ in before.tensors}:
        A, B, Q_A, Q_B = (before.tensors[layer, k].double() for k in ("A", "B", "Q_A", "Q_B"))
        A2, B2, P_A, P_B = (after.tensors[layer, k].double() for k in ("A", "B", "Q_A", "Q_B"))
        old, new = B @ Q_A.mT + Q_B @ A, B2 @ P_A.mT + P_B @ A2
        jumps.append(((new - old).norm() / old.norm()).item())
        drifts += [
            1 - torch.trace(Q_A.mT @ P_A).item() / 4,
            1 - torch.trace(Q_B.mT @ P_B).item() / 4,
        ]
    assert report.basis_drift == pytest.approx(sum(drifts) / len(drifts), rel=1e-4, abs=1e-6)
    assert sum(drifts) / len(drifts) > 1e-3  # the bases did move
    mean_jump = sum(jumps) / len(jumps)
    if mode == "qr":
        assert mean_jump > 1e-2
        assert report.relative_jump == pytest.approx(mean_jump, rel=1e-3)
    else:
        assert max(mean_jump, report.relative_jump) < 2e-6


def test_a_step_without_a_refresh_measures_nothing(tiny_llama):
    model = sds_model(tiny_llama)
    optimizer = adamw(model)
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    loss_of(model, 1).backward()
    optimizer.step()
    assert scheduler.step(measure=True) is None


# --- a trained adapter, trained on


def test_a_trained_adapter_is_refreshed_from_the_first_step_and_not_reparameterized(tiny_llama):
    model = sds_model(tiny_llama)
    train(model)
    assert snapshot(model).gate() == 0
    # interval ⌊5 t / 12⌋ + 1 of steps 1 to 3: 1, 1, 2
    assert observe(model)["default"] == dict.fromkeys([1, 2, *REFRESHED], "refresh:qr")


def test_a_trained_adapter_keeps_the_moments_of_its_second_training(tiny_llama):
    model = sds_model(tiny_llama)
    train(model)
    optimizer = adamw(model)
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    for step in range(1, 7):
        loss_of(model, step).backward()
        optimizer.step()
        scheduler.step()
        assert {int(optimizer.state[p]["step"]) for p in trainable(model)} == {step}


def test_a_trained_adapter_may_be_trained_on_for_fewer_steps_than_a_warmup(tiny_llama):
    """There is no warm-up left that the training would have to outlast."""
    model = sds_model(tiny_llama, refresh_every=1)
    train(model)
    assert observe(model, total_steps=2)["default"] == dict.fromkeys([1, 2], "refresh:qr")


def test_the_refresh_count_of_a_second_training_survives_a_resume(tiny_llama):
    model = sds_model(tiny_llama)
    train(model)
    optimizer = adamw(model)
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    for step in range(1, 7):
        loss_of(model, step).backward()
        optimizer.step()
        scheduler.step()
    assert scheduler.refresh_count == 4  # after steps 1, 2, 4 and 6
    resumed = SdsLoraScheduler(model, optimizer, 12)
    resumed.load_state_dict(scheduler.state_dict())
    assert resumed.refresh_count == 4


# --- misuse


def test_stepping_too_rarely_is_an_error(tiny_llama):
    model = sds_model(tiny_llama)
    optimizer = adamw(model)
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    for step in range(1, 3):
        loss_of(model, step).backward()
        optimizer.step()
    with pytest.raises(
        RuntimeError, match=r"must follow every optimizer.step.*taken 2.*knows of 0"
    ):
        scheduler.step()


def test_stepping_too_often_does_nothing(tiny_llama):
    model = sds_model(tiny_llama)
    optimizer = adamw(model)
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    for step in range(1, 5):
        loss_of(model, step).backward()
        optimizer.step()
        scheduler.step()
        before = snapshot(model)
        scheduler.step()
        scheduler.step()
        assert snapshot(model).equal(before)
    assert scheduler.refresh_count == 1


@pytest.mark.parametrize("total", [1, 9, 10])
def test_a_training_within_the_warmup_names_both_numbers(tiny_llama, total):
    model = sds_model(tiny_llama, warmup_steps=10)
    with pytest.raises(ValueError, match=rf"total_steps={total} with warmup_steps=10"):
        SdsLoraScheduler(model, adamw(model), total)
    SdsLoraScheduler(model, adamw(model), 11)


def test_no_adapter_is_an_error(tiny_llama):
    with pytest.raises(ValueError, match=r"no trainable SDS-LoRA adapter.*SdsLoraConfig"):
        SdsLoraScheduler(tiny_llama, adamw(tiny_llama), 12)


def test_plain_lora_is_an_error(tiny_llama):
    model = get_peft_model(tiny_llama, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="no trainable SDS-LoRA adapter"):
        SdsLoraScheduler(model, adamw(model), 12)


def test_a_frozen_adapter_is_an_error_that_names_is_trainable(tiny_llama):
    model = sds_model(tiny_llama)
    optimizer = adamw(model)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"is_trainable=True"):
        SdsLoraScheduler(model, optimizer, 12)


def test_an_optimizer_of_another_model_is_refused(tiny_llama):
    model = sds_model(tiny_llama)
    optimizer = adamw(copy.deepcopy(model))
    with pytest.raises(
        RuntimeError, match=r"\(AdamW\) does not hold 28 of the 28 parameters of .*'default'"
    ):
        SdsLoraScheduler(model, optimizer, 12)


def test_an_optimizer_that_lacks_one_parameter_is_refused(tiny_llama):
    model = sds_model(tiny_llama)
    optimizer = torch.optim.AdamW(adapter_parameters(model)[:-1], lr=1e-2)
    with pytest.raises(RuntimeError, match="does not hold 1 of the 28 parameters"):
        SdsLoraScheduler(model, optimizer, 12)


def test_several_parameter_groups(tiny_llama):
    """As with a learning rate of its own for B, of which the first group holds no A."""
    model = sds_model(tiny_llama)
    parameters = adapter_parameters(model)
    optimizer = torch.optim.AdamW(
        [{"params": parameters[1::2], "lr": 2e-2}, {"params": parameters[::2]}], lr=1e-2
    )
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    for step in range(1, 5):
        loss_of(model, step).backward()
        optimizer.step()
        scheduler.step()
    assert {int(state["step"]) for state in optimizer.state.values()} == {1}
    assert [group["lr"] for group in optimizer.param_groups] == [2e-2, 1e-2]


def test_an_optimizer_of_deepspeeds_other_than_zero_is_refused(tiny_llama):
    class BF16_Optimizer:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    class AcceleratesWrapper(torch.optim.AdamW):
        def __init__(self, optimizer: object) -> None:
            self.optimizer = optimizer

    BF16_Optimizer.__module__ = "deepspeed.runtime.bf16_optimizer"
    model = sds_model(tiny_llama)
    refused = BF16_Optimizer(adamw(model))
    for optimizer in (refused, AcceleratesWrapper(refused)):
        with pytest.raises(ValueError, match=r"^SDS-LoRA does not support DeepSpeed's BF16.*ZeRO"):
            SdsLoraScheduler(model, optimizer, 12)


def test_a_sharding_optimizer_is_refused(tiny_llama, process_group):
    """Its moments are in an optimizer of its own, where the reset would not reach them."""
    model = sds_model(tiny_llama)
    optimizer = ZeroRedundancyOptimizer(trainable(model), optimizer_class=torch.optim.AdamW)
    with pytest.raises((TypeError, ValueError, RuntimeError), match="ZeroRedundancyOptimizer"):
        SdsLoraScheduler(model, optimizer, 12)


def test_what_is_no_optimizer_is_refused(tiny_llama):
    model = sds_model(tiny_llama)
    with pytest.raises(TypeError, match=r"need a torch.optim.Optimizer, not list"):
        SdsLoraScheduler(model, trainable(model), 12)


def test_a_saved_state_of_another_length_is_refused(tiny_llama):
    model = sds_model(tiny_llama)
    state = SdsLoraScheduler(model, adamw(model), 12).state_dict()
    other = SdsLoraScheduler(model, adamw(model), 20)
    with pytest.raises(ValueError, match=r"total_steps=12, this one of total_steps=20"):
        other.load_state_dict(state)


def test_forgetting_the_schedulers_state_on_resume_is_an_error(tiny_llama):
    model = sds_model(tiny_llama)
    optimizer = adamw(model)
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    loss_of(model, 1).backward()
    optimizer.step()
    scheduler.step()
    loss_of(model, 2).backward()
    optimizer.step()
    saved = optimizer.state_dict()
    fresh = adamw(model)
    scheduler = SdsLoraScheduler(model, fresh, 12)
    fresh.load_state_dict(saved)
    with pytest.raises(RuntimeError, match=r"After loading the optimizer's state, load the"):
        scheduler.step()


@pytest.mark.parametrize("at", [2, 6])
def test_a_gradient_that_is_nan_is_named_at_its_step(tiny_llama, at):
    """In the warm-up, and in the main stage, where step 6 refreshes."""
    model = sds_model(tiny_llama)
    optimizer = adamw(model)
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    for step in range(1, at + 1):
        loss = loss_of(model, step) * (float("nan") if step == at else 1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step < at:
            scheduler.step()
    with pytest.raises(RuntimeError, match=rf"A or B of .* not finite after step {at}: .* NaN"):
        scheduler.step()
    assert scheduler.completed_steps == at
