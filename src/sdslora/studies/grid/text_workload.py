"""Language models on prompts and completions."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...app.data import readers
from ...app.data.encoding import Encoded
from ...app.data.examples import Examples, load_examples
from ...app.data.templates import Example, Template
from ...app.errors import UserError
from ...app.evaluation.text_metrics import mean_loss
from ...app.models.base_models import LanguageModel
from ...app.run.text import Text
from .spec import CompareSpec, ForgettingSpec, TasksSection
from .workload import Workload


class LanguageWorkload(Workload):
    """The model and data sections of a recipe, as in ``sdslora train``.

    Raises:
        UserError: for a model or data that cannot work.
    """

    def __init__(self, spec: CompareSpec, source: LanguageModel) -> None:
        tokenizer = source.processor()
        examples, notes = _apart(load_examples(spec.data, spec.test))
        made = Text(source, tokenizer, spec.data, spec.training.max_length, examples)
        super().__init__(spec, made, notes)
        self._tokenizer = tokenizer
        self._general = _general_rows(spec.forgetting, tokenizer)
        self._tasks = _tasks(spec.tasks)

    def task_figures(self, model: nn.Module) -> dict[str, Any] | None:
        """By lm-evaluation-harness, as ``sdslora evaluate --tasks`` measures a trained adapter."""
        if not self._tasks:
            return None
        from ...app.evaluation.tasks import harness

        asked, trained = self.spec.tasks, cast(PreTrainedModel, model)
        return harness.run(
            trained, self._tokenizer, self._tasks, asked.batch_size, asked.limit, asked.generation
        ).metrics

    def general_loss(self, model: nn.Module) -> float | None:
        """Nats per token on the texts of the forgetting section."""
        if not self._general:
            return None
        batch_size = self.spec.evaluation.batch_size
        pad_id: int = self._tokenizer.pad_token_id
        return mean_loss(model, self._general, batch_size, pad_id, "general text")


def _apart(examples: Examples) -> tuple[Examples, list[str]]:
    """The examples without those to measure on that are trained on or chosen by, and notes."""
    used = {example.prompt for example in examples.train}
    notes = []
    kept: dict[str, Any] = {}
    for name in ("validation", "test"):
        held: list[Example] = getattr(examples, name)
        kept[name] = [example for example in held if example.prompt not in used]
        used |= {example.prompt for example in kept[name]}
        finding = f"{len(held) - len(kept[name])} of {len(held)} {name} rows have a prompt that is "
        finding += "trained on or chosen by as well"
        if held and not kept[name]:
            raise UserError(f"{finding}: give other rows")
        if len(kept[name]) < len(held):
            notes.append(f"{finding}; left out")
    return replace(examples, **kept), notes


def _tasks(asked: TasksSection) -> list[Any]:
    """The tasks with their rows; its import takes seconds."""
    if asked.names is None:
        return []
    try:
        from ...app.evaluation.tasks import harness
    except ModuleNotFoundError as error:
        raise UserError(f"tasks need {error.name}: pip install 'sds-lora[eval]'") from error
    names = harness.resolve(asked.names, asked.allow_code_execution)
    return harness.load(names, asked.data_dir)


def _general_rows(spec: ForgettingSpec, tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """Texts whose every token but the first bears loss."""
    if spec.source is None:
        return []
    template = Template("", spec.text)
    found = (
        _paragraphs(spec.source) if spec.source.endswith(".txt") else readers.read_file(spec.source)
    )
    examples = [template.render(row, number) for number, row in enumerate(found[: spec.rows])]
    texts = [example.completion for example in examples]
    ids = (
        tokenizer(texts, truncation=True, max_length=spec.max_length)["input_ids"] if texts else []
    )
    kept = [
        Encoded(tokens[:1], tokens[1:], example)
        for tokens, example in zip(ids, examples, strict=True)
        if len(tokens) > 1
    ]
    if not kept:
        raise UserError(f"forgetting.source {spec.source} holds no text")
    return kept


def _paragraphs(source: str) -> list[dict[str, str]]:
    try:
        text = Path(source).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"forgetting.source {source} cannot be read: {error}") from error
    return [{"text": part.strip()} for part in text.split("\n\n") if part.strip()]
