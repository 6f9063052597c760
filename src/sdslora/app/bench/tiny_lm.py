"""``bench:tiny-lm``: a Llama of characters, pretrained on a family of tasks and on text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from . import corpus
from .characters import tokenizer
from .family import Family, Row
from .pretraining import Pretraining

_IGNORED = -100  # the label of a token that bears no loss


@dataclass(frozen=True)
class TinyLm:
    """A language model as ``AutoModelForCausalLM`` and ``AutoTokenizer`` load it.

    Args:
        family: what it is pretrained on; every character but the first bears loss.
        training: how.
        hidden, layers, heads, intermediate: the shape of the Llama.
    """

    name: ClassVar[str] = "tiny-lm"
    file: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ("torch", "transformers", corpus.PACKAGE)
    takes: ClassVar[str] = "in minutes; the time left is shown"

    family: Family = field(default_factory=Family)
    training: Pretraining = field(default_factory=lambda: Pretraining(1500, 48, 2e-3))
    hidden: int = 160
    layers: int = 5
    heads: int = 5
    intermediate: int = 432

    def make(self, directory: Path) -> dict[str, object]:
        """Pretrain and save; return the size, and loss and exact answers on held-out rows."""
        characters = tokenizer()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.training.seed)
            model = LlamaForCausalLM(self._config(characters))
            self.training.run(model, self._batches(characters), "pretraining the language model")
        model.save_pretrained(directory)
        characters.save_pretrained(directory)
        rows = self.family.held_out_rows()
        return {"parameters": model.num_parameters(), **answer_quality(model, characters, rows)}

    def _config(self, characters: PreTrainedTokenizerFast) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=len(characters),
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            initializer_range=self.hidden**-0.5,  # the usual 0.02 is for wide models
            max_position_embeddings=256,
            bos_token_id=None,
            eos_token_id=characters.eos_token_id,
            pad_token_id=characters.pad_token_id,
        )

    def _batches(self, characters: PreTrainedTokenizerFast) -> Iterator[dict[str, Tensor]]:
        texts = self.family.texts(self.training.seed)
        while True:
            yield _batch(characters, list(islice(texts, self.training.batch_size)))


def _batch(characters: PreTrainedTokenizerFast, texts: Sequence[str]) -> dict[str, Tensor]:
    """Return ``input_ids`` and ``labels`` (number, longest), each text ended and padded right."""
    end = characters.eos_token_id
    rows = [torch.tensor([*ids, end]) for ids in characters(list(texts))["input_ids"]]
    return {
        "input_ids": pad_sequence(rows, True, characters.pad_token_id),
        "labels": pad_sequence(rows, True, _IGNORED),
    }


@torch.no_grad()
def answer_quality(
    model: LlamaForCausalLM, characters: PreTrainedTokenizerFast, rows: Sequence[Row]
) -> dict[str, object]:
    """Return ``loss`` (nats a character) and ``exact``: the share of right answers, by task."""
    batch = _batch(characters, [row["text"] for row in rows])
    logits, targets = model(batch["input_ids"]).logits[:, :-1], batch["labels"][:, 1:]
    loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=_IGNORED)
    # Greedy decoding finds an answer if and only if every character of it is the likeliest.
    right = (logits.argmax(-1) == targets) | (targets == _IGNORED)
    exact: dict[str, list[bool]] = {}
    for row, each in zip(rows, right, strict=True):
        if "answer" in row:
            exact.setdefault(row["task"], []).append(bool(each[len(row["question"]) - 1 :].all()))
    return {
        "loss": loss.item(),
        "exact": {task: sum(right) / len(right) for task, right in exact.items()},
    }
