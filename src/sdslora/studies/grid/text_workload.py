"""Language models on prompts and completions."""

from dataclasses import replace
from typing import cast

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...app.data import readers
from ...app.data.encoding import Encoded
from ...app.data.examples import Examples, load_examples
from ...app.data.templates import Example, Template
from ...app.errors import UserError
from ...app.evaluation.tasks import TaskFigures
from ...app.evaluation.text_metrics import mean_loss
from ...app.models.base_models import LanguageModel
from ...app.run.text import Text
from .spec import CompareSpec, ForgettingSpec, TasksSection
from .workload import Workload


class LanguageWorkload(Workload):
    """A language model and its data, from the sections of a recipe as in ``sdslora train``.

    Raises:
        UserError: for a model or data that cannot work.
    """

    def __init__(self, spec: CompareSpec, source: LanguageModel) -> None:
        tokenizer = source.processor()
        examples, notes = _without_overlap(load_examples(spec.data, spec.test))
        work = Text(source, tokenizer, spec.data, spec.training.max_length, examples)
        super().__init__(spec, work, notes)
        self._tokenizer = tokenizer
        self._general = _general_rows(spec.forgetting, tokenizer)
        self._tasks = _tasks(spec.tasks)

    def task_figures(self, model: nn.Module) -> dict[str, TaskFigures] | None:
        """Measure by lm-evaluation-harness, as ``sdslora evaluate --tasks`` does."""
        if not self._tasks:
            return None
        from ...app.evaluation.tasks import harness

        section, language_model = self.spec.tasks, cast(PreTrainedModel, model)
        return harness.run(
            language_model,
            self._tokenizer,
            self._tasks,
            section.batch_size,
            section.limit,
            section.generation,
        ).metrics

    def general_loss(self, model: nn.Module) -> float | None:
        """Return the nats per token on the texts of the forgetting section."""
        if not self._general:
            return None
        batch_size = self.spec.evaluation.batch_size
        pad_id: int = self._tokenizer.pad_token_id
        return mean_loss(model, self._general, batch_size, pad_id, "general text")


def _without_overlap(examples: Examples) -> tuple[Examples, list[str]]:
    """Return the examples without evaluation rows that training or tuning uses, and notes."""
    earlier_prompts = {example.prompt for example in examples.train}
    notes = []
    distinct: dict[str, list[Example]] = {}
    for name in ("validation", "test"):
        rows: list[Example] = getattr(examples, name)
        distinct[name] = [example for example in rows if example.prompt not in earlier_prompts]
        earlier_prompts |= {example.prompt for example in distinct[name]}
        overlap = len(rows) - len(distinct[name])
        finding = f"{overlap} of {len(rows)} {name} rows have a prompt that training or tuning uses"
        if rows and not distinct[name]:
            raise UserError(f"{finding}: give other rows")
        if overlap:
            notes.append(f"{finding}; left out")
    return replace(examples, **distinct), notes  # type: ignore[arg-type]


def _tasks(section: TasksSection) -> list[object]:
    """Return the tasks with their rows; importing them takes seconds."""
    if section.names is None:
        return []
    try:
        from ...app.evaluation.tasks import harness
    except ModuleNotFoundError as error:
        raise UserError(f"tasks need {error.name}: pip install 'sds-lora[eval]'") from error
    names = harness.resolve(section.names, section.allow_code_execution)
    return harness.load(names, section.data_dir)


def _general_rows(spec: ForgettingSpec, tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """Return the texts, every token of which but the first bears loss."""
    if spec.source is None:
        return []
    template = Template("", spec.text)
    rows = readers.read_file(spec.source)[: spec.rows]
    examples = [template.render(row, number) for number, row in enumerate(rows)]
    texts = [example.completion for example in examples]
    ids = (
        tokenizer(texts, truncation=True, max_length=spec.max_length)["input_ids"] if texts else []
    )
    encoded_texts = [
        Encoded(tokens[:1], tokens[1:], example)
        for tokens, example in zip(ids, examples, strict=True)
        if len(tokens) > 1
    ]
    if not encoded_texts:
        raise UserError(f"forgetting.source {spec.source} holds no text")
    return encoded_texts
