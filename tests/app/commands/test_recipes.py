"""Ready recipes: listed, copied, held against the arithmetic, and trained on tiny models."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml

import ready_recipes
import tiny
import tiny_images
from sdslora.app.commands import recipes
from tiny import Run

CATALOGUE = recipes.catalogue()
COMMANDS = [name for name, recipe in CATALOGUE.items() if recipe.files[0].suffix == ".yaml"]


def test_each_is_listed_in_a_line(sdslora: Run) -> None:
    result = sdslora("recipes")
    assert result.status == 0
    header, *lines = result.out.partition("\n\n")[0].splitlines()
    assert header.split() == ["name", "hardware", "memory", "time", "for"]
    assert [line.split()[0] for line in lines] == list(CATALOGUE)
    for line in lines:
        recipe = CATALOGUE[line.split()[0]]
        assert all(text in line for text in (*recipe.facts.values(), recipe.title))


@pytest.mark.parametrize("name", CATALOGUE)
def test_its_facts_are_those_of_the_arithmetic(name: str) -> None:
    recipe = CATALOGUE[name]
    assert recipe.facts.keys() == set(recipes.FACTS)
    for fact in ("memory", "time"):
        assert recipe.facts[fact].endswith(("(estimated)", "(measured)", "not estimated"))
    file = recipe.files[0]
    assert ready_recipes.filled(file) == file.read_text(), "run tools/ready_recipes.py"


@pytest.mark.parametrize("name", CATALOGUE)
def test_it_fits_its_hardware(name: str) -> None:
    """With a fifth to spare, for fragmentation and what a library keeps for itself."""
    facts = CATALOGUE[name].facts
    gpu = ready_recipes.GPUS.get(facts["hardware"])
    if gpu is not None and facts["memory"] != "not estimated":
        assert float(facts["memory"].split()[0]) * 1e9 < 0.8 * gpu.bytes


def test_a_wrong_fact_is_noticed(tmp_path: Path) -> None:
    file = CATALOGUE["llama3-8b-qlora"].files[0]
    wrong = tmp_path / file.name
    wrong.write_text(file.read_text().replace("# memory: ", "# memory: 1"))
    assert ready_recipes.filled(wrong) == file.read_text()
    wrong.write_text(file.read_text().replace("max_length: 2048", "max_length: 4096"))
    assert ready_recipes.filled(wrong) != wrong.read_text()


def test_init(sdslora: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = sdslora("init", "smollm2-cpu")
    assert result.status == 0
    assert "wrote smollm2-cpu.yaml\nnext: " in result.out
    source = CATALOGUE["smollm2-cpu"].files[0]
    assert Path("smollm2-cpu.yaml").read_text() == source.read_text()

    Path("smollm2-cpu.yaml").write_text("mine")
    result = sdslora("init", "smollm2-cpu")
    assert (result.status, "exists and is not replaced" in result.err) == (2, True)
    assert Path("smollm2-cpu.yaml").read_text() == "mine"

    result = sdslora("init", "llama-qlora")
    assert (result.status, "did you mean `llama3-8b-qlora`?" in result.err) == (2, True)


@pytest.fixture
def stand_in(tmp_path: Path, image_folder: Path):
    """Options that put a tiny model and tiny data in the place of the recipe's."""

    def options(name: str) -> list[str]:
        model = tmp_path / "model"
        if name.startswith("vit"):
            tiny_images.save_model(model)
            data = image_folder
        else:
            # bitsandbytes packs blocks of 64 numbers
            tiny.save_model(model, chat=True, hidden_size=64, intermediate_size=128)
            data = tmp_path / ("texts.txt" if name.endswith("pretraining") else "chats.jsonl")
            write_rows(data, pairs=name.endswith("dpo"))
        return [f"--model.name_or_path={model}", f"--data.source={data}"]

    return options


def write_rows(path: Path, count: int = 40, pairs: bool = False) -> None:
    if path.suffix == ".txt":
        path.write_text("\n\n".join(f"The sum of {n} and 1 is {n + 1}." for n in range(count)))
        return
    rows = []
    for n in range(count):
        user, good, bad = (
            {"role": role, "content": text}
            for role, text in (
                ("user", f"{n} + 1"),
                ("assistant", f"It is {n + 1}."),
                ("assistant", f"It is {n}."),
            )
        )
        both = {"chosen": [user, good], "rejected": [user, bad]}
        rows.append(both if pairs else {"messages": both["chosen"]})
    tiny.save_rows(path, rows)


@pytest.mark.parametrize("name", COMMANDS)
def test_it_passes_the_dry_run_and_trains(
    name: str, sdslora: Run, stand_in, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sdslora("init", name).status == 0
    argv = ["train", f"{name}.yaml", *stand_in(name), "--training.use_cpu=true"]
    argv += ["--training.bf16=false", "--training.max_steps=12"]
    result = sdslora(*argv, "--dry_run")
    assert result.status == 0, result.err
    assert "total steps: 12" in result.out
    processes = CATALOGUE[name].facts["hardware"].split()[0]
    if "processes:" in Path(f"{name}.yaml").read_text():
        assert f"processes: {processes}, fsdp2; `sdslora train` starts them" in result.out
        argv += ["--distributed.processes=1", "--distributed.strategy=ddp"]
    result = sdslora(*argv)
    assert result.status == 0, result.err
    record = json.loads((tmp_path / "runs" / name / "run.json").read_text())
    assert record["metrics"]["train"]["steps"] == 12
    recipe = yaml.safe_load(Path(f"{name}.yaml").read_text())
    assert record["config"]["adapter"]["r"] == recipe["adapter"]["r"]
    assert result.out.rstrip().splitlines()[-1].lstrip().startswith(("sdslora", "next: sdslora"))


def run_script(name: str, *argv: str) -> None:
    file = CATALOGUE[name].files[0]
    sys_argv, sys.argv = sys.argv, [file.name, *argv]
    try:
        runpy.run_path(str(file), run_name="__main__")
    finally:
        sys.argv = sys_argv


def test_the_image_script_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a random pipeline of Stable Diffusion XL's classes."""
    import pipelines
    from PIL import Image
    from safetensors.torch import load_file

    monkeypatch.chdir(tmp_path)
    pipelines.save_sdxl(tmp_path / "model")
    (tmp_path / "images").mkdir()
    for name in ("cat", "dog"):
        Image.new("RGB", (20, 16), (name == "cat" and "red") or "blue").save(f"images/{name}.png")
        Path(f"images/{name}.txt").write_text(f"a {name}")
    run_script("sdxl-lora", "images", str(tmp_path / "model"), "16", "12")
    tensors = load_file("sdxl-lora/lora.safetensors")
    assert tensors
    assert all(key.startswith("lora_unet_") for key in tensors)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
