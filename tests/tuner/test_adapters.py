"""Several adapters in one model: active together or apart, cloned, combined, swapped, deleted."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from torch import Tensor, nn

from sdslora import SdsLoraConfig
from sdslora.tuner import SdsState, in_warmup
from toys import (
    dense_delta,
    logits,
    make_llama,
    sds_layers,
    sds_model,
    train,
    trained,
    with_deltas,
)

ROUNDING = {"atol": 2e-6, "rtol": 1e-5}


def refusal(function: Callable[[], object]) -> str | None:
    """The message of the ValueError with which ``function`` rejects; None where it does not."""
    try:
        function()
    except ValueError as error:
        return str(error)
    return None


@pytest.fixture
def two() -> PeftModel:
    """``default`` (rank 4, all layers) and ``second`` (rank 3, two a block), both trained."""
    model = trained()
    config = SdsLoraConfig(r=3, target_modules=["q_proj", "up_proj"], warmup_steps=2, lora_alpha=7)
    model.add_adapter("second", config)
    model.set_adapter("second")
    train(model, 7, seed=8)
    model.set_adapter("default")
    return model


# ------------------------------------------------------------------------- active, apart, together


def test_each_adapter_is_its_own(two, input_ids):
    for name in ("default", "second"):
        two.set_adapter(name)
        reference = with_deltas(make_llama(), two, {name: 1.0})
        torch.testing.assert_close(logits(two, input_ids), logits(reference, input_ids), **ROUNDING)


def test_several_at_once_add_up(two, input_ids):
    two.base_model.set_adapter(["default", "second"])
    reference = with_deltas(make_llama(), two, {"default": 1.0, "second": 1.0})
    torch.testing.assert_close(logits(two, input_ids), logits(reference, input_ids), **ROUNDING)


def test_several_at_once_are_trained_together(two):
    two.base_model.set_adapter(["default", "second"])
    before = {n: p.clone() for n, p in two.named_parameters() if p.requires_grad}
    assert {n.split(".lora_")[1].split(".")[1] for n in before} == {"default", "second"}
    train(two, 2, total_steps=30)
    after = dict(two.named_parameters())
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_set_adapter_says_what_is_trainable(two):
    for name, other in (("second", "default"), ("default", "second")):
        two.set_adapter(name)
        trainable = {n for n, p in two.named_parameters() if p.requires_grad}
        assert trainable
        assert all(f".{name}" in n and f".{other}" not in n for n in trainable)
        assert not any(b.requires_grad for b in two.buffers())


def test_training_one_leaves_the_other(two):
    two.set_adapter("second")
    kept = {
        n: t.clone() for n, t in two.state_dict().items() if ".default" in n or "lora_" not in n
    }
    train(two, 12)
    assert all(torch.equal(two.state_dict()[n], t) for n, t in kept.items())


def test_delete_adapter_leaves_nothing(two, input_ids):
    two.set_adapter("second")
    expected = logits(two, input_ids)
    two.delete_adapter("default")
    assert not any(".default" in name for name in two.state_dict())
    assert "default" not in two.peft_config
    for layer in sds_layers(two, "second").values():
        for container in ("lora_sds", "lora_variant", "sds_warmup_steps", "scaling", "lora_A"):
            assert set(getattr(layer, container)) == {"second"}
    assert torch.equal(logits(two, input_ids), expected)
    # and the name is free again, for an adapter that begins with its warm-up
    two.add_adapter("default", SdsLoraConfig(r=5, target_modules=["q_proj"]))
    assert in_warmup(two, "default")
    assert torch.equal(logits(two, input_ids), expected)


def test_saving_several(two, tmp_path, input_ids):
    expected = {}
    for name in ("default", "second"):
        two.set_adapter(name)
        expected[name] = logits(two, input_ids)
    two.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_llama(), tmp_path)
    loaded.load_adapter(tmp_path / "second", "second")
    for name, want in expected.items():
        loaded.set_adapter(name)
        assert torch.equal(logits(loaded, input_ids), want)


def test_names_that_contain_one_another(tmp_path, input_ids):
    """PEFT filters by parts of keys."""
    model = sds_model(make_llama())
    config = model.peft_config["default"]
    for seed, name in enumerate(("a", "a_2", "default_2")):
        model.add_adapter(name, copy.deepcopy(config))
        model.set_adapter(name)
        train(model, 5 + seed, seed=seed)
    expected = {}
    for name in ("a", "a_2", "default_2"):
        model.set_adapter(name)
        expected[name] = logits(model, input_ids)
    model.save_pretrained(tmp_path)
    for name, want in expected.items():
        loaded = PeftModel.from_pretrained(make_llama(), tmp_path / name)
        assert torch.equal(logits(loaded, input_ids), want)


# ---------------------------------------------------------------------------------- mixed batches


def test_mixed_batch(two, input_ids):
    names = ["second", "__base__", "default", "second"]
    mixed = logits(two, input_ids, adapter_names=names)
    for row, name in enumerate(names):
        alone = input_ids[row : row + 1]
        weights = {} if name == "__base__" else {name: 1.0}
        reference = with_deltas(make_llama(), two, weights)
        torch.testing.assert_close(mixed[row : row + 1], logits(reference, alone), **ROUNDING)


def test_mixed_batch_with_one_in_warmup(input_ids):
    model = trained()
    model.add_adapter("warm", copy.deepcopy(model.peft_config["default"]))
    model.set_adapter("warm")
    train(model, 2, seed=5)
    assert in_warmup(model, "warm")
    mixed = logits(model, input_ids, adapter_names=["warm", "default", "warm", "default"])
    for row, name in enumerate(("warm", "default")):
        reference = with_deltas(make_llama(), model, {name: 1.0})
        torch.testing.assert_close(mixed[row], logits(reference, input_ids)[row], **ROUNDING)


def test_mixed_batch_of_unknown_adapters(two, input_ids):
    with pytest.raises(ValueError, match="non-existing adapter"):
        logits(two, input_ids, adapter_names=["second", "__base__", "default", "nope"])


def test_generate_with_a_mixed_batch(two, input_ids):
    names = ["second", "__base__", "default", "second"]
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    mixed = two.generate(input_ids=input_ids, adapter_names=names, **options)
    for row, name in enumerate(names):
        weights = {} if name == "__base__" else {name: 1.0}
        reference = with_deltas(make_llama(), two, weights)
        alone = reference.generate(input_ids=input_ids[row : row + 1], **options)
        assert torch.equal(mixed[row], alone[0])


# -------------------------------------------------------------------------------- clone_adapter


def test_clone_adapter(two, input_ids):
    two.set_adapter("second")
    expected = logits(two, input_ids)
    trainable = {n for n, p in two.named_parameters() if p.requires_grad}
    two.clone_adapter("second", "twin")
    # frozen, inactive: nothing changes until it is chosen
    assert two.active_adapters == ["second"]
    assert {n for n, p in two.named_parameters() if p.requires_grad} == trainable
    assert torch.equal(logits(two, input_ids), expected)
    two.set_adapter("twin")
    assert torch.equal(logits(two, input_ids), expected)
    assert in_warmup(two, "twin") is False
    assert sds_layers(two, "twin").keys() == sds_layers(two, "second").keys()
    assert two.peft_config["twin"] == two.peft_config["second"]
    assert two.peft_config["twin"] is not two.peft_config["second"]
    # it stays while the source is trained on
    two.set_adapter("second")
    train(two, 4, total_steps=40)
    assert not torch.equal(logits(two, input_ids), expected)
    two.set_adapter("twin")
    assert torch.equal(logits(two, input_ids), expected)


@pytest.mark.parametrize("steps", [2, 3, 9])
def test_clone_adapter_in_any_phase(steps, input_ids, tmp_path):
    model = trained(steps)
    expected = logits(model, input_ids)
    model.clone_adapter("default", "twin")
    model.set_adapter("twin")
    assert torch.equal(logits(model, input_ids), expected)
    assert in_warmup(model, "twin") == (steps < 3)
    model.save_pretrained(tmp_path, selected_adapters=["twin"])
    loaded = PeftModel.from_pretrained(make_llama(), tmp_path / "twin")
    assert torch.equal(logits(loaded, input_ids), expected)


@pytest.mark.parametrize(
    "options", [{"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [1, 5, 9]}]
)
def test_clone_adapter_with_what_is_saved_beside(options, input_ids):
    model = trained(**options)
    expected = logits(model, input_ids)
    model.clone_adapter("default", "twin")
    assert torch.equal(logits(model, input_ids), expected)
    model.set_adapter("twin")
    assert torch.equal(logits(model, input_ids), expected)


def test_clone_adapter_of_a_bf16_model(input_ids):
    model = sds_model(make_llama().bfloat16())
    train(model, 9)
    expected = logits(model, input_ids)
    model.clone_adapter("default", "twin")
    dtypes = {
        n.replace("default", "X"): t.dtype for n, t in model.state_dict().items() if "default" in n
    }
    assert dtypes == {
        n.replace("twin", "X"): t.dtype for n, t in model.state_dict().items() if "twin" in n
    }
    model.set_adapter("twin")
    assert torch.equal(logits(model, input_ids), expected)


def test_clone_adapter_to_the_name_of_a_module():
    """The name also stands in the paths of the layers."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy, self.ref = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.policy(x) + self.ref(x)

    torch.manual_seed(0)
    model = sds_model(Pair(), target_modules=["policy", "ref"], r=2)
    x = torch.randn(3, 4)
    train(model, loss=lambda m: (m(x) - 1).square().sum())
    expected = model(x)
    for name in ("ref", "policy"):
        model.clone_adapter("default", name)
        model.set_adapter(name)
        assert torch.equal(model(x), expected)
    model.clone_adapter("policy", "again")
    model.set_adapter("again")
    assert torch.equal(model(x), expected)


