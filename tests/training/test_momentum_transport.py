"""``transport_momentum``: the optimizer's momentum follows the bases, and nothing else does."""

from __future__ import annotations

import pytest
import torch
from observing import loss_of, trainable
from peft import get_peft_model
from torch import Tensor, nn

from sdslora import SdsLoraConfig, SdsLoraScheduler
from sdslora.optim import create_muon_optimizer
from sdslora.tuner import PhasedAdapter
from toys import make_llama, make_mixtral, sds_model

OPTIMIZERS = {
    "adamw": lambda model: torch.optim.AdamW(trainable(model), lr=1e-2),
    "amsgrad": lambda model: torch.optim.AdamW(trainable(model), lr=1e-2, amsgrad=True),
    "momentum": lambda model: torch.optim.SGD(trainable(model), lr=1e-2, momentum=0.9),
    "muon": lambda model: create_muon_optimizer(model, 1e-2),
    "nothing": lambda model: torch.optim.SGD(trainable(model), lr=1e-2),
}
MOMENTUM = {"exp_avg", "momentum_buffer"}


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[tuple[str, str], Tensor]:
    """By parameter and name, copied; no counters."""
    return {
        (parameter_name, name): value.clone()
        for parameter_name, parameter in model.named_parameters()
        for name, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor) and value.ndim
    }


