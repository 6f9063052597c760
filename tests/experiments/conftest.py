"""A tiny model, tiny data, and the command line run in this process."""

from pathlib import Path

import pytest
import tiny
import tiny_images
import yaml
from tiny import MakeRecipe, Result, Run

from sdslora.cli import main


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("model"), chat=True)


@pytest.fixture(scope="session")
def outline_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with its weights missing: whatever works here loads none."""
    directory = tiny.save_model(tmp_path_factory.mktemp("outline"), chat=True)
    (directory / "model.safetensors").unlink()
    return directory


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", tiny.rows(100))


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_images.save_folder(tmp_path_factory.mktemp("images") / "digits")


@pytest.fixture(scope="session")
def vit_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_images.save_model(tmp_path_factory.mktemp("vit"))


@pytest.fixture
def sdslora(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run ``sdslora`` with these arguments."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Result(status, captured.out, captured.err)

    return run


@pytest.fixture
def recipe(tmp_path: Path, model_dir: Path, data_file: Path) -> MakeRecipe:
    """Write a recipe of 20 short steps; keywords such as ``data__size=3`` change it."""

    def write(**changes: object) -> str:
        tree: dict[str, object] = {
            "output_dir": str(tmp_path / "run"),
            "model": {"name_or_path": str(model_dir)},
            "data": {"source": str(data_file), "holdout": 20},
            "adapter": {"r": 4, "warmup_steps": 3},
            "training": {
                "learning_rate": 1e-3,
                "per_device_train_batch_size": 8,
                "num_train_epochs": 2,
                "use_cpu": True,
                "disable_tqdm": True,
            },
        }
        for name, value in changes.items():
            section, _, key = name.partition("__")
            if key:
                tree.setdefault(section, {})[key] = value  # type: ignore[index]
            else:
                tree[section] = value
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(tree))
        return str(path)

    return write
