"""LoRA, rsLoRA, LoRA+ and DoRA: the identities that their definitions imply."""

from __future__ import annotations

import contract
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from sdslora.methods import LayerState, Settings, make_method
from sdslora.methods.base.layers import lora_layers


def factors(layer: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


def named_factors(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if ".lora_" in n}


def test_the_factors_gradients_agree_where_they_overlap():
    """Bᵀ g_B = g_A Aᵀ, of the gradients that autograd finds."""
    model = contract.trained(make_method("rslora"), 5)
    model(**contract.BATCH).loss.backward()
    for layer in lora_layers(model).values():
        A, B = factors(layer)
        overlap = A.grad @ A.mT
        assert overlap.norm() > 1e-6
        torch.testing.assert_close(B.mT @ B.grad, overlap, atol=1e-13, rtol=1e-10)


def test_the_first_step_moves_B_only():
    model = contract.attached(make_method("lora"))
    model(**contract.BATCH).loss.backward()
    for layer in lora_layers(model).values():
        A, B = factors(layer)
        assert not B.any()
        assert not A.grad.any()
        assert B.grad.any()


def test_the_start_of_A():
    """U(±1/√n), by its bound and its variance."""
    model = contract.attached(make_method("lora"), Settings(rank=16))
    for layer in lora_layers(model).values():
        A, _ = factors(layer)
        scaled = A.detach() * A.shape[1] ** 0.5
        assert scaled.abs().max() <= 1
        assert scaled.var().item() == pytest.approx(1 / 3, rel=0.2)


def test_rslora_of_alpha_is_lora_of_alpha_root_r():
    """At r = 4, 4/√r is LoRA's 2: every bit of the training is the same. At r = 3 it is not."""
    for rank, same in ((4, True), (3, False)):
        settings = Settings(rank=rank)
        lora = contract.trained(make_method("lora"), 5, settings)
        rslora = contract.trained(make_method("rslora"), 5, settings)
        left, right = named_factors(lora), named_factors(rslora)
        assert all(torch.equal(left[n], right[n]) for n in left) == same


def test_the_effective_gradient_depends_on_the_split_of_BA():
    """Under (B R, R⁻¹ A), which is the same function; with R orthogonal it does not."""
    torch.manual_seed(0)
    A, B, G = torch.randn(3, 8).double(), torch.randn(6, 3).double(), torch.randn(6, 8).double()
    rotation, _ = torch.linalg.qr(torch.randn(3, 3).double())
    method = make_method("rslora")
    before = method.effective_gradient(LayerState(A, B, 1.5), G)
    for R, same in ((rotation, True), (torch.diag(torch.tensor([1.0, 2, 3]).double()), False)):
        state = LayerState(torch.linalg.inv(R) @ A, B @ R, 1.5)
        after = method.effective_gradient(state, G)
        assert ((after - before).norm() < 1e-12 * before.norm()) == same


# --- LoRA+


def test_lora_plus_of_ratio_1_is_adamw():
    plus = contract.trained(make_method("lora+", ratio=1.0), 5)
    plain = contract.trained(make_method("rslora"), 5)
    left, right = named_factors(plus), named_factors(plain)
    assert all(torch.equal(left[n], right[n]) for n in left)


def test_the_first_step_of_B_is_four_times_that_of_adamw():
    plus = contract.trained(make_method("lora+"), 1)
    plain = contract.trained(make_method("rslora"), 1)
    left, right = named_factors(plus), named_factors(plain)
    for name in left:
        factor = 4 if ".lora_B." in name else 1
        assert torch.equal(left[name], factor * right[name])


def test_the_rates_of_lora_plus():
    """A at η, B at 4η, a trained one-dimensional parameter at 4η, another matrix at η."""
    model = contract.base()
    model.model.norm.weight.data += 0.1
    settings = Settings(rank=3, target_modules=["q_proj"], modules_to_save=["norm", "lm_head"])
    method = make_method("lora+")
    model = method.attach(model, settings)
    names = {id(p): n for n, p in model.named_parameters()}
    for group in method.optimizer(model, 1e-3).param_groups:
        for p in group["params"]:
            fast = ".lora_B." in names[id(p)] or p.ndim == 1
            assert group["lr"] == pytest.approx(4e-3 if fast else 1e-3, rel=1e-12), names[id(p)]


# --- DoRA


def test_doras_first_output_is_the_bases_exactly():
    ids = contract.BATCH["input_ids"]
    with torch.no_grad():
        expected = contract.base()(input_ids=ids).logits
        found = contract.attached(make_method("dora"))(input_ids=ids).logits
    assert torch.equal(found, expected)


def test_the_merged_rows_have_the_magnitudes_as_norms():
    model = contract.trained(make_method("dora"), 7)
    layers = lora_layers(model)
    for name, W in contract.weights(model, list(layers)).items():
        magnitude = layers[name].lora_magnitude_vector["default"].weight.detach()
        moved = magnitude - contract.base().get_submodule(name).weight.norm(dim=1)
        assert moved.abs().max() > 1e-3
        torch.testing.assert_close(W.norm(dim=1), magnitude.abs(), atol=1e-13, rtol=0)


def test_doras_gradients():
    """g_A = s Bᵀ diag(mag/c) G',  g_B = s diag(mag/c) G' Aᵀ,  by autograd."""
    model = contract.trained(make_method("dora"), 5)
    layers = lora_layers(model)
    G = contract.full_gradients(model, list(layers))
    model(**contract.BATCH).loss.backward()
    for name, layer in layers.items():
        A, B = factors(layer)
        s = layer.scaling["default"]
        W = contract.base().get_submodule(name).weight.detach()
        c = (W + s * B.detach() @ A.detach()).norm(dim=1, keepdim=True)
        scaled = layer.lora_magnitude_vector["default"].weight.detach().unsqueeze(1) / c * G[name]
        torch.testing.assert_close(A.grad, s * B.detach().mT @ scaled, atol=1e-12, rtol=1e-9)
        torch.testing.assert_close(B.grad, s * scaled @ A.detach().mT, atol=1e-12, rtol=1e-9)


# --- faithful to PEFT


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lora", {"lora_alpha": 6}),
        ("rslora", {"lora_alpha": 4, "use_rslora": True}),
        ("dora", {"lora_alpha": 4, "use_rslora": True, "use_dora": True}),
    ],
)
def test_the_configuration_is_pefts(name, options):
    mine = contract.attached(make_method(name))
    base, config = contract.base(), LoraConfig(r=3, target_modules="all-linear", **options)
    torch.manual_seed(5)
    theirs = get_peft_model(base, config)
    left, right = mine.state_dict(), theirs.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)
    ids = contract.BATCH["input_ids"]
    assert torch.equal(mine(input_ids=ids).logits, theirs(input_ids=ids).logits)
