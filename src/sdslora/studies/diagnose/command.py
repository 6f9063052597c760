"""``sdslora diagnose``: would SDS-LoRA see more than the LoRA adapter that you have?"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
import pandas as pd
from peft import PeftModel
from rich.console import Console
from torch import Tensor

from ...app.config.parsing import parse
from ...app.config.spec import DataSpec
from ...app.data import tokenized
from ...app.data.examples import load_examples
from ...app.errors import UserError
from ...app.evaluation.inference import to_accelerator
from ...app.evaluation.text_metrics import padded_batch
from ...app.files import new_directory, reject_used, write_json
from ...app.models import saved_adapters
from ...app.models.base_models import LanguageModel
from ...app.models.saved_adapters import BaseModelSpec
from ...app.recording import Figures
from ...app.run import modality, record
from ...methods import AnyFactorMethod
from . import layer_table, loaded_adapter, plots
from .conclusion import THRESHOLDS, Verdict, judge
from .gradient_figures import add_gradients
from .weight_spectra import of_weights

NOT_SHOWN = (
    "Not shown: that SDS-LoRA would train to a lower loss. These are first-order figures of one "
    "moment, without Adam's scaling and without the change of the bases; a part of a gap in cosine "
    "may come from A and B being of different size; and a step in more directions is not a better "
    "one by itself. `sdslora compare` trains both and tells."
)
_SECTIONS = ("model", "data")


@dataclass
class DiagnosedDataSpec(DataSpec):
    """Rows to take gradients on; without a source, only the weights are diagnosed.

    Args:
        source: As for training.
        holdout: As for training. Held-out rows are used, if there are any.
    """

    source: str | None = None  # type: ignore[assignment]
    holdout: int | float = 0


@dataclass
class DiagnoseSpec:
    """Tell how skewed an adapter's singular values are, and what they cost its gradients.

    Args:
        adapter_dir: An SDS-LoRA or plain LoRA adapter as PEFT saves it, or the output directory of
            a run, whose data and model then are the defaults.
        data: Rows to take gradients on; without a source, only the weights are diagnosed, and no
            base model is needed.
        model: The base model; by default the one that the adapter names.
        rows: Rows that the gradients are taken on, in one batch.
        max_length: Longest row in tokens. For longer ones see data.overlong.
        shown: Layers in the table: those that lose the most. The means cover all layers.
        output_dir: Where to write diagnosis.json, layers.csv and pictures; by default nowhere.
    """

    adapter_dir: str
    data: DiagnosedDataSpec
    model: BaseModelSpec
    rows: int = 8
    max_length: int | None = None
    shown: int = 12
    output_dir: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("rows", 1), ("shown", 0)):
            value = getattr(self, name)
            if value < least:
                raise UserError(f"{name} must be {least} or more, not {value}")


def command(argv: Sequence[str]) -> None:
    """Run ``sdslora diagnose`` with these arguments."""
    run = record.of_adapter(Path(argv[0])) if argv and Path(argv[0]).is_dir() else None
    defaults = record.sections(run, _SECTIONS) if run else None
    diagnose(parse(DiagnoseSpec, argv, "sdslora diagnose", ("adapter_dir",), defaults))


def diagnose(spec: DiagnoseSpec) -> Verdict:
    """Measure, print the table and the verdict, and write both to ``spec.output_dir`` if given.

    Raises:
        UserError: where adapter, model or data do not exist or do not belong together, or the
            adapter is no LoRA, holds a number that is not finite, or changes nothing yet.
        RunFailed: where no layer that it changes has a finite gradient.
    """
    if spec.output_dir is not None:
        reject_used(Path(spec.output_dir))
    config = saved_adapters.read_config(spec.adapter_dir)
    method = loaded_adapter.method_of(config, spec.adapter_dir)
    factors_only = loaded_adapter.load(config, spec.adapter_dir)
    layers = of_weights(method, factors_only)
    if not any(figures["rank_lost"] is not None for figures in layers.values()):
        raise UserError(
            f"adapter {spec.adapter_dir} changes none of its {len(layers)} layers yet (B is zero): "
            "diagnose it after some steps of training"
        )
    if spec.data.source is not None or spec.model.name_or_path is not None:
        adapter = saved_adapters.find(spec.adapter_dir, spec.model)
        loaded_adapter.require_match(method, factors_only, adapter.source)
        if spec.data.source is not None:
            model, batch = _prepare(spec, adapter)
            add_gradients(layers, method, model, batch)
    main_stage = any(map(loaded_adapter.in_main_stage, method.layer_states(factors_only).values()))
    verdict = judge(layers, main_stage=main_stage)
    _show(layers, verdict, spec.shown)
    if spec.output_dir is not None:
        _write(layers, verdict, method, spec, Path(spec.output_dir))
    return verdict


def _prepare(
    spec: DiagnoseSpec, adapter: saved_adapters.SavedAdapter
) -> tuple[PeftModel, dict[str, Tensor]]:
    """Return the whole model and the batch, on the same device."""
    batch = (_texts if isinstance(adapter.source, LanguageModel) else _images)(spec, adapter)
    model = adapter.load()
    to_accelerator(model, spec.model.options)
    return model, {name: tensor.to(model.device) for name, tensor in batch.items()}


def _texts(spec: DiagnoseSpec, adapter: saved_adapters.SavedAdapter) -> dict[str, Tensor]:
    """Return the batch of a language model; only its own rows are tokenized."""
    examples, tokenizer = load_examples(spec.data), adapter.processor()
    own = (examples.validation or examples.train)[: spec.rows]
    rows = tokenized.evaluation(examples, own, tokenizer, spec.data, spec.max_length, "diagnostic")
    return padded_batch(rows, tokenizer.pad_token_id)


def _images(spec: DiagnoseSpec, adapter: saved_adapters.SavedAdapter) -> dict[str, Tensor]:
    work = modality.make(adapter.source, adapter.processor(), spec.data)
    modality.require_classes(work, adapter.source)
    return work.batch("validation" if work.size("validation") else "train", slice(spec.rows))


def _show(layers: Mapping[str, Figures], verdict: Verdict, shown: int) -> None:
    console = Console()
    console.print(layer_table.table(layers, verdict.numbers, shown))
    console.print()
    for text in (verdict.sentence, *verdict.notes, NOT_SHOWN):
        console.print(text, markup=False, highlight=False)


def _write(
    layers: Mapping[str, Figures],
    verdict: Verdict,
    method: AnyFactorMethod,
    spec: DiagnoseSpec,
    output_dir: Path,
) -> None:
    with new_directory(output_dir) as folder:
        content = {
            "method": method.name,
            **asdict(verdict),
            "thresholds": THRESHOLDS,
            "not_shown": NOT_SHOWN,
            "layers": layers,
            **record.origin(record.as_json(asdict(spec))),
        }
        write_json(folder / "diagnosis.json", content)
        frame = pd.DataFrame.from_dict(dict(layers), orient="index").rename_axis("layer")
        frame.drop(columns="singular_values").to_csv(folder / "layers.csv")
        # the same figures give the same bytes
        with matplotlib.rc_context({"svg.hashsalt": "sdslora"}):
            for name, figure in plots.all_of(layers).items():
                figure.savefig(folder / f"{name}.png")
                figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    print(f"figures, pictures and numbers in {output_dir}")
