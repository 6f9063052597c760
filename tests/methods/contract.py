"""What every method must do, as checks of one method on a tiny float64 Llama."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft.optimizers
import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import LlamaForCausalLM

from sdslora.methods import Method, Settings, make_method
from sdslora.methods.orthonormal import follow
from sdslora.optim import (
    create_altlora_optimizer,
    create_lora_tsd_optimizer,
    lora_pro_gradient,
)
from toys import VOCABULARY, logits, make_llama

SETTINGS = Settings(rank=3)
SHORT_WARMUP = {name: {"warmup_steps": 3} for name in ("sds-lora", "sds-hira", "orthonormal")}


def base() -> LlamaForCausalLM:
    """The model before any method."""
    return make_llama().double()


def batches(count: int = 2, seed: int = 3) -> list[dict[str, Tensor]]:
    """Random tokens that are their own labels, (4, 12) each."""
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(0, VOCABULARY, (4, 12), generator=generator) for _ in range(count)]
    return [{"input_ids": ids, "labels": ids} for ids in tokens]


BATCH = batches(1)[0]


def short(name: str) -> Method:
    """The method, with a warm-up of three steps if it has one."""
    return make_method(name, **SHORT_WARMUP.get(name, {}))


def attached(method: Method, settings: Settings = SETTINGS) -> nn.Module:
    """The tiny model with the method attached, the same every time."""
    model = base()
    torch.manual_seed(5)
    return method.attach(model, settings, calibration=batches())


def train(method: Method, model: nn.Module, steps: int, rate: float = 1e-2) -> list[float]:
    """Train on one batch; the loss before each step."""
    optimizer = method.optimizer(model, rate)
    return carry_on(model, optimizer, method.scheduler(model, optimizer, total_steps=40), steps)


def carry_on(model: nn.Module, optimizer: Optimizer, scheduler: Any, steps: int) -> list[float]:
    """Take steps on one batch; the loss before each."""
    losses = []
    for _ in range(steps):
        loss = model(**BATCH).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()
    return losses


def trained(method: Method, steps: int, settings: Settings = SETTINGS) -> nn.Module:
    """An attached model, ``steps`` steps later."""
    model = attached(method, settings)
    train(method, model, steps)
    return model


def merged(model: nn.Module) -> LlamaForCausalLM:
    """A plain model of the same function."""
    # half of the time of a copy would go into the configuration
    model = copy.deepcopy(model, {id(model.config): model.config})
    return model.merge_and_unload() if isinstance(model, PeftModel) else model


def weights(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """W (m, n) of the plain model of the same function."""
    plain = merged(model)
    return {name: plain.get_submodule(name).weight.detach() for name in names}


def full_gradients(
    model: nn.Module, names: list[str], batch: dict[str, Tensor] = BATCH
) -> dict[str, Tensor]:
    """dL/dW (m, n) of the plain model of the same function, by autograd."""
    plain = merged(model).requires_grad_(True)
    plain(**batch).loss.backward()
    return {name: plain.get_submodule(name).weight.grad for name in names}


# --- one step of descent, by the method's own rule, without moments


def _sgd(method: Method, model: nn.Module, rate: float) -> None:
    groups = method.optimizer(model, rate).param_groups
    torch.optim.SGD([{"params": g["params"], "lr": g["lr"]} for g in groups]).step()


def _retracted_sgd(method: Any, model: nn.Module, rate: float) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    follow(optimizer, model, method.warmup_steps)
    optimizer.step()


def _altlora(method: Any, model: nn.Module, rate: float) -> None:
    create_altlora_optimizer(model, rate, betas=(0.0, 0.0), reg=method.reg).step()


def _tangent_sgd(method: Method, model: nn.Module, rate: float) -> None:
    create_lora_tsd_optimizer(model, rate, momentum=0.0, iterations=0).step()


def _riemannian_sgd(method: Any, model: nn.Module, rate: float) -> None:
    create = getattr(peft.optimizers, "create_riemannian_optimizer", None)
    if create is None:
        pytest.skip("PEFT 0.20 has no Riemannian optimizer")
    create(model, torch.optim.SGD, lr=rate, reg=method.reg).step()


def _along(change: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., None]:
    """Descent of every pair along ``change(A, B, g_A, g_B, s)``."""

    @torch.no_grad()
    def descend(method: Method, model: nn.Module, rate: float) -> None:
        for module in model.modules():
            if hasattr(module, "lora_A"):
                A, B = module.lora_A["default"].weight, module.lora_B["default"].weight
                d_A, d_B = change(A, B, A.grad, B.grad, module.scaling["default"])
                A -= rate * d_A
                B -= rate * d_B

    return descend


def _by_grams(A: Tensor, B: Tensor, g_A: Tensor, g_B: Tensor, s: float) -> tuple[Tensor, Tensor]:
    return torch.linalg.pinv(B.mT @ B) @ g_A, g_B @ torch.linalg.pinv(A @ A.mT)


def _by_scaled_grams(
    A: Tensor, B: Tensor, g_A: Tensor, g_B: Tensor, s: float
) -> tuple[Tensor, Tensor]:
    return _by_grams(s * A, s * B, g_A, g_B, s)


DESCENT: dict[str, Callable[[Method, nn.Module, float], None]] = {
    "orthonormal": _retracted_sgd,
    "altlora": _altlora,
    "altlora+": _altlora,
    "scaled-adamw": _riemannian_sgd,
    "lora-pro": _along(lora_pro_gradient),
    "lora-rite": _along(_by_grams),
    "loft": _along(_by_scaled_grams),
    "lora-tsd": _tangent_sgd,
}


UNIT = {"hira": 1e-4}
"""How large a method's steps are; HiRA's are multiplied with the weights, twice."""


# --- the checks


def check_effective_gradient(method: Method, model: nn.Module) -> None:
    """It is −ΔW/η of one step, in the limit of small η."""
    states = method.layer_states(model)
    names = list(states)
    assert len(names) == 14
    before, gradients = weights(model, names), full_gradients(model, names)
    predicted = {n: method.effective_gradient(states[n], gradients[n]) for n in names}
    unit = UNIT.get(method.name, 1.0)

    def moved(rate: float) -> dict[str, Tensor]:
        stepped = copy.deepcopy(model)
        stepped(**BATCH).loss.backward()
        DESCENT.get(method.name, _sgd)(method, stepped, rate)
        after = weights(stepped, names)
        return {name: (before[name] - after[name]) / rate for name in names}

    whole, half = moved(1e-5 / unit), moved(5e-6 / unit)
    for name in names:
        # the first error, linear in η, cancels
        measured = 2 * half[name] - whole[name]
        size = measured.norm()
        assert size > 1e-5 * unit, name
        assert (predicted[name] - measured).norm() < 1e-7 * size, name


def check_function_kept(method: Method) -> None:
    """Attaching changes nothing yet."""
    ids = BATCH["input_ids"]
    expected = logits(base(), ids)
    torch.testing.assert_close(logits(attached(method), ids), expected, atol=1e-12, rtol=0)


def check_export(method: Method, model: nn.Module, folder: Path) -> None:
    """Stock PEFT computes the same from the exported adapter on the original base."""
    ids = BATCH["input_ids"]
    expected = logits(model, ids)
    assert (expected - logits(base(), ids)).abs().max() > 1e-3
    method.export(model, folder)
    stock = PeftModel.from_pretrained(base(), folder).eval()
    assert type(stock.peft_config["default"]) is LoraConfig
    torch.testing.assert_close(logits(stock, ids), expected, atol=1e-10, rtol=0)


def check_resume(method: Method) -> None:
    """New objects that load the states of a training go on with its losses."""

    def begin() -> tuple[nn.Module, Optimizer, Any]:
        model = attached(method)
        optimizer = method.optimizer(model, 1e-2)
        return model, optimizer, method.scheduler(model, optimizer, total_steps=40)

    model, optimizer, scheduler = begin()
    carry_on(model, optimizer, scheduler, 5)
    states = [copy.deepcopy(x.state_dict()) for x in (model, optimizer, scheduler) if x is not None]
    expected = carry_on(model, optimizer, scheduler, 4)
    resumed = begin()
    for target, state in zip([x for x in resumed if x is not None], states, strict=True):
        target.load_state_dict(state)
    assert carry_on(*resumed, 4) == expected


def check_plain_pairs(method: Method, model: nn.Module) -> None:
    """They are the whole change of the weights."""
    pairs = method.plain_pairs(model)
    after, before = weights(model, list(pairs)), weights(base(), list(pairs))
    for name, pair in pairs.items():
        change = after[name] - before[name]
        torch.testing.assert_close(pair.up @ pair.down, change, atol=1e-12, rtol=0)
