"""Adapters of SDS-LoRA and of other methods in one model, as PEFT's ``PeftMixedModel`` has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftMixedModel,
    PeftModel,
    PrefixTuningConfig,
    get_peft_model,
)
from peft.tuners.mixed import MixedModel
from torch import Tensor, nn

from sdslora import SdsLoraConfig, SdsLoraScheduler, to_plain_lora
from sdslora.tuner import start_main_stage
from toys import logits, make_llama, sds_layers

IDS = torch.arange(2, 50).reshape(4, 12)
X = torch.randn(5, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
ADDED: dict[str, Callable[[], Any]] = {
    "LoRA": lambda: LoraConfig(r=2, target_modules=["2"], init_lora_weights=False),
    "LoHa": lambda: LoHaConfig(r=2, target_modules=["2"], init_weights=False),
    "LoKr": lambda: LoKrConfig(r=2, target_modules=["2"], init_weights=False),
    "AdaLoRA": lambda: AdaLoraConfig(
        init_r=2, target_modules=["2"], init_lora_weights=False, total_step=1
    ),
}
"""Methods whose change is added to the weight."""
ALL = ADDED | {"OFT": lambda: OFTConfig(oft_block_size=4, target_modules=["2"], init_weights=False)}
"""And one that rotates the weight, so that the order counts, as it does beside LoRA."""
SAME_LAYER, OTHER_LAYER = "2", "0"


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 16)).double().eval()


def sds(layer: str, **options: Any) -> SdsLoraConfig:
    return SdsLoraConfig(r=4, target_modules=[layer], init_lora_weights=False, **options)


def mixed(**configs: Any) -> PeftMixedModel:
    """Add the adapters in their order, all active; an adapter of one name is always the same."""
    model: Any = net()
    for name, config in configs.items():
        torch.manual_seed(len(name))
        if isinstance(model, PeftMixedModel):
            model.add_adapter(name, config)
        else:
            model = get_peft_model(model, config, adapter_name=name, mixed=True)
    model = model.double().eval()
    model.set_adapter(list(configs))
    if "ours" in configs:
        start_main_stage(model, "ours")
    return model


@torch.no_grad()
def change(model: nn.Module) -> Tensor:
    """What the adapters change of the output."""
    return model(X) - net()(X)


@pytest.mark.parametrize("other", ADDED)
def test_changes_of_one_layer_add_up_in_any_order(other):
    ours, theirs = sds(SAME_LAYER), ADDED[other]()
    expected = change(mixed(ours=ours)) + change(mixed(theirs=theirs))
    torch.testing.assert_close(change(mixed(ours=ours, theirs=theirs)), expected)
    torch.testing.assert_close(change(mixed(theirs=theirs, ours=ours)), expected)
    for alone in (mixed(ours=ours), mixed(theirs=theirs)):
        assert change(alone).abs().max() > 1e-2, "no adapter adds up easily"


@pytest.mark.parametrize("other", ALL)
def test_adapters_of_two_layers_in_any_order(other):
    ours, theirs = sds(OTHER_LAYER), ALL[other]()
    one, two = mixed(ours=ours, theirs=theirs), mixed(theirs=theirs, ours=ours)
    torch.testing.assert_close(change(one), change(two))
    assert (change(one) - change(mixed(theirs=theirs))).abs().max() > 0.1


@pytest.mark.parametrize("layer", [SAME_LAYER, OTHER_LAYER])
@pytest.mark.parametrize("first", ["ours", "theirs"])
@pytest.mark.parametrize("other", ALL)
@torch.no_grad()
def test_disabled_merged_and_unloaded(other, first, layer):
    configs = {"ours": sds(layer), "theirs": ALL[other]()}
    if first == "theirs":
        configs = dict(reversed(configs.items()))
    model = mixed(**configs)
    output = model(X)
    with model.disable_adapter():
        assert torch.equal(model(X), net()(X))
    torch.testing.assert_close(model.merge_and_unload()(X), output)
    assert torch.equal(mixed(**configs).unload()(X), net()(X))


def test_one_of_two_is_removed():
    ours, theirs = sds(SAME_LAYER), ADDED["LoHa"]()
    model = mixed(ours=ours, theirs=theirs)
    model.delete_adapter("ours")
    model.set_adapter(["theirs"])
    torch.testing.assert_close(change(model), change(mixed(theirs=theirs)))


def test_trained_beside_an_adapter_that_stays(tmp_path: Path):
    """Warm-up, refreshes and export, while a LoHa adapter of the same layers is active."""
    torch.manual_seed(0)
    loha = LoHaConfig(r=2, target_modules=["q_proj"], init_weights=False)
    get_peft_model(make_llama(), loha).save_pretrained(tmp_path / "theirs")
    model = PeftMixedModel.from_pretrained(make_llama(), tmp_path / "theirs", "theirs")
    config = SdsLoraConfig(r=2, target_modules=["q_proj", "v_proj"], warmup_steps=3)
    model.add_adapter("ours", config)
    model.set_adapter(["theirs", "ours"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".ours." in name)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    scheduler = SdsLoraScheduler(model, optimizer, 8)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    assert scheduler.phase > 0
    assert losses[-1] < losses[0]
    assert all(torch.equal(dict(model.named_parameters())[n], p) for n, p in before.items())

    to_plain_lora(model, tmp_path / "plain", adapter="ours")
    again = PeftMixedModel.from_pretrained(make_llama(), tmp_path / "theirs", "theirs")
    again.load_adapter(tmp_path / "plain", "plain")
    again.set_adapter(["theirs", "plain"])
    torch.testing.assert_close(logits(again, IDS), logits(model, IDS), atol=1e-5, rtol=1e-4)


def test_saved_alone_and_loaded_beside_another(tmp_path: Path):
    config = SdsLoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    alone = get_peft_model(make_llama(), config).eval()
    assert type(alone) is PeftModel
    start_main_stage(alone, "default")
    alone.save_pretrained(tmp_path / "ours")
    loha = LoHaConfig(r=2, target_modules=["q_proj"], init_weights=False)
    get_peft_model(make_llama(), loha).save_pretrained(tmp_path / "theirs")

    def load(*names: str) -> PeftMixedModel:
        first, *others = names
        model = PeftMixedModel.from_pretrained(make_llama(), tmp_path / first, first)
        for name in others:
            model.load_adapter(tmp_path / name, name)
        model.set_adapter(list(names))
        return model.eval()

    assert torch.equal(logits(load("ours"), IDS), logits(alone, IDS))
    both = logits(load("ours", "theirs"), IDS)
    torch.testing.assert_close(logits(load("theirs", "ours"), IDS), both, atol=1e-5, rtol=1e-4)
    assert (both - logits(alone, IDS)).abs().max() > 1e-3


def test_what_does_not_mix_is_rejected():
    with pytest.raises(ValueError, match="use_hira=True in a mixed model"):
        get_peft_model(net(), sds("0", use_hira=True), mixed=True)
    prefix = PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="not compatible with the `PeftMixedModel`"):
        mixed(ours=sds("0")).add_adapter("prefix", prefix)
    attention = nn.Sequential(nn.MultiheadAttention(8, 2))
    with pytest.raises(ValueError, match="SDS-LoRA does not support MultiheadAttention"):
        get_peft_model(attention, sds("0"), mixed=True)


def test_mixtures_without_ours_are_as_peft_leaves_them():
    base = make_llama(tie_word_embeddings=True)
    lora = LoraConfig(r=2, target_modules=["embed_tokens"], init_lora_weights=False)
    model = get_peft_model(base, lora, mixed=True)
    assert isinstance(model.base_model, MixedModel)
    model.add_adapter("other", LoHaConfig(r=2, target_modules=["q_proj"]))
    assert not sds_layers(model)
    merged = model.merge_and_unload()
    assert merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
