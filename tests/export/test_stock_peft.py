"""Exported adapters in a process that has PEFT and never imports sdslora: the same function."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import nets
import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file
from torch import Tensor, nn

from sdslora import SdsLoraConfig, to_plain_lora
from sdslora.tuner import in_warmup, refresh_bases
from sdslora.tuner.registration import PEFT_SAVES_BY_HOOK
from toys import dense_delta, sds_layers, train


@dataclass(frozen=True)
class Case:
    """An adapter to export: on which model, with which configuration, trained how far."""

    kind: str = "llama"
    config: dict[str, Any] = field(default_factory=dict)
    steps: int = 9
    rank: str | int = "exact"
    finish: Callable[[nn.Module], object] = lambda model: None
    """What happens between the training and the export."""
    expected_rank: int = 8
    merges: bool = True
    """Whether merging keeps the function: not into a weight that another layer shares."""

    def adapted(self) -> nn.Module:
        config = {"r": 4, "target_modules": "all-linear", "warmup_steps": 3} | self.config
        torch.manual_seed(7)
        model = get_peft_model(nets.make(self.kind), SdsLoraConfig(**config)).eval()
        x = nets.inputs(model.get_base_model(), seed=2)

        def loss(model: nn.Module) -> Tensor:
            if x.is_floating_point():
                return (model(x) - 1).square().mean()
            return model(x, labels=x).loss

        train(model, self.steps, lr=2e-2, loss=loss)
        self.finish(model)
        return model


def final_refresh(model: nn.Module) -> None:
    refresh_bases(model, "default", "qr")


def with_a_second_adapter(model: nn.Module) -> None:
    model.add_adapter("second", SdsLoraConfig(r=2, target_modules=["q_proj"], warmup_steps=3))
    model.set_adapter("second")
    train(model, 5)
    model.set_adapter("default")


RANKS = {"rank_pattern": {"q_proj": 2, r".*1\.mlp\.up_proj": 6}, "alpha_pattern": {"v_proj": 9}}
CASES = {
    "main stage": Case(),
    "preserve": Case(config={"refresh_mode": "preserve"}),
    "warm-up": Case(steps=2, expected_rank=4),
    "right after the transition": Case(steps=3, expected_rank=4),
    "after a final refresh": Case(finish=final_refresh, expected_rank=4),
    "patterns after a final refresh": Case(config=RANKS, finish=final_refresh, expected_rank=6),
    "compact after a final refresh": Case(rank="compact", finish=final_refresh, expected_rank=4),
    "integer of twice the rank": Case(rank=8),
    "integer above twice the rank": Case(rank=50),
    "compact in the warm-up": Case(steps=2, rank="compact", expected_rank=4),
    "untrained": Case(steps=0, expected_rank=4),
    "patterns": Case(config=RANKS, expected_rank=12),
    "compact with patterns": Case(
        config=RANKS, rank="compact", finish=final_refresh, expected_rank=6
    ),
    "scaling by alpha over r": Case(config={"use_rslora": False, "lora_alpha": 7}),
    "dropout": Case(config={"lora_dropout": 0.3}),
    "some layers": Case(config={"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "a regular expression": Case(config={"target_modules": r".*\.(q_proj|down_proj)"}),
    "modules to save": Case(
        config={"target_modules": ["q_proj", "up_proj"], "modules_to_save": ["lm_head", "norm"]}
    ),
    "trained biases": Case(
        "llama with biases", {"target_modules": ["q_proj", "v_proj"], "bias": "lora_only"}
    ),
    "trained tokens": Case(
        config={"target_modules": ["q_proj"], "trainable_token_indices": [1, 5, 63]}
    ),
    "embedding": Case(config={"target_modules": ["embed_tokens", "q_proj"]}),
    "compact embedding": Case(
        config={"target_modules": ["embed_tokens"]},
        rank="compact",
        finish=final_refresh,
        expected_rank=4,
    ),
    "tied embedding": Case(
        "tied llama", {"target_modules": ["embed_tokens", "q_proj"]}, merges=False
    ),
    "gpt2": Case("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "convolutions": Case("convolutions", {"target_modules": ["one", "two", "three", "point"]}),
    "compact convolutions": Case(
        "convolutions",
        {"target_modules": ["one", "two", "three", "point"]},
        rank="compact",
        finish=final_refresh,
        expected_rank=4,
    ),
    "names that end in one another": Case(
        "nested", {"target_modules": ["fc", "other"], "rank_pattern": {"^fc": 2, "^block.fc": 3}}
    ),
    "a rank above the layers": Case(
        "narrow", {"r": 6, "target_modules": ["inner", "outer"]}, expected_rank=3
    ),
    "compact above the layers": Case(
        "narrow",
        {"r": 6, "target_modules": ["inner", "outer"]},
        rank="compact",
        finish=final_refresh,
        expected_rank=3,
    ),
    "beside another adapter": Case(finish=with_a_second_adapter),
    "while merged": Case(finish=lambda model: model.merge_adapter()),
}
if not PEFT_SAVES_BY_HOOK:  # SdsLoraConfig rejects trained biases there
    del CASES["trained biases"]
HALF = Case("llama in bfloat16")


@dataclass(frozen=True)
class Exported:
    """What was written, what it must compute, and what stock PEFT made of it."""

    folder: Path
    rank: int
    error: float
    expected: Tensor
    stock: dict[str, Tensor] | str
    """Its outputs with the adapter loaded and merged, or why it could not load it."""

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "adapter_config.json").read_text())


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, Exported]:
    """Every case exported here, and loaded in one other process."""
    root = tmp_path_factory.mktemp("exported")
    written, expected, stock = {}, {}, {}
    for name, case in (CASES | {"half": HALF}).items():
        model = case.adapted()
        expected[name] = nets.outputs(model, nets.inputs(model.get_base_model()))
        written[name] = to_plain_lora(model, root / name, case.rank)
        stock[name] = [case.kind, str(root / name)]

    model = nets.make("llama")
    config = SdsLoraConfig(r=4, target_modules=["q_proj", "up_proj"], warmup_steps=3)
    inject_adapter_in_model(config, model, "mine")
    train(model, 9)
    expected["injected"] = nets.outputs(model, nets.inputs(model))
    written["injected"] = to_plain_lora(model, root / "injected")
    stock["injected"] = ["llama", str(root / "injected")]

    model = Case(finish=with_a_second_adapter).adapted()
    model.set_adapter("second")
    expected["the second"] = nets.outputs(model, nets.inputs(model.get_base_model()))
    model.set_adapter("default")
    written["the second"] = to_plain_lora(model, root / "the second", adapter="second")
    stock["the second"] = ["llama", str(root / "the second")]

    results = load_in_another_process(stock, root)
    return {
        name: Exported(
            done.path, done.rank, done.relative_error, expected[name], results[name]
        )
        for name, done in written.items()
    }  # fmt: skip


def load_in_another_process(cases: dict[str, list[str]], root: Path) -> dict[str, Any]:
    (root / "cases.json").write_text(json.dumps(cases))
    script = Path(__file__).with_name("stock_peft.py")
    subprocess.run(
        [sys.executable, str(script), str(root / "cases.json"), str(root / "results.pt")],
        check=True,
        timeout=300,
    )
    return torch.load(root / "results.pt", weights_only=True)


each_case = pytest.mark.parametrize("name", [*CASES, "injected", "the second"])


@each_case
def test_computes_the_same(exported, name):
    done = exported[name]
    assert not isinstance(done.stock, str), done.stock
    torch.testing.assert_close(done.stock["loaded"], done.expected, atol=1e-5, rtol=0)
    if name not in CASES or CASES[name].merges:
        torch.testing.assert_close(done.stock["merged"], done.expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [name for name in CASES if name != "untrained"])
def test_the_comparison_can_fail(exported, name):
    """The base model alone is far from what the adapters make of it."""
    base = nets.make(CASES[name].kind)
    alone = nets.outputs(base, nets.inputs(base))
    assert (alone - exported[name].expected).abs().max() > 1e-2


@each_case
def test_the_configuration_is_plain_loras(exported, name):
    config = exported[name].config
    assert config["peft_type"] == "LORA"
    assert config["use_rslora"] is False
    assert config["lora_alpha"] == config["r"]
    assert config["lora_dropout"] == 0
    assert config["inference_mode"] is True
    assert config["alpha_pattern"] == config["rank_pattern"]
    ours = {field.name for field in fields(SdsLoraConfig)} - {f.name for f in fields(LoraConfig)}
    assert not ours & set(config)
    assert not config["use_dora"]


@pytest.mark.parametrize("name", CASES)
def test_the_files(exported, name):
    """Ranks of tensors, configuration and report agree; patterns only where ranks differ."""
    done, case = exported[name], CASES[name]
    assert {path.name for path in done.folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    tensors = load_file(done.folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert all(key.startswith("base_model.model.") for key in tensors)
    assert not any("lora_sds" in key for key in tensors)
    ranks = {t.shape[0] for key, t in tensors.items() if "lora_A" in key or "embedding_A" in key}
    assert done.rank == max(ranks) == case.expected_rank
    assert bool(done.config["rank_pattern"]) == (len(ranks) > 1)
    assert ranks == {done.config["r"], *done.config["rank_pattern"].values()}
    # none of these approximates
    assert done.error < 1e-6
    if case.rank == "exact" and case.expected_rank == Case.expected_rank:  # 2r
        assert done.error == 0


def test_a_bfloat16_model(exported):
    """The base computes in bfloat16, where either side rounds; ΔW is exact all the same."""
    done = exported["half"]
    tensors = load_file(done.folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    for name, layer in sds_layers(HALF.adapted()).items():
        A, B = (tensors[f"base_model.model.{name}.lora_{x}.weight"].double() for x in "AB")
        torch.testing.assert_close(B @ A, dense_delta(layer), atol=1e-6, rtol=0)
    assert not isinstance(done.stock, str), done.stock
    loaded = done.stock["loaded"]
    assert loaded.dtype == torch.bfloat16
    difference = loaded.double() - done.expected.double()
    assert difference.norm() <= 2**-7 * done.expected.double().norm()


def test_the_cases_are_what_they_say():
    assert in_warmup(CASES["warm-up"].adapted(), "default")
    assert in_warmup(CASES["untrained"].adapted(), "default")
    assert not in_warmup(CASES["right after the transition"].adapted(), "default")
    ranks = {layer.r["default"] for layer in sds_layers(CASES["patterns"].adapted()).values()}
    assert ranks == {2, 4, 6}
    nested = CASES["names that end in one another"].adapted()
    assert {name: layer.r["default"] for name, layer in sds_layers(nested).items()} == {
        "fc": 2, "block.fc": 3, "deep.block.fc": 4, "block.other": 4
    }  # fmt: skip
