"""``sdslora compare`` from recipe to report, and what it does when things go wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import ViTConfig, ViTForImageClassification

import tiny
from sdslora.app.config.parsing import parse
from sdslora.app.errors import RunFailed, UserError
from sdslora.app.files import write_json
from sdslora.methods import METHODS
from sdslora.studies.compare import plots
from sdslora.studies.compare.command import run_comparison
from sdslora.studies.grid import engines
from sdslora.studies.grid.contenders import contenders, next_rate, rates
from sdslora.studies.grid.engines import Engine, LocalEngine, RayEngine
from sdslora.studies.grid.execution import NAME, Job, carry_out
from sdslora.studies.grid.spec import CompareSpec, EngineSpec, GridSpec
from tiny import Run

Make = Callable[..., CompareSpec]
draw = plots.save


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four plots take as long as two runs; the first test draws them, and ``test_plots.py``."""
    monkeypatch.setattr(plots, "save", lambda comparison, directory: None)


@pytest.fixture(scope="module")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_rows(tmp_path_factory.mktemp("compare") / "rows.json", tiny.rows(120))


@pytest.fixture
def tree(tmp_path: Path, model_dir: Path, data_file: Path) -> dict[str, Any]:
    return {
        "output_dir": str(tmp_path / "out"),
        "model": {"name_or_path": str(model_dir)},
        "data": {"source": str(data_file), "holdout": 20},
        "test": 20,
        "methods": ["sds-lora", "rslora"],
        "rank": 2,
        "seeds": 2,
        "grid": {"number": 3, "extend": 0, "centers": {"*": 1e-2}},
        "training": {
            "max_steps": 13,
            "per_device_train_batch_size": 4,
            "use_cpu": True,
            "logging_steps": 1,
        },
        "evaluation": {"exact_match": False},
        "engine": {"slots": 1, "threads": 1},
    }


@pytest.fixture
def make(tree: dict[str, Any], tmp_path: Path) -> Make:
    """The specification of a tiny comparison; keywords such as ``grid__extend=1`` change it."""

    def spec(**changes: Any) -> CompareSpec:
        for name, value in changes.items():
            section, _, key = name.partition("__")
            if key:
                tree[section] = tree.get(section, {}) | {key: value}
            else:
                tree[section] = value
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(tree))
        return parse(CompareSpec, [str(path)], prog="sdslora compare")

    return spec


class Here:
    """An engine that carries out everything at once, in this process."""

    slots, threads = 1, 1

    def __init__(self, work: Callable[[Job], dict[str, Any]] | None = None) -> None:
        self.work = work
        self.done: list[str] = []

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def submit(self, work: Callable[[Job], Any], job: Job) -> "Future[Any]":
        future: Future[Any] = Future()
        self.done.append(str(job))
        try:
            future.set_result((self.work or work)(job))
        except Exception as error:
            future.set_exception(error)
        return future


def made_up(loss: Callable[[Job], float]) -> Callable[[Job], dict[str, Any]]:
    """Work that trains nothing: the run's losses are ``loss(job)``; it writes the record."""

    def work(job: Job) -> dict[str, Any]:
        figures = {"loss": loss(job), "rows": 1}
        record = {
            "status": "finished", "method": job.contender.method, "label": job.contender.label,
            "default_rate": job.contender.center, "learning_rate": job.learning_rate,
            "seed": job.seed, "fresh": job.fresh, "validation": figures, "test": figures,
            "general_loss": None,
            "seconds": 1.0, "peak_bytes": None, "trainable_parameters": 1, "curve": [[1, 1.0]],
            "error": None,
        }  # fmt: skip
        write_json(job.folder / NAME, record)
        return record

    return work


by_seed = made_up(lambda job: 1.0 + job.seed)


def run_files(spec: CompareSpec) -> list[Path]:
    return sorted(Path(spec.output_dir).rglob("seed-*/run.json"))


