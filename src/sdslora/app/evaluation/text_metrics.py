"""The loss per completion token and the greedily generated answers of a language model."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, PreTrainedTokenizerBase

from ..config.spec import EvalSpec
from ..data.encoding import Encoded
from ..errors import UserError
from ..progress import Progress
from . import scoring
from .inference import inference

_IGNORED = -100  # the label of a token that bears no loss

T = TypeVar("T")


@dataclass(frozen=True)
class Measurement:
    """The figures of one model on one set of rows.

    Attributes:
        metrics: ``rows``, ``loss`` (nats per completion token, or per image), ``exact_match`` and,
            where the task has a rule of its own, ``task_score``, or ``accuracy`` (shares of rows),
            ``seconds``.
        records: one a row, with the generated text; empty where nothing was generated.
    """

    metrics: dict[str, float]
    records: list[dict[str, str | bool]]


def measure(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Encoded],
    spec: EvalSpec,
    rule: scoring.Rule | None = None,
    title: str = "evaluating",
) -> Measurement:
    """Measure loss and answers of ``model`` on the first ``spec.limit`` rows.

    Raises:
        UserError: where there are no rows.
    """
    require_rows(len(rows))
    start = time.perf_counter()
    rows = rows[: spec.limit]
    loss = mean_loss(model, rows, spec.batch_size, tokenizer.pad_token_id, title)
    metrics: dict[str, float] = {"rows": len(rows), "loss": loss}
    records: list[dict[str, str | bool]] = []
    if spec.exact_match and not rows[0].example.is_text:  # a text answers nothing
        longest = spec.max_new_tokens or max(len(row.completion) for row in rows) + 8
        answers = generate(model, tokenizer, rows, longest, spec.batch_size, title)
        records = scoring.score([row.example for row in rows], answers, rule)
        for name in ("exact_match", "task_score"):
            if name in records[0]:
                metrics[name] = sum(bool(record[name]) for record in records) / len(records)
    metrics["seconds"] = round(time.perf_counter() - start, 2)
    return Measurement(metrics, records)


def require_rows(number: int) -> None:
    """Raise ``UserError`` where there are no rows to measure on."""
    if not number:
        raise UserError("there are no rows to evaluate on; set data.validation or data.holdout")


def summary(metrics: Mapping[str, float]) -> str:
    """Return one line of an evaluation's figures; the task's own score only where it differs."""
    parts = [f"loss {metrics['loss']:.4f}"] if "loss" in metrics else []
    for name in ("exact_match", "accuracy", "reward"):
        if name in metrics:
            parts.append(f"{name.replace('_', ' ')} {metrics[name]:.1%}")
    if metrics.get("task_score", metrics.get("exact_match")) != metrics.get("exact_match"):
        parts.append(f"right by the task's own rule {metrics['task_score']:.1%}")
    return f"{', '.join(parts)} ({metrics['rows']} rows)"


def mean_loss(
    model: nn.Module, rows: Sequence[Encoded], batch_size: int, pad_id: int, title: str = ""
) -> float:
    """Return the mean negative log-likelihood over all tokens that bear loss, in nats."""
    total, count = 0.0, 0
    # Rows of like length share a batch: less padding.
    by_length = sorted(rows, key=lambda row: len(row.prompt) + len(row.completion))
    with inference(model):
        for batch in _batches(by_length, batch_size, f"{title}: loss"):
            inputs = {k: v.to(_device(model)) for k, v in padded_batch(batch, pad_id).items()}
            # A position's logits predict the next position's token.
            targets = inputs.pop("labels")[:, 1:]
            logits = model(**inputs, use_cache=False).logits[:, :-1]
            bears_loss = targets != _IGNORED
            losses = cross_entropy(
                logits[bears_loss].float(), targets[bears_loss], reduction="none"
            )
            total += losses.double().sum().item()
            count += losses.numel()
    return total / count


def padded_batch(rows: Sequence[Encoded], pad_id: int) -> dict[str, Tensor]:
    """Return ``input_ids``, ``attention_mask`` and ``labels`` (number, longest), padded right.

    What bears no loss, padding included, has no label.
    """
    ids = [torch.tensor(row.prompt + row.completion) for row in rows]
    labels = [
        torch.where(torch.tensor(row.mask, dtype=torch.bool), tokens, _IGNORED)
        for row, tokens in zip(rows, ids, strict=True)
    ]
    return {
        "input_ids": _pad(ids, pad_id, "right"),
        "attention_mask": _pad([torch.ones_like(i) for i in ids], 0, "right"),
        "labels": _pad(labels, _IGNORED, "right"),
    }


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Encoded],
    max_new_tokens: int,
    batch_size: int,
    title: str = "",
) -> list[str]:
    """Return the greedy continuation of each row's prompt, without special tokens.

    They are in the order of the rows. Prompts are padded on the left, so every continuation begins
    at the same position.
    """
    # No other generation setting of the model, such as a temperature or a penalty, applies.
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=stop_tokens(model, tokenizer),
    )
    # TRL makes mixtures of experts return router logits, whose loss fails on a single token.
    has_routers = hasattr(model.config, "output_router_logits")
    routers = {"output_router_logits": False} if has_routers else {}
    answers: dict[int, str] = {}
    with inference(model):
        # Prompts of like length share a batch, too.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt))
        for batch in _batches(order, batch_size, f"{title}: answers"):
            ids = [torch.tensor(rows[i].prompt) for i in batch]
            inputs = _pad(ids, tokenizer.pad_token_id, "left").to(_device(model))
            mask = _pad([torch.ones_like(i) for i in ids], 0, "left").to(inputs.device)
            output = model.generate(  # type: ignore[operator]
                input_ids=inputs, attention_mask=mask, generation_config=settings, **routers
            )
            texts = tokenizer.batch_decode(output[:, inputs.shape[1] :], skip_special_tokens=True)
            answers.update(zip(batch, texts, strict=True))
    return [answers[i] for i in range(len(rows))]


def stop_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end a generation: the model's own and the tokenizer's."""
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = ids if isinstance(ids, list) else [ids]
    return sorted({i for i in (*ids, tokenizer.eos_token_id) if i is not None})


def _batches(items: Sequence[T], size: int, title: str) -> Iterator[Sequence[T]]:
    starts = range(0, len(items), size)
    for start in Progress(starts, title=title):
        yield items[start : start + size]


def _pad(sequences: Sequence[Tensor], value: int, side: str) -> Tensor:
    """Return sequences (length_i,) as one tensor (number, longest)."""
    return nn.utils.rnn.pad_sequence(
        list(sequences), batch_first=True, padding_value=value, padding_side=side
    )


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
