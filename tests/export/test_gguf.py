"""Adapters as GGUF, run by llama.cpp itself: the same tokens with the same probabilities."""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import llama_cpp
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from sdslora.export import gguf_lora, to_gguf
from sdslora.tuner import refresh_bases
from toys import VOCABULARY, make_llama, sds_model, train

CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config,
           "qwen3": Qwen3Config}  # fmt: skip
TOKENS = 12
PROMPTS = [[5, 17, 42, 3], [60, 1, 1, 8, 30, 22, 9], [11]]


def make_base(kind: str) -> nn.Module:
    config: PreTrainedConfig = CONFIGS[kind](
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=llama_cpp.CONTEXT,
        initializer_range=0.2,
        tie_word_embeddings=False,
        eos_token_id=None,
        bos_token_id=None,
        rms_norm_eps=1e-6,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@torch.no_grad()
def continuation(model: nn.Module, prompt: list[int]) -> list[tuple[int, float]]:
    """The most probable tokens and their log-probabilities, one forward pass each."""
    ids, found = list(prompt), []
    for _ in range(TOKENS):
        log_p = model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        found.append((int(log_p.argmax()), float(log_p.max())))
        ids.append(found[-1][0])
        if ids[-1] == VOCABULARY - 1:  # the end of the text
            break
    return found


def difference(one: list[tuple[int, float]], other: list[tuple[int, float]]) -> float:
    """Of the log-probabilities; infinite where the tokens differ."""
    if [token for token, _ in one] != [token for token, _ in other]:
        return float("inf")
    return max(abs(a - b) for (_, a), (_, b) in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", gguf_lora.ARCHITECTURES)
def test_llama_cpp_computes_the_same(kind: str, tmp_path: Path) -> None:
    model = sds_model(make_base(kind))
    train(model)
    llama_cpp.write_base(make_base(kind), tmp_path / "base.gguf")
    done = to_gguf(model, tmp_path / "adapter")
    assert (done.rank, done.relative_error) == (8, 0)
    server = llama_cpp.serve(tmp_path / "base.gguf", done.path)
    alone = llama_cpp.serve(tmp_path / "base.gguf")
    for prompt in PROMPTS:
        ours = continuation(model, prompt)
        assert difference(ours, llama_cpp.greedy(server, prompt, TOKENS)) < 1e-4
        with model.disable_adapter():
            assert (
                difference(continuation(model, prompt), llama_cpp.greedy(alone, prompt, TOKENS))
                < 1e-4
            ), "the base models differ already"
        assert difference(ours, llama_cpp.greedy(alone, prompt, TOKENS)) > 1e-2


def read(file: Path) -> gguf.GGUFReader:
    return gguf.GGUFReader(file)


def test_the_file(tmp_path: Path) -> None:
    """Metadata and names as llama.cpp's own converter writes them."""
    model = sds_model(make_llama(), target_modules=["q_proj", "down_proj"])
    train(model)
    done = to_gguf(model, tmp_path / "adapter", 3)
    assert done.path == tmp_path / "adapter" / "adapter.gguf"
    assert list(done.path.parent.iterdir()) == [done.path]
    reader = read(done.path)
    values = {key: field.contents() for key, field in reader.fields.items()}
    assert values["general.architecture"] == "llama"
    assert values["general.type"] == "adapter"
    assert values["adapter.type"] == "lora"
    assert values["adapter.lora.alpha"] == 3, "the scale is alpha / rank"
    # a GGUF shape begins with the innermost dimension
    shapes = {tensor.name: tuple(tensor.shape.tolist()) for tensor in reader.tensors}
    assert shapes == {
        f"blk.{i}.{name}.weight.lora_{x}": shape
        for i in (0, 1)
        for name, x, shape in [
            ("attn_q", "a", (32, 3)), ("attn_q", "b", (3, 32)),
            ("ffn_down", "a", (48, 3)), ("ffn_down", "b", (3, 32)),
        ]
    }  # fmt: skip
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F32"}


def test_compact(tmp_path: Path) -> None:
    model = sds_model(make_llama())
    train(model)
    refresh_bases(model, "default", "qr")
    done = to_gguf(model, tmp_path / "adapter", "compact")
    assert done.rank == 4
    assert done.relative_error < 1e-6


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_interleaved_heads_turn_as_halves_do(heads: int) -> None:
    """The reason for the order of rows: both rotary embeddings give the same products q · k."""
    width, tokens, k = 6, 5, 3
    generator = torch.Generator().manual_seed(heads)
    draw = [torch.randn(heads * width, k, generator=generator).double() for _ in "qk"]
    x = torch.randn(tokens, k, generator=generator).double()
    angle = torch.arange(tokens)[:, None] * torch.tensor([1.0, 0.3, 0.07]).double()

    def turned(rows: torch.Tensor, first: list[int], second: list[int]) -> torch.Tensor:
        y = (x @ rows.T).view(tokens, heads, width)
        a, b = y[..., first], y[..., second]
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    halves = [turned(rows, [0, 1, 2], [3, 4, 5]) for rows in draw]
    pairs = [turned(gguf_lora.interleave_heads(rows, heads), [0, 2, 4], [1, 3, 5]) for rows in draw]
    products = [torch.einsum("shd,thd->hst", q, k) for q, k in (halves, pairs)]
    torch.testing.assert_close(*products, atol=1e-12, rtol=0)


# --- what is rejected


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    model = sds_model(make_llama())
    model.config.model_type = "bert"
    with pytest.raises(ValueError, match=r"llama, mistral.*'bert'.*merge the adapter"):
        to_gguf(model, tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "lm_head.weight"),
        ({"target_modules": ["embed_tokens"]}, "model.embed_tokens"),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]}, "embed_tokens"),
    ],
)
def test_what_llama_cpp_cannot_apply_is_named(options: dict, named: str, tmp_path: Path) -> None:
    model = sds_model(make_llama(), **options)
    with pytest.raises(ValueError, match=rf"llama\.cpp holds.*{named}.*merge the adapter"):
        to_gguf(model, tmp_path / "adapter")
    assert not list(tmp_path.iterdir())


def test_a_layer_unknown_to_llama_cpp_is_named(tmp_path: Path) -> None:
    base = make_llama()
    base.model.extra = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"no layer for 'model\.extra'"):
        to_gguf(sds_model(base, target_modules=["extra"]), tmp_path / "adapter")


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = sds_model(make_llama())
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match="gguf"):
        to_gguf(model, tmp_path / "adapter")