def test_clone_adapter_refuses_names(two):
    with pytest.raises(ValueError, match="no adapter 'nope' to clone; there are"):
        two.clone_adapter("nope", "twin")
    with pytest.raises(ValueError, match="'second' exists already"):
        two.clone_adapter("default", "second")
    assert set(two.peft_config) == {"default", "second"}


@pytest.mark.parametrize("steps", [2, 9])
def test_a_reference_adapter_is_the_trained_one(steps, input_ids):
    """TRL adds ``ref``, and copies parameters only: another function without the bases."""
    model = trained(steps)
    expected = logits(model, input_ids)
    named = dict(model.named_parameters())

    def logits_of_copied(name: str) -> Tensor:
        """What TRL does."""
        model.add_adapter(name, model.peft_config["default"])
        for target, parameter in model.named_parameters():
            if f".{name}." in target:
                parameter.data.copy_(named[target.replace(f".{name}.", ".default.")])
        model.set_adapter(name)
        return logits(model, input_ids)

    assert torch.equal(logits_of_copied("ref"), expected)
    model.set_adapter("default")
    lost = (logits_of_copied("other") - expected).abs().max()
    assert lost > 1e-2 if steps == 9 else lost == 0
    model.set_adapter("default")
    train(model, 2)
    model.set_adapter("ref")
    assert torch.equal(logits(model, input_ids), expected)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_reference_adapter_that_is_loaded_is_what_was_saved(
    low_cpu_mem_usage, tmp_path, input_ids
):
    saved = trained(9)
    saved.save_pretrained(tmp_path / "one")
    trained(12).save_pretrained(tmp_path / "two")
    model = PeftModel.from_pretrained(make_llama(), tmp_path / "two")
    model.load_adapter(tmp_path / "one", "ref", low_cpu_mem_usage=low_cpu_mem_usage)
    assert model.peft_config["ref"] == model.peft_config["default"]
    model.set_adapter("ref")
    assert torch.equal(logits(model, input_ids), logits(saved, input_ids))


