"""PiSSA and the initial pair: what is taken off the base weights, and gets back to them."""

from __future__ import annotations

import copy

import contract
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from sdslora.methods import Settings, make_method, restore_base
from sdslora.methods.base.layers import lora_layers
from sdslora.methods.pissa import principal_factors
from toys import logits, make_llama

CHANGING = ("pissa", "lora-ga", "orthonormal")
each_changing = pytest.mark.parametrize("name", CHANGING)
IDS = contract.BATCH["input_ids"]


def factors(layer: nn.Module) -> tuple[Tensor, Tensor]:
    return layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()


# --- PiSSA


def test_the_factors_are_the_principal_part():
    """S B A = U_r Σ_r V_rᵀ,  BᵀB = A Aᵀ = Σ_r / s,  and the base has the rest of the spectrum."""
    model, original = contract.attached(make_method("pissa")), contract.base()
    for name, layer in lora_layers(model).items():
        A, B = factors(layer)
        s = layer.scaling["default"]
        W = original.get_submodule(name).weight.detach()
        U, S, Vh = torch.linalg.svd(W)
        principal = U[:, :3] @ torch.diag(S[:3]) @ Vh[:3]
        torch.testing.assert_close(s * B @ A, principal, atol=1e-14, rtol=0)
        for gram in (B.mT @ B, A @ A.mT):
            torch.testing.assert_close(gram, torch.diag(S[:3] / s), atol=1e-14, rtol=0)
        rest = torch.linalg.svdvals(layer.base_layer.weight)
        torch.testing.assert_close(rest[: len(S) - 3], S[3:], atol=1e-14, rtol=0)


def test_the_first_effective_gradient_of_pissa():
    """S (U_r Σ_r U_rᵀ G + G V_r Σ_r V_rᵀ)"""
    method = make_method("pissa")
    model, original = contract.attached(method), contract.base()
    torch.manual_seed(0)
    for name, state in method.layer_states(model).items():
        W = original.get_submodule(name).weight.detach()
        G = torch.randn_like(W)
        U, S, Vh = torch.linalg.svd(W)
        left, right = U[:, :3] * S[:3] @ U[:, :3].mT, Vh[:3].mT * S[:3] @ Vh[:3]
        expected = 4 / 3**0.5 * (left @ G + G @ right)
        torch.testing.assert_close(
            method.effective_gradient(state, G), expected, atol=1e-13, rtol=0
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pissa_is_pefts_where_peft_has_it(dtype):
    mine = make_method("pissa").attach(make_llama().to(dtype), contract.SETTINGS)
    config = LoraConfig(
        r=3, lora_alpha=4, use_rslora=True, target_modules="all-linear", init_lora_weights="pissa"
    )
    theirs = get_peft_model(make_llama().to(dtype), config)
    left, right = mine.state_dict(), theirs.state_dict()
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype]
    for key, tensor in right.items():
        torch.testing.assert_close(left[key], tensor, atol=tolerance * tensor.abs().max(), rtol=0)


def test_a_randomized_svd_of_a_decaying_spectrum_is_the_exact_one():
    torch.manual_seed(0)
    U, _ = torch.linalg.qr(torch.randn(60, 40).double())
    V, _ = torch.linalg.qr(torch.randn(50, 40).double())
    W = U * 0.2 ** torch.arange(40).double() @ V.mT
    exact, randomized = principal_factors(W, 4, 0.7), principal_factors(W, 4, 0.7, niter=16)
    torch.testing.assert_close(
        exact[1] @ exact[0], randomized[1] @ randomized[0], atol=1e-12, rtol=0
    )


def test_the_iterations_reach_the_svd():
    exact = contract.attached(make_method("pissa"))
    rough = contract.attached(make_method("pissa", niter=1))
    differences = [
        (a.lora_B["default"].weight.abs() - b.lora_B["default"].weight.abs()).abs().max().item()
        for a, b in zip(lora_layers(exact).values(), lora_layers(rough).values(), strict=True)
    ]
    assert max(differences) > 1e-6
    contract.check_function_kept(make_method("pissa", niter=1))


# --- rounding, and the way back


@pytest.mark.parametrize("name", ["pissa", "lora-ga"])
def test_in_float32_the_function_is_kept_to_rounding(name):
    model = make_llama()
    before = logits(model, IDS)
    adapted = make_method(name).attach(model, contract.SETTINGS, contract.batches())
    assert (logits(adapted, IDS) - before).abs().max() < 1e-5 * before.abs().max()