def test_from_recipe_to_report(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(plots, "save", draw)
    spec = make()
    comparison = run_comparison(spec, Here())
    assert comparison is not None
    assert [c.label for c in comparison.contenders] == ["sds-lora", "rslora"]
    assert comparison.reference == "sds-lora"
    assert all(len(c.rates) == 3 and c.runs == 6 for c in comparison.contenders)
    assert len(run_files(spec)) == 12
    directory = Path(spec.output_dir)
    assert "SDS-LoRA (paper) against rsLoRA" in (directory / "report.md").read_text()
    assert (directory / "learning_rate.png").stat().st_size > 10_000
    record = json.loads(run_files(spec)[0].read_text())
    assert record["status"] == "finished"
    assert len(record["curve"]) == 13
    assert record["validation"]["rows"] == record["test"]["rows"] == 20
    assert record["trainable_parameters"] > 0
    assert record["versions"]["torch"]
    assert "12 runs of 13 steps" in capsys.readouterr().out


def test_same_seed_same_start_and_same_rows_for_every_method(make: Make):
    """At a vanishing rate every method has the base model's losses, step by step."""
    spec = make(methods=["sds-lora", "rslora", "dora"])
    records = [carry_out(Job(spec, c, 1e-12, 0, threads=1)) for c in contenders(spec)]
    curves = {record["label"]: [loss for _, loss in record["curve"]] for record in records}
    assert list(curves) == ["sds-lora", "rslora", "dora"]
    assert len(set(curves["rslora"])) > 5
    for curve in curves.values():
        assert curve == pytest.approx(curves["rslora"], abs=2e-4)


def test_a_run_is_the_same_twice(make: Make):
    spec = make()
    job = Job(spec, contenders(spec)[0], 1e-2, 1, threads=1)
    first, second = carry_out(job), carry_out(job)
    for key in ("curve", "validation", "test"):
        assert strip(first[key]) == strip(second[key])
    other = carry_out(replace(job, seed=2))
    assert other["curve"] != first["curve"]


def strip(figures: Any) -> Any:
    """Without what differs from run to run: the time it took."""
    if isinstance(figures, dict):
        return {key: value for key, value in figures.items() if key != "seconds"}
    return figures


def test_finished_runs_are_not_run_again(make: Make):
    spec = make()
    run_comparison(spec, Here(by_seed))
    before = {path: path.stat().st_mtime_ns for path in run_files(spec)}
    assert len(before) == 2 * 3 * 2
    again = Here(by_seed)
    run_comparison(make(methods=["sds-lora", "rslora", "lora"], seeds=3), again)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # one more seed for two methods at three rates, and a new method
    assert len(again.done) == 2 * 3 + 3 * 3


def test_failed_runs_are_named_and_tried_again(make: Make, capsys: pytest.CaptureFixture[str]):
    spec = make()

    def breaks(job: Job) -> dict[str, Any]:
        if job.contender.label == "rslora" and job.seed == 1:
            raise MemoryError("no room")
        return by_seed(job)

    comparison = run_comparison(spec, Here(breaks))
    assert comparison is not None
    assert [c.failed_runs for c in comparison.contenders] == [0, 3]
    assert (
        "rslora, rate 0.01, seed 1: failed: its process ended: no room" in capsys.readouterr().err
    )
    again = Here(by_seed)
    comparison = run_comparison(spec, again)
    assert len(again.done) == 3
    assert comparison is not None
    assert [c.failed_runs for c in comparison.contenders] == [0, 0]


def test_an_error_within_a_run_is_in_its_record(make: Make, monkeypatch: pytest.MonkeyPatch):
    spec = make()
    monkeypatch.setattr("sdslora.methods.Method.optimizer", lambda *_, **__: 1 / 0)
    record = carry_out(Job(spec, contenders(spec)[1], 1e-2, 0, threads=1))
    assert record["status"] == "failed"
    assert record["error"] == "ZeroDivisionError: division by zero"
    with pytest.raises(RunFailed, match="no run finished; the first error: ZeroDivisionError"):
        run_comparison(make(methods=["rslora"], output_dir=f"{spec.output_dir}-2"), Here())


def test_a_run_that_diverges_is_recorded(make: Make):
    spec = make(methods=["lora"], grid__centers={"*": 1e18})
    record = carry_out(Job(spec, contenders(spec)[0], 1e30, 0, threads=1))
    assert record["status"] == "diverged"
    assert "loss" in record["error"]
    assert 0 < len(record["curve"]) < 13
    assert record["validation"] is None


def test_the_grid_grows_towards_the_best_and_stops_there(make: Make):
    """The best rate is four factors of √10 above the recommended one."""
    spec = make(grid__extend=5, grid__centers={"*": 1e-3})
    best = 1e-3 * 10**2
    place = Here(made_up(lambda job: abs(job.learning_rate / best - 1) + 1))
    comparison = run_comparison(spec, place)
    assert comparison is not None
    for contender in comparison.contenders:
        assert contender.best is not None
        assert contender.best.learning_rate == pytest.approx(best, rel=0.02)
        # one beyond the best shows that it is the best
        assert len(contender.rates) == 3 + 4
        assert contender.end == 0


def test_the_grid_stops_growing_at_its_limit(make: Make):
    spec = make(grid__extend=2)
    comparison = run_comparison(spec, Here(made_up(lambda job: job.learning_rate)))
    assert comparison is not None
    assert all(len(c.rates) == 5 and c.end == -1 for c in comparison.contenders)


def test_fresh_seeds_run_at_the_best_rate_only(make: Make):
    """The grid grows first; what was run for another recipe is taken for what it is in this one."""
    spec = make(seeds=[0, 4], fresh_seeds=3, grid__extend=5, grid__centers={"*": 1e-3})
    best = 1e-3 * 10**2
    work = made_up(lambda job: abs(job.learning_rate / best - 1) + 1 + job.seed)
    place = Here(work)
    comparison = run_comparison(spec, place)
    assert comparison is not None
    for contender in comparison.contenders:
        assert len(contender.rates) == 3 + 4
        assert contender.best is not None
        assert set(contender.best.validation.by_seed) == {0, 4}
        assert contender.seeds == (5, 6, 7)
        assert set(contender.test["loss"].by_seed) == {5, 6, 7}
    assert len(place.done) == 2 * (7 * 2 + 3)
    fresh = [done for done in place.done if done[-1] in "567"]
    assert {done.split(", ")[1] for done in fresh} == {f"rate {contender.best.learning_rate:.3g}"}
    assert comparison.pairs[0].reference_result.by_seed.keys() == {5, 6, 7}
    report = (Path(spec.output_dir) / "report.md").read_text()
    assert "over fresh seeds, which had no part in choosing the rate" in report


def test_a_seed_may_become_fresh(make: Make):
    run_comparison(make(seeds=3), Here(by_seed))
    spec = make(seeds=2, fresh_seeds=1)
    place = Here(by_seed)
    comparison = run_comparison(spec, place)
    assert place.done == []  # all of it was run already
    assert comparison is not None
    assert [c.seeds for c in comparison.contenders] == [(2,), (2,)]


def test_grid():
    grid = GridSpec()
    assert rates(2e-4, grid) == [2e-5, 6.32e-5, 2e-4, 6.32e-4, 2e-3]
    assert next_rate([2e-4, 2e-3], 1, grid) == 6.32e-3
    assert next_rate([2e-4, 2e-3], -1, grid) == 6.32e-5


def test_centers_by_label_method_and_star(make: Make):
    preserve = {"method": "sds-lora", "refresh_mode": "preserve"}
    spec = make(
        methods=["sds-lora", preserve, "lora", "full"],
        grid__centers={"sds-lora refresh_mode=preserve": 1e-1, "sds-lora": 2e-1, "*": 3e-1},
    )
    centers = {c.label: c.center for c in contenders(spec)}
    assert centers == {
        "sds-lora": 2e-1, "sds-lora refresh_mode=preserve": 1e-1, "lora": 3e-1, "full": 3e-1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["rslroa"]}, "there is no method `rslroa`; did you mean `rslora`?"),
        ({"methods": [{"refresh_mode": "qr"}]}, "needs the key `method`"),
        ({"methods": ["lora", "lora"]}, "lora is named 2 times"),
        ({"methods": []}, "methods must name at least one"),
        ({"methods": [{"method": "sds-lora", "refresh_mod": "qr"}]}, "refresh_mode"),
        ({"grid": {"number": 1}}, "grid.number must be an odd number of 3 or more, not 1"),
        ({"grid": {"number": 4}}, "grid.number must be an odd number of 3 or more, not 4"),
        ({"grid": {"factor": 1.0}}, "grid.factor must be above 1"),
        ({"grid": {"centers": {"lor": 1e-3}}}, "`lor` is not compared; did you mean `lora`?"),
        ({"grid": {"centers": {"lora": 0.0}}}, "must be above 0"),
        ({"seeds": 0}, "seeds must be 1 or more"),
        ({"seeds": []}, "seeds must be 1 or more"),
        ({"fresh_seeds": -1}, "fresh_seeds must be 0 or more"),
        ({"test": 0}, "test must be more than 0 rows"),
        ({"metric": "los"}, "did you mean `loss`?"),
        ({"reference": "sds-lor"}, "`sds-lor` is not compared"),
        ({"training": {"learning_rate": 1e-3}}, "training.learning_rate has no effect"),
        ({"training": {"seed": 3}}, "training.seed has no effect"),
        ({"engine": {"slots": 0}}, "engine.slots must be 1 or more"),
    ],
)
def test_bad_recipes(make: Make, changes: dict[str, Any], message: str):
    with pytest.raises(UserError) as caught:
        contenders(make(**({"methods": ["lora", "sds-lora"]} | changes)))
    assert message in str(caught.value)


