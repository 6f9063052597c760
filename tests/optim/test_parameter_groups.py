"""The LoRA pairs of PEFT models, and the optimizers made from them."""

from __future__ import annotations

import re

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sdslora.optim import (
    create_altlora_optimizer,
    create_loft_optimizer,
    create_lora_pro_optimizer,
    create_lora_rite_optimizer,
    create_lora_tsd_optimizer,
    create_scaled_adamw,
)
from sdslora.optim.groups import lora_pairs, parameter_groups
from toys import make_llama, sds_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:fan_in_fan_out is set to False", "ignore:LoRA adapter added to ConvNd layer"
)

CREATE = {
    "LoRA-Pro": create_lora_pro_optimizer,
    "AltLoRA": create_altlora_optimizer,
    "AltLoRA+": lambda model, lr: create_altlora_optimizer(model, lr, plus=True),
    "ScaledAdamW": create_scaled_adamw,
    "LoRA-RITE": create_lora_rite_optimizer,
    "LoFT": create_loft_optimizer,
    "LoRA-TSD": create_lora_tsd_optimizer,
}
each_optimizer = pytest.mark.parametrize("create", CREATE.values(), ids=CREATE.keys())


class Net(nn.Module):
    """Every kind of layer that PEFT adapts with an A and a B."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.linear = nn.Linear(24, 7)
        self.conv1d = Conv1D(5, 7)
        self.head = nn.Linear(5, 2)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embedding(ids).unsqueeze(1)
        h = self.conv(h).permute(0, 2, 1, 3).flatten(2)
        return self.head(self.conv1d(self.linear(h)).tanh())


def adapted(**options: object) -> nn.Module:
    torch.manual_seed(0)
    defaults = {
        "r": 3,
        "lora_alpha": 5,
        "target_modules": ["embedding", "conv", "linear", "conv1d"],
        "init_lora_weights": False,
    }
    return get_peft_model(Net(), LoraConfig(**defaults | options)).double()


def backward(model: nn.Module) -> Tensor:
    ids = torch.randint(0, 11, (4, 8), generator=torch.Generator().manual_seed(1))
    loss = model(ids).square().mean()
    loss.backward()
    return loss


def full_gradient(layer: nn.Module) -> Tensor:
    """G (m, n) of the base weight."""
    base = layer.get_base_layer()
    G = base.weight.grad.flatten(1)
    return G.mT if isinstance(base, nn.Embedding | Conv1D) else G


@pytest.mark.parametrize("name", ["embedding", "conv", "linear", "conv1d"])
def test_a_pair_has_the_gradients_that_the_methods_take_it_for(name):
    """g_A = s Bᵀ G and g_B = s G Aᵀ, with the pair's own s."""
    model = adapted(target_modules=[name])
    layer = model.base_model.model.get_submodule(name)
    layer.get_base_layer().weight.requires_grad_()
    backward(model)
    ((A, B, s),) = lora_pairs(model)
    assert s == pytest.approx(5 / 3)
    G = full_gradient(layer)
    torch.testing.assert_close(A.grad.flatten(1), s * B.detach().flatten(1).mT @ G)
    torch.testing.assert_close(B.grad.flatten(1), s * G @ A.detach().flatten(1).mT)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"modules_to_save": ["head"]},
        {"bias": "all"},
        {"use_dora": True},
        {"lora_bias": True, "target_modules": ["linear"]},
    ],
    ids=str,
)
def test_groups_partition_what_is_trained(options):
    model = adapted(**options)
    groups = parameter_groups(model)
    held = [id(p) for group in groups for p in group["params"]]
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert len(held) == len(set(held))
    assert set(held) == trained
    names = {id(p): name for name, p in model.named_parameters()}
    assert len(groups) == (2 if options else 1)
    pairs = groups[0]["params"]
    for A, B in zip(pairs[::2], pairs[1::2], strict=True):
        assert names[id(B)] == names[id(A)].replace("_A", "_B")
    factors = re.compile(r"lora_[AB]\.default\.weight|lora_embedding_[AB]\.default")
    assert all(factors.search(names[id(p)]) for p in pairs)
    for group in groups[1:]:
        assert group["pairs"] is False
        assert not any(factors.search(names[id(p)]) for p in group["params"])


def test_pairs_are_grouped_by_their_scaling():
    model = adapted(rank_pattern={"linear": 2}, alpha_pattern={"conv": 1})
    groups = parameter_groups(model)
    scalings = {group["scaling"]: len(group["params"]) for group in groups}
    assert scalings == {5 / 3: 4, 5 / 2: 2, 1 / 3: 2}
    assert create_lora_pro_optimizer(model, 1e-3).param_groups[1]["scaling"] == groups[1]["scaling"]


def test_all_trainable_adapters_are_taken():
    model = adapted()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["linear"]))
    assert len(list(lora_pairs(model))) == 4
    model.base_model.set_adapter(["default", "other"])
    assert len(list(lora_pairs(model))) == 5


@each_optimizer
def test_a_model_learns_and_the_base_is_not_touched(create):
    model = adapted(modules_to_save=["head"], bias="lora_only", init_lora_weights=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = create(model, 1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(backward(model).item())
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name


@each_optimizer
def test_the_rest_keeps_adamws_epsilon(create):
    groups = create(adapted(modules_to_save=["head"]), 1e-2).param_groups
    assert groups[-1]["pairs"] is False
    assert groups[-1]["eps"] == 1e-8


@each_optimizer
def test_a_model_without_trainable_pairs_is_refused(create):
    with pytest.raises(ValueError, match="the model trains no LoRA pair"):
        create(Net(), 1e-3)
    model = adapted()
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="the model trains no LoRA pair"):
        create(model, 1e-3)


def test_sds_loras_pairs_are_refused():
    with pytest.raises(ValueError, match=r"q_proj', adapter 'default' is SDS-LoRA's"):
        parameter_groups(sds_model(make_llama()))


def test_adaloras_pairs_are_refused():
    config = AdaLoraConfig(target_modules=["linear"], total_step=10)
    with pytest.raises(ValueError, match="is AdaLoRA's, which has a third factor"):
        parameter_groups(get_peft_model(Net(), config))


def test_half_a_pair_is_refused():
    model = adapted()
    model.base_model.model.linear.lora_A["default"].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"linear', adapter 'default': A and B must both be"):
        parameter_groups(model)


def test_the_factors_of_several_experts_are_refused():
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 6, 5))

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = Experts()

    config = LoraConfig(r=2, target_modules=[], target_parameters=["experts.weight"])
    model = get_peft_model(Mixture(), config)
    with pytest.raises(ValueError, match="the factors of 4 experts in one pair"):
        parameter_groups(model)


def test_grouped_convolutions_are_refused():
    """Their B (m, r / groups) is block-diagonal."""
    net = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2))
    model = get_peft_model(net, LoraConfig(r=2, target_modules=["0"]))
    with pytest.raises(ValueError, match=r"A \(r, n\) before B \(m, r\)"):
        create_lora_pro_optimizer(model, 1e-3)
