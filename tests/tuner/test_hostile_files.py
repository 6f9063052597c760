"""Adapters from strangers: rejected before anything of them is run, and without a trace."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdslora import SdsLoraConfig
from sdslora.tuner import from_plain_lora
from sdslora.tuner.registration import PEFT_SAVES_BY_HOOK
from toys import logits, make_llama, sds_model, trained

Load = Callable[[Path], Any]
EXPONENTIAL = [r"(a|a|\w)*(.*)*!", r"(.*.*)*(.*.*)*x{3}", r"((\w+\.?)+)+!"]


class Exploit:
    """What a pickle can do: anything."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return Path.touch, (self.proof,)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    trained(5).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def as_pickle(adapter: Path) -> None:
    """The same tensors, as PEFT once saved them: even harmless ones are rejected."""
    file = adapter / "adapter_model.safetensors"
    torch.save(load_file(file), adapter / "adapter_model.bin")
    file.unlink()


def with_config(adapter: Path, **changes: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


WAYS: dict[str, Load] = {
    "from_pretrained": lambda adapter: PeftModel.from_pretrained(make_llama(), adapter),
    "from_pretrained with a configuration": lambda adapter: PeftModel.from_pretrained(
        make_llama(), adapter, config=PeftConfig.from_pretrained(adapter)
    ),
    "a new name": lambda adapter: trained(5).load_adapter(adapter, "other"),
    "over the same name": lambda adapter: trained(5).load_adapter(adapter, "default"),
    "by hotswap": lambda adapter: hotswap_adapter(trained(5), adapter, "default"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("harmless", [True, False])
def test_a_pickle_is_refused(way: str, harmless: bool, adapter: Path, tmp_path: Path) -> None:
    as_pickle(adapter)
    if not harmless:
        (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Exploit(tmp_path / "proof")))
    with pytest.raises(ValueError, match=r"adapter_model.bin is a pickle, .* save it again"):
        WAYS[way](adapter)
    assert not (tmp_path / "proof").exists()


def test_a_pickle_of_plain_lora_is_not_converted(tmp_path: Path) -> None:
    get_peft_model(make_llama(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    as_pickle(tmp_path)
    with pytest.raises(ValueError, match="is a pickle"):
        from_plain_lora(make_llama(), tmp_path)


def test_other_methods_load_as_before(tmp_path: Path) -> None:
    """What PEFT does with its own adapters is its own affair."""
    get_peft_model(make_llama(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    as_pickle(tmp_path)
    assert PeftModel.from_pretrained(make_llama(), tmp_path).peft_config["default"].r == 8


@pytest.mark.parametrize(
    ("option", "pattern"),
    zip(["target_modules", "exclude_modules", "rank_pattern"], EXPONENTIAL, strict=True),
)
def test_patterns_of_exponential_cost(option: str, pattern: str) -> None:
    value: Any = {pattern: 2} if option == "rank_pattern" else pattern
    options = {"target_modules": ["q_proj"], option: value}
    start = sum(os.times()[:4])  # of the processes that were waited for, too
    with pytest.raises(ValueError, match=rf"^{option}: to match .* takes more than 1 s"):
        get_peft_model(make_llama(), SdsLoraConfig(**options))
    assert sum(os.times()[:4]) - start < 2


def test_patterns_in_use_are_quick() -> None:
    """Those that notebooks have, on the names of a model."""
    for pattern in (
        r".*\.(q|v)_proj",
        r"^(?!.*vision).*(?:self_attn|mlp)\.(?:q_proj|up_proj|down_proj)$",
        r"(?:.*?(?:language|model).*?(?:self_attn|mlp).*?(?:q_proj|v_proj|up_proj).*?)",
    ):
        get_peft_model(make_llama(), SdsLoraConfig(target_modules=pattern))


@pytest.mark.parametrize("pattern", ["(", "*", "a{99999999999}", "(" * 5000, "x" * 30_000])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"^target_modules(: .* is not a valid| holds a pat)"):
        SdsLoraConfig(target_modules=pattern)


@pytest.mark.parametrize(
    ("option", "value", "kind"),
    [
        ("target_modules", 3, "a name or a list of names"),
        ("target_modules", [1], "a name or a list of names"),
        ("modules_to_save", "lm_head", "a list of names"),
        ("layers_to_transform", [-1], "a layer's number"),
        ("layers_to_transform", True, "a layer's number"),
        ("trainable_token_indices", {"embed_tokens": ["a"]}, "a list of tokens' numbers"),
        ("rank_pattern", [["q_proj", 2]], "values by name"),
        ("rank_pattern", None, "values by name"),
        ("use_rslora", "yes", "true or false"),
        ("bias", "some", "one of none, all, lora_only"),
        ("runtime_config", {}, "a LoraRuntimeConfig"),
        ("revision", 1, "text"),
    ],
)
def test_values_of_another_type(option: str, value: Any, kind: str) -> None:
    with pytest.raises(ValueError, match=f"^{option} must be {kind}.*, not "):
        SdsLoraConfig(**{option: value})


@pytest.mark.parametrize("rank", [2**20 + 1, 10**9, 10**30])
def test_ranks_that_no_layer_has(rank: int) -> None:
    for options in ({"r": rank}, {"rank_pattern": {"q_proj": rank}}):
        with pytest.raises(ValueError, match=f"must be at most 1048576, not {rank}"):
            SdsLoraConfig(**options)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"], ".*"])
def test_a_rank_that_the_tensors_do_not_have(targets: Any, adapter: Path) -> None:
    """A stranger's configuration must not make a machine allocate what the file does not hold."""
    with_config(adapter, r=2**20, target_modules=targets)
    with pytest.raises(ValueError, match=r"and the adapter file holds only \d+"):
        PeftModel.from_pretrained(make_llama(), adapter)


def test_a_configuration_from_a_folder_serves_a_larger_model(adapter: Path) -> None:
    """The file's size bounds what is loaded from it, not what its configuration is used for."""
    config = SdsLoraConfig.from_pretrained(adapter)
    get_peft_model(make_llama(hidden_size=1024, num_hidden_layers=4), config)


needs_hook = pytest.mark.skipif(
    not PEFT_SAVES_BY_HOOK, reason="PEFT 0.20 does not ask a method before it loads"
)


def other_shape(tensors: dict[str, Tensor], key: str) -> None:
    tensors[key] = torch.zeros(3, 3)


def load_onto(model: Any, adapter: Path, name: str | None) -> None:
    if name is None:
        PeftModel.from_pretrained(model, adapter)
    else:
        model.load_adapter(adapter, name)


DAMAGES: dict[str, tuple[Callable[[dict[str, Tensor], str], Any], type[Exception], str]] = {
    "missing": (lambda t, k: t.pop(k), ValueError, "has no tensor for"),
    "shape": (other_shape, RuntimeError, "size mismatch for"),
    "type": (lambda t, k: t.update({k: t[k].long()}), ValueError, "floats are needed"),
    "unknown": (
        lambda t, k: t.update({k.replace("layers.1", "layers.9"): t[k].clone()}),
        ValueError,
        "a layer that has no adapter here",
    ),
    "phase": (
        lambda t, k: t.update({k.replace("lora_A.weight", "lora_sds.gate"): torch.ones(1)}),
        ValueError,
        "must all be in one phase",
    ),
}


@needs_hook
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [None, "other", "default"])
def test_a_refused_load_leaves_no_trace(
    name: str | None, damage: str, adapter: Path, input_ids: Tensor
) -> None:
    """Onto a base, beside an adapter and over it: outputs, modules and adapters are as before."""
    change, error, words = DAMAGES[damage]
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    # the last layer's: all others would be loaded by then
    change(tensors, "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight")
    save_file(tensors, file)
    model: Any = make_llama() if name is None else trained(9)
    expected, modules = logits(model, input_ids), [type(m) for m in model.modules()]
    with pytest.raises(error, match=words):
        load_onto(model, adapter, name)
    assert torch.equal(logits(model, input_ids), expected)
    assert [type(module) for module in model.modules()] == modules
    assert list(getattr(model, "peft_config", ())) == ([] if name is None else ["default"])


def test_a_name_for_an_adapter_that_leaves_the_folder(tmp_path: Path) -> None:
    for name in ("../../away", str(tmp_path / "away")):
        with pytest.raises((ValueError, KeyError), match=r'can\\?.t contain "\."|absolute path'):
            sds_model(make_llama()).add_adapter(name, SdsLoraConfig(target_modules=["q_proj"]))


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0], "has no tensor for .*trainable_tokens_delta"),
        ([64, 3], "trainable_token_indices has 64, and the input embedding has only 64 tokens"),
        ({"embed_tokens": [3, 99]}, "has 99, and model.embed_tokens has only 64 tokens"),
        ({"wte": [3]}, "names 'wte', which is no module of the model"),
    ],
)
def test_tokens_that_the_model_or_the_file_lacks(tmp_path, indices, message):
    """The first was a KeyError, the second left half an adapter."""
    trained = sds_model(make_llama())
    trained.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trainable_token_indices": indices}))
    model = make_llama()
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(model, tmp_path)
    assert [name for name, _ in model.named_modules()] == before