def test_dry_run_loads_no_weights(
    make: Make, outline_dir: Path, capsys: pytest.CaptureFixture[str]
):
    spec = make(model={"name_or_path": str(outline_dir)}, dry_run=True)
    assert run_comparison(spec, Here()) is None
    assert "rslora: 0.00316, 0.01, 0.0316" in capsys.readouterr().out
    assert not Path(spec.output_dir).exists()


def test_by_default_every_method_against_ours_tuned(make: Make, tree: dict[str, Any]):
    del tree["methods"]
    spec = make(rank=1, seeds=1)
    comparison = run_comparison(spec, Here(made_up(lambda job: 1.0)))
    assert comparison is not None
    assert comparison.reference == "sds-lora preset=tuned"
    labels = {contender.label for contender in comparison.contenders}
    assert labels == {*METHODS, "sds-lora preset=tuned", "sds-hira preset=tuned"}


def test_one_seed_gives_no_verdict(make: Make, capsys: pytest.CaptureFixture[str]):
    comparison = run_comparison(make(seeds=1), Here(made_up(lambda job: 1.0)))
    assert comparison is not None
    assert "with one seed no verdict is given" in capsys.readouterr().out
    assert [pair.verdict for pair in comparison.pairs] == ["withheld"]


def test_a_method_that_cannot_run_is_left_out(make: Make, capsys: pytest.CaptureFixture[str]):
    spec = make(methods=["pissa", "rslora"], rank=40)
    comparison = run_comparison(spec, Here(made_up(lambda job: 1.0)))
    assert comparison is not None
    assert [c.label for c in comparison.contenders] == ["rslora"]
    assert "left out: pissa: pissa needs 40 singular directions" in capsys.readouterr().err


