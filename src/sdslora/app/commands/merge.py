"""``sdslora merge``: base model and adapter as one model that needs no PEFT."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config.parsing import parse
from ..models import saved_adapters
from ..models.saved_adapters import BaseModelSpec


@dataclass
class MergeSpec:
    """Write the base model with the adapter merged into its weights.

    Args:
        adapter_dir: The adapter, or the output directory of a run.
        output_dir: Where to write; must not exist, or be empty.
        model: The base model; the one that the adapter names where not given. For an adapter that
            was trained on a quantized model, name the model itself (--model.name_or_path): merging
            into quantized weights rounds them again, which can cost as much as the adapter changes.
    """

    adapter_dir: str
    output_dir: str
    model: BaseModelSpec


def command(argv: Sequence[str]) -> None:
    """Run ``sdslora merge`` with these arguments."""
    merge(parse(MergeSpec, argv, "sdslora merge", ("adapter_dir", "output_dir")))


def merge(spec: MergeSpec) -> None:
    """Write weights (safetensors), configuration, and tokenizer or image processor."""
    output_dir = Path(spec.output_dir)
    saved_adapters.rewrite(
        spec.adapter_dir,
        spec.model,
        output_dir,
        lambda adapter: adapter.load().merge_and_unload(safe_merge=True),
    )
    print(f"merged model in {output_dir}")
