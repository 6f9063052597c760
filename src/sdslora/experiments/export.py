"""``sdslora export``: an adapter as the plain LoRA that other software loads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import to_plain_lora
from ..tuner import adapter_configs
from . import saved
from .errors import UserError
from .files import refuse_used
from .parsing import parse
from .saved import BaseModelSpec


@dataclass
class ExportSpec:
    """Write an SDS-LoRA adapter as a plain LoRA adapter.

    Args:
        adapter_dir: The adapter, or the output directory of a run.
        output_dir: Where to write; must not exist, or be empty.
        model: The base model; the one that the adapter names where not given.
        rank: "exact" (rank 2r, the same function), "compact" (the best of rank r), or a number.
    """

    adapter_dir: str
    output_dir: str
    model: BaseModelSpec
    rank: int | str = "exact"

    def __post_init__(self) -> None:
        if self.rank not in ("exact", "compact") and not (
            isinstance(self.rank, int) and self.rank > 0
        ):
            raise UserError(f"rank must be exact, compact or a positive number, not {self.rank!r}")


def command(argv: Sequence[str]) -> None:
    """Run ``sdslora export`` with these arguments."""
    export(parse(ExportSpec, argv, "sdslora export", ("adapter_dir", "output_dir")))


def export(spec: ExportSpec) -> None:
    """Write the adapter and print its rank, its error and vLLM's ``max_lora_rank``."""
    refuse_used(Path(spec.output_dir))
    model = saved.find(spec.adapter_dir, spec.model).load()
    if not adapter_configs(model):
        raise UserError(
            f"{spec.adapter_dir} is no SDS-LoRA adapter, so there is nothing to convert"
        )
    print(to_plain_lora(model, spec.output_dir, rank=spec.rank))  # type: ignore[arg-type]
