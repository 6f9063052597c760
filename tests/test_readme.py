"""The figures in README.md are those that the demo wrote."""

import json
from pathlib import Path

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


def test_the_comparison_is_the_reports_own():
    report = (ROOT / "docs/results/small-vision/report.md").read_text()
    results = report.split("## Results")[1].split("## ")[0].splitlines()
    losses = {
        cells[1].strip(): cells[4].strip()
        for cells in (row.split("|") for row in results)
        if len(cells) > 4
    }
    readme = (ROOT / "README.md").read_text().splitlines()
    [row] = [line for line in readme if line.startswith("| at the best rate |")]
    preserve = r"sds-lora refresh\_mode=preserve"
    order = ["full", "sds-lora", preserve, "lora+", "dora", "pissa", "lora"]
    assert [cell.strip() for cell in row.split("|")[2:-1]] == [losses[label] for label in order]
    assert losses["lora"] == losses["rslora"]
