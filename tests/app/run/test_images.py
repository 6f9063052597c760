"""Image classification through the command line: digits as a folder of images, a tiny ViT."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Value
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

import tiny_images
from sdslora.app.config.spec import ModelSpec
from sdslora.app.data import readers
from sdslora.app.models import base_models
from tiny import Run

Train = list[str]
STEPS = 9
HEAD = "base_model.model.classifier.weight"


@pytest.fixture(scope="module")
def given(image_folder: Path, vit_dir: Path) -> Train:
    options = {
        "model.name_or_path": vit_dir,
        "data.source": image_folder,
        "data.holdout": 12,
        "adapter.r": 2,
        "adapter.warmup_steps": 3,
        "training.learning_rate": 2e-2,
        "training.per_device_train_batch_size": 16,
        "training.num_train_epochs": 3,
        "training.logging_steps": 1,
        "training.save_steps": 4,
        "training.save_total_limit": 5,
        "training.eval_strategy": "epoch",
        "training.use_cpu": "true",
        "training.disable_tqdm": "true",
    }
    return [f"--{key}={value}" for key, value in options.items()]


@pytest.fixture(scope="module")
def trained(given: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sdslora.cli import main

    run = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", f"--output_dir={run}", *given]) == 0
    return run


def record(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter_model.safetensors")


def in_stock_libraries(run: Path, base: Path) -> torch.nn.Module:
    """The trained model, by what the run's directory says and nothing of ours."""
    config = AutoConfig.from_pretrained(run)
    model = AutoModelForImageClassification.from_pretrained(
        base, config=config, ignore_mismatched_sizes=True
    )
    return PeftModel.from_pretrained(model, run).eval()


