"""Fill the tables of docs/reliability.md from the JSON files of what was tried.

Each section has a file of its own in docs/results/reliability/, or in results/ where it is about
cost, and a function here that makes its table.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults import FAULTS
from page import main, table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
SOURCES = {
    "kills": ROOT / "docs" / "results" / "reliability" / "kills.json",
    "killed_in": ROOT / "docs" / "results" / "reliability" / "kills.json",
    "checks_cost": ROOT / "benchmarks" / "results" / "checks_cost-cpu.json",
}
_KINDS = ("sdslora train", "hand-written loop")


def faults() -> str:
    """What was injected, and what happens."""
    rows = [[fault, effect, f"`{test}`"] for fault, effect, test in FAULTS]
    made = table(["fault injected", "what happens", "shown by"], rows)
    return f"{len(rows)} kinds of fault are injected; none passes in silence.\n\n{made}"


def kills(result: dict[str, Any]) -> str:
    """Totals of each kind of training."""
    figures = [
        "kills",
        "of these by the clock",
        "runs",
        "half-written checkpoints passed over",
        "losses compared",
        "tensors and numbers compared at the end",
    ]
    rows = [[name, *(result[kind][name] for kind in _KINDS)] for name in figures]
    differing = [f"**{len(result[kind]['differences'])}**" for kind in _KINDS]
    return table(["", *(f"`{kind}`" for kind in _KINDS)], [*rows, ["differences", *differing]])


def killed_in(result: dict[str, Any]) -> str:
    """Kills by what the process was doing."""
    hit = {kind: result[kind]["killed in"] for kind in _KINDS}
    sections = sorted({section for kind in _KINDS for section in hit[kind]})
    rows = [[section, *(hit[kind].get(section, 0) for kind in _KINDS)] for section in sections]
    return table(["killed in", *(f"`{kind}`" for kind in _KINDS)], rows)


def checks_cost(result: dict[str, Any]) -> str:
    """Each check's share of a training."""
    rows = result["rows"]
    cases = [
        f"{row['model']}, rank {row['rank']}, {row['batch'] * row['sequence']} tokens a step"
        for row in rows
    ]
    shares = [row["share of the training"] for row in rows]
    body = [[f"`{name}`", *(f"{share[name]:.4%}" for share in shares)] for name in shares[0]]
    return table([f"share of {rows[0]['steps']} steps", *cases], body)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    made.__name__: made for made in (kills, killed_in, checks_cost)
}


def texts() -> dict[str, str]:
    """Every table, by the name of its place."""
    found = {"faults": faults()}
    for name, made in TABLES.items():
        source = SOURCES[name]
        found[name] = made(json.loads(source.read_text())) if source.exists() else "Not tried yet."
    return found


if __name__ == "__main__":
    main(PAGE, texts(), __doc__)
