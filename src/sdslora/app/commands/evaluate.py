"""``sdslora evaluate``: the figures of a trained adapter, or of a base model."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from ..config.arguments import adapter_or_recipe
from ..config.outline import RECIPE
from ..config.parsing import parse
from ..config.spec import DataSpec, EvalSpec
from ..config.training_recipe import to_evaluate
from ..errors import UserError
from ..evaluation.inference import to_accelerator
from ..evaluation.text_metrics import Measurement, require_rows, summary
from ..files import reject_used
from ..models import base_models, saved_adapters
from ..models.saved_adapters import BaseModelSpec
from ..run import modality, record

_SECTIONS = ("model", "data", "evaluation")


@dataclass
class EvaluateSpec:
    """Evaluate an adapter or a model: loss, exact match or accuracy (the paper's tasks: --tasks).

    Args:
        data: Its validation rows are evaluated on.
        model: The base model; the one that the adapter names where not given.
        adapter_dir: An adapter, or the output directory of a run, whose data and model then are
            the defaults.
        max_length: Longest row in tokens. For longer ones see data.overlong.
        output_dir: Where to write metrics.json and generations.jsonl; by default nowhere.
    """

    data: DataSpec
    model: BaseModelSpec
    evaluation: EvalSpec
    adapter_dir: str | None = None
    max_length: int | None = None
    output_dir: str | None = None


def command(argv: Sequence[str]) -> None:
    """Run ``sdslora evaluate`` with these arguments.

    The first argument may be a recipe, also that of a training, or an adapter's directory in the
    place of ``--adapter_dir``. A run's directory sets the data and the model too.
    """
    places = adapter_or_recipe(argv)
    run = record.of_adapter(Path(argv[0])) if places != (RECIPE,) else None
    defaults = record.sections(run, _SECTIONS) if run else None
    evaluate(parse(EvaluateSpec, argv, "sdslora evaluate", places, defaults, to_evaluate))


def evaluate(spec: EvaluateSpec) -> Measurement:
    """Evaluate, print the figures, and write them where ``spec.output_dir`` says.

    Raises:
        UserError: where the model, the adapter or the data are missing, or no row is held out.
    """
    if spec.output_dir is not None:
        reject_used(Path(spec.output_dir))
    if spec.adapter_dir is not None:
        adapter = saved_adapters.find(spec.adapter_dir, spec.model)
        source, processor, load = adapter.source, adapter.processor(), adapter.load
    elif spec.model.name_or_path is not None:
        source = base_models.find(spec.model)
        processor, load = source.processor(), source.load
    else:
        raise UserError("nothing to evaluate: give --adapter_dir or --model.name_or_path")
    work = modality.make(source, processor, spec.data, spec.max_length)
    modality.require_classes(work, source)
    require_rows(work.size("validation"))
    model: nn.Module = load()
    to_accelerator(model, spec.model.options)
    result = work.measure(model, "validation", spec.evaluation)
    print(summary(result.metrics))
    if spec.output_dir is not None:
        record.write_figures(
            Path(spec.output_dir), result.metrics, result.records, config=asdict(spec)
        )
    return result