def test_a_reference_adapter_of_another_configuration_is_a_new_one(input_ids):
    model = trained()
    config = copy.deepcopy(model.peft_config["default"])
    config.r = 2
    model.add_adapter("ref", config)
    model.set_adapter("ref")
    assert torch.equal(logits(model, input_ids), logits(make_llama(), input_ids))


# ---------------------------------------------------------------------- add_weighted_adapter


@pytest.mark.parametrize("weights", [{"default": 0.7, "second": -0.4}, {"default": 1.0}])
@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_weighted_adapters_are_weighted_deltas(two, kind, weights, input_ids):
    full_rank = {"svd_rank": 14} if kind == "svd" else {}
    two.add_weighted_adapter(
        list(weights), list(weights.values()), "new", combination_type=kind, **full_rank
    )
    assert two.active_adapters == ["default"]
    assert not any(p.requires_grad for n, p in two.named_parameters() if ".new." in n)
    two.set_adapter("new")
    reference = with_deltas(make_llama(), two, weights)
    torch.testing.assert_close(
        logits(two, input_ids), logits(reference, input_ids), atol=1e-5, rtol=1e-4
    )
    assert in_warmup(two, "new")  # a plain LoRA
    expected_rank = {"cat": sum(2 * two.peft_config[n].r for n in weights), "svd": 14}[kind]
    assert two.peft_config["new"].r == expected_rank


