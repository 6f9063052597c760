"""``sdslora convert``: a plain LoRA adapter as an SDS-LoRA adapter, to go on training from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel

from ...core import RefreshMode
from ...tuner import Preset, from_plain_lora
from ..config.parsing import parse
from ..errors import UserError
from ..models import saved_adapters
from ..models.saved_adapters import BaseModelSpec, SavedAdapter


@dataclass
class ConvertSpec:
    """Write a plain LoRA adapter as an SDS-LoRA adapter of the same function.

    Args:
        adapter_dir: The plain LoRA adapter, as PEFT saves it.
        output_dir: Where to write; must not exist, or be empty.
        model: The base model; the one that the adapter names where not given.
        preset: "paper" or "tuned", for the training that follows; sets the next four options where
            they are not given.
        refresh_mode: "qr" (the paper's) or "preserve".
        refresh_every: Refresh every that many steps, instead of by phases.
        transport_momentum: Carry the optimizer's momentum into the new bases at each refresh.
        ramp_steps: Number of main steps that are shorter; step j is multiplied by j/ramp_steps.
        refresh_phases: Number of phases.
    """

    adapter_dir: str
    output_dir: str
    model: BaseModelSpec
    preset: Preset = "paper"
    refresh_mode: RefreshMode | None = None
    refresh_every: int | None = None
    transport_momentum: bool | None = None
    ramp_steps: int | None = None
    refresh_phases: int = 5


def command(argv: Sequence[str]) -> None:
    """Run ``sdslora convert`` with these arguments."""
    convert(parse(ConvertSpec, argv, "sdslora convert", ("adapter_dir", "output_dir")))


def convert(spec: ConvertSpec) -> None:
    """Write the adapter and its tokenizer."""
    output_dir = Path(spec.output_dir)
    saved_adapters.rewrite(
        spec.adapter_dir, spec.model, output_dir, lambda adapter: _convert(adapter, spec)
    )
    print(f"SDS-LoRA adapter past its warm-up in {output_dir}")


def _convert(adapter: SavedAdapter, spec: ConvertSpec) -> PeftModel:
    try:
        return from_plain_lora(
            adapter.source.load(),
            adapter.directory,
            preset=spec.preset,
            refresh_mode=spec.refresh_mode,
            refresh_every=spec.refresh_every,
            transport_momentum=spec.transport_momentum,
            ramp_steps=spec.ramp_steps,
            refresh_phases=spec.refresh_phases,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{spec.adapter_dir}: {' '.join(str(error).split())}") from error
