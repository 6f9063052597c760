"""``sdslora export``: an adapter in a format that other software loads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from peft import PeftModel

from ... import to_plain_lora
from ...export import LoraExport, PlainLoraExport, to_diffusers, to_gguf, to_hira, to_kohya
from ...export.image_models import COMPONENTS
from ..config.adapter_kinds import NO_PLAIN_FORM
from ..config.parsing import parse
from ..errors import UserError
from ..files import new_directory, read_json, reject_used
from ..models import model_card, saved_adapters, serving, weightless
from ..models.base_models import is_classifier
from ..models.saved_adapters import BaseModelSpec
from ..run import record
from .merge import MergeSpec, merge

LANGUAGE = {"peft": to_plain_lora, "gguf": to_gguf}
IMAGE = {"kohya": to_kohya, "diffusers": to_diffusers}
PEFT = ("peft", "hira")
"""The formats that PEFT loads, which have the tokenizer or image processor beside them."""


@dataclass
class ExportSpec:
    """Write an SDS-LoRA adapter as a plain LoRA or HiRA adapter, or merged into its model.

    Args:
        adapter_dir: The adapter, or the output directory of a run.
        output_dir: Where to write; must not exist, or be empty.
        model: The base model; the one that the adapter names where not given.
        format: "peft" (also for vLLM and SGLang), "gguf" (llama.cpp), "kohya" (U-Nets: ComfyUI and
            others), "diffusers" (image models), "hira" (PEFT, for adapters with use_hira), or
            "merged" (the whole model, without adapter).
        rank: "exact" (the same function: rank r where that is enough, else 2r), "compact" (the
            best of rank r), or a number.
        component: For kohya and diffusers, which model of the pipeline the adapter belongs to:
            unet, transformer, text_encoder or text_encoder_2.
    """

    adapter_dir: str
    output_dir: str
    model: BaseModelSpec
    format: Literal["peft", "gguf", "kohya", "diffusers", "hira", "merged"] = "peft"
    rank: int | str = "exact"
    component: str | None = None

    def __post_init__(self) -> None:
        if self.rank not in ("exact", "compact") and not (
            isinstance(self.rank, int) and self.rank > 0
        ):
            raise UserError(f"rank must be exact, compact or a positive number, not {self.rank!r}")
        if self.format in NO_PLAIN_FORM and self.rank != "exact":
            raise UserError(
                f"rank={self.rank} has no meaning for format {self.format}, which is exact; leave "
                "it out"
            )
        if (self.format in IMAGE) != (self.component is not None):
            raise UserError(
                f"component must be given for the formats {' and '.join(IMAGE)}, as one of "
                f"{', '.join(COMPONENTS)}, and for no other; format is {self.format}"
            )


def command(argv: Sequence[str]) -> None:
    """Run ``sdslora export`` with these arguments."""
    export(parse(ExportSpec, argv, "sdslora export", ("adapter_dir", "output_dir")))


def export(spec: ExportSpec) -> None:
    """Write the adapter in its format; print its rank, its error, and the command to serve it."""
    if spec.format == "merged":
        merge(MergeSpec(spec.adapter_dir, spec.output_dir, spec.model))
        return
    result = write(spec)
    print(result)
    if isinstance(result, PlainLoraExport):
        base = read_json(result.path / "adapter_config.json")["base_model_name_or_path"] or "BASE"
        rank = result.max_lora_rank
        print(f"next: {serving.vllm_command(model_card.hub_name(base), result.path, rank)}")
    if spec.format == "gguf":
        print(f"next: {serving.llama_command(result.path)}")


def write(spec: ExportSpec) -> LoraExport:
    """Write the adapter in its format, but for "merged", with its card.

    No weight of the base model is read.

    Raises:
        UserError: where the adapter has no form in that format, or a package is missing.
    """
    output_dir, directory = Path(spec.output_dir), Path(spec.adapter_dir)
    reject_used(output_dir)
    model, processor = _load(spec)
    try:
        with new_directory(output_dir) as folder:
            result = _write(model, spec, folder)
            if spec.format in PEFT:
                processor.save_pretrained(folder)
                if is_classifier(model.config):
                    model.config.save_pretrained(folder)  # the classes, which no adapter keeps
            of = folder if spec.format in PEFT else directory
            run = record.of_adapter(directory)
            model_card.write(folder, run, of=of, form=spec.format, name=output_dir.name)
    except ModuleNotFoundError as error:
        message = f"{spec.format} needs the package {error.name}: pip install {error.name}"
        raise UserError(message) from error
    except ValueError as error:
        raise UserError(str(error)) from error
    return replace(result, path=output_dir / result.path.relative_to(folder))


def _load(spec: ExportSpec) -> tuple[PeftModel, Any]:
    """Return the adapter and its tokenizer or image processor; a component has none."""
    if spec.component is None:
        adapter = saved_adapters.find(spec.adapter_dir, spec.model)
        return adapter.load_without_base(), adapter.processor()
    beside = saved_adapters.read_config(spec.adapter_dir).modules_to_save
    if beside:
        raise UserError(
            f"{spec.format} cannot hold what was trained beside the adapter, "
            f"{', '.join(beside)}: export it as peft, or merged"
        )
    return weightless.load(spec.adapter_dir), None


def _write(model: PeftModel, spec: ExportSpec, folder: Path) -> LoraExport:
    if spec.format == "hira":
        return to_hira(model, folder)
    if spec.component is None:
        return LANGUAGE[spec.format](model, folder, spec.rank)  # type: ignore[arg-type]
    components = {spec.component: model}
    return IMAGE[spec.format](components, folder, spec.rank)  # type: ignore[arg-type]
