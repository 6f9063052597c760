"""The paper's tables: settings, recipes, dry runs, and one table from clean to LaTeX."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import paper_recipes
import tiny
from sdslora.studies.grid import execution as compare_run
from sdslora.studies.plotting.markdown import table
from sdslora.studies.reproduce.tables import TABLES, cost, estimate, grid, page
from sdslora.studies.reproduce.tables.grid import TableSpec
from sdslora.studies.reproduce.tables.paper_settings import TABLES as SETTINGS
from tiny import Run

ROOT = Path(__file__).parents[3]
RECIPES = ROOT / "recipes/paper"
RESULTS = ROOT / "docs/results/tables"
QUESTION = "Please answer with true or false, question: is 1 odd?\n\nAnswer format: true/false"
FOLDERS = ("boolq", "piqa", "social_i_qa", "winogrande", "ARC-Challenge", "ARC-Easy", "openbookqa")
METHODS = ["full", "lora", "rslora", "lora+", "pissa", "dora", "sds-lora"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A table of three steps a run, on a tiny model and rows of its own."""
    folder = tmp_path_factory.mktemp("tables")
    data = folder / "data"
    for name in FOLDERS:
        place = data / "commonsense" / name
        place.mkdir(parents=True)
        tiny.save_rows(
            place / "test.json", [{"instruction": QUESTION, "answer": "true"} for _ in range(3)]
        )
    rows = [{"instruction": f"Is {n} odd?", "output": "true"} for n in range(40)]
    tiny.save_rows(data / "commonsense/boolq/train.json", rows)
    model = tiny.save_model(folder / "model", max_position_embeddings=1024)
    given = {"output_dir": folder / "out", "model": model, "data_dir": data, "max_steps": 12}
    given |= {"limit": 2, "seeds": 1}
    return [part for key, value in given.items() for part in (f"--{key}", str(value))]


@pytest.fixture(scope="module")
def table1(settings: list[str]) -> Path:
    from sdslora.cli import main

    assert main(["reproduce", "table1", *settings]) == 0
    return Path(settings[1]) / "table1"


def test_a_table_from_clean(table1):
    assert {file.name for file in table1.iterdir()} == {
        f"table1.{k}" for k in ("json", "md", "tex")
    }
    content = json.loads((table1 / "table1.json").read_text())
    runs = content["measured"]["runs"]
    assert [run["method"] for run in runs] == METHODS
    tasks = list(SETTINGS["table1"].scales["small"].parts["commonsense, local part"].tasks)
    for run in runs:
        assert list(run["figures"]) == [*tasks, "mean"]
        shares = [run["figures"][task] for task in tasks]
        assert run["figures"]["mean"] == pytest.approx(sum(shares) / 7)
        assert run["rows"] == dict.fromkeys(tasks, 2)
        assert run["steps"] == 12
    assert content["config"]["max_steps"] == 12
    text = (table1 / "table1.md").read_text()
    assert "The paper's figures of this table are not at hand." in text
    assert "no reproduction of its figures" in text
    assert "12 steps of 8 rows" in text
    assert "| model | 8 | sds-lora | 1e-3 |" in text
    assert "| model | – | full | 1e-4 |" in text
    latex = (table1 / "table1.tex").read_text()
    assert latex.count(r"\\") == 1 + len(METHODS)
    assert r"arc challenge" in latex


@pytest.mark.parametrize("name", SETTINGS)
def test_the_committed_tables_are_of_the_grid_and_of_their_runs(name):
    content = json.loads((RESULTS / name / f"{name}.json").read_text())
    scale = SETTINGS[name].scales["small"]
    runs = content["measured"]["runs"]
    assert {run["checkpoint"] for run in runs} == {model.name for model in scale.models.values()}
    assert {run["part"] for run in runs} == set(scale.parts)
    assert {run["rank"] for run in runs} - {None} == set(scale.ranks)
    assert sorted({run["seed"] for run in runs}) == list(range(scale.seeds))
    assert len({run["method"] for run in runs}) == len(scale.methods)
    setting, body = page.setting(name, content["config"], runs), table(*page.cells(name, runs))
    written = (RESULTS / name / f"{name}.md").read_text()
    assert written == page.markdown(content["title"], setting, body)


def test_the_committed_table_6_is_of_its_measurements():
    content = json.loads((RESULTS / "table6" / "table6.json").read_text())
    measured = content["measured"]
    setting = cost.setting(content["config"], measured)
    written = (RESULTS / "table6" / "table6.md").read_text()
    assert written == page.markdown(content["title"], setting, table(*cost.cells(measured)))


