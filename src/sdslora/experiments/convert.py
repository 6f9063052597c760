"""``sdslora convert``: a plain LoRA adapter as an SDS-LoRA adapter, to go on training from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel

from ..core import RefreshMode
from ..tuner import from_plain_lora
from . import saved
from .errors import UserError
from .parsing import parse
from .saved import BaseModelSpec, SavedAdapter


@dataclass
class ConvertSpec:
    """Write a plain LoRA adapter as an SDS-LoRA adapter of the same function.

    Args:
        adapter_dir: The plain LoRA adapter, as PEFT saves it.
        output_dir: Where to write; must not exist, or be empty.
        model: The base model; the one that the adapter names where not given.
        refresh_mode: "qr" (the paper's) or "preserve", for the training that follows.
        refresh_phases: Number of phases of the training that follows.
        refresh_every: Refresh every that many steps, instead of by phases.
        transport_momentum: Carry the optimizer's momentum into the new bases at each refresh.
    """

    adapter_dir: str
    output_dir: str
    model: BaseModelSpec
    refresh_mode: RefreshMode = "qr"
    refresh_phases: int = 5
    refresh_every: int | None = None
    transport_momentum: bool = False


def command(argv: Sequence[str]) -> None:
    """Run ``sdslora convert`` with these arguments."""
    convert(parse(ConvertSpec, argv, "sdslora convert", ("adapter_dir", "output_dir")))


def convert(spec: ConvertSpec) -> None:
    """Write the adapter and its tokenizer."""
    output_dir = Path(spec.output_dir)
    saved.rewrite(spec.adapter_dir, spec.model, output_dir, lambda found: _converted(found, spec))
    print(f"SDS-LoRA adapter past its warm-up in {output_dir}")


def _converted(found: SavedAdapter, spec: ConvertSpec) -> PeftModel:
    try:
        return from_plain_lora(
            found.source.load(),
            found.directory,
            refresh_mode=spec.refresh_mode,
            refresh_phases=spec.refresh_phases,
            refresh_every=spec.refresh_every,
            transport_momentum=spec.transport_momentum,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{spec.adapter_dir}: {' '.join(str(error).split())}") from error
