"""``sdslora train --diagnostics.every N``: what is written, and a training that does not notice."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from sdslora.app.commands import train
from sdslora.app.errors import RunFailed
from sdslora.app.recording import KEYS, NAME, DiagnosticsRecorder, read
from sdslora.cli import main
from sdslora.methods import make_method
from tiny import MakeRecipe, Run

STEPS = [1, 3, 6, 9, 12, 15, 18]
EVERY = ["--diagnostics.every", "3", "--diagnostics.rows", "5"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, model_dir: Path, data_file: Path) -> SimpleNamespace:
    """One training three times: with diagnostics, without, and killed after step 8 and resumed."""
    folder = tmp_path_factory.mktemp("runs")
    tree = {
        "output_dir": str(folder / "on"),
        "model": {"name_or_path": str(model_dir)},
        "data": {"source": str(data_file), "holdout": 20},
        # dropout needs the random state
        "adapter": {"r": 4, "warmup_steps": 3, "lora_dropout": 0.1},
        "training": {
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 8,
            "num_train_epochs": 2,
            "use_cpu": True,
            "disable_tqdm": True,
            "save_steps": 4,
            "save_total_limit": 10,
            "logging_steps": 1,
            "report_to": "tensorboard",
        },
        "evaluation": {"before": False, "after": False},
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORBOARD_LOGGING_DIR", str(folder / "events"))
        assert main(["train", str(recipe), *EVERY]) == 0
        patch.setenv("TENSORBOARD_LOGGING_DIR", str(folder / "other-events"))
        assert main(["train", str(recipe), "--output_dir", str(folder / "off")]) == 0
        killed = folder / "killed"
        shutil.copytree(folder / "on", killed)
        for step in (12, 16, 20):
            shutil.rmtree(killed / f"checkpoint-{step}")
        state = json.loads((killed / "run.json").read_text()) | {"status": "running"}
        (killed / "run.json").write_text(json.dumps(state))
        whole = (killed / NAME).read_text()
        (killed / NAME).write_text(whole[: whole.index('{"step": 12') + 40])
        assert main(["train", str(recipe), *EVERY, "--resume", "--output_dir", str(killed)]) == 0
    return SimpleNamespace(folder=folder, out=out.getvalue())


def lines(run: Path) -> list[dict]:
    return list(read(run / NAME))


def history(run: Path) -> list[dict]:
    return json.loads((run / "run.json").read_text())["log_history"]


def test_the_file(runs) -> None:
    header = json.loads((runs.folder / "on" / NAME).read_text().splitlines()[0])
    assert header == {"version": 1, "method": "sds-lora", "every": 3}
    measured = lines(runs.folder / "on")
    assert [line["step"] for line in measured] == STEPS
    seconds = [line["seconds"] for line in measured]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    for line in measured:
        assert len(line["layers"]) == 14
        assert "model.layers.1.mlp.down_proj" in line["layers"]
        for found in line["layers"].values():
            assert tuple(found) == KEYS
            # after the warm-up everything exists; the bases exist from the step after it on
            missing = {key for key in KEYS if found[key] is None}
            refreshes = {key for key in KEYS if key.startswith(("basis", "relative"))}
            assert missing == (refreshes | {"alignment_moved"} if line["step"] <= 3 else set())
            assert len(found["singular_values"]) == (4 if line["step"] <= 3 else 8)
        values = [found["alignment"] for found in line["layers"].values()]
        assert line["mean"]["alignment"] == pytest.approx(sum(values) / 14, rel=1e-5)


def test_the_cost_is_printed(runs) -> None:
    assert f"diagnostics: 7 measurements in {runs.folder / 'on' / NAME}; " in runs.out
    assert "% of the training time" in runs.out


def test_off_is_nothing(runs) -> None:
    assert not (runs.folder / "off" / NAME).exists()
    assert runs.out.count("diagnostics:") == 2
    spec = SimpleNamespace(
        diagnostics=SimpleNamespace(every=None),
        training=SimpleNamespace(early_stopping_patience=None),
    )
    assert list(train._more_callbacks(SimpleNamespace(spec=spec))) == []


def test_the_training_is_bit_identical(runs) -> None:
    on, off = runs.folder / "on", runs.folder / "off"
    expected, found = (load_file(run / "adapter_model.safetensors") for run in (off, on))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    for before, after in zip(history(off), history(on), strict=True):
        for key in ("loss", "grad_norm", "entropy", "sds/relative_jump"):
            assert before.get(key) == after.get(key), key


def test_the_trainers_history_has_the_means_at_their_steps(runs) -> None:
    measured = {line["step"]: line["mean"] for line in lines(runs.folder / "on")}
    for entry in history(runs.folder / "on"):
        found = {
            key.removeprefix("diagnostics/"): value
            for key, value in entry.items()
            if key.startswith("diagnostics/")
        }
        logged = "loss" in entry and entry["step"] in measured
        assert found == (measured[entry["step"]] if logged else {})


def test_trackers_are_told(runs) -> None:
    events = EventAccumulator(str(runs.folder / "events")).Reload()
    alignment = events.Scalars("train/diagnostics/alignment")
    assert [event.step for event in alignment] == STEPS
    means = [line["mean"]["alignment"] for line in lines(runs.folder / "on")]
    assert [event.value for event in alignment] == pytest.approx(means)
    assert len(events.Scalars("train/sds/phase")) == 20


def test_a_killed_run_goes_on(runs) -> None:
    whole, resumed = lines(runs.folder / "on"), lines(runs.folder / "killed")
    assert [line["step"] for line in resumed] == STEPS
    for expected, found in zip(whole, resumed, strict=True):
        assert expected["layers"] == found["layers"]
        assert expected["mean"] == found["mean"]
    seconds = [line["seconds"] for line in resumed]
    assert seconds == sorted(seconds)
    # those of step 9 were dropped: the checkpoint was of step 8
    assert seconds[:3] == [line["seconds"] for line in whole][:3]
    assert seconds[3] != whole[3]["seconds"]


def test_resuming_may_measure_at_other_steps(runs) -> None:
    changed = runs.folder / "changed"
    shutil.copytree(runs.folder / "on", changed)
    path = str(runs.folder / "recipe.yaml")
    arguments = ["--resume", "--output_dir", str(changed)]
    assert main(["train", path, *arguments, "--diagnostics.every", "7"]) == 0  # finished already
    assert main(["train", path, *arguments, "--adapter.r", "5"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--diagnostics.every", "0"], "diagnostics.every must be 1 or more, not 0"),
        (["--diagnostics.rows=-1"], "diagnostics.rows must be 1 or more, not -1"),
        (["--diagnostics.evry", "5"], "unknown key `diagnostics.evry`; did you mean"),
        (
            ["--diagnostics.every", "5", "--data.holdout", "0"],
            "diagnostics.every needs rows to measure on; set data.validation or data.holdout",
        ),
    ],
)
def test_bad_input(recipe: MakeRecipe, sdslora: Run, outline_dir, arguments, message) -> None:
    path = recipe(model__name_or_path=str(outline_dir))
    result = sdslora("train", path, *arguments)
    assert result.status == 2
    assert message in result.err


# --------------------------------------------------------------------------------- the callback


@pytest.fixture
def recorder(tmp_path) -> DiagnosticsRecorder:
    return DiagnosticsRecorder(make_method("full"), {"x": torch.ones(2, 3)}, 4, tmp_path / NAME)


class Net(nn.Module):
    """A convolution, which is left out, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = nn.Conv1d(1, 2, 1), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=self.linear(self.conv(x.unsqueeze(1))).square().mean())