def bases(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    layers = PhasedAdapter(model, "default").layers
    return {
        name: (state.Q_A.clone(), state.Q_B.clone())
        for name, state in ((n, layer.adapter_state("default")) for n, layer in layers.items())
    }


def expected(momentum: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """One matrix (r, k), in float64."""
    return new.double().T @ (old.double() @ momentum.double())


def to_the_brink(model: nn.Module, optimizer: torch.optim.Optimizer) -> SdsLoraScheduler:
    """Four steps of T = 12: the scheduler's next call refreshes for the first time."""
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    for step in range(1, 5):
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step < 4:
            scheduler.step()
    return scheduler


@pytest.mark.parametrize("mode", ["qr", "preserve"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_momentum_is_in_the_new_coordinates(kind, mode):
    model = sds_model(make_llama(), refresh_mode=mode, transport_momentum=True).train()
    optimizer = OPTIMIZERS[kind](model)
    scheduler = to_the_brink(model, optimizer)
    before, old = moments(model, optimizer), bases(model)
    scheduler.step()
    assert scheduler.refresh_count == 1
    after, new = moments(model, optimizer), bases(model)
    assert len(before) == len(after) == 28 * {"amsgrad": 3, "adamw": 2, "nothing": 0}.get(kind, 1)
    for layer, ((old_A, old_B), (new_A, new_B)) in zip(
        old, zip(old.values(), new.values(), strict=True), strict=True
    ):
        assert not torch.equal(old_A, new_A)
        for (parameter, name), moment in after.items():
            was = before[parameter, name]
            if not parameter.startswith(f"{layer}."):
                continue
            if name not in MOMENTUM:
                assert torch.equal(moment, was)
                continue
            in_A = parameter == f"{layer}.lora_A.default.weight"
            wanted = expected(was, old_B, new_B) if in_A else expected(was.T, old_A, new_A).T
            # the rounding of a float32 product, whose terms may cancel
            rounding = 1e-6 * was.abs().max().item()
            torch.testing.assert_close(moment.double(), wanted, rtol=1e-4, atol=rounding)


def test_without_it_a_refresh_leaves_the_moments():
    model = sds_model(make_llama()).train()
    optimizer = OPTIMIZERS["adamw"](model)
    scheduler = to_the_brink(model, optimizer)
    before = moments(model, optimizer)
    scheduler.step()
    assert scheduler.refresh_count == 1
    for key, moment in moments(model, optimizer).items():
        assert torch.equal(moment, before[key])


def test_embeddings_and_what_never_had_a_gradient():
    """A stands as (r, tokens) there; a frozen B has no moments, and gets none."""
    options = {"target_modules": ["embed_tokens"], "transport_momentum": True}
    model = sds_model(make_llama(), **options).train()
    [layer] = PhasedAdapter(model, "default").layers.values()
    A, B = layer.adapter_parameters("default")
    optimizer = torch.optim.AdamW([A, B], lr=1e-2)
    scheduler = to_the_brink(model, optimizer)
    del optimizer.state[B]
    before, (_, old_B) = optimizer.state[A]["exp_avg"].clone(), bases(model).popitem()[1]
    scheduler.step()
    _, new_B = bases(model).popitem()[1]
    wanted = expected(before, old_B, new_B)
    torch.testing.assert_close(optimizer.state[A]["exp_avg"].double(), wanted, rtol=1e-4, atol=1e-9)
    assert B not in optimizer.state


def test_experts_each_in_their_own_basis():
    model = sds_model(
        make_mixtral(), target_modules=[], target_parameters=["mlp.experts.down_proj"],
        transport_momentum=True,
    ).train()  # fmt: skip
    optimizer = OPTIMIZERS["adamw"](model)
    scheduler = to_the_brink(model, optimizer)
    layers = PhasedAdapter(model, "default").layers
    old = bases(model)

    def by_expert(layer: nn.Module, name: str) -> tuple[Tensor, Tensor]:
        A, B = (optimizer.state[p][name].clone() for p in layer.adapter_parameters("default"))
        # PEFT: the expert is the slow index of A's rows, and the fast one of B's columns
        return A.view(4, -1, A.shape[1]), torch.stack([B[:, e::4] for e in range(4)])

    before = {name: by_expert(layer, "exp_avg") for name, layer in layers.items()}
    scheduler.step()
    new = bases(model)
    for name, layer in layers.items():
        A, B = by_expert(layer, "exp_avg")
        for e in range(4):
            (old_A, old_B), (new_A, new_B) = ((Q[e] for Q in found[name]) for found in (old, new))
            wanted = expected(before[name][0][e], old_B, new_B)
            torch.testing.assert_close(A[e].double(), wanted, rtol=1e-4, atol=1e-9)
            wanted = expected(before[name][1][e].T, old_A, new_A).T
            torch.testing.assert_close(B[e].double(), wanted, rtol=1e-4, atol=1e-9)


class Shampoo(torch.optim.SGD):
    """Remembers a matrix, in a dictionary of its own."""

    def step(self, closure: object = None) -> None:
        super().step(closure)
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["blocks"] = {"exp_avg": torch.zeros(3)}


class Projected(torch.optim.Optimizer):
    """Remembers its gradients in another shape."""

    def __init__(self, params: object) -> None:
        super().__init__(params, {})

    def step(self, closure: object = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["exp_avg"] = torch.zeros(2, 2)
            parameter.data.sub_(1e-3 * parameter.grad)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            torch.optim.RMSprop,
            "RMSprop of torch: .* which remembers square_avg: use",
        ),
        (
            lambda params: torch.optim.RMSprop(params, momentum=0.9, centered=True),
            "which remembers grad_avg, square_avg: use",
        ),
        (Shampoo, "optimizer Shampoo of .* which remembers blocks: use"),
        (Projected, "optimizer Projected of .* momentum is not kept entry by entry.*: use"),
    ],
)
def test_an_optimizer_that_remembers_something_else_is_refused(kind, message):
    """Before its first step; where its check is left out, after it, long before a refresh."""
    model = sds_model(make_llama(), transport_momentum=True).train()
    optimizer = kind(trainable(model))
    with pytest.raises(ValueError, match=message):
        SdsLoraScheduler(model, optimizer, 12)
    scheduler = SdsLoraScheduler(model, optimizer, 12, checks=())
    loss_of(model, 1).backward()
    optimizer.step()
    with pytest.raises(ValueError, match="does not support transport_momentum with"):
        scheduler.step()


def test_convolutions_whose_memory_is_in_another_order():
    """``channels_last``, as image models are often trained: A is made contiguous once."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 5, 3))
    model = get_peft_model(
        base,
        SdsLoraConfig(
            r=4, target_modules=["0", "2"], warmup_steps=3, refresh_mode="preserve",
            transport_momentum=True,
        ),
    ).to(memory_format=torch.channels_last).train()  # fmt: skip
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    scheduler = SdsLoraScheduler(model, optimizer, 12)
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    for step in range(1, 5):
        model(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        before, old, was = model(images), bases(model), moments(model, optimizer)
        scheduler.step()
        if step >= 3:  # the re-parameterization, then a refresh
            torch.testing.assert_close(model(images), before, rtol=1e-4, atol=1e-5)
    assert scheduler.refresh_count == 1
    new, now = bases(model), moments(model, optimizer)
    for layer, (_, old_B) in old.items():
        name = f"{layer}.lora_A.default.weight", "exp_avg"
        wanted = expected(was[name].flatten(1), old_B, new[layer][1])
        torch.testing.assert_close(now[name].flatten(1).double(), wanted, rtol=1e-4, atol=1e-9)


def test_under_autocast_it_is_as_exact():
    model = sds_model(make_llama(), refresh_mode="preserve", transport_momentum=True).train()
    scheduler = to_the_brink(model, OPTIMIZERS["adamw"](model))
    with torch.autocast("cpu", torch.bfloat16):
        report = scheduler.step(measure=True)
    assert report.relative_jump < 1e-5


@pytest.mark.parametrize("value", [1, "yes"])
def test_another_value_is_refused(value):
    with pytest.raises(ValueError, match="transport_momentum must be true or false"):
        SdsLoraConfig(transport_momentum=value)