def test_figures_are_the_records(table1):
    content = json.loads((table1 / "table1.json").read_text())
    for run in content["measured"]["runs"]:
        [file] = (table1.parent / "small").glob(f"*/runs/{run['method']}/*/seed-0/run.json")
        record = json.loads(file.read_text())
        counted = {
            task: found["llm_adapters"]["exact_match"] for task, found in record["tasks"].items()
        }
        assert {task: run["figures"][task] for task in counted} == counted
        assert record["config"]["tasks"]["limit"] == 2


def test_what_is_there_is_not_run_again(table1, settings, sdslora: Run, monkeypatch):
    monkeypatch.setattr(grid, "carry_out", None)
    held = (table1 / "table1.json").read_bytes()
    assert sdslora("reproduce", "table1", *settings).status == 0
    assert (
        json.loads((table1 / "table1.json").read_bytes())["measured"]
        == json.loads(held)["measured"]
    )


@pytest.mark.usefixtures("table1")
def test_runs_with_other_settings_are_refused(settings, sdslora: Run):
    result = sdslora("reproduce", "table1", *settings, "--max_steps", 11)
    assert result.status == 2
    assert "differs in training.max_steps (12 there, 11 now)" in result.err


def test_a_failed_run_fails_the_table(settings, sdslora: Run, tmp_path, monkeypatch):
    def outcome(future: Any, job: Any) -> dict[str, Any]:
        return compare_run.outline(job) | {"status": "failed", "error": "power cut"}

    class Nowhere:
        def __init__(self, spec: object) -> None: ...

        def __enter__(self) -> "Nowhere":
            return self

        def __exit__(self, *error: object) -> None: ...

        def submit(self, work: object, job: object) -> Any:
            from concurrent.futures import Future

            future: Future[None] = Future()
            future.set_result(None)
            return future

    monkeypatch.setattr(grid, "engine", Nowhere)
    monkeypatch.setattr(grid, "outcome", outcome)
    result = sdslora("reproduce", "table1", *settings, "--output_dir", tmp_path)
    assert result.status == 1
    assert "full, seed 0: power cut" in result.err
    assert not (tmp_path / "table1").exists()


@pytest.mark.parametrize("name", TABLES)
def test_every_small_table_says_what_it_would_run(name, sdslora: Run, tmp_path):
    out = tmp_path / "out"
    result = sdslora("reproduce", name, "--dry_run", "--output_dir", out)
    assert result.status == 0, result.err
    assert "sds-lora" in result.out
    assert not out.exists()


def test_dry_run_of_the_papers_table_1(sdslora: Run):
    result = sdslora("reproduce", "table1", "--scale", "paper", "--rank", 8, "--dry_run")
    assert result.status == 0, result.err
    # ⌈170420 / 32⌉ steps
    assert (
        "llama3-8b on Commonsense-170K, rank 8, rate 0.0001 (full 1e-05): "
        "7 methods x 3 seeds, 5326 steps of 32 rows" in result.out
    )
    assert "42 runs" in result.out
    assert "GPU hours a run; memory of a run: rank 8" in result.out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["table1", "--rank", "7"], "rank must be one of the table's, 8, not 7"),
        (["table2", "--scale", "paper", "--model", "gema-2b"], "did you mean `gemma-2b`?"),
        (["table3", "--scale", "large"], "table3 has no scale `large`; there is small, paper"),
        (["table1", "--seeds", "0"], "seeds must be 1 or more, not 0"),
        (["table6", "--rounds", "0"], "rounds must be 1 or more, not 0"),
        (["table1", "--data_dir", "nowhere"], "there is no nowhere/commonsense"),
    ],
)
def test_bad_usage_of_tables(sdslora: Run, tmp_path, more, message):
    result = sdslora("reproduce", *more, "--output_dir", tmp_path / "out")
    assert result.status == 2
    assert message in result.err
    assert not (tmp_path / "out").exists()


def test_code_is_not_run_unasked(sdslora: Run, tmp_path, settings):
    (tmp_path / "code/code-feedback").mkdir(parents=True)
    rows = [{"query": f"{n}?", "answer": "```x"} for n in range(300)]
    tiny.save_rows(tmp_path / "code/code-feedback/train.json", rows)
    (tmp_path / "math/metamathqa").mkdir(parents=True)
    cells = grid.cells(
        SETTINGS["table2"],
        TableSpec(str(tmp_path), "paper", settings[3], 8, data_dir=str(tmp_path)),
    )
    with pytest.raises(ValueError, match="allow_code_execution"):
        grid.check([cell for cell in cells if cell.part.tasks == ("humaneval",)])