def step(recorder, model, global_step=0, rate=0.1, first=True) -> None:
    state = SimpleNamespace(global_step=global_step, is_world_process_zero=first)
    recorder.on_train_begin(None, state, None)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    model(torch.ones(2, 3)).loss.backward()
    recorder.on_pre_optimizer_step(None, state, None, model=model)
    optimizer.step()
    recorder.on_optimizer_step(None, state, None, model=model)


@pytest.mark.parametrize(("completed", "measured"), [(0, 1), (1, 0), (3, 1), (4, 0), (7, 1)])
def test_the_first_step_and_every_nth_are_measured(recorder, completed, measured) -> None:
    step(recorder, Net(), completed)
    assert recorder.count == measured
    assert [line["step"] for line in read(recorder.path)] == [completed + 1] * measured


def test_linear_layers_are_measured(recorder) -> None:
    step(recorder, Net())
    [line] = read(recorder.path)
    assert list(line["layers"]) == ["linear"]


def test_the_weights_are_those_after_the_step(recorder) -> None:
    measured, plain = Net(), Net()
    step(recorder, measured)
    plain(torch.ones(2, 3)).loss.backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    for name, parameter in plain.named_parameters():
        assert torch.equal(measured.get_parameter(name), parameter)
        assert torch.equal(measured.get_parameter(name).grad, parameter.grad)


def test_other_processes_write_nothing(recorder) -> None:
    step(recorder, Net(), first=False)
    assert not recorder.path.exists()


def test_weights_that_are_not_finite_end_the_run(recorder) -> None:
    with pytest.raises(RunFailed, match="not finite after step 1"):
        step(recorder, Net(), rate=torch.inf)


@pytest.mark.parametrize(("strategy", "asked"), [("steps", True), ("no", False)])
def test_a_measured_step_is_logged_unless_nothing_is(recorder, strategy, asked) -> None:
    control = SimpleNamespace(should_log=False)
    args = SimpleNamespace(logging_strategy=strategy)
    recorder.on_step_end(args, None, control)
    assert not control.should_log
    step(recorder, Net())
    recorder.on_step_end(args, None, control)
    assert control.should_log == asked
