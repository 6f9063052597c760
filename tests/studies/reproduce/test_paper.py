"""The paper's printed figures, its settings, and ours set beside them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

import paper_recipes
from sdslora.studies.grid.execution import outline
from sdslora.studies.reproduce.tables import beside, cost_page, estimate, grid, page, paper, table
from sdslora.studies.reproduce.tables.grid import TableSpec
from sdslora.studies.reproduce.tables.paper import Figure
from sdslora.studies.reproduce.tables.paper_settings import TABLES as SETTINGS

ROOT = Path(__file__).parents[3]
SHARED = Path(os.environ.get("SDSLORA_PAPER", ROOT.parent / "shared" / "paper" / "tables.json"))
COUNTS = {1: 234, 2: 78, 3: 39, 4: 30, 5: 24, 6: 10, 7: 24, 8: 156}
"""Figures of each table."""
STEPS = 3125
"""Of 100,000 rows in batches of 32."""


def figures(number: int) -> dict[tuple[Any, ...], Figure]:
    """Every figure of a table by model, method, rank and column."""
    return {
        (row.model, row.method, row.rank, column): figure
        for row in paper.rows(f"table{number}")
        for column, figure in row.figures.items()
    }


# ---------------------------------------------------------------- the printed figures


@pytest.mark.parametrize(("number", "count"), COUNTS.items())
def test_every_figure_is_there(number, count):
    assert len(figures(number)) == count
    assert all(figure.std is None or figure.std >= 0 for figure in figures(number).values())


@pytest.mark.skipif(
    not SHARED.exists(), reason=f"{SHARED} is not there; SDSLORA_PAPER says where it is"
)
def test_every_figure_is_the_shared_files():
    shared: dict[int, dict[tuple[Any, ...], Figure]] = {number: {} for number in COUNTS}
    for row in json.loads(SHARED.read_text()):
        cell = row["model"], row["method"], row["rank"], row["column"]
        shared[row["table"]][cell] = Figure(row["mean"], row["std"])
    assert {number: figures(number) for number in COUNTS} == shared


@pytest.mark.parametrize("number", [1, 8])
def test_averages_are_those_of_their_columns(number):
    for row in paper.rows(f"table{number}"):
        means = [figure.mean for column, figure in row.figures.items() if column != paper.AVERAGE]
        assert row.figures[paper.AVERAGE].mean == pytest.approx(fmean(means), abs=0.01)


def test_tables_that_share_rows_print_the_same():
    """Table 3 is a part of Table 8; rows of Tables 4, 5 and 7 are Table 2's."""
    whole = figures(8)
    assert all(whole[cell] == figure for cell, figure in figures(3).items())
    main = figures(2)
    for number in (4, 5):
        for (model, method, rank, column), figure in figures(number).items():
            name = "rsLoRA" if "(rsLoRA)" in method else method
            if (model, name, rank, column) in main:
                assert main[model, name, rank, column] == figure
    default = {
        column: figure
        for (_, method, _, column), figure in figures(7).items()
        if "default" in method
    }
    for column in ("MATH", "GSM8K"):
        assert main["LLaMA3-8B", "SDS-LoRA", 32, column] == default[column]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_papers_rows_are_the_grids(name):
    """Each row of the paper is one of our runs at its scale, and no run is of anything else."""
    cells = grid.cells(SETTINGS[name], TableSpec("out", "paper", seeds=1))
    ours = [
        beside.OurRow(cell.model, job.contender.label.replace(" preset=paper", ""), cell.rank, {})
        for cell in cells
        for job in cell.jobs
    ]
    printed = paper.rows(name)
    assert all(any(row.matches(theirs) for row in ours) for theirs in printed)
    assert all(any(row.matches(theirs) for theirs in printed) for row in ours)


# ---------------------------------------------------------------- the settings

