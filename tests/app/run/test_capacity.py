"""The formulas of memory and time, against published sizes and a model that is trained."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from sdslora import SdsLoraConfig
from sdslora.app.run import capacity
from sdslora.app.run.capacity import DECODERS, Decoder, Gpu

ROOT = Path(__file__).parents[3]
TINY = Decoder(2, 32, 48, 4, 2, 8, 101)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("gemma-2b", 2.506),
        ("llama2-7b", 6.738),
        ("llama3-8b", 8.030),
        ("llama3-70b", 70.554),
        ("llama3-405b", 405.853),
    ],
)
def test_parameters_are_the_published_ones(name, billions):
    assert DECODERS[name].parameters / 1e9 == pytest.approx(billions, abs=1e-3)


@pytest.mark.parametrize("rank", [3, 8])
def test_bytes_are_those_of_a_trained_model(rank):
    config = LlamaConfig(
        vocab_size=101,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    base = LlamaForCausalLM(config).to(torch.bfloat16)
    model = get_peft_model(base, SdsLoraConfig(r=rank, target_modules="all-linear"))
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    tokens = torch.randint(101, (1, 4))
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    moments = [
        kept[name] for kept in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")
    ]
    bases = [b for name, b in model.named_buffers() if ".lora_" in name and b.is_floating_point()]
    measured = {
        "base": sum(p.nbytes for p in frozen),
        "adapter": sum(p.nbytes for p in trained),
        "bases": sum(b.nbytes for b in bases if b.dim() == 2),
        "gradients": sum(p.grad.nbytes for p in trained),
        "optimizer": sum(m.nbytes for m in moments),
    }
    found = capacity.sds_lora_bytes(TINY, rank, tokens=4)
    assert {kind: found[kind] for kind in measured} == measured


@pytest.mark.parametrize("variant", ["plain", "gradient checkpointing"])
@pytest.mark.parametrize(
    ("name", "of"), [("llama3-8b", "llama-3-8b"), ("gemma-2b", "gemma-2b")], ids=str
)
def test_the_sum_is_what_a_step_allocates(name, of, variant, monkeypatch):
    """Two blocks of the model with its whole vocabulary, on tensors without memory."""
    from cases import Bench, Case
    from contenders import base_model
    from memory import counted_bytes

    case = Case(of, 2, 512, 32, "bfloat16", variant, layers=2)
    base = base_model(of, "meta", torch.bfloat16, layers=2)
    run = Bench(case, base, torch.zeros(2, 512, dtype=torch.long, device="meta"))
    shape = replace(DECODERS[name], layers=2)
    checkpointing = variant != "plain"
    parts = capacity.sds_lora_bytes(
        shape, 32, 2 * 512, checkpointing=checkpointing, chunked_loss=False
    )
    counted = counted_bytes(run.training("SDS-LoRA"))["peak"]
    assert sum(parts.values()) == pytest.approx(counted, rel=0.03)


def test_shards_divide_all_but_the_bases_and_activations():
    one, eight = (capacity.sds_lora_bytes(DECODERS["llama3-8b"], 32, 100, n) for n in (1, 8))
    ratios = {kind: one[kind] / eight[kind] for kind in one}
    whole = ("bases", "activations")
    assert ratios == {kind: 1 if kind in whole else 8 for kind in one}


def test_multiply_adds_of_llama3_8b():
    model = DECODERS["llama3-8b"]
    head = 128256 * 4096
    frozen = capacity.multiply_adds(model, 32, per_adapter=0) - 2 * head
    assert frozen / 1e9 == pytest.approx(13.96, abs=0.005)
    added = [capacity.multiply_adds(model, 32, n) - frozen - 2 * head for n in (3, 5)]
    assert [n / 1e9 for n in added] == pytest.approx([0.25, 0.42], abs=0.005)
    assert capacity.multiply_adds(model) == 1.5 * (frozen + 2 * head)


def test_seconds_are_operations_over_speed():
    model, gpu = TINY, Gpu(flops=1e6, share=0.5)
    per_token = sum(3 * 2 * m * n + 2 * 5 * 4 * (m + n) for m, n in model.linears) * 2
    per_token += 3 * 2 * 101 * 32
    assert capacity.seconds(model, 4, 7, gpu) == pytest.approx(7 * per_token / 0.5e6)
    assert capacity.seconds(model, 4, 7, gpu, checkpointing=False) < 7 * per_token / 0.5e6


def test_the_page_is_what_the_formulas_say(monkeypatch):
    from capacity_page import texts
    from page import filled

    page = (ROOT / "docs/capacity.md").read_text()
    assert filled(page, texts()) == page
