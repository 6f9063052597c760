"""The paper's tables: settings, recipes, dry runs, and one table from clean to LaTeX."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import paper_recipes
import tables_page
import tiny
from page import filled
from sdslora.studies.grid import execution as compare_run
from sdslora.studies.reproduce.tables import TABLES, grid, page, paper
from sdslora.studies.reproduce.tables.grid import TableSpec
from sdslora.studies.reproduce.tables.paper_settings import TABLES as SETTINGS
from tiny import Run

ROOT = Path(__file__).parents[3]
RECIPES = ROOT / "recipes/paper"
RESULTS = ROOT / "docs/results/tables"
QUESTION = "Please answer with true or false, question: is 1 odd?\n\nAnswer format: true/false"
FOLDERS = ("boolq", "piqa", "social_i_qa", "winogrande", "ARC-Challenge", "ARC-Easy", "openbookqa")
METHODS = ["full", "lora", "rslora", "lora+", "pissa", "dora", "sds-lora preset=paper"]


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
    assert page.SMALL in text
    assert "12 steps of 8 rows at rate 1e-3, 1e-4 (full)" in text
    assert "| SDS-LoRA | Gemma-2B | 8 | the paper's | 65.86 ± 0.44 | 79.10 ± 0.66 |" in text
    assert "| sds-lora | model | 8 | ours |" in text
    assert "| full | model | – | ours |" in text
    latex = (table1 / "table1.tex").read_text()
    # the header, the paper's 26 rows, and ours
    assert latex.count(r"\\") == 1 + 26 + len(METHODS)
    assert r"65.86 $\pm$ 0.44" in latex


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


@pytest.mark.parametrize("name", TABLES)
def test_the_committed_pages_are_what_their_results_say(name):
    assert len(tables_page.written(name)) == 2
    for path, text in tables_page.written(name).items():
        assert path.read_text() == text


def test_the_papers_tables_stand_in_the_docs():
    text = tables_page.PAGE.read_text()
    assert filled(text, tables_page.texts()) == text


def test_figures_are_the_records(table1):
    content = json.loads((table1 / "table1.json").read_text())
    for run in content["measured"]["runs"]:
        folder = run["method"].replace(" ", "_")
        [file] = (table1.parent / "small").glob(f"*/runs/{folder}/*/seed-0/run.json")
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


@pytest.mark.parametrize("name", TABLES)
def test_every_dry_run_at_the_papers_scale_shows_the_target(name, sdslora: Run, tmp_path):
    out = tmp_path / "out"
    result = sdslora("reproduce", name, "--scale=paper", "--dry_run", f"--output_dir={out}")
    assert result.status == 0, result.err
    printed = result.out.count("| the paper's |")
    assert printed == (4 if name == "table6" else len(paper.rows(name)))
    assert "steps" in result.out
    assert "GPU hours" in result.out
    assert "GiB" in result.out
    assert not out.exists()


def test_dry_run_of_the_papers_table_1(sdslora: Run):
    result = sdslora("reproduce", "table1", "--scale", "paper", "--rank", 8, "--dry_run")
    assert result.status == 0, result.err
    # ⌈170420 / 32⌉ steps
    assert (
        "llama3-8b on Commonsense-170K, rank 8, rate 0.0001: 6 methods x 3 seeds, "
        "5326 steps of 32 rows" in result.out
    )
    assert "llama3-8b on Commonsense-170K, full fine-tuning, rate 1e-05: 1 method" in result.out
    assert "42 runs" in result.out
    # full fine-tuning and six methods at this rank, of each model
    assert result.out.count("| the paper's |") == 14


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
    # two models, two data sets
    assert [cell.rank for cell in cells] == [None, 8, 32] * 4
    rates = {
        (cell.model, cell.rank): {job.contender.label: job.learning_rate for job in cell.jobs}
        for cell in cells
    }
    assert rates["gemma-2b", None] == {"full": 2e-5}
    assert rates["gemma-2b", 8] == dict.fromkeys(METHODS[1:], 2e-4)
    assert rates["llama3-8b", None] == {"full": 1e-5}
    assert rates["llama3-8b", 32] == dict.fromkeys(METHODS[1:], 1e-4)


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
    assert labels == {"full", "rslora", "sds-lora_preset=paper"}


def test_recipes_are_those_on_disk(tmp_path):
    paper_recipes.main([str(RECIPES), "--check"])
    paper_recipes.main([str(tmp_path)])
    file = next(iter(sorted(tmp_path.rglob("*.yaml"))))
    file.write_text(file.read_text().replace("0.0001", "0.0002").replace("0.0002", "0.0003"))
    with pytest.raises(ValueError, match="write it again"):
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
    assert "| time of the training on Code-Feedback (hours) | 1.72 | 1.81 | 1.0523 |" in text
    assert "| memory of the training on MetaMathQA (GB) | 128.54 | 129.16 | 1.0048 |" in text
    assert text.count("| ours |") == 2
    # the two bases of 14 layers, in float32
    assert measured["bytes"]["sds-lora"] > measured["bytes"]["lora"]