RATES = {
    "google/gemma-2b": 2e-4,
    "meta-llama/Meta-Llama-3-8B": 1e-4,
    "meta-llama/Llama-2-7b-hf": 2e-4,
}
IMAGE_SETTINGS = {
    # rate of ViT-Base, epochs; ViT-Large has half the rate
    "tanganke/stanford_cars": (5e-3, 5),
    "bentrevett/caltech-ucsd-birds-200-2011": (2e-3, 7),
    "tanganke/dtd": (2e-3, 7),
    "ethz/food101": (2e-3, 7),
    "tanganke/sun397": (5e-3, 5),
}
LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"}


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/paper").rglob("*.yaml")), ids=str)
def test_a_recipe_has_the_papers_settings(path):
    """Rates, epochs, batches, layers and optimizer of the paper's Tables 9 and 10."""
    recipe = yaml.safe_load(path.read_text())
    training, adapter = recipe["training"], recipe["adapter"]
    name = recipe["model"]["name_or_path"]
    if "vit" in name:
        rate, epochs = IMAGE_SETTINGS[recipe["data"]["source"]]
        rate, batch, layers = rate / (2 if "large" in name else 1), 64, {"q_proj", "v_proj"}
    else:
        rate, epochs, batch, layers = RATES[name], 1, 32, LINEAR
    assert training["learning_rate"] == pytest.approx(rate)
    assert training["num_train_epochs"] == epochs
    assert training["per_device_train_batch_size"] == batch
    assert training["optim"] == "adamw_torch"
    assert training["weight_decay"] == 0
    assert training["lr_scheduler_type"] == "cosine"
    assert set(adapter["target_modules"]) == layers
    assert adapter["preset"] == "paper"
    assert f"rank{adapter['r']}" in path.stem
    assert adapter["r"] in (8, 32)


def test_there_is_a_recipe_for_each_cell_of_the_paper():
    per_folder = {"table1": 4, "table2": 8, "table3": 6, "table4": 4, "table5": 4, "table8": 20}
    counted: dict[str, int] = {}
    for path in paper_recipes.recipes():
        folder = path.partition("/")[0]
        counted[folder] = counted.get(folder, 0) + 1
    assert counted == {**per_folder, "llama2-7b": 4}


# ---------------------------------------------------------------- the schedule of Table 7


