"""The diagnostics that the charts show: their keys in ``diagnostics.jsonl``, and their titles."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Measures that are drawn together.

    Attributes:
        name: also of the picture's file.
        title: stands above the picture.
        measures: a measure's key, and its title.
    """

    name: str
    title: str
    measures: dict[str, str]


FAMILIES = (
    Family(
        "alignment",
        "Alignment with the full gradient",
        {
            "alignment": "Alignment: effective gradient",
            "alignment_applied": "Alignment: step of the optimizer",
            "alignment_moved": "Alignment: step and refresh together",
        },
    ),
    Family(
        "effective_rank",
        "Effective rank of the gradients",
        {
            "gradient_rank_A": "Effective rank: gradient of A",
            "gradient_rank_B": "Effective rank: gradient of B",
            "direction_rank_A": "Effective rank: gradient of A without singular values",
            "direction_rank_B": "Effective rank: gradient of B without singular values",
        },
    ),
    Family(
        "stable_rank",
        "Stable rank of the factors",
        {"stable_rank_A": "Stable rank: A", "stable_rank_B": "Stable rank: B"},
    ),
    Family(
        "drift",
        "Drift of the bases at a refresh",
        {
            "basis_cosine_A": "Drift: cosine of successive bases of A",
            "basis_cosine_B": "Drift: cosine of successive bases of B",
            "basis_nuclear_A": "Drift: mean principal cosine, A",
            "basis_nuclear_B": "Drift: mean principal cosine, B",
            "basis_smallest_A": "Drift: smallest principal cosine, A",
            "basis_smallest_B": "Drift: smallest principal cosine, B",
        },
    ),
    Family("jump", "Change of ΔW by a refresh", {"relative_jump": "Drift: relative change of ΔW"}),
)


def present(columns: Iterable[str]) -> list[Family]:
    """Return the families with the measures among ``columns``; "other" holds the rest."""
    rest = list(columns)
    families = []
    for family in FAMILIES:
        measures = {key: title for key, title in family.measures.items() if key in rest}
        if measures:
            families.append(Family(family.name, family.title, measures))
            rest = [key for key in rest if key not in measures]
    if rest:
        families.append(
            Family("other", "Other diagnostics", {key: key.replace("_", " ") for key in rest})
        )
    return families


def titles(columns: Iterable[str]) -> dict[str, str]:
    """Return the title of each measure among ``columns``, in their order on the page."""
    return {key: title for family in present(columns) for key, title in family.measures.items()}
