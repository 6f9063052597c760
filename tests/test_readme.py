"""The figures in README.md are those that the demo wrote."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_demo_figures_are_the_commands_own():
    figures = json.loads((ROOT / "docs/demo/demo.json").read_text())
    readme = (ROOT / "README.md").read_text()
    before, after = figures["before"], figures["after"]
    for text in (
        f"{after['rows']} held-out rows | before | after {figures['steps']} steps",
        f"exact match | {before['exact_match']:.1%} | {after['exact_match']:.1%} |",
        f"loss per answer token | {before['loss']:.4f} | {after['loss']:.4f} |",
        f"{figures['seconds']:.0f} s after the installation",
    ):
        assert text in readme
    assert figures["stock_peft"]["max_logit_difference"] == 0.0


def test_every_file_of_the_tree_exists():
    tree = (ROOT / "README.md").read_text().split("```")[-2]
    names = [word.rstrip(",") for line in tree.splitlines() for word in line.split()]
    modules = {path.name for path in (ROOT / "src/sdslora").rglob("*.py")}
    listed = {name for name in names if name.endswith(".py")} - {"reference.py"}
    assert listed
    assert listed <= modules


def results(task: str) -> dict[str, list[str]]:
    """Each contender's cells of the report's first table."""
    report = (ROOT / f"docs/results/{task}/report.md").read_text()
    rows = report.split("## Results")[1].split("## ")[0].splitlines()
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows if row.count("|") > 4]
    return {row[0]: row[1:] for row in cells}


def figures_of(task: str) -> list[list[str]]:
    """The task's row in each table, the figures' bold left out."""
    lines = (ROOT / "README.md").read_text().replace("**", "").splitlines()
    rows = [line for line in lines if line.startswith(f"| {task.replace('-', ' ')} |")]
    return [[cell.strip() for cell in row.split("|")[2:-1]] for row in rows]


each_task = pytest.mark.parametrize("task", ["small-vision", "small-language"])


@each_task
def test_the_comparison_is_the_reports_own(task):
    losses = {label: cells[2] for label, cells in results(task).items()}
    _, found = figures_of(task)
    preserve = r"sds-lora refresh\_mode=preserve"
    order = ["full", "sds-lora", preserve, "lora+", "dora", "pissa", "lora"]
    assert found == [losses[label] for label in order]
    assert losses["lora"] == losses["rslora"]


@each_task
def test_with_fresh_seeds_is_the_findings_own(task):
    page = (ROOT / "docs/findings.md").read_text()
    _, rows, _ = page.split(f"{task}-fresh -->")
    cells = [[cell.strip() for cell in row.split("|")] for row in rows.splitlines()[3:-1]]
    losses = {row[1]: row[4] for row in cells}
    found, _ = figures_of(task)
    ours = r"sds-lora refresh\_mode=preserve refresh\_every=1 transport\_momentum=True"
    order = ["full", ours, "orthonormal", "hira", "lora+", "dora", "rslora", "sds-lora"]
    assert [found[0], *found[2:]] == [losses[label] for label in order]
    # shown for all rivals but these
    others = {"small-language": {"full"}, "small-vision": {"full", "orthonormal", "hira"}}[task]
    assert {row[1] for row in cells if row[7] == "better"} == losses.keys() - others - {ours}


@each_task
def test_use_hira_with_fresh_seeds_is_the_findings_own(task):
    page = (ROOT / "docs/findings.md").read_text()
    _, rows, _ = page.split(f"{task}-multiplied-fresh -->")
    cells = [[cell.strip() for cell in row.split("|")] for row in rows.splitlines()[3:-1]]
    found, _ = figures_of(task)
    [ours] = [row for row in cells if row[1].startswith("sds-lora-multiplied ")]
    assert found[1] == ours[4]
    # shown for all but full fine-tuning, on vision
    worse = {"small-language": set(), "small-vision": {"full"}}[task]
    verdicts = {row[1]: row[7] for row in cells if row is not ours}
    assert {label for label, verdict in verdicts.items() if verdict != "better"} == worse
    assert len(verdicts) >= 10


def test_the_forgetting_is_the_reports_own():
    rows = {k: v for k, v in results("small-language").items() if "±" in v[2]}
    text = " ".join((ROOT / "README.md").read_text().split())
    at = {label: f"{float(cells[4]):.2f}" for label, cells in rows.items() if cells[4] != "–"}
    assert (
        f"it has forgotten {at['sds-lora']} (the rise of the loss on general text); full "
        f"fine-tuning {at['full']}, DoRA {at['dora']}, LoRA+ {at['lora+']}, LoRA {at['lora']}."
    ) in text
