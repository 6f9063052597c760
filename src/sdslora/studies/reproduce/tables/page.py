"""A reproduced table as JSON, Markdown and LaTeX: the paper's figures and ours in one table."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from ....app.files import write_json, write_text
from ....app.run.record import Config
from ...plotting.markdown import table
from ...statistics.numbers import rate
from ..target import Results, results
from . import beside, paper
from .beside import TableRun

SMALL = (
    "Our models, data and lengths are others than the paper's, and far smaller. Our figures show "
    "that the table runs; they reproduce none of the paper's."
)
"""The remark on every page of the small scale."""


def write(name: str, title: str, config: Config, runs: Sequence[TableRun]) -> Path:
    """Write ``<name>.json``, ``.md`` and ``.tex``, print the table, and return their folder."""
    content = results(name, title, config, {"runs": runs}, ("lm-eval",))
    print(table(*cells(name, runs)))
    return write_files(content, texts(content))


def texts(content: Results) -> dict[str, str]:
    """Return the Markdown and the LaTeX that a table's JSON gives, by suffix."""
    name, title, runs = content["target"], content["title"], content["measured"]["runs"]
    header, rows = cells(name, runs)
    return {
        ".md": markdown(title, setting(name, content["config"], runs), table(header, rows)),
        ".tex": latex(header, rows, title),
    }


def cells(name: str, runs: Sequence[TableRun]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table ``name``: the paper's rows, and those of ``runs``."""
    return beside.cells(paper.rows(name), beside.our_rows(name, runs))


def markdown(title: str, setting: str, body: str) -> str:
    """Return the page of a table: the setting, then the figures."""
    return f"# {title}\n\n{setting}\n\n{body}\n"


def write_files(content: Results, texts: Mapping[str, str]) -> Path:
    """Write a table's JSON, and each of its texts under its suffix, and return their folder."""
    name = content["target"]
    folder = Path(content["config"]["output_dir"]) / name
    write_json(folder / f"{name}.json", content)
    for suffix, text in texts.items():
        write_text(folder / f"{name}{suffix}", text)
    return folder


def latex(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str,
    text_columns: int = len(beside.ROW),
) -> str:
    """Return a ``table`` environment in the style of booktabs; text columns come first."""
    frame = pd.DataFrame([list(row) for row in rows], columns=list(header))
    alignment = "l" * text_columns + "r" * (len(header) - text_columns)
    text: str = frame.style.hide(axis="index").to_latex(
        hrules=True, caption=caption, column_format=alignment
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


def setting(name: str, config: Config, runs: Sequence[TableRun]) -> str:
    """Return the setting of the runs in sentences: models, data, sizes, rates and seeds."""
    seeds = sorted({run["seed"] for run in runs})
    lines = [
        "Mean ± standard deviation over the seeds, in percent, but for losses and shares. The "
        "paper's figures are those of arXiv 2606.16454.",
        f"Ours: scale `{config['scale']}`, seeds {', '.join(map(str, seeds))}. Every method runs "
        "at the table's own rate, which is tuned for none.",
    ]
    for model, part in dict.fromkeys((run["model"], run["part"]) for run in runs):
        cell_runs = [run for run in runs if (run["model"], run["part"]) == (model, part)]
        sizes = ", ".join(f"{task} {number}" for task, number in cell_runs[0]["rows"].items())
        lines.append(
            f"{model} (`{cell_runs[0]['checkpoint']}`) on {part}: {cell_runs[0]['steps']} steps of "
            f"{cell_runs[0]['batch']} rows at {_rates(cell_runs)}; rows evaluated: {sizes}."
        )
    lines.append(SMALL if config["scale"] == "small" else _verdict(name, config, runs))
    return "\n".join(lines)


def _rates(runs: Sequence[TableRun]) -> str:
    """Return the rates of runs of one model and data set: full fine-tuning has its own."""
    others = sorted({run["rate"] for run in runs if run["method"] != "full"})
    full = sorted({run["rate"] for run in runs if run["method"] == "full"})
    rates = [", ".join(map(rate, others)), *(f"{rate(value)} (full)" for value in full)]
    return f"rate {', '.join(filter(None, rates))}"


def _verdict(name: str, config: Config, runs: Sequence[TableRun]) -> str:
    """Return how many of our figures lie within the paper's spread, and the limits on our runs."""
    verdicts = beside.within_deviation(paper.rows(name), beside.our_rows(name, runs))
    limits = [key for key in ("max_steps", "limit") if config.get(key) is not None]
    remark = f" {' and '.join(limits)} made our runs smaller than the paper's." if limits else ""
    return (
        "A difference is ours less the paper's; it is within where it is at most the paper's "
        f"standard deviation, as {sum(verdicts)} of {len(verdicts)} are.{remark}"
    )