def test_svd_of_one_adapter_is_exact_by_default(two, input_ids):
    """The default rank is 2r, that of one adapter's ΔW."""
    expected = logits(two, input_ids)
    two.add_weighted_adapter(["default"], [1.0], "new", combination_type="svd")
    assert two.peft_config["new"].r == 8
    two.set_adapter("new")
    torch.testing.assert_close(logits(two, input_ids), expected, atol=1e-5, rtol=1e-4)


def test_truncated_svd_is_the_best_approximation(two):
    two.add_weighted_adapter(["default"], [1.0], "new", combination_type="svd", svd_rank=3)
    for layer in sds_layers(two, "new").values():
        U, S, Vh = torch.linalg.svd(dense_delta(layer))
        best = (U[:, :3] * S[:3]) @ Vh[:3]
        torch.testing.assert_close(dense_delta(layer, "new"), best, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "kind", ["ties_svd", "dare_ties_svd", "dare_linear_svd", "magnitude_prune_svd"]
)
def test_pruning_types_are_refused(two, kind):
    """They work on dense matrices, and in PEFT not on every layer."""
    message = refusal(
        lambda: two.add_weighted_adapter(
            ["default"], [0.5], "new", combination_type=kind, density=1.0, svd_rank=8
        )
    )
    assert message.startswith("SDS-LoRA does not support add_weighted_adapter(combination_type")
    assert "new" not in two.peft_config


def test_options_of_the_other_types_are_refused(two):
    message = refusal(lambda: two.add_weighted_adapter(["default"], [1.0], "new", svd_clamp=0.9))
    assert message.startswith("SDS-LoRA does not support add_weighted_adapter(svd_clamp=0.9)")
    assert "new" not in two.peft_config