def test_full_fine_tuning_is_run_once_whatever_the_ranks():
    cells = grid.cells(SETTINGS["table2"], TableSpec("out", "paper"))
    full = [cell.rank for cell in cells if "full" in cell.methods]
    assert full == [8] * 6
    assert len(cells) == 12
    rates = {
        cell.model: {j.contender.label: j.learning_rate for j in cell.jobs} for cell in cells[:8:4]
    }
    assert rates["gemma-2b"] == {**dict.fromkeys(METHODS, 2e-4), "full": 2e-5}
    assert rates["llama3-8b"] == {**dict.fromkeys(METHODS, 1e-4), "full": 1e-5}


def test_tables_share_their_runs():
    folders = [
        {
            job.folder
            for cell in grid.cells(SETTINGS[name], TableSpec("out", "paper"))
            for job in cell.jobs
        }
        for name in ("table2", "table5")
    ]
    shared = folders[0] & folders[1]
    labels = {folder.parts[-3] for folder in shared}
    assert labels == {"rslora", "sds-lora"}


def test_refreshing_steps_of_table_7():
    """At the paper's 3125 steps the shares are those that the paper's table gives, to a point."""
    [cell] = grid.cells(SETTINGS["table7"], TableSpec("out", "paper", seeds=1))
    assert estimate.steps(cell) == 3125
    from sdslora.studies.reproduce.tables import paper, table

    known = paper.FIGURES["table7"]
    for job in cell.jobs:
        found = table._schedule({"options": job.contender.options}, 3125)["refreshing steps"]
        told = known.get((job.contender.label, "refreshing steps"))
        if told is None:
            every = job.contender.options["refresh_every"]
            assert found == pytest.approx(1 / every, abs=0.01)
        else:
            assert found == pytest.approx(told, abs=0.01)


def test_the_papers_figures_stand_beside_ours():
    row = {"model": "m", "rank": 8, "rate": 1e-4, "method": "sds-lora refresh_phases=5"}
    runs = [
        {**row, "seed": seed, "figures": {"refreshing steps": 0.447, "loss": 0.5 + seed}}
        for seed in (0, 1)
    ]
    header, rows = page.cells("table7", runs)
    assert header[4:] == ["refreshing steps", "the paper's", "test loss"]
    assert rows[0][4:] == ["44.7 ± 0%", "45.7% (−1.0)", "1.00 ± 0.71"]
    latex = page.latex(header, rows, "Title")
    assert r"44.7 $\pm$ 0\%" in latex
    assert r"refresh\_phases=5" in latex


def test_recipes_are_those_on_disk(tmp_path):
    paper_recipes.main([str(RECIPES), "--check"])
    paper_recipes.main([str(tmp_path)])
    file = next(iter(sorted(tmp_path.rglob("*.yaml"))))
    file.write_text(file.read_text().replace("0.0001", "0.0002").replace("0.0002", "0.0003"))
    with pytest.raises(ValueError, match="make it anew"):
        paper_recipes.main([str(tmp_path), "--check"])


def test_recipes_are_complete(sdslora: Run, tmp_path, settings, monkeypatch):
    tree = yaml.safe_load((RECIPES / "table1/llama3-8b-commonsense-170k-rank32.yaml").read_text())
    assert tree["adapter"]["r"] == 32
    assert tree["training"]["learning_rate"] == 1e-4
    assert len(tree["adapter"]["target_modules"]) == 7
    recipe = str(RECIPES / "table1/llama3-8b-commonsense-170k-rank32.yaml")
    changed = ["--model.name_or_path", settings[3], "--data.holdout", 4, "--output_dir", tmp_path]
    options = ["--data.options", json.dumps({"dir": settings[5]})]
    result = sdslora("train", recipe, *changed, *options, "--dry_run", "--adapter.warmup_steps", 1)
    assert result.status == 0, result.err
    assert "rows: 36 to train on, 4 to evaluate on" in result.out


def test_table_6_measures_both(sdslora: Run, tmp_path, settings):
    given = ["--model", settings[3], "--rank", 2, "--rows", 2, "--tokens", 8, "--rounds", 2]
    result = sdslora("reproduce", "table6", *given, "--output_dir", tmp_path)
    assert result.status == 0, result.err
    measured = json.loads((tmp_path / "table6/table6.json").read_text())["measured"]
    assert {name: len(found) for name, found in measured["seconds"].items()} == {
        "lora": 2,
        "sds-lora": 2,
    }
    text = (tmp_path / "table6/table6.md").read_text()
    assert "| 1.0435 to 1.0523 |" in text
    assert "| 1.0048 to 1.0075 |" in text
    # the two bases of 14 layers, in float32
    assert measured["bytes"]["sds-lora"] > measured["bytes"]["lora"]
