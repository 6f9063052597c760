"""``sdslora diagnose`` on constructed adapters, against dense float64 definitions."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import tiny
from sdslora import SdsLoraConfig
from sdslora.studies.diagnose.conclusion import judge
from sdslora.tuner import from_plain_lora
from tiny import Run

TARGETS = ["q_proj", "v_proj", "down_proj"]
EVEN, STEEP = [0.5] * 4, [0.5, 0.05, 0.01, 0.002]
FULL_PRECISION = "--model.dtype=float64"


def set_spectra(model: nn.Module, of_A: Sequence[float], of_B: Sequence[float]) -> None:
    """Give every layer's A and B these singular values, on random bases."""
    torch.manual_seed(3)
    for module in model.modules():
        if "default" not in getattr(module, "lora_A", {}):
            continue
        A, B = module.lora_A["default"].weight, module.lora_B["default"].weight
        with torch.no_grad():
            for factor, values in ((A.data.mT, of_A), (B.data, of_B)):
                basis = torch.linalg.qr(torch.randn(factor.shape, dtype=torch.float64)).Q
                factor.copy_(basis * torch.tensor(values, dtype=torch.float64))


def save_adapter(
    directory: Path,
    base_dir: Path,
    of_A: Sequence[float] = STEEP,
    of_B: Sequence[float] = STEEP,
    **options: object,
) -> Path:
    base = AutoModelForCausalLM.from_pretrained(base_dir)
    defaults = {"r": 4, "target_modules": TARGETS, "task_type": "CAUSAL_LM", "lora_alpha": 6}
    model = get_peft_model(base, LoraConfig(**defaults | options))
    set_spectra(model, of_A, of_B)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def skewed(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:
    return save_adapter(tmp_path_factory.mktemp("skewed"), model_dir)


@pytest.fixture(scope="session")
def even(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:
    return save_adapter(tmp_path_factory.mktemp("even"), model_dir, EVEN, EVEN)


@pytest.fixture
def diagnosis(sdslora: Run, tmp_path: Path):
    """Diagnose; what was printed, on one line, and ``diagnosis.json``."""

    def run(*arguments: object) -> tuple[str, dict]:
        output_dir = tmp_path / "diagnosis"
        shutil.rmtree(output_dir, ignore_errors=True)
        result = sdslora("diagnose", *arguments, "--output_dir", output_dir)
        assert result.status == 0, result.err
        return " ".join(result.out.split()), json.loads((output_dir / "diagnosis.json").read_text())

    return run


def erank(M: np.ndarray) -> float:
    sigma = np.linalg.svd(M, compute_uv=False)
    p = sigma[sigma > 1e-13 * sigma[0]] / sigma.sum()
    return math.exp(-(p * np.log(p)).sum())


def cosine(M: np.ndarray, N: np.ndarray) -> float:
    return float((M * N).sum() / np.linalg.norm(M) / np.linalg.norm(N))


# --- without data


def test_skewed_singular_values(skewed: Path, diagnosis) -> None:
    out, found = diagnosis(skewed)
    assert found["outcome"] == "skewed"
    assert found["sentence"].startswith("Skewed: the singular values that scale the gradients")
    assert found["sentence"] in out
    assert "Not shown: that SDS-LoRA would train to a lower loss" in out
    assert len(found["layers"]) == 6
    values = np.array(STEEP)
    lost = 1 - erank(np.diag(values)) / 4
    assert found["numbers"]["rank_lost"] == pytest.approx(lost, rel=1e-5)
    assert f"{lost:.1%} is lost" in found["sentence"]
    tensors = {
        k: v.double().numpy() for k, v in load_file(skewed / "adapter_model.safetensors").items()
    }
    for name, layer in found["layers"].items():
        A, B = (tensors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        assert layer["rank"] == 4
        for side, M in (("A", A), ("B", B), ("delta", 1.5 * B @ A)):
            sigma = np.linalg.svd(M, compute_uv=False)[:4]
            assert layer[f"condition_{side}"] == pytest.approx(sigma[0] / sigma[-1], rel=2e-2)
            assert layer[f"effective_rank_{side}"] == pytest.approx(erank(M), rel=1e-4)
            stable = (sigma**2).sum() / sigma[0] ** 2
            assert layer[f"stable_rank_{side}"] == pytest.approx(stable, rel=1e-5)
            if side == "delta":
                assert layer["singular_values"] == pytest.approx(sigma.tolist(), rel=1e-2)


def test_even_singular_values(even: Path, diagnosis) -> None:
    out, found = diagnosis(even)
    assert found["outcome"] == "nothing to gain"
    assert "Nothing to gain here: " in out
    assert "SDS-LoRA adapter" not in out
    assert found["numbers"]["rank_lost"] == pytest.approx(0, abs=1e-5)
    assert found["numbers"]["condition_A"] == pytest.approx(1, rel=1e-5)


def test_the_sides_count_alike(diagnosis, tmp_path: Path, model_dir: Path) -> None:
    """B alone scales the gradient of A: half of its loss is the mean."""
    _, found = diagnosis(save_adapter(tmp_path / "a", model_dir, EVEN, STEEP))
    lost = (1 - erank(np.diag(STEEP)) / 4) / 2
    assert found["numbers"]["rank_lost"] == pytest.approx(lost, rel=1e-5)


def test_a_direction_that_is_not_there(diagnosis, tmp_path: Path, model_dir: Path) -> None:
    out, found = diagnosis(save_adapter(tmp_path / "a", model_dir, EVEN, [1.0, 1.0, 1.0, 0.0]))
    layer = next(iter(found["layers"].values()))
    assert layer["condition_B"] is layer["condition_delta"] is None
    assert layer["effective_rank_B"] == pytest.approx(3, rel=1e-4)
    assert "beyond rounding for B" in out


def test_rows_that_hold_nothing_lose_nothing(
    skewed: Path, diagnosis, tmp_path: Path, model_dir: Path, data_file: Path
) -> None:
    """As an exact export of twice the rank, numerically of half: the same share is lost."""
    padded = tmp_path / "padded"
    shutil.copytree(skewed, padded)
    file = padded / "adapter_model.safetensors"
    tensors = {
        key: torch.cat([tensor, torch.zeros_like(tensor)], dim=0 if "lora_A" in key else 1)
        for key, tensor in load_file(file).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((padded / "adapter_config.json").read_text())
    config |= {"r": 8, "lora_alpha": 2 * config["lora_alpha"]}
    (padded / "adapter_config.json").write_text(json.dumps(config))
    for more in ([], ["--data.source", data_file, FULL_PRECISION]):
        _, expected = diagnosis(skewed, *more)
        out, found = diagnosis(padded, *more)
        for key in ("rank_lost", "effective_rank_A", "effective_rank_delta"):
            assert found["numbers"][key] == pytest.approx(expected["numbers"][key], rel=1e-4), key
        assert "6 of 6 layers have fewer directions than rows" in out
        assert "rank 4 up to rounding in 8 rows" in out
        assert not any("fewer directions" in note for note in expected["notes"])


def test_no_base_model_is_needed(skewed: Path, sdslora: Run, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(skewed, alone)
    config = json.loads((alone / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/nowhere/at/all"
    (alone / "adapter_config.json").write_text(json.dumps(config))
    result = sdslora("diagnose", alone, "--shown=2")
    assert result.status == 0, result.err
    assert "the 2 of 6 that lose the most" in result.out
    assert "all 6" in result.out
    assert sdslora("diagnose", alone, "--data.source=x.jsonl").status == 2


def test_what_is_saved_beside_the_factors_is_left_out(
    diagnosis, tmp_path: Path, model_dir: Path
) -> None:
    more = {"target_modules": [*TARGETS, "embed_tokens"], "modules_to_save": ["lm_head"]}
    _, found = diagnosis(save_adapter(tmp_path / "a", model_dir, **more))
    assert len(found["layers"]) == 6


@pytest.mark.parametrize("name", ["<script>$\\x$", "[red]a--b[/]&"])
def test_names_are_text_everywhere(
    name: str, diagnosis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleDict({name: nn.Linear(9, 7), "b": nn.Linear(9, 7)})

    model = get_peft_model(Odd(), LoraConfig(r=4, target_modules=["b", name]))
    set_spectra(model, STEEP, EVEN)
    model.save_pretrained(tmp_path / "odd")
    out, found = diagnosis(tmp_path / "odd")
    assert set(found["layers"]) == {f"inner.{name}", "inner.b"}
    assert name in out
    for picture in ("spectrum", "layers"):
        ElementTree.parse(tmp_path / "diagnosis" / f"{picture}.svg")
    with (tmp_path / "diagnosis" / "layers.csv").open() as file:
        assert {row["layer"] for row in csv.DictReader(file)} == set(found["layers"])


def test_layers_are_in_the_models_order(diagnosis, tmp_path: Path) -> None:
    model = nn.Sequential(*[nn.Linear(5, 5) for _ in range(11)])
    model = get_peft_model(model, LoraConfig(r=4, target_modules=r"\d+"))
    set_spectra(model, STEEP, EVEN)
    model.save_pretrained(tmp_path / "deep")
    _, found = diagnosis(tmp_path / "deep")
    assert list(found["layers"]) == [str(number) for number in range(11)]


# --- on data


def full_gradients(model: PeftModel, batch: dict) -> dict[str, np.ndarray]:
    plain = model.merge_and_unload().requires_grad_(True)
    plain(**batch).loss.backward()
    return {n: m.weight.grad.numpy() for n, m in plain.named_modules() if isinstance(m, nn.Linear)}


def batch_of(data_file: Path, count: int) -> dict[str, torch.Tensor]:
    """The first rows of the file, answers alone bearing loss, padded by hand."""
    tok = tiny.tokenizer()
    pairs = [json.loads(row) for row in data_file.read_text().splitlines()[:count]]
    prompts = [tok(p["question"])["input_ids"] for p in pairs]
    answers = [[*tok(p["answer"])["input_ids"], tok.eos_token_id] for p in pairs]
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids, mask, labels = [], [], []
    for p, a in zip(prompts, answers, strict=True):
        gap = longest - len(p) - len(a)
        ids.append(p + a + [tok.pad_token_id] * gap)
        mask.append([1] * (len(p) + len(a)) + [0] * gap)
        labels.append([-100] * len(p) + a + [-100] * gap)
    names = ("input_ids", "attention_mask", "labels")
    return {k: torch.tensor(v) for k, v in zip(names, (ids, mask, labels), strict=True)}


def test_the_gradients(skewed: Path, diagnosis, data_file: Path, model_dir: Path) -> None:
    out, found = diagnosis(skewed, "--data.source", data_file, "--rows=5", FULL_PRECISION)
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float64)
    model = PeftModel.from_pretrained(base, skewed).double()
    G_of = full_gradients(model, batch_of(data_file, 5))
    tensors = load_file(skewed / "adapter_model.safetensors")
    lost = []
    for name, layer in found["layers"].items():
        G, s = G_of[name], 6 / 4
        A, B = (
            tensors[f"base_model.model.{name}.lora_{side}.weight"].double().numpy() for side in "AB"
        )
        P_A, P_B = np.linalg.pinv(A) @ A, B @ np.linalg.pinv(B)
        expected = {
            "gradient_rank_A": erank(B.T @ G),
            "gradient_rank_B": erank(G @ A.T),
            "direction_rank_A": erank(P_B @ G),
            "direction_rank_B": erank(G @ P_A),
            "alignment": cosine(G, s**2 * (B @ B.T @ G + G @ A.T @ A)),
            "alignment_sds": cosine(G, P_B @ G + G @ P_A),
            "alignment_bound": cosine(G, P_B @ G + G @ P_A - P_B @ G @ P_A),
        }
        for key, value in expected.items():
            assert layer[key] == pytest.approx(value, rel=1e-4), key
        assert layer["alignment"] < layer["alignment_bound"]
        assert layer["alignment_sds"] <= layer["alignment_bound"]
        shares = [layer[f"gradient_rank_{x}"] / layer[f"direction_rank_{x}"] for x in "AB"]
        lost.append(1 - sum(shares) / 2)
        assert layer["rank_lost"] == pytest.approx(lost[-1], rel=1e-4)
    assert found["numbers"]["rank_lost"] == pytest.approx(np.mean(lost), rel=1e-4)
    assert found["outcome"] == "skewed"
    gain = found["numbers"]["alignment_sds"] - found["numbers"]["alignment"]
    assert f"({gain:+.3f}; 0.02 and more is seeing more)" in out


def test_even_on_data(even: Path, diagnosis, data_file: Path) -> None:
    _, found = diagnosis(even, "--data.source", data_file, FULL_PRECISION)
    assert found["outcome"] == "nothing to gain"
    assert found["numbers"]["rank_lost"] == pytest.approx(0, abs=1e-5)
    for layer in found["layers"].values():
        # A = ½ Q_Aᵀ, B = ½ Q_B: the same gradient up to its size
        assert layer["alignment_sds"] == pytest.approx(layer["alignment"], rel=1e-5)


def test_an_sds_lora_adapter(
    skewed: Path, diagnosis, data_file: Path, model_dir: Path, tmp_path: Path
) -> None:
    model = from_plain_lora(AutoModelForCausalLM.from_pretrained(model_dir), skewed)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        parameter.data += 0.01 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "sds")
    for more in ([], ["--data.source", data_file]):
        out, found = diagnosis(tmp_path / "sds", *more)
        assert found["method"] == "sds-lora"
        assert found["outcome"] == "nothing to gain"
        assert "It is an SDS-LoRA adapter past its warm-up, which is why." in out
        assert found["numbers"]["rank_lost"] == pytest.approx(0, abs=1e-6)
    for layer in found["layers"].values():
        assert len(layer["singular_values"]) == 8
        assert layer["alignment_sds"] == layer["alignment"] < layer["alignment_bound"]
        # its own A, not the base, is what the spectrum is of
        assert layer["condition_A"] > 2


def test_an_sds_lora_adapter_in_its_warmup_is_plain_lora(
    diagnosis, model_dir: Path, tmp_path: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    model = get_peft_model(base, SdsLoraConfig(r=4, target_modules=TARGETS))
    set_spectra(model, STEEP, STEEP)
    model.save_pretrained(tmp_path / "sds")
    out, found = diagnosis(tmp_path / "sds")
    assert found["outcome"] == "skewed"
    assert "which is why" not in out


def test_weights_that_are_stored_transposed(diagnosis, data_file: Path, tmp_path: Path) -> None:
    """GPT-2's, of (n, m)."""
    tok = tiny.tokenizer()
    tok.save_pretrained(tmp_path / "gpt2")
    sizes = {"vocab_size": len(tok), "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(tmp_path / "gpt2")
    options = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
    adapter = save_adapter(tmp_path / "a", tmp_path / "gpt2", **options)
    _, found = diagnosis(adapter, "--data.source", data_file)
    (layer,) = found["layers"].values()
    assert 0 < layer["alignment"] < layer["alignment_bound"]


def test_layers_without_a_gradient_or_a_change(
    diagnosis, model_dir: Path, data_file: Path, tmp_path: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    base.model.layers[0].self_attn.o_proj.weight.data.zero_()
    shutil.copytree(model_dir, tmp_path / "cut")
    base.save_pretrained(tmp_path / "cut")
    adapter = save_adapter(tmp_path / "a", tmp_path / "cut")
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    unchanged = "model.layers.1.mlp.down_proj"
    tensors[f"base_model.model.{unchanged}.lora_B.weight"].zero_()
    save_file(tensors, file, metadata={"format": "pt"})
    out, found = diagnosis(adapter, "--data.source", data_file)
    assert "2 of 6 layers got no finite gradient, model.layers.0.self_attn." in out
    assert f"1 of 6 layers change nothing yet, {unchanged} for one." in out
    cut = found["layers"]["model.layers.0.self_attn.q_proj"]
    assert cut["alignment"] is cut["alignment_sds"] is cut["rank_lost"] is None
    assert found["layers"][unchanged]["rank_lost"] is None
    used = [layer for layer in found["layers"].values() if layer["rank_lost"] is not None]
    assert len(used) == 3
    expected = np.mean([layer["alignment"] for layer in used])
    assert found["numbers"]["alignment"] == pytest.approx(expected)


def test_a_run_brings_its_data(
    skewed: Path, diagnosis, tmp_path: Path, model_dir: Path, data_file: Path
) -> None:
    """The rows that it holds out."""
    run = tmp_path / "run"
    shutil.copytree(skewed, run)
    trained_on = tiny.save_rows(tmp_path / "rows.jsonl", tiny.rows(9, seed=5))
    data = {"source": str(trained_on), "validation": str(data_file)}
    config = {"model": {"name_or_path": str(model_dir)}, "data": data}
    (run / "run.json").write_text(json.dumps({"status": "finished", "config": config}))
    _, found = diagnosis(run)
    _, expected = diagnosis(skewed, "--data.source", data_file)
    assert found["layers"] == expected["layers"]
    _, found = diagnosis(run, "--data.source=null")
    assert "alignment" not in found["numbers"]


# --- the verdict


@pytest.mark.parametrize(
    ("lost", "gain", "outcome"),
    [
        (0.10, None, "skewed"),
        (0.099, None, "mixed"),
        (0.029, None, "nothing to gain"),
        (0.03, None, "mixed"),
        (0.5, 0.1, "skewed"),
        (0.5, -0.1, "mixed"),
        (0.0, 0.1, "mixed"),
        (-0.2, -0.1, "nothing to gain"),
    ],
)
def test_outcomes(lost: float, gain: float | None, outcome: str) -> None:
    layer = dict.fromkeys(["condition_A", "condition_B"], 7.0)
    layer |= {"rank_lost": lost, "singular_values": [1.0], "rank": 1.0, "numerical_rank": 1.0}
    if gain is not None:
        ranks = [f"{kind}_rank_{side}" for kind in ("gradient", "direction") for side in "AB"]
        layer |= dict.fromkeys(ranks, 2.0)
        layer |= {"alignment": 0.3, "alignment_sds": 0.3 + gain, "alignment_bound": 0.6}
    verdict = judge({"a": layer}, main_stage=False)
    assert verdict.outcome == outcome
    assert ("cosine" in verdict.sentence) == (gain is not None)


# --- bad input


def changed(adapter: Path, directory: Path, **config: object) -> Path:
    shutil.copytree(adapter, directory)
    file = directory / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return directory


def test_no_adapter(sdslora: Run, model_dir: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", model_dir):
        result = sdslora("diagnose", path)
        assert result.status == 2
        assert f"{path} holds no adapter" in result.err


def test_other_adapters(sdslora: Run, skewed: Path, model_dir: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    get_peft_model(base, IA3Config(task_type="CAUSAL_LM")).save_pretrained(tmp_path / "ia3")
    result = sdslora("diagnose", tmp_path / "ia3")
    assert result.status == 2
    assert "is an adapter of type IA3; diagnose reads those of LoRA and SDS-LoRA" in result.err
    for option, value in {"use_dora": True, "init_lora_weights": "pissa"}.items():
        result = sdslora("diagnose", changed(skewed, tmp_path / option, **{option: value}))
        assert result.status == 2
        assert "SDS-LoRA does not support" in result.err
        assert option in result.err


def test_numbers_that_are_not_finite(sdslora: Run, skewed: Path, tmp_path: Path) -> None:
    file = changed(skewed, tmp_path / "a") / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"
    tensors[name][0, 0] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    result = sdslora("diagnose", tmp_path / "a")
    assert result.status == 2
    assert f"{name} holds NaN or infinity" in result.err


def test_an_untrained_adapter(sdslora: Run, model_dir: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", model_dir, of_B=[0.0] * 4)
    result = sdslora("diagnose", tmp_path / "a")
    assert result.status == 2
    assert "changes none of its 6 layers yet" in result.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 64}, "layer 'model.layers.0.mlp.down_proj' has shape (64, 48), the"),
        ({"num_hidden_layers": 1}, "has no layer 'model.layers.1."),
        ({"num_hidden_layers": 3}, "'model.layers.2.mlp.down_proj' for one"),
    ],
)
def test_another_base(change, message, sdslora, skewed, data_file, tmp_path: Path) -> None:
    other = tiny.save_model(tmp_path / "other", **change)
    argv = [skewed, "--model.name_or_path", other]
    result = sdslora("diagnose", *argv, "--data.source", data_file)
    assert result.status == 2
    assert "does not belong to" in result.err
    assert message in result.err
    if "num_hidden_layers" not in change:
        # told without data too
        assert sdslora("diagnose", *argv).status == 2


def test_data_and_options(sdslora: Run, skewed: Path, data_file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    for arguments, message in {
        ("--data.source", tmp_path / "empty.jsonl"): "is empty",
        ("--data.source", "reasoning-gym:chain_sums"): "did you mean `chain_sum`?",
        ("--rows=0",): "rows must be 1 or more, not 0",
        ("--shown=-1",): "shown must be 0 or more, not -1",
        ("--data.source", data_file, "--max_length=3"): "max_length=3",
        ("--output_dir", skewed): "exists and is not empty",
        ("--row=3",): "unknown key `row`; did you mean `rows`?",
    }.items():
        result = sdslora("diagnose", skewed, *arguments)
        assert result.status == 2
        assert message in result.err, result.err


def test_a_base_that_is_not_finite(
    sdslora: Run, skewed: Path, data_file: Path, model_dir: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model_dir, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = torch.inf
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    argv = ["--data.source", data_file, "--model.name_or_path", broken]
    result = sdslora("diagnose", skewed, *argv)
    assert result.status == 1
    assert "has a finite gradient on these rows" in result.err