@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_weighted_adapters_with_patterns(kind, input_ids):
    model = trained(r=2, rank_pattern={"q_proj": 6}, alpha_pattern={"k_proj": 7})
    model.add_weighted_adapter(["default"], [0.5], "new", combination_type=kind)
    model.set_adapter("new")
    reference = with_deltas(make_llama(), model, {"default": 0.5})
    torch.testing.assert_close(
        logits(model, input_ids), logits(reference, input_ids), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"target_modules": ["q_proj"]}, {"target_modules": ["q_proj"]}),
        ({"target_modules": ["q_proj"]}, {"target_modules": ["up_proj"]}),
        ({"target_modules": ["q_proj"]}, {"target_modules": ["k_proj", "q_proj"]}),
    ],
)
@pytest.mark.parametrize("layers", [([0], [1]), ([0, 1], [0]), ([1], [0, 1])])
def test_weighted_adapters_of_different_layers(first, second, layers, input_ids):
    """The new adapter covers the layers of all, and no others: none is dropped in silence."""
    model = trained(layers_to_transform=layers[0], **first)
    config = SdsLoraConfig(r=3, warmup_steps=3, layers_to_transform=layers[1], **second)
    model.add_adapter("second", config)
    model.set_adapter("second")
    train(model, seed=8)
    weights = {"default": 0.7, "second": -0.4}
    names, factors = list(weights), list(weights.values())
    model.add_weighted_adapter(names, factors, "new", combination_type="cat")
    assert set(sds_layers(model, "new")) == {*sds_layers(model), *sds_layers(model, "second")}
    model.set_adapter("new")
    reference = with_deltas(make_llama(), model, weights)
    torch.testing.assert_close(
        logits(model, input_ids), logits(reference, input_ids), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_weighted_adapters_of_the_warmup(kind, input_ids):
    model = trained(2)
    model.add_weighted_adapter(["default"], [0.5], "new", combination_type=kind)
    model.set_adapter("new")
    reference = with_deltas(make_llama(), model, {"default": 0.5})
    torch.testing.assert_close(
        logits(model, input_ids), logits(reference, input_ids), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(("r", "svd_rank"), [(10, None), (4, 40)])
def test_svd_with_a_rank_above_a_layers_side(r, svd_rank, input_ids):
    """k_proj is (16, 32): a default of 2r = 20 exceeds it, though ΔW's rank does not."""
    model = trained(r=r)
    model.add_weighted_adapter(["default"], [1.0], "new", combination_type="svd", svd_rank=svd_rank)
    model.set_adapter("new")
    reference = with_deltas(make_llama(), model, {"default": 1.0})
    torch.testing.assert_close(
        logits(model, input_ids), logits(reference, input_ids), atol=1e-5, rtol=1e-4
    )


def test_weighted_adapters_are_trained_and_saved(two, tmp_path, input_ids):
    two.add_weighted_adapter(["default", "second"], [0.5, 0.5], "new", combination_type="cat")
    two.set_adapter("new")
    train(two, 12)
    assert not in_warmup(two, "new")
    two.save_pretrained(tmp_path, selected_adapters=["new"])
    loaded = PeftModel.from_pretrained(make_llama(), tmp_path / "new")
    assert torch.equal(logits(loaded, input_ids), logits(two, input_ids))


@pytest.mark.parametrize(
    "kind", ["linear", "ties", "dare_ties", "dare_linear", "magnitude_prune", "nonsense"]
)
def test_combinations_of_factors_are_refused(two, kind):
    before = set(two.peft_config)
    with pytest.raises(
        ValueError,
        match=rf"^SDS-LoRA does not support add_weighted_adapter\(combination_type='{kind}'",
    ):
        two.add_weighted_adapter(["default", "second"], [1, 1], "new", combination_type=kind)
    assert set(two.peft_config) == before


def test_weighted_adapters_refuse_bad_arguments(two):
    before = set(two.peft_config)
    with pytest.raises(ValueError, match="'second' exists already"):
        two.add_weighted_adapter(["default"], [1.0], "second", combination_type="cat")
    with pytest.raises(ValueError, match="nope does not exist"):
        two.add_weighted_adapter(["nope"], [1.0], "new", combination_type="cat")
    assert set(two.peft_config) == before


@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_weighted_adapters_refuse_a_wrong_number_of_weights(two, kind):
    """And leave no half-made adapter behind."""
    with pytest.raises(ValueError, match="weights"):
        two.add_weighted_adapter(["default", "second"], [1.0], "new", combination_type=kind)
    assert set(two.peft_config) == {"default", "second"}
    assert not sds_layers(two, "new")


# ---------------------------------------------------------------------------------- hotswap


@pytest.mark.parametrize(("r", "new_r"), [(4, 4), (4, 2), (4, 7)])
@pytest.mark.parametrize("steps", [2, 9])
def test_hotswap(r, new_r, steps, tmp_path, input_ids):
    """Same rank, a smaller and a larger one; from and to either phase."""
    other = trained(steps, seed=11, r=new_r)
    expected = logits(other, input_ids)
    other.save_pretrained(tmp_path)
    model = trained(r=r)
    hotswap_adapter(model, tmp_path, "default", torch_device="cpu")
    torch.testing.assert_close(logits(model, input_ids), expected, **ROUNDING)
    assert in_warmup(model, "default") == (steps < 3)
    torch.testing.assert_close(logits(model.merge_and_unload(), input_ids), expected, **ROUNDING)


def test_hotswap_twice(tmp_path, input_ids):
    expected = {}
    for steps in (2, 9):
        other = trained(steps, seed=11)
        expected[steps] = logits(other, input_ids)
        other.save_pretrained(tmp_path / str(steps))
    model = trained(4)
    for steps in (9, 2, 9):
        hotswap_adapter(model, tmp_path / str(steps), "default", torch_device="cpu")
        torch.testing.assert_close(logits(model, input_ids), expected[steps], atol=0, rtol=0)


def test_training_on_after_a_hotswap(tmp_path, input_ids):
    other = trained(9, seed=11)
    other.save_pretrained(tmp_path)
    model = trained(4)
    hotswap_adapter(model, tmp_path, "default", torch_device="cpu")
    for one in (model, other):
        train(one, 4, total_steps=20)
    torch.testing.assert_close(logits(model, input_ids), logits(other, input_ids), **ROUNDING)


def test_hotswap_of_plain_lora_is_refused(tmp_path):
    get_peft_model(make_llama(), LoraConfig(r=4, target_modules="all-linear")).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match="Incompatible PEFT types"):
        hotswap_adapter(trained(), tmp_path, "default", torch_device="cpu")


@pytest.mark.parametrize("target_rank", [None, 4, 8])
def test_preparing_for_compiled_hotswap(target_rank, tmp_path, input_ids):
    """Scalings as tensors, factors padded to the largest rank to come: the function stays."""
    model = trained()
    expected = logits(model, input_ids)
    other = trained(9, seed=11, r=8 if target_rank == 8 else 4)
    other.save_pretrained(tmp_path)
    prepare_model_for_compiled_hotswap(model, target_rank=target_rank)
    torch.testing.assert_close(logits(model, input_ids), expected, **ROUNDING)
    hotswap_adapter(model, tmp_path, "default", torch_device="cpu")
    torch.testing.assert_close(logits(model, input_ids), logits(other, input_ids), **ROUNDING)


# --------------------------------------------------------------------- beside another method


def test_peft_refuses_another_method_in_one_peft_model():
    plain = LoraConfig(r=4, target_modules=["q_proj"])
    with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
        trained().add_adapter("plain", plain)
    model = get_peft_model(make_llama(), plain)
    with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
        model.add_adapter("sds", SdsLoraConfig(r=4, target_modules=["q_proj"]))


@pytest.mark.parametrize("order", [("plain", "sds"), ("sds", "plain")])
def test_injected_beside_plain_lora(order, input_ids):
    """PEFT's injection does not reject the mixture: we must, or both adapters must work."""
    options = {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": False}
    configs = {"plain": LoraConfig(**options), "sds": SdsLoraConfig(**options)}
    torch.manual_seed(0)
    base = inject_adapter_in_model(configs[order[0]], make_llama(), order[0])
    message = refusal(lambda: inject_adapter_in_model(configs[order[1]], base, order[1]))
    if message is not None:
        assert message.startswith("SDS-LoRA does not support")
        return
    layers = [module for module in base.modules() if isinstance(module, BaseTunerLayer)]

    def reference(*names: str) -> Tensor:
        model = make_llama()
        for name, layer in base.named_modules():
            if layer in layers:
                for adapter in names:
                    A, B = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
                    model.get_submodule(name).weight.data += layer.scaling[adapter] * B @ A
        return logits(model, input_ids)

    for names in (["plain"], ["sds"], ["plain", "sds"]):
        for layer in layers:
            layer.set_adapter(names)
        torch.testing.assert_close(logits(base, input_ids), reference(*names), **ROUNDING)
    for layer in layers:
        layer.merge(adapter_names=["plain", "sds"])
    torch.testing.assert_close(logits(base, input_ids), reference("plain", "sds"), **ROUNDING)


# ------------------------------------------------------------------------------- the state


def test_state_is_frozen_and_no_parameter(two: nn.Module):
    states = {name: m for name, m in two.named_modules() if isinstance(m, SdsState)}
    assert len(states) == 14 + 4
    for state in states.values():
        assert not list(state.parameters())
        assert not any(tensor.requires_grad for tensor in state.buffers())
        assert set(state.state_dict()) == {"Q_A", "Q_B", "gate"}
    assert not any("lora_sds" in name for name, _ in two.named_parameters())
    # what unfreezes parameters by their names has nothing to unfreeze
    for name, parameter in two.named_parameters():
        parameter.requires_grad_("lora_" in name)
    assert not any(b.requires_grad for b in two.buffers())


def test_trainable_parameters_are_those_of_lora():
    options = {"r": 4, "target_modules": "all-linear"}
    plain = get_peft_model(make_llama(), LoraConfig(**options))
    ours = get_peft_model(make_llama(), SdsLoraConfig(**options))
    assert ours.get_nb_trainable_parameters() == plain.get_nb_trainable_parameters()
    assert {n for n, p in ours.named_parameters() if p.requires_grad} == {
        n for n, p in plain.named_parameters() if p.requires_grad
    }