def test_rows_in_two_splits_are_left_out_and_named(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = tiny.rows(60)
    train = tiny.save_rows(tmp_path / "train.json", rows[:40])
    validation = tiny.save_rows(tmp_path / "validation.json", rows[30:50])
    test = tiny.save_rows(tmp_path / "test.json", rows[45:60])
    spec = make(data={"source": str(train), "validation": str(validation)}, test=str(test))
    run_comparison(spec, Here(by_seed))
    out = capsys.readouterr().out
    assert "note: 10 of 20 validation rows have a prompt that training or tuning uses" in out
    assert "note: 5 of 15 test rows have a prompt" in out
    record = carry_out(Job(spec, contenders(spec)[0], 1e-2, 0, threads=1))
    assert (record["validation"]["rows"], record["test"]["rows"]) == (10, 10)
    spec = make(data={"source": str(train), "validation": str(train)}, test=str(test))
    with pytest.raises(UserError, match="40 of 40 validation rows"):
        run_comparison(spec, Here())


def test_another_comparison_in_the_directory_is_refused(make: Make):
    run_comparison(make(), Here(made_up(lambda job: 1.0)))
    with pytest.raises(UserError, match="it differs in rank \\(2 there, 3 now\\)"):
        run_comparison(make(rank=3), Here())


def test_two_commands_do_not_share_a_directory(make: Make):
    spec = make()

    def second(job: Job) -> dict[str, Any]:
        with pytest.raises(UserError, match="another `sdslora compare` is at work"):
            run_comparison(spec, Here())
        return made_up(lambda job: 1.0)(job)

    run_comparison(spec, Here(second))


def test_forgetting(make: Make, tmp_path: Path):
    text = tmp_path / "general.txt"
    text.write_text("the quick brown fox\n\njumps over\n\n" * 3)
    spec = make(methods=["full"], seeds=1, forgetting={"source": str(text)})
    comparison = run_comparison(spec, Here())
    assert comparison is not None
    [contender] = comparison.contenders
    assert contender.forgetting is not None
    records = [json.loads(path.read_text())["general_loss"] for path in run_files(spec)]
    assert len({record["before"] for record in records}) == 1
    assert len({record["after"] for record in records}) == 3
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    with pytest.raises(UserError, match="holds no text"):
        run_comparison(make(forgetting={"source": str(empty)}), Here())


def test_digits(make: Make, tmp_path: Path):
    pytest.importorskip("sklearn")
    config = ViTConfig(
        image_size=8, patch_size=2, num_channels=1, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16, num_labels=10,
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    spec = make(
        model={"name_or_path": str(tmp_path / "vit")},
        data={"source": "digits", "options": {"rotate": 1}},
        methods=["full", "sds-lora"],
        seeds=1,
        metric="accuracy",
    )
    comparison = run_comparison(spec, Here())
    assert comparison is not None
    record = json.loads(run_files(spec)[0].read_text())
    assert (record["validation"]["rows"], record["test"]["rows"]) == (300, 497)
    assert record["general_loss"]["before"] == pytest.approx(2.3, abs=0.3)
    with pytest.raises(UserError, match=r"data\.options: .*rotat"):
        run_comparison(make(data={"source": "digits", "options": {"rotat": 1}}), Here())


@pytest.fixture(scope="module")
def local() -> Iterator[LocalEngine]:
    """Its one process takes seven seconds to start."""
    with LocalEngine(EngineSpec(slots=1, threads=1)) as place:
        yield place


@pytest.mark.slow
def test_local_and_ray_give_the_same_bits(make: Make, local: LocalEngine):
    pytest.importorskip("ray")
    spec = make(methods=["sds-lora"])
    job = Job(spec, contenders(spec)[0], 1e-2, 0, threads=1)

    def both_seeds(place: Engine) -> list[dict[str, Any]]:
        futures = [place.submit(carry_out, replace(job, seed=seed)) for seed in (0, 1)]
        return [future.result() for future in futures]

    expected = both_seeds(local)
    with RayEngine(EngineSpec(name="ray", slots=1, threads=1)) as place:
        got = both_seeds(place)
    import ray

    assert not ray.is_initialized()
    for mine, theirs in zip(got, expected, strict=True):
        assert mine["status"] == "finished"
        for key in ("curve", "validation", "test"):
            assert strip(mine[key]) == strip(theirs[key])


def test_a_process_that_dies_fails_its_own_run_only(local: LocalEngine):
    dead = local.submit(os._exit, 3)
    alive = local.submit(len, "four")
    assert alive.result() == 4
    assert dead.exception() is not None


@pytest.mark.slow
def test_killed_and_started_again(
    make: Make, tmp_path: Path, sdslora: Run, monkeypatch: pytest.MonkeyPatch
):
    """Finished runs survive a kill at any time, and the rest is made up for."""
    spec = make(methods=["rslora"], seeds=2)
    command = [sys.executable, "-m", "sdslora.cli", "compare", str(tmp_path / "recipe.yaml")]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not run_files(spec) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    survived = {path: path.read_bytes() for path in run_files(spec)}
    assert 1 <= len(survived) < 6
    # the killed command had its process for the runs: no need of another
    monkeypatch.setattr(engines, "LocalEngine", lambda spec: Here())
    result = sdslora("compare", tmp_path / "recipe.yaml")
    assert result.status == 0, result.err
    assert len(run_files(spec)) == 6
    assert {path: path.read_bytes() for path in survived} == survived
    assert not list(Path(spec.output_dir).rglob(".run.json.*"))
