"""Fill the tables of docs/reliability.md from the JSON files of what was tried.

Each section has a file of its own in docs/results/reliability/, or in results/ where it is about
cost, and a function here that makes its table.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults import FAULTS
from field_reports import REPORTS
from page import main, table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
SOURCES = {
    "kills": ROOT / "docs" / "results" / "reliability" / "kills.json",
    "killed_in": ROOT / "docs" / "results" / "reliability" / "kills.json",
    "checks_cost": ROOT / "benchmarks" / "results" / "checks_cost-cpu.json",
    "trl": ROOT / "docs" / "results" / "reliability" / "trl.json",
    "synchronised": ROOT / "docs" / "results" / "reliability" / "trl.json",
    "half_precision": ROOT / "docs" / "results" / "reliability" / "trl.json",
}
SOURCES |= {
    name: ROOT / "docs" / "results" / "reliability" / f"{name}.json" for name in ("fuzz", "load")
}
_KINDS = ("sdslora train", "hand-written loop")


def faults() -> str:
    """What was injected, and what happens."""
    rows = [[fault, effect, f"`{test}`"] for fault, effect, test in FAULTS]
    made = table(["fault injected", "what happens", "shown by"], rows)
    return f"{len(rows)} kinds of fault are injected; none passes in silence.\n\n{made}"


def reports() -> str:
    """What users reported, the kind that it stands for, and how that is prevented."""
    rows = [[*entry, f"`{test}`"] for *entry, test in REPORTS]
    return table(["symptom", "kind", "how it is prevented now", "shown by"], rows)


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


def trl(result: dict[str, Any]) -> str:
    """Each trainer: what was trained, and whether reference, file and export are right."""
    rows = []
    for name, row in result["trainers"].items():
        kept = {None: "–", True: "constant", False: "**moved**"}[
            row["reference constant bit for bit"]
        ]
        reference = f"{row['reference']}: {kept}" if row["reference"] else kept
        rows.append(
            [
                name,
                row["refreshes"],
                row["tensors trained"],
                f"{row['largest |QᵀQ − I|']:.0e}",
                reference,
                "the same bits" if row["loaded again equal"] else "**others**",
                _rounded(row["difference of the exported logits"]),
            ]
        )
    header = ["", "refreshes", "tensors trained", "QᵀQ − I", "reference", "loaded again"]
    return table([*header, "error of the export's logits"], rows)


def synchronised(result: dict[str, Any]) -> str:
    """The adapter alone, and, for comparison, merged and unmerged."""
    alone, merged = result["synchronised"], result["merged"]
    count = alone["synchronisations"]
    unchanged = alone["of these with the base's checksum unchanged"]
    rows: list[list[object]] = [
        ["the adapter alone", count, f"{unchanged} times unchanged", "0", "0"],
        *(
            [
                f"merged and unmerged, {dtype}",
                row["merged and unmerged"],
                "–",
                f"{row['share of weights changed']:.0%}",
                f"{row['relative change']:.0e}",
            ]
            for dtype, row in merged.items()
        ),
    ]
    header = [
        "synchronised by",
        "times",
        "checksum of the base",
        "weights changed",
        "by (relative)",
    ]
    difference = alone["largest difference of log-probabilities, sampler and policy"]
    return (
        f"{table(header, rows)}\n\nLargest difference between the log-probabilities of the sampler "
        f"that got the adapter alone and the policy's: {_rounded(difference)}."
    )


def _rounded(error: float) -> str:
    return f"{error:.0e}" if error else "0"


def half_precision(result: dict[str, Any]) -> str:
    """The bases after each training."""
    rows = [
        [
            name,
            row["A and B in"],
            row["refreshes"],
            row["tensors trained"],
            f"{row['largest |QᵀQ − I|']:.0e}",
        ]
        for name, row in result["half precision"].items()
    ]
    return table(["", "A and B in", "refreshes", "tensors trained", "QᵀQ − I"], rows)


def fuzz(result: dict[str, Any]) -> str:
    """What came of hostile inputs, by the door that they came in by."""
    doors = {
        "configuration": "`SdsLoraConfig`, written and read again",
        "recipe": "a recipe for `sdslora train`",
        "adapter": "an adapter, onto a base model",
        "beside": "an adapter, beside another",
        "over": "an adapter, over another",
    }
    rows: list[list[object]] = []
    for door, made in result["doors"].items():
        outcomes = made["outcomes"]
        rows.append(
            [
                doors[door],
                made["inputs"],
                outcomes.get("clear error", 0),
                outcomes.get("correct load", 0),
                f"**{len(made['failures'])}**",
                f"{made['slowest input, seconds of processor time']:.2f} s",
            ]
        )
    total = sum(made["inputs"] for made in result["doors"].values())
    header = ["input", "tried", "clear errors", "correct loads", "anything else", "slowest"]
    return f"{total} inputs.\n\n{table(header, rows)}"


def load(result: dict[str, Any]) -> str:
    """Many adapters, and large ones."""
    files, turns, refresh = (result[name] for name in ("saved and loaded", "switched", "refreshed"))
    growth = files["growth of resident memory, bytes an adapter"]
    reader = files["of these by reading the file alone"]
    size = f"{refresh['layers']} layers, rank {refresh['rank']}, width {refresh['width']}"
    rows: list[list[object]] = [
        [
            f"{files['adapters']} adapters of {files['bytes of one adapter']} bytes saved, loaded "
            "and removed in turn",
            f"memory grows by {growth:.0f} bytes an adapter, of which {reader:.0f} are kept by the "
            f"reader of safetensors; {files['layers left behind']} layers "
            f"left; the last differs by {files['difference of the last adapter']:.0f}",
        ],
        [
            f"{turns['adapters on one model']} adapters on one model, switched "
            f"{turns['switches']} times at random",
            f"{turns['outputs of another adapter']} times another output than the adapter's alone",
        ],
        *(
            [
                f"a `{mode}` refresh of {size}",
                f"takes {refresh[f'memory of a {mode} refresh, in sizes of the bases']} times the "
                f"memory of the bases ({refresh['bytes of the bases'] / 1e6:.0f} MB); the "
                f"bound is {bound}",
            ]
            for mode, bound in refresh["bounds"].items()
        ),
    ]
    return table(["", "measured"], rows)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    made.__name__: made
    for made in (kills, killed_in, checks_cost, trl, synchronised, half_precision, fuzz, load)
}


def texts() -> dict[str, str]:
    """Every table, by the name of its place."""
    found = {"faults": faults(), "reports": reports()}
    for name, made in TABLES.items():
        source = SOURCES[name]
        found[name] = made(json.loads(source.read_text())) if source.exists() else "Not tried yet."
    return found


if __name__ == "__main__":
    main(PAGE, texts(), __doc__)
