"""Table 6 as Markdown and LaTeX: the paper's costs of a whole training, and ours of a step."""

import statistics

from ....app.run.record import Config
from ...plotting.markdown import table
from ..target import Numbers, Results
from . import page, paper

LORA, SDS_LORA = "lora", "sds-lora"
HEADER = ("figures", "of", LORA, SDS_LORA, "ratio")
_DATA_SETS = ("MetaMathQA", "Code-Feedback")
_UNITS = {"time": "hours", "memory": "GB"}
"""The units in the names of the paper's columns."""
_WARM_UP = "{} hours of the warm-up stage, in addition"


def paper_costs(kind: str) -> dict[str, tuple[float, float]]:
    """Return the paper's costs of LoRA and of SDS-LoRA, by data set.

    Args:
        kind: ``"time"``, in hours with the warm-up stage, or ``"memory"``, in GB.
    """
    lora, sds = (row.figures for row in paper.rows("table6"))
    costs = {}
    for data in _DATA_SETS:
        column = f"{data} {_UNITS[kind]}"
        warm_up = sds[_WARM_UP.format(data)].mean if kind == "time" else 0.0
        costs[data] = lora[column].mean, sds[column].mean + warm_up
    return costs


def cells(numbers: Numbers | None) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: the paper's costs, then ours if they are measured.

    Our ratio is followed by how far it lies from the range of the paper's two.
    """
    rows = []
    for kind, unit in _UNITS.items():
        for data, (lora, sds) in paper_costs(kind).items():
            what = f"{kind} of the training on {data} ({unit})"
            rows.append(["the paper's", what, f"{lora:.2f}", f"{sds:.2f}", f"{sds / lora:.4f}"])
        if numbers is not None:
            rows.append(_ours(kind, numbers))
    return list(HEADER), rows


def texts(content: Results) -> dict[str, str]:
    """Return the Markdown and the LaTeX that the table's JSON gives, by suffix."""
    header, rows = cells(content["measured"])
    sentences = setting(content["config"], content["measured"])
    return {
        ".md": page.markdown(content["title"], sentences, table(header, rows)),
        ".tex": page.latex(header, rows, content["title"], text_columns=2),
    }


def setting(config: Config, numbers: Numbers) -> str:
    """Return the setting of the measurement in sentences."""
    sentences = (
        "The paper's figures are of whole trainings on an H200; it does not name the model. Its "
        "times include the warm-up stage.\n"
        f"Ours are medians of one step: {config['model']}, rank {config['rank']}, "
        f"{config['rows']} x {config['tokens']} random tokens, {config['rounds']} rounds on "
        f"{numbers['device']} ({numbers['threads']} threads). Only the ratios can be compared."
    )
    return f"{sentences}\n{page.SMALL}" if config["scale"] == "small" else sentences


def _ours(kind: str, numbers: Numbers) -> list[str]:
    if kind == "time":
        what = "time of a step (ms)"
        cost = {name: 1e3 * statistics.median(s) for name, s in numbers["seconds"].items()}
    else:
        what = "memory of a step (MiB)"
        cost = {name: number / 2**20 for name, number in numbers["bytes"].items()}
    ratio = cost[SDS_LORA] / cost[LORA]
    both = [f"{cost[name]:.1f}" for name in (LORA, SDS_LORA)]
    return ["ours", what, *both, f"{ratio:.4f} ({_place(ratio, kind)})"]


def _place(ratio: float, kind: str) -> str:
    """Describe where ``ratio`` lies beside the range of the paper's two."""
    ratios = [sds / lora for lora, sds in paper_costs(kind).values()]
    nearest = min(max(ratio, min(ratios)), max(ratios))
    if ratio == nearest:
        return "within the paper's"
    return f"{ratio - nearest:+.4f}, outside".replace("-", "−")
