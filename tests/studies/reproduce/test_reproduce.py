"""``sdslora reproduce`` from the command line to the four files, on a tiny model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import figures_page
import tiny
from sdslora.app.errors import UserError
from sdslora.app.recording import recording
from sdslora.cli import main
from sdslora.studies.reproduce.catalogue import TARGETS
from sdslora.studies.reproduce.figures import trainings
from tiny import Run

FIGURES = [name for name in TARGETS if name.startswith("fig")]
THEOREMS = [name for name in TARGETS if name.startswith("theorem")]
SECRET = "hf_not_for_the_results"
RUN = "sds-lora/rate-0.01/seed-0"


Arguments = Callable[..., list[str]]


@pytest.fixture(scope="session")
def arguments(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Arguments:
    """Of ``sdslora``: a target of 15 short steps, into one directory unless another is given."""
    folder = tmp_path_factory.mktemp("reproduce")
    settings = {
        "output_dir": folder / "out",
        "model.name_or_path": model_dir,
        "data.source": tiny.save_rows(folder / "rows.json", tiny.rows(120)),
        "data.options": "{}",
        "data.size": 60,
        "data.holdout": 16,
        "test": 16,
        "rates": '{"*": 1e-2}',
        "rank": 3,
        "training.per_device_train_batch_size": 4,
        "training.use_cpu": "true",
        "training.logging_steps": 1,
        "training.hub_token": SECRET,
    }
    given = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    return lambda target, *more: ["reproduce", target, *given, *map(str, more)]


@pytest.fixture(scope="session")
def out(arguments: Arguments) -> Path:
    """The directory that all figures were made in, fig3b first, which trains every method."""
    for name in ("fig3b", *FIGURES):
        assert main(arguments(name)) == 0
    return Path(arguments("fig3b")[3])


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(job: object) -> None:
        raise AssertionError(f"{job} was trained again")

    monkeypatch.setattr(trainings, "carry_out", refuse)


def test_dry_run_says_what_would_be_trained_and_does_nothing(sdslora: Run, arguments, tmp_path):
    result = sdslora(*arguments("fig3b", "--dry_run", "--output_dir", tmp_path / "new"))
    assert result.status == 0
    assert "small:\n  output_dir: runs/reproduce/small\n" in result.out
    assert "rank 3: 15 steps of 4 rows, measured every 4" in result.out
    assert "  lora-pro, rate 0.01, seed 0: to be run" in result.out
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_four_files(out, name):
    folder = out / name
    kinds = ("json", "md", "png", "svg")
    assert {file.name for file in folder.iterdir()} == {f"{name}.{kind}" for kind in kinds}
    content = json.loads((folder / f"{name}.json").read_text())
    assert content["config"]["rank"] == 3
    assert content["config"]["data"]["size"] == 60
    assert not any(SECRET in file.read_text() for file in folder.glob("*.json"))
    assert content["versions"]["torch"]
    assert list(content["measured"]["methods"]) == content["config"]["methods"]
    text = (folder / f"{name}.md").read_text()
    assert text.startswith(f"# {TARGETS[name].title}\n")
    for part in ("**The paper**", "**Setting.**", "**Measured", "**Shown, and not shown.**"):
        assert part in text


def test_numbers_are_those_of_the_recorded_layers(out):
    content = json.loads((out / "fig3b/fig3b.json").read_text())["measured"]
    found = content["methods"]["sds-lora"]["alignment"]
    assert found["step"] == [1, 4, 8, 12]
    assert content["layers"] == 14
    for place, entry in enumerate(recording.read(out / "runs" / RUN / "diagnostics.jsonl")):
        values = [figures["alignment"] for figures in entry["layers"].values()]
        assert found["mean"][place] == pytest.approx(np.mean(values))
        assert found["low"][place] == pytest.approx(np.quantile(values, 0.25))
        assert found["high"][place] == pytest.approx(np.quantile(values, 0.75))
    # there is no refresh in the warm-up, nor without bases
    assert content["methods"]["sds-lora"]["alignment_moved"]["step"] == [12]
    assert content["methods"]["lora"]["alignment_moved"]["step"] == []


@pytest.mark.usefixtures("no_training", "out")
def test_what_is_trained_is_not_trained_again(sdslora: Run, arguments):
    result = sdslora(*arguments("fig3a"))
    assert result.status == 0, result.err
    assert "there already" in result.out
    assert "to be run" not in result.out


def test_losses_are_the_trainers(out):
    content = json.loads((out / "fig3a/fig3a.json").read_text())["measured"]
    run = json.loads((out / "runs" / RUN / "run.json").read_text())
    found = content["methods"]["sds-lora"]
    assert [list(pair) for pair in zip(found["step"], found["loss"], strict=True)] == run["curve"]
    assert found["test"] == [run["test"]["loss"]]
    assert content["held-out rows"] == 16


def test_numbers_alone_give_the_same_picture_and_text(out, tmp_path):
    for name in ("fig1a", "fig4"):
        folder = out / name
        content = json.loads((folder / f"{name}.json").read_text())
        config = content["config"] | {"output_dir": str(tmp_path)}
        again = TARGETS[name].write(name, config, content["measured"])
        for kind in ("md", "png", "svg"):
            assert (again / f"{name}.{kind}").read_bytes() == (
                folder / f"{name}.{kind}"
            ).read_bytes()


def test_an_interrupted_training_is_run_anew(sdslora: Run, arguments, out, monkeypatch):
    record = out / "runs" / RUN / "run.json"
    held = record.read_text()
    record.write_text(json.dumps(json.loads(held) | {"status": "failed", "error": "power cut"}))
    asked = []

    def carry_out(job: Any) -> dict[str, Any]:
        asked.append(str(job))
        record.write_text(held)
        return json.loads(held)

    monkeypatch.setattr(trainings, "carry_out", carry_out)
    assert sdslora(*arguments("fig4")).status == 0
    assert asked == ["sds-lora, rate 0.01, seed 0"]


@pytest.mark.usefixtures("no_training", "out")
def test_trainings_with_other_settings_are_refused(sdslora: Run, arguments):
    result = sdslora(*arguments("fig4", "--rank", 2))
    assert result.status == 2
    assert "holds a training with other settings; it differs in rank (3 there, 2 now)" in result.err


def test_a_training_that_diverges_fails_the_figure(sdslora: Run, arguments, tmp_path):
    result = sdslora(*arguments("fig4", "--output_dir", tmp_path, "--rates", '{"*": 1e30}'))
    assert result.status == 1
    assert "sds-lora, rate 1e+30, seed 0: " in result.err
    assert not (tmp_path / "fig4").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["fig9"], "invalid choice"),
        (["theorem32", "--scale", "paper"], "theorem32 has no scale `paper`; there is small"),
        (["fig1a", "--scale", "big"], "fig1a has no scale `big`; there is small, paper"),
        (["fig1a", "--evry", "3"], "unknown key `evry`; did you mean `every`?"),
        (["fig1a", "--every", "0"], "every must be 1 or more, not 0"),
        (["fig1a", "--methods", "[lorra]"], "no method `lorra`; did you mean `lora`?"),
        (["theorem31", "--rank", "16"], "rank must be 2 or more, below rows and columns, not 16"),
        (["theorem31", "--trials", "0"], "trials must be 1 or more, not 0"),
        (["theorem32", "--rank", "3"], "rank must be even, 2 or more"),
        (["theorem32", "--seeds", "1"], "seeds must be 2 or more"),
    ],
)
def test_bad_usage(sdslora: Run, tmp_path, more, message):
    result = sdslora("reproduce", *more, "--output_dir", tmp_path / "out")
    assert result.status == 2
    assert message in result.err
    assert not (tmp_path / "out").exists()


def test_the_paper_scale_is_the_papers():
    scale = TARGETS["fig3a"].scales["paper"]
    assert "Llama-3-8B" in scale["model"]["name_or_path"]
    assert scale["training"]["per_device_train_batch_size"] == 32
    assert scale["rates"] == {"*": 1e-4, "full": 1e-5}
    assert len(scale["target_modules"]) == 7
    assert "full" in scale["methods"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("theorem31", ["--trials", "40", "--spectra", "30", "--starts", "2"]),
        ("theorem32", ["--seeds", "2", "--rows", "9", "--columns", "7", "--rank", "2"]),
    ],
)
def test_theorems_run(sdslora: Run, tmp_path, name, options):
    result = sdslora("reproduce", name, "--output_dir", tmp_path, *options)
    assert result.status == 0, result.err
    text = (tmp_path / name / f"{name}.md").read_text()
    measured = json.loads((tmp_path / name / f"{name}.json").read_text())["measured"]
    assert (tmp_path / name / f"{name}.png").stat().st_size > 10_000
    if name == "theorem31":
        factors = measured["random factors"]
        assert factors["cosine: SDS-LoRA above LoRA-Pro"] == 0
        assert f"**{factors['inner product: LoRA above SDS-LoRA']} of 40**" in text
        assert measured["counterexample"]["LoRA"] > measured["counterexample"]["SDS-LoRA"]
        assert max(measured["sampled"]["alignment"]) < measured["uniform"]
    else:
        assert measured["slopes"]["LoRA"]["mean"] == pytest.approx(-2, abs=0.1)
        assert measured["slopes"]["SDS-LoRA"]["mean"] == pytest.approx(0, abs=0.01)
        assert set(measured["rates below their bound"].values()) == {0}


def test_page_holds_what_was_measured(out, tmp_path):
    text = tmp_path / "docs" / "page.md"
    text.parent.mkdir()
    figures_page.main([str(out), str(text)])
    figures_page.main([str(out), str(text), "--check"])
    written = text.read_text()
    for name in FIGURES:
        assert f"## {TARGETS[name].title}\n" in written
        picture = written.split(f"## {TARGETS[name].title}\n")[1].split("](")[1].split(")")[0]
        assert (text.parent / picture).resolve() == out / name / f"{name}.png"
    text.write_text(written.replace("0.", "0.9", 1))
    with pytest.raises(UserError, match=r"is not what .* says"):
        figures_page.main([str(out), str(text), "--check"])