def test_a_run(trained: Path) -> None:
    written = record(trained)
    assert written["status"] == "finished"
    assert written["rows"] == {"train": 48, "validation": 12, "left_out": {}}
    metrics = written["metrics"]
    assert metrics["train"]["steps"] == STEPS
    assert metrics["before"].keys() == {"rows", "loss", "accuracy", "seconds"}
    losses = [entry["loss"] for entry in written["log_history"] if "loss" in entry]
    assert sum(losses[-3:]) < sum(losses[:3])
    [*_, last] = [e for e in written["log_history"] if "eval_loss" in e]
    assert last["eval_loss"] == pytest.approx(metrics["after"]["loss"], rel=1e-5)
    assert last["eval_accuracy"] == pytest.approx(metrics["after"]["accuracy"])
    config = json.loads((trained / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["classifier"]
    assert config["task_type"] is None
    assert tensors(trained)[HEAD].shape == (5, 32)
    assert not any("classifier.lora" in name for name in tensors(trained))


def test_classes_and_accuracy_by_hand(trained: Path, image_folder: Path, vit_dir: Path) -> None:
    """Over all images, from the saved files; the run's own figure is over those held out."""
    model = in_stock_libraries(trained, vit_dir)
    assert list(model.config.id2label.values()) == tiny_images.CLASSES
    processor = AutoImageProcessor.from_pretrained(trained, backend="pil")
    right = losses = 0.0
    files = sorted(image_folder.rglob("*.png"))
    for file in files:
        pixels = processor(Image.open(file).convert("RGB"), return_tensors="pt")
        logits = model(**pixels).logits[0]
        right += model.config.id2label[int(logits.argmax())] == file.parent.name
        losses -= logits.log_softmax(-1)[tiny_images.CLASSES.index(file.parent.name)].item()
    by_command = evaluated(trained, "--data.holdout=0", f"--data.validation={image_folder}")
    assert by_command["rows"] == len(files) == 60
    assert by_command["accuracy"] == pytest.approx(right / 60)
    assert by_command["loss"] == pytest.approx(losses / 60, rel=1e-4)


def evaluated(run: Path, *more: str) -> dict:
    from sdslora.cli import main

    out = run.parent / f"figures-{len(list(run.parent.iterdir()))}"
    assert main(["evaluate", str(run), f"--output_dir={out}", *more]) == 0
    return json.loads((out / "metrics.json").read_text())["metrics"]


def test_evaluate_knows_the_run_and_its_checkpoints(trained: Path) -> None:
    after = record(trained)["metrics"]["after"]
    assert evaluated(trained)["loss"] == after["loss"]
    earlier = evaluated(trained / "checkpoint-4")
    assert earlier["rows"] == 12
    assert earlier["loss"] != after["loss"]


def test_resumed_run_is_bit_identical(trained: Path, given: Train, sdslora: Run, tmp_path) -> None:
    killed = tmp_path / "killed"
    shutil.copytree(trained, killed)
    shutil.rmtree(killed / "checkpoint-8")
    shutil.rmtree(killed / f"checkpoint-{STEPS}")
    (killed / "adapter_model.safetensors").unlink()
    (killed / "run.json").write_text(json.dumps(record(killed) | {"status": "running"}))
    result = sdslora("train", f"--output_dir={killed}", *given, "--resume")
    assert result.status == 0, result.err
    assert "checkpoint-4" in result.out
    expected, got = tensors(trained), tensors(killed)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_the_seed_draws_the_new_head(vit_dir: Path) -> None:
    source = base_models.find(ModelSpec(str(vit_dir)))
    source = source.with_classes(["a", "b", "c"])  # type: ignore[attr-defined]
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(source.load().classifier.weight)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_the_paper_resets_the_head_too(trained: Path) -> None:
    state = torch.load(trained / "checkpoint-4/optimizer.pt", weights_only=True)["state"]
    assert {int(entry["step"]) for entry in state.values()} == {1}


def test_the_tuned_preset_leaves_the_heads_moments(given: Train, sdslora: Run, tmp_path) -> None:
    run = tmp_path / "run"
    result = sdslora("train", f"--output_dir={run}", *given, "--adapter.preset=tuned")
    assert result.status == 0, result.err
    state = torch.load(run / "checkpoint-4/optimizer.pt", weights_only=True)["state"]
    steps = sorted({int(entry["step"]) for entry in state.values()})
    assert steps == [1, 4]
    assert sum(int(entry["step"]) == 4 for entry in state.values()) == 2  # weight and bias


def test_merged_and_exported(trained: Path, vit_dir: Path, sdslora: Run, tmp_path) -> None:
    after = record(trained)["metrics"]["after"]
    assert sdslora("merge", trained, tmp_path / "merged").status == 0
    data = [f"--data.source={record(trained)['config']['data']['source']}", "--data.holdout=12"]
    result = sdslora("evaluate", f"--model.name_or_path={tmp_path / 'merged'}", *data)
    assert f"loss {after['loss']:.4f}, accuracy {after['accuracy']:.1%}" in result.out

    assert sdslora("export", trained, tmp_path / "plain").status == 0
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    own, plain = (in_stock_libraries(p, vit_dir) for p in (trained, tmp_path / "plain"))
    assert plain.peft_config["default"].peft_type == "LORA"
    torch.testing.assert_close(plain(pixels).logits, own(pixels).logits)
    for more, words in (
        (["--format=gguf"], "type 'vit'"),
        (["--format=kohya", "--component=unet"], "kohya cannot hold what was trained beside"),
    ):
        result = sdslora("export", trained, tmp_path / "no", *more)
        assert result.status == 2
        assert words in result.err


def test_with_use_hira(given: Train, vit_dir: Path, sdslora: Run, tmp_path) -> None:
    """The classes go along, as the new head does."""
    run = tmp_path / "run"
    result = sdslora("train", f"--output_dir={run}", *given, "--adapter.use_hira=true")
    assert result.status == 0, result.err
    assert sdslora("export", run, tmp_path / "hira", "--format=hira").status == 0
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    own, stock = (in_stock_libraries(p, vit_dir) for p in (run, tmp_path / "hira"))
    assert stock.peft_config["default"].peft_type == "HIRA"
    torch.testing.assert_close(stock(pixels).logits, own(pixels).logits)


def test_diagnose_takes_gradients_on_images(trained: Path, sdslora: Run, tmp_path) -> None:
    result = sdslora("diagnose", trained, "--rows=4", f"--output_dir={tmp_path / 'out'}")
    assert result.status == 0, result.err
    layers = json.loads((tmp_path / "out/diagnosis.json").read_text())["layers"]
    assert len(layers) == 12
    assert all(-1 <= figures["alignment_sds"] <= 1 for figures in layers.values())


def test_dry_run_loads_no_weights(given: Train, sdslora: Run, tmp_path) -> None:
    outline = tiny_images.save_model(tmp_path / "outline", weights=False)
    changed = [f"--model.name_or_path={outline}", f"--output_dir={tmp_path / 'run'}"]
    result = sdslora("train", *given, *changed, "--dry_run")
    assert result.status == 0, result.err
    assert "48 to train on, 12 to evaluate on; 5 classes: eight, one, three, two" in result.out
    # q, k, v, o 32x32; fc1, fc2 32x48: r (m + n) each, two layers; and the head
    assert f"trainable parameters: {2 * 2 * (4 * 64 + 2 * 80) + 5 * 33:,} of" in result.out
    # 16 rows, 17 patches, 2 layers, float32
    assert f"activations {16 * 17 * 2 * (9 * 32 + 4 * 48) * 4 / 2**20:.1f} MiB" in result.out


def test_head_of_a_model_that_tells_the_classes_already(vit_dir: Path) -> None:
    source = base_models.find(ModelSpec(str(vit_dir)))
    assert source.classes == ["LABEL_0", "LABEL_1"]  # type: ignore[attr-defined]
    assert source.with_classes(["LABEL_1", "LABEL_0"]) is source  # type: ignore[attr-defined]
    assert source.head == []
    other = source.with_classes(["cat", "dog"])
    assert other.head == ["classifier"]
    assert other.config.label2id == {"cat": 0, "dog": 1}
    assert source.classes == ["LABEL_0", "LABEL_1"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ([f"--data.source={__file__}"], "learns from a folder"),
        (["--data.prompt={x}"], "data.prompt is for text"),
        (["--data.options={rotate: 1}"], "data.options are for digits"),
        (["--training.eos_token=</s>"], "is for text"),
        (["--data.validation=nowhere"], "has no folder `nowhere`"),
        (["--data.holdout=60"], "leave none to train on"),
        (["--data.source=nobody/no-such-images"], "cannot be loaded"),
    ],
)
def test_bad_data_section(given, sdslora: Run, tmp_path, change, words) -> None:
    result = sdslora("train", f"--output_dir={tmp_path / 'run'}", *given, *change)
    assert result.status == 2, result
    assert words in result.err
    assert not (tmp_path / "run").exists()


def test_text_model_with_images_and_the_reverse(
    given, sdslora: Run, tmp_path, outline_dir, image_folder, monkeypatch
) -> None:
    out = f"--output_dir={tmp_path / 'run'}"
    result = sdslora("train", out, *given, f"--model.name_or_path={outline_dir}")
    assert result.status == 2
    assert "folders of images are for image classifiers" in result.err
    for change in ("--data.source=digits", "--data.image=image"):
        result = sdslora("train", out, *given, f"--model.name_or_path={outline_dir}", change)
        assert result.status == 2
        assert "and the model is a language model" in result.err
    text = Dataset.from_dict({"question": ["1+1="], "answer": ["2"]})
    monkeypatch.setattr(readers, "read_hub", lambda spec, split: text)
    result = sdslora("train", out, *given, "--data.source=some/sums")
    assert result.status == 2
    assert "0 columns of type Image" in result.err
    assert "there are: question, answer" in result.err


def test_a_file_cut_short_is_named_where_it_is_read(
    given, image_folder, sdslora: Run, tmp_path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(image_folder, images)
    broken = sorted((images / "two").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:60])  # its header is whole
    out = tmp_path / "run"
    changed = [f"--data.source={images}", "--data.holdout=0", "--training.eval_strategy=no"]
    result = sdslora("train", f"--output_dir={out}", *given, *changed)
    assert result.status == 1, result
    assert f"{broken} cannot be read as an image" in result.err
    assert record(out)["status"] == "failed"


def test_other_classes_are_refused(
    given, trained, image_folder, vit_dir, sdslora: Run, tmp_path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(image_folder, other)
    (other / "two").rename(other / "seven")
    result = sdslora("evaluate", trained, f"--data.source={other}")
    assert result.status == 2
    assert "tells other classes than the data's" in result.err
    result = sdslora(
        "train", *given, f"--output_dir={tmp_path / 'run'}", f"--data.validation={other}"
    )
    assert result.status == 2
    assert "1 classes that are not trained on, `seven`" in result.err


def test_classes_of_a_strangers_adapter(trained, sdslora: Run, tmp_path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    for content in ("[1", json.dumps({"id2label": ["a"]}), json.dumps({"id2label": {"x": "a"}})):
        (copy / "config.json").write_text(content)
        result = sdslora("evaluate", copy)
        assert result.status == 2, result
        assert "config.json names no classes" in result.err


def test_tasks_are_for_language_models(trained, sdslora: Run) -> None:
    pytest.importorskip("lm_eval")
    result = sdslora("evaluate", trained, "--tasks", "piqa")
    assert result.status == 2
    assert "the tasks are for language models" in result.err


def test_hub_columns_by_type_and_by_name(given, image_folder, sdslora: Run, tmp_path, monkeypatch):
    """A data set as the Hub gives it: bytes, and labels that are words."""
    import datasets

    files = sorted(image_folder.rglob("*.png"))
    found = Dataset.from_dict(
        {
            "picture": [{"bytes": f.read_bytes(), "path": None} for f in files],
            "kind": [f.parent.name for f in files],
        },
        features=Features({"picture": datasets.Image(), "kind": Value("string")}),
    )
    monkeypatch.setattr(readers, "read_hub", lambda spec, split: found)
    hub = ["--data.source=some/digits", f"--output_dir={tmp_path / 'run'}", "--dry_run"]
    result = sdslora("train", *given, *hub)
    assert result.status == 2
    assert "0 columns of type ClassLabel" in result.err
    result = sdslora("train", *given, *hub, "--data.label=sort")
    assert "has no column `sort`; it has: picture, kind" in result.err
    result = sdslora("train", *given, *hub, "--data.image=kind", "--data.label=kind")
    assert "the column `kind` of some/digits holds no images" in result.err
    result = sdslora("train", *given, *hub, "--data.label=kind")
    assert result.status == 0, result.err
    assert "48 to train on, 12 to evaluate on; 5 classes: eight, one, three, two" in result.out