def rule(step: int, total: int, phases: int) -> bool:
    """``t mod (⌊τ t / T⌋ + 1) = 0``, in integers."""
    return step % (phases * step // total + 1) == 0


@pytest.mark.parametrize("phases", [3, 4, 5, 6, 7])
def test_the_printed_shares_leave_two_readings(phases):
    """Ticks of the rule over all T steps, or over the main stage by a clock of its own."""
    [printed] = [
        row.figures[paper.SHARE].mean
        for row in paper.rows("table7")
        if f"tau={phases}" in row.method
    ]
    with_warm_up = sum(rule(t, STEPS, phases) for t in range(1, STEPS + 1)) / STEPS
    main = STEPS - 10
    of_main_stage = sum(rule(t, main, phases) for t in range(1, main + 1)) / main
    assert round(with_warm_up, 2) == printed
    assert round(of_main_stage, 2) == printed


def test_our_shares_are_the_rules_without_the_warm_up():
    [cell] = grid.cells(SETTINGS["table7"], TableSpec("out", "paper", seeds=1))
    assert (cell.rank, cell.model, estimate.steps(cell)) == (32, "llama3-8b", STEPS)
    for job in cell.jobs:
        options = job.contender.options
        share = table._schedule(outline(job), STEPS)["refreshing steps"]
        every = options.get("refresh_every")
        steps = range(11, STEPS + 1)
        ticks = sum(
            t % every == 0 if every else rule(t, STEPS, options["refresh_phases"]) for t in steps
        )
        assert share == ticks / STEPS


# ---------------------------------------------------------------- ours beside the paper's


def run(figures: dict[str, float], **changed: Any) -> dict[str, Any]:
    """A run at the paper's scale: LLaMA3-8B on MetaMathQA, SDS-LoRA at rank 32."""
    standard = {
        "model": "llama3-8b",
        "checkpoint": "meta-llama/Meta-Llama-3-8B",
        "part": "MetaMathQA-100K",
        "rank": 32,
        "method": "sds-lora preset=paper",
        "rate": 1e-4,
        "seed": 0,
        "steps": STEPS,
        "batch": 32,
        "rows": {"math": 5000},
        "figures": figures,
    }
    return standard | changed


def row_of_ours(name: str, runs: list[dict[str, Any]]) -> dict[str, str]:
    header, rows = page.cells(name, runs)
    [ours] = [row for row in rows if row[3] == "ours"]
    place = rows.index(ours)
    assert rows[place - 1][1:3] == ["LLaMA3-8B", "32"]
    assert rows[place - 1][3] == "the paper's"
    return dict(zip(header, ours, strict=True))


def test_the_difference_and_whether_it_is_within():
    """The paper prints 26.36 ± 0.73 and 77.13 ± 0.84."""
    runs = [run({"math": 0.27 + s, "gsm8k": 0.76 + s}, seed=i) for i, s in enumerate((0, 0.01))]
    ours = row_of_ours("table2", runs)
    assert ours["MATH"] == "27.50 ± 0.71 (+1.14, outside)"
    assert ours["GSM8K"] == "76.50 ± 0.71 (−0.63, within)"
    assert ours["HumanEval"] == "–"
    text = page.setting("table2", {"scale": "paper"}, runs)
    assert "1 of 2 are." in text
    assert "rate 1e-4;" in text
    cut = page.setting("table2", {"scale": "paper", "limit": 8}, runs)
    assert "limit made our runs smaller" in cut
    header, rows = page.cells("table2", runs)
    assert r"27.50 $\pm$ 0.71 (+1.14, outside)" in page.latex(header, rows, "Title")


def test_a_share_has_no_spread():
    runs = [run({"refreshing steps": 0.4528}, method="sds-lora preset=paper refresh_phases=5")]
    assert row_of_ours("table7", runs)[paper.SHARE] == "0.4528 (−0.01)"


def test_the_average_of_images_is_over_all_sets():
    sets = ("Cars", "CUB200", "DTD", "Food101", "SUN397")
    runs = [
        run({"accuracy": share, "loss": 1.0}, model="vit-large", part=name, seed=seed)
        for seed in (0, 1)
        for name, share in zip(sets, (0.86, 0.88, 0.82, 0.9, 0.76), strict=True)
    ]
    header, rows = page.cells("table8", runs)
    [ours] = [dict(zip(header, row, strict=True)) for row in rows if row[3] == "ours"]
    assert ours["Cars"] == "86 ± 0 (−1.00, outside)"
    assert ours["Avg."].endswith("(−0.34)")
    assert "test loss" not in header


def test_a_set_less_has_no_average():
    runs = [run({"accuracy": 0.9}, model="vit-large", part="Cars")]
    header, rows = page.cells("table8", runs)
    [ours] = [dict(zip(header, row, strict=True)) for row in rows if row[3] == "ours"]
    assert ours["Avg."] == "–"


def test_another_model_is_compared_with_nothing():
    runs = [run({"math": 0.3}, model="tiny-lm", rank=8)]
    header, rows = page.cells("table2", runs)
    [ours] = [dict(zip(header, row, strict=True)) for row in rows if row[3] == "ours"]
    assert ours["MATH"] == "30"
    assert beside.within_deviation(paper.rows("table2"), beside.our_rows("table2", runs)) == []
    methods = [row[0] for row in rows]
    assert methods[methods.index("sds-lora") - 1] == "SDS-LoRA"


def test_ratios_of_table_6():
    """1.68 over 1.61 hours with the warm-up stage, 1.81 over 1.72; 129.16 over 128.54 GB."""
    measured = {
        "seconds": {"lora": [1.0, 1.0, 9.0], "sds-lora": [1.05, 1.05, 1.05]},
        "bytes": {"lora": 2**30, "sds-lora": 2**30 * 1.02},
    }
    _, rows = cost_page.cells(measured)
    assert [row[-1] for row in rows] == [
        "1.0435",
        "1.0523",
        "1.0500 (within the paper's)",
        "1.0048",
        "1.0075",
        "1.0200 (+0.0125, outside)",
    ]
