"""LoRA-GA: the gradient it starts from, and the factors it makes of it."""

from __future__ import annotations

import contract
import pytest
import torch
from torch import Tensor, nn

from sdslora.methods import Settings, make_method
from sdslora.methods.base.calibration import mean_gradients
from sdslora.methods.base.layers import lora_layers
from sdslora.methods.base.target_modules import target_layers
from sdslora.methods.lora_ga import gradient_factors


def gradients_by_hand(count: int = 2) -> dict[str, Tensor]:
    """The mean over batches of what autograd finds for all parameters."""
    model = contract.base().requires_grad_(True)
    loss = sum(model(**batch).loss for batch in contract.batches(count)) / count
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_the_gradient_is_the_mean_over_the_batches():
    model = contract.base()
    layers = target_layers(model, contract.SETTINGS)
    found, expected = mean_gradients(model, layers, contract.batches()), gradients_by_hand()
    assert len(found) == 14
    for name, G in found.items():
        torch.testing.assert_close(G, expected[f"{name}.weight"], atol=1e-14, rtol=1e-12)


def test_the_estimate_leaves_no_trace():
    model = contract.base()
    model.lm_head.weight.requires_grad_(False)
    required = {n: p.requires_grad for n, p in model.named_parameters()}
    before = {n: p.clone() for n, p in model.named_parameters()}
    layers = target_layers(model, contract.SETTINGS)
    mean_gradients(model, layers, contract.batches())
    assert {n: p.requires_grad for n, p in model.named_parameters()} == required
    for name, parameter in model.named_parameters():
        assert parameter.grad is None
        assert not parameter._post_accumulate_grad_hooks
        assert torch.equal(parameter, before[name])


@torch.no_grad()
def test_the_estimate_is_taken_where_gradients_are_off():
    model = contract.base()
    assert mean_gradients(model, target_layers(model, contract.SETTINGS), contract.batches())


def test_the_mean_of_bfloat16_gradients_is_float32():
    model = contract.base().to(torch.bfloat16)
    found = mean_gradients(model, target_layers(model, contract.SETTINGS), contract.batches())
    assert {G.dtype for G in found.values()} == {torch.float32}


@pytest.mark.parametrize("gamma", [16.0, 64.0])
def test_the_identities_of_the_start(gamma):
    """A Aᵀ = BᵀB = c² I;  s B A has r equal singular values s √m / γ;  and the first effective
    gradient is s² c² times the best approximation of G of rank 2r.
    """
    method = make_method("lora-ga", gamma=gamma)
    model = contract.attached(method)
    states, expected = method.layer_states(model), gradients_by_hand()
    for name, layer in lora_layers(model).items():
        A, B = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
        m, s = B.shape[0], 4 / 3**0.5
        square = m**0.5 / gamma
        for gram in (A @ A.mT, B.mT @ B):
            torch.testing.assert_close(gram, square * torch.eye(3).double(), atol=1e-12, rtol=0)
        offset = torch.linalg.svdvals(s * B @ A)[:3]
        torch.testing.assert_close(offset, torch.full_like(offset, s * m**0.5 / gamma))

        G = expected[f"{name}.weight"]
        U, S, Vh = torch.linalg.svd(G)
        best = U[:, :6] * S[:6] @ Vh[:6]
        torch.testing.assert_close(
            method.effective_gradient(states[name], G), s**2 * square * best, atol=1e-12, rtol=0
        )


def test_A_has_the_leading_directions_and_B_the_next():
    torch.manual_seed(0)
    U, _ = torch.linalg.qr(torch.randn(20, 10).double())
    V, _ = torch.linalg.qr(torch.randn(15, 10).double())
    A, B = gradient_factors(U * torch.arange(10, 0, -1).double() @ V.mT, 2, 16.0)
    c = 20**0.25 / 4
    for overlap in (A @ V[:, :2], B.mT @ U[:, 2:4]):
        expected = c * torch.eye(2).double()
        torch.testing.assert_close(overlap.abs(), expected, atol=1e-12, rtol=0)


def test_large_gradients_are_decomposed_at_random(monkeypatch):
    """The same directions where the spectrum decays."""
    torch.manual_seed(0)
    U, _ = torch.linalg.qr(torch.randn(60, 40).double())
    V, _ = torch.linalg.qr(torch.randn(50, 40).double())
    G = U * 0.3 ** torch.arange(40).double() @ V.mT
    exact = gradient_factors(G, 2, 16.0)
    monkeypatch.setattr("sdslora.methods.lora_ga._EXACT_UP_TO", 10)
    randomized = gradient_factors(G, 2, 16.0)
    for one, other in zip(exact, randomized, strict=True):
        assert one.shape == other.shape
        assert not torch.equal(one, other)
        rows = (one, other) if one.shape[0] == 2 else (one.mT, other.mT)
        torch.testing.assert_close(*(row.mT @ row for row in rows), atol=1e-9, rtol=0)


# --- what is refused


def untouched(model: nn.Module) -> bool:
    return not any("lora" in name for name, _ in model.named_modules())


def test_missing_calibration():
    model = contract.base()
    with pytest.raises(ValueError, match=r"lora-ga starts from gradients.*calibration"):
        make_method("lora-ga").attach(model, contract.SETTINGS)
    assert untouched(model)


@pytest.mark.parametrize(
    ("batches", "message"),
    [([], "no batches"), ([{"input_ids": contract.BATCH["input_ids"]}], "need labels")],
)
def test_useless_calibration(batches, message):
    model = contract.base()
    with pytest.raises(ValueError, match=message):
        make_method("lora-ga").attach(model, contract.SETTINGS, batches)
    assert untouched(model)
    assert all(p.requires_grad for p in model.parameters())


def test_a_layer_that_no_gradient_reaches():
    model = contract.base()
    model.model.layers[1].mlp.down_proj.weight.data.zero_()  # blocks what comes before it
    with pytest.raises(
        ValueError, match=r"no gradient reached layer 'model.layers.1.mlp.gate_proj'"
    ):
        make_method("lora-ga").attach(model, Settings(rank=3), contract.batches())
    assert untouched(model)


def test_a_rank_above_half_of_a_layers_directions():
    model = contract.base()
    with pytest.raises(ValueError, match=r"lora-ga needs 18 .*k_proj.*\(16, 32\) has 16.*lower"):
        make_method("lora-ga").attach(model, Settings(rank=9), contract.batches())
    assert untouched(model)
