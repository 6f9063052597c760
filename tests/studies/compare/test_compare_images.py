"""Comparisons on images: every method trains a new head too, and the seed draws it."""

from pathlib import Path

import pytest
import torch

from sdslora.app.config.parsing import parse
from sdslora.app.errors import UserError
from sdslora.methods import METHODS
from sdslora.studies.grid.contenders import contenders
from sdslora.studies.grid.execution import Job, carry_out, workload
from sdslora.studies.grid.spec import CompareSpec, ForgettingSpec, TasksSection


@pytest.fixture
def spec(image_folder: Path, vit_dir: Path, tmp_path: Path) -> CompareSpec:
    options = {
        "output_dir": tmp_path / "out",
        "model.name_or_path": vit_dir,
        "data.source": image_folder,
        "data.holdout": 10,
        "test": 15,
        "rank": 2,
        "target_modules": "[q_proj, v_proj]",
        "training.max_steps": 13,
        "training.per_device_train_batch_size": 4,
        "training.logging_steps": 1,
        "training.use_cpu": "true",
        "metric": "accuracy",
    }
    argv = [f"--{key}={value}" for key, value in options.items()]
    return parse(CompareSpec, argv, "sdslora compare")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_the_head_whole(name: str, spec: CompareSpec) -> None:
    work = workload(spec)
    [contender] = [c for c in contenders(spec) if c.label == name]
    method = contender.make()
    model = method.attach(work.model(seed=0), work.settings, work.calibration())
    heads = [p for key, p in model.named_parameters() if "classifier" in key and p.requires_grad]
    assert sorted(tuple(p.shape) for p in heads) == [(5,), (5, 32)]
    assert len(method.layer_states(model)) == (5 if name == "full" else 4)
    before = [p.detach().clone() for p in heads]
    optimizer = method.optimizer(model, 1e-2)
    model(**work.work.batch("train", slice(8))).loss.backward()
    optimizer.step()
    assert all(not torch.equal(p, old) for p, old in zip(heads, before, strict=True))


def test_the_seed_draws_the_head_and_nothing_else(spec: CompareSpec) -> None:
    work = workload(spec)
    first, again, other = (work.model(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    differing = {name for name in first if not torch.equal(first[name], other[name])}
    assert differing == {"classifier.weight"}  # its bias begins at zero


def test_runs_on_images(spec: CompareSpec) -> None:
    jobs = {c.label: Job(spec, c, 1e-2, 0, threads=1) for c in contenders(spec)}
    records = [carry_out(jobs[label]) for label in ("sds-lora", "lora", "sds-lora")]
    for record in records:
        assert record["status"] == "finished", record["error"]
        assert (record["validation"]["rows"], record["test"]["rows"]) == (10, 15)
        assert 0 <= record["test"]["accuracy"] <= 1
        # q and v of two layers, r (m + n) each, and the head
        assert record["trainable_parameters"] == 4 * 2 * 64 + 5 * 33
        assert record["general_loss"] is None
    ours, lora, again = ([loss for _, loss in record["curve"]] for record in records)
    assert ours[0] == lora[0], "one head and one order of the rows for both"
    assert ours == again


@pytest.mark.parametrize(
    ("section", "value"),
    [("tasks", TasksSection(names="piqa")), ("forgetting", ForgettingSpec(source="text.txt"))],
)
def test_what_is_for_language_models(spec: CompareSpec, section: str, value: object) -> None:
    setattr(spec, section, value)
    with pytest.raises(UserError, match="are for language models"):
        workload(spec)


def test_no_rows_to_choose_by(spec: CompareSpec) -> None:
    spec.data.holdout = 0
    with pytest.raises(UserError, match="there are no validation rows"):
        workload(spec)
