"""The paper's printed figures (Tables 1 to 8 of arXiv 2606.16454), and our names for its labels."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("paper_figures.json")
AVERAGE = "Avg."
SHARE = "share of steps that update"

MODELS = {
    "gemma-2b": "Gemma-2B",
    "llama3-8b": "LLaMA3-8B",
    "vit-base": "ViT-Base",
    "vit-large": "ViT-Large",
}
"""The paper's name of each of our models."""

METHODS = {
    "Full FT.": ("full",),
    "LoRA": ("lora",),
    "rsLoRA": ("rslora",),
    "LoRA+": ("lora+",),
    "PiSSA": ("pissa",),
    "DoRA": ("dora",),
    "SDS-LoRA": ("sds-lora",),
    "LoRA-GA": ("lora-ga",),
    "LoRA-Pro": ("lora-pro",),
    "rsLoRA + ScaledAdamW": ("scaled-adamw",),
    # the paper does not say which of the two it ran
    "AltLoRA": ("altlora", "altlora+"),
    "LoRA formulation (rsLoRA)": ("rslora",),
    "trainable orthonormal factors": ("orthonormal",),
    "SDS-LoRA, every step": ("sds-lora refresh_every=1",),
    "SDS-LoRA, every 2nd step": ("sds-lora refresh_every=2",),
    "SDS-LoRA, every 3rd step": ("sds-lora refresh_every=3",),
    "SDS-LoRA, tau=3": ("sds-lora refresh_phases=3",),
    "SDS-LoRA, tau=4": ("sds-lora refresh_phases=4",),
    "SDS-LoRA, tau=5 (default)": ("sds-lora refresh_phases=5",),
    "SDS-LoRA, tau=6": ("sds-lora refresh_phases=6",),
    "SDS-LoRA, tau=7": ("sds-lora refresh_phases=7",),
}
"""Our contenders for each method of the paper."""

COLUMNS = {
    "boolq": "BoolQ",
    "piqa": "PIQA",
    "siqa": "SIQA",
    "hellaswag": "HellaSwag",
    "winogrande": "WinoGrande",
    "arc_challenge": "ARC-c",
    "arc_easy": "ARC-e",
    "openbookqa": "OBQA",
    "math": "MATH",
    "gsm8k": "GSM8K",
    "humaneval": "HumanEval",
    "refreshing steps": SHARE,
}
"""The paper's column for each of our figures of a language model."""


class Figure(NamedTuple):
    """A printed figure: a mean, in percent but for shares and costs, and its standard deviation.

    ``std`` is None if the paper prints none.
    """

    mean: float
    std: float | None


@dataclass(frozen=True)
class PaperRow:
    """A row of one of the paper's tables.

    Attributes:
        model: the paper's name of it.
        method: the paper's name of it.
        rank: r; None for full fine-tuning, and if the paper prints none.
        figures: the figures by column, in the table's order.
    """

    model: str
    method: str
    rank: int | None
    figures: Mapping[str, Figure]


@cache
def rows(table: str) -> Sequence[PaperRow]:
    """Return the rows of the paper's ``table``, in its order."""
    return [
        PaperRow(
            row["model"],
            row["method"],
            row["rank"],
            {column: Figure(*figure) for column, figure in row["figures"].items()},
        )
        for row in json.loads(FILE.read_text())["tables"][table]
    ]


def columns(table: str) -> list[str]:
    """Return the columns of the paper's ``table``, in its order."""
    return list(dict.fromkeys(column for row in rows(table) for column in row.figures))


def within(ours: float, theirs: Figure) -> bool | None:
    """Return whether ``ours`` lies within one standard deviation of the paper's mean.

    The answer is None if the paper prints no deviation.
    """
    return None if theirs.std is None else abs(ours - theirs.mean) <= theirs.std
