"""A tiny random language model with a character tokenizer, made on the spot."""

import json
import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    status: int
    out: str
    err: str


Run = Callable[..., Result]
"""The fixture ``sdslora``: command-line arguments in."""
MakeRecipe = Callable[..., str]
"""The fixture ``recipe``: changes in, the path of the YAML out."""


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; ``</s>`` ends a sequence."""
    tokens = ["<pad>", "</s>", "<unk>", *string.printable]
    raw = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def save_model(directory: Path, chat: bool = False, **config: object) -> Path:
    """A Llama of two layers, hidden size 32, with random weights of usable size."""
    tok = tokenizer()
    if chat:
        tok.chat_template = CHAT_TEMPLATE
    tok.save_pretrained(directory)
    torch.manual_seed(0)
    settings = {
        "vocab_size": len(tok),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": tok.eos_token_id,
        "pad_token_id": tok.pad_token_id,
        **config,
    }
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(directory)
    return directory


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Sums with distinct questions."""
    pairs = random.Random(seed).sample([(a, b) for a in range(40) for b in range(40)], count)
    return [{"question": f"{a}+{b}=", "answer": str(a + b)} for a, b in pairs]


def save_rows(path: Path, data: list) -> Path:
    """Write .json or .jsonl."""
    if path.suffix == ".json":
        path.write_text(json.dumps(data))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in data))
    return path
