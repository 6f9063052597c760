"""A table as JSON, Markdown and LaTeX, beside the paper's figures where they are at hand."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ....app.files import write_json, write_text
from ....app.run import record
from ...plotting.markdown import table
from ...statistics.numbers import NONE, UNITS, mean_std, rate
from ...statistics.sample import Sample
from . import paper

_ROW = ("model", "rank", "method", "rate")
_LOSS = "loss"


def write(name: str, title: str, config: Mapping[str, Any], measured: Mapping[str, Any]) -> Path:
    """Write ``<name>.json``, ``.md`` and ``.tex``, and print the table; returns their folder."""
    runs = measured["runs"]
    header, rows = cells(name, runs)
    content = {
        "target": name,
        "title": title,
        "config": config,
        "versions": record.versions(("lm-eval",)),
        "hardware": record.hardware(),
        "measured": measured,
    }
    body = table(header, rows)
    print(body)
    return write_files(
        name,
        config,
        {
            ".json": content,
            ".md": markdown(title, setting(name, config, runs), body),
            ".tex": latex(header, rows, title),
        },
    )


def markdown(title: str, setting: str, body: str) -> str:
    """The page of a table: what was run, then the figures."""
    return f"# {title}\n\n{setting}\n\n{body}\n"


def write_files(name: str, config: Mapping[str, Any], contents: Mapping[str, Any]) -> Path:
    """Each under its name by a rename; JSON where the content is no text."""
    folder = Path(config["output_dir"]) / name
    for suffix, content in contents.items():
        path = folder / f"{name}{suffix}"
        (write_text if isinstance(content, str) else write_json)(path, content)
    return folder


def cells(name: str, runs: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: mean ± standard deviation over the seeds, a row a model, rank and method.

    Where the paper's figure is known it stands in a column of its own with the difference, in
    points.
    """
    grouped: dict[tuple[Any, ...], dict[str, dict[int, float]]] = {}
    for run in runs:
        found = grouped.setdefault(tuple(run[key] for key in _ROW), defaultdict(dict))
        for figure, value in run["figures"].items():
            found[figure][run["seed"]] = value
    figures = list(dict.fromkeys(figure for run in runs for figure in run["figures"]))
    known = paper.FIGURES.get(name, {})
    compared = {figure for _, figure in known}
    header = list(_ROW)
    for figure in figures:
        header += [_heading(figure), *(["the paper's"] if figure in compared else [])]
    rows = []
    for key, found in grouped.items():
        row = [str(key[0]), NONE if key[1] is None else str(key[1]), str(key[2]), rate(key[3])]
        for figure in figures:
            sample = Sample(found[figure]) if figure in found else None
            unit = UNITS["loss" if figure == _LOSS else "accuracy"]
            row.append(mean_std(sample, unit))
            if figure in compared:
                row.append(_beside(sample, known.get((str(key[2]), figure))))
        rows.append(row)
    return header, rows


def latex(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A ``table`` environment in the style of booktabs."""
    frame = pd.DataFrame([list(row) for row in rows], columns=list(header))
    text: str = frame.style.hide(axis="index").to_latex(
        hrules=True, caption=caption, column_format="llll" + "r" * (len(header) - len(_ROW))
    )
    for plain, command in (
        ("%", r"\%"),
        ("_", r"\_"),
        ("±", r"$\pm$"),
        ("−", "$-$"),
        ("∞", r"$\infty$"),
    ):
        text = text.replace(plain, command)
    return text


def _heading(figure: str) -> str:
    return "test loss" if figure == _LOSS else figure.replace("_", " ")


def _beside(ours: Sample | None, theirs: float | None) -> str:
    if ours is None or theirs is None:
        return NONE
    points = 100 * (ours.mean - theirs)
    return f"{100 * theirs:.4g}% ({points:+.1f})".replace("-", "−")


def setting(name: str, config: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> str:
    """Models, data, sizes and seeds, and what is known of the paper's figures."""
    seeds = sorted({run["seed"] for run in runs})
    lines = [
        f"Scale `{config['scale']}`, seeds {', '.join(map(str, seeds))}; every method at the "
        "table's own rate, which is tuned for none. Mean ± standard deviation over the seeds."
    ]
    for model, part in dict.fromkeys((run["model"], run["part"]) for run in runs):
        one = next(r for r in runs if (r["model"], r["part"]) == (model, part))
        sizes = ", ".join(f"{task} {number}" for task, number in one["rows"].items())
        lines.append(
            f"{model} (`{one['checkpoint']}`) on {part}: {one['steps']} steps of {one['batch']} "
            f"rows; rows evaluated: {sizes}."
        )
    known = paper.FIGURES.get(name)
    lines.append(
        "The paper's figures stand beside ours where they are at hand (arXiv 2606.16454), with the "
        "difference in points."
        if known
        else "The paper's figures of this table are not at hand."
    )
    if config["scale"] == "small":
        lines.append(
            "Other models, data and lengths than the paper's: no reproduction of its figures."
        )
    return "\n".join(lines)
