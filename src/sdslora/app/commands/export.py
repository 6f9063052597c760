"""``sdslora export``: an adapter in a format that other software loads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from peft import PeftModel

from ... import to_plain_lora
from ...export import LoraExport, to_diffusers, to_gguf, to_hira, to_kohya
from ...export.image_models import COMPONENTS
from ...tuner import adapter_configs
from ..config.parsing import parse
from ..errors import UserError
from ..files import reject_used
from ..models import saved_adapters, weightless
from ..models.base_models import is_classifier
from ..models.saved_adapters import BaseModelSpec
from .merge import MergeSpec, merge

LANGUAGE = {"peft": to_plain_lora, "gguf": to_gguf}
IMAGE = {"kohya": to_kohya, "diffusers": to_diffusers}
WHOLE = ("hira", "merged")
"""The formats that have no choice of rank."""


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
        if self.format in WHOLE and self.rank != "exact":
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
    """Write the adapter in its format; print its rank and its error."""
    if spec.format == "merged":
        merge(MergeSpec(spec.adapter_dir, spec.output_dir, spec.model))
        return
    reject_used(Path(spec.output_dir))
    model = _load(spec)
    try:
        result = _write(model, spec)
        if spec.format in ("peft", "hira") and is_classifier(model.config):
            model.config.save_pretrained(spec.output_dir)  # the classes, which no adapter keeps
    except ModuleNotFoundError as error:
        message = f"{spec.format} needs the package {error.name}: pip install {error.name}"
        raise UserError(message) from error
    except ValueError as error:
        raise UserError(str(error)) from error
    print(result)


def _load(spec: ExportSpec) -> PeftModel:
    if spec.component is None:
        model = saved_adapters.find(spec.adapter_dir, spec.model).load()
    else:
        beside = saved_adapters.read_config(spec.adapter_dir).modules_to_save
        if beside:
            raise UserError(
                f"{spec.format} has no place for what was trained beside the adapter, "
                f"{', '.join(beside)}: export it as peft, or merged"
            )
        model = weightless.load(spec.adapter_dir)
    if not adapter_configs(model):
        raise UserError(
            f"{spec.adapter_dir} is no SDS-LoRA adapter, so there is nothing to convert"
        )
    return model


def _write(model: PeftModel, spec: ExportSpec) -> LoraExport:
    rank = spec.rank
    if spec.format == "hira":
        return to_hira(model, spec.output_dir)
    if spec.component is None:
        return LANGUAGE[spec.format](model, spec.output_dir, rank)  # type: ignore[arg-type]
    components = {spec.component: model}
    return IMAGE[spec.format](components, spec.output_dir, rank)  # type: ignore[arg-type]