@pytest.mark.parametrize(
    ("dtype", "ulp"), [(torch.float64, 2**-52), (torch.float32, 2**-23), (torch.bfloat16, 2**-7)]
)
@each_changing
def test_the_base_is_restored(name, dtype, ulp):
    """Up to two roundings, one there and one back, each half a unit in the last place."""
    original = make_llama().to(dtype)
    method = contract.short(name)
    model = method.attach(copy.deepcopy(original), contract.SETTINGS, contract.batches())
    contract.train(method, model, 5)
    layers = lora_layers(model)
    lowered = {n: layer.base_layer.weight.detach().clone() for n, layer in layers.items()}
    restore_base(model)
    for n, layer in layers.items():
        W, R = original.get_submodule(n).weight.detach(), layer.base_layer.weight.detach()
        assert R.dtype == dtype
        assert not torch.equal(lowered[n], W)
        largest = torch.maximum(W.abs().max(), lowered[n].abs().max())
        assert (R - W).abs().max() <= ulp * largest
        assert not method.plain_pairs(model)[n].up[:, 3:].any()


def test_restoring_twice_or_where_nothing_was_taken_off_does_nothing():
    model = contract.attached(make_method("pissa"))
    restore_base(model)
    once = {n: p.clone() for n, p in model.named_parameters()}
    restore_base(model)
    restore_base(contract.attached(make_method("lora")))
    assert all(torch.equal(once[n], p) for n, p in model.named_parameters())


def test_a_transposed_weight():
    """Transformers' Conv1D, whose weight is (n, m)."""
    config = GPT2Config(
        vocab_size=64, n_positions=32, n_embd=24, n_layer=1, n_head=3, bos_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    settings = Settings(rank=3, target_modules=["c_attn", "c_fc"])
    for name in CHANGING:
        torch.manual_seed(0)
        original = GPT2LMHeadModel(config).double().eval()
        before = logits(original, IDS)
        method = contract.short(name)
        model = method.attach(copy.deepcopy(original), settings, contract.batches())
        torch.testing.assert_close(logits(model, IDS), before, atol=1e-12, rtol=0)
        contract.train(method, model, 5)
        plain = contract.merged(model)
        for layer, pair in method.plain_pairs(model).items():
            change = plain.get_submodule(layer).weight - original.get_submodule(layer).weight
            torch.testing.assert_close(pair.up @ pair.down, change.mT, atol=1e-12, rtol=0)


# --- files


@each_changing
def test_stock_peft_refuses_the_files_of_save_pretrained(name, tmp_path):
    method = contract.short(name)
    contract.trained(method, 5).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"base weights were changed.*export\(\)"):
        PeftModel.from_pretrained(contract.base(), tmp_path)


@each_changing
def test_a_checkpoint_is_resumed_bit_for_bit(name, tmp_path):
    """Attach to the original base anew, load the adapter: base weights and factors are the same."""
    method = contract.short(name)
    model = contract.trained(method, 5)
    model.save_pretrained(tmp_path)
    resumed = contract.attached(method)
    resumed.load_adapter(tmp_path, "default", is_trainable=True)
    left, right = model.state_dict(), resumed.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_a_checkpoint_of_another_initial_pair_moves_the_base(tmp_path):
    """Such as one whose gradients were estimated on other batches."""
    method = make_method("lora-ga")
    model = contract.trained(method, 5)
    model.save_pretrained(tmp_path)
    other = method.attach(contract.base(), contract.SETTINGS, contract.batches(seed=11))
    assert (logits(other, IDS) - logits(model, IDS)).abs().max() > 1e-3
    other.load_adapter(tmp_path, "default", is_trainable=True)
    torch.testing.assert_close(logits(other, IDS), logits(model, IDS), atol=1e-12, rtol=0)


@each_changing
def test_a_whole_state_dict_is_loaded_as_it_is(name):
    method = contract.short(name)
    model = contract.trained(method, 5)
    other = contract.attached(method)
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other, IDS), logits(model, IDS))


@each_changing
def test_a_copy_has_a_base_of_its_own(name):
    method = contract.short(name)
    model = contract.trained(method, 5)
    before = logits(model, IDS)
    copied = copy.deepcopy(model)
    copied.load_state_dict(contract.trained(method, 2).state_dict())
    restore_base(copied)
    assert torch.equal(logits(model, IDS), before)
