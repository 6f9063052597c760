"""The figures by layer in the terminal."""

from collections.abc import Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from ...app.recording import Figures
from ..plotting.layer_names import short_names
from ..plotting.markdown import number

# The heading of each column, and its key or keys; two stand as "own/without singular values".
_WEIGHTS = {
    "cond\nA": ("condition_A",),
    "cond\nB": ("condition_B",),
    "cond\nΔW": ("condition_delta",),
    "erank\nA": ("effective_rank_A",),
    "erank\nB": ("effective_rank_B",),
    "erank\nΔW": ("effective_rank_delta",),
    "srank\nΔW": ("stable_rank_delta",),
}
_GRADIENTS = {
    "erank\n∇A": ("gradient_rank_A", "direction_rank_A"),
    "erank\n∇B": ("gradient_rank_B", "direction_rank_B"),
    "cosine": ("alignment",),
    "SDS": ("alignment_sds",),
    "at most": ("alignment_bound",),
}


def table(layers: Mapping[str, Figures], numbers: Mapping[str, float | None], limit: int) -> Table:
    """Return the ``limit`` layers that lose the most, and the means of all.

    Args:
        layers: of all layers.
        numbers: of the verdict.
        limit: rows at most.
    """
    with_data = "alignment" in numbers
    columns = _GRADIENTS if with_data else _WEIGHTS
    few = f": the {limit} of {len(layers)} that lose the most" if limit < len(layers) else ""
    rich_table = Table(
        title=f"Diagnosis by layer{few}",
        title_justify="left",
        caption=_caption(with_data),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    rich_table.add_column("layer", overflow="fold")
    for heading in (*columns, "lost"):
        rich_table.add_column(heading, justify="right")
    order = sorted(layers, key=lambda name: -_lost_share(layers[name]))
    names = dict(zip(layers, short_names(list(layers)), strict=True))
    for name in order[:limit]:
        rich_table.add_row(Text(names[name]), *_cells(layers[name], columns))
    rich_table.add_section()
    rich_table.add_row(Text(f"all {len(layers)}"), *_cells(numbers, columns))
    return rich_table


def _lost_share(figures: Figures) -> float:
    share = figures["rank_lost"]
    return share if isinstance(share, float) else -1.0


def _cells(
    figures: Mapping[str, float | list[float] | None], columns: Mapping[str, tuple[str, ...]]
) -> list[str]:
    share = figures["rank_lost"]
    cells = ["/".join(_cell(figures[key]) for key in keys) for keys in columns.values()]
    return [*cells, f"{share:.1%}" if isinstance(share, float) else "–"]


def _cell(value: float | list[float] | None) -> str:
    return number(value) if isinstance(value, float) else "–"


def _caption(with_data: bool) -> str:
    means = "The last row: the mean of those with a change"
    if with_data:
        return (
            "erank ∇: effective rank of the gradient that the optimizer gets / of the same without "
            "singular values; lost: the share between them. cosine: of the effective gradient with "
            "the full one; SDS: SDS-LoRA's at the same ΔW; at most: that of any step within reach "
            f"of these factors. {means}."
        )
    return (
        "cond: largest over smallest singular value (–: the smallest is zero). erank, srank: "
        "effective and stable rank. lost: share of the directions of equal singular values, "
        "1 − erank/k for k directions above rounding, of what scales the gradients. "
        f"{means}, the median of cond."
    )
