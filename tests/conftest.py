"""Fixtures that every test folder shares: from ``toys.py``, ``tiny.py`` and ``tiny_images.py``."""

from __future__ import annotations

import gc
import signal
from itertools import groupby
from typing import TYPE_CHECKING

import pytest

# pytest-xdist's controller loads this file and runs no test: what is dear to import waits.
if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import LlamaForCausalLM

    from tiny import MakeRecipe, Result, Run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a slow test first, so that no worker is left alone with one at the end."""
    files = [list(tests) for _, tests in groupby(items, key=lambda item: item.path)]
    files.sort(key=lambda tests: not any(item.get_closest_marker("slow") for item in tests))
    items[:] = [item for tests in files for item in tests]


def pytest_collection_finish() -> None:
    """Every training ends with a full garbage collection: not of what was imported until now."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Bitwise comparisons need one order of summation; and the cores are shared."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c() -> None:
    """A shell lets what it starts in the background ignore Ctrl-C, which some tests send."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def tiny_llama() -> LlamaForCausalLM:
    """A random two-layer Llama: vocabulary 64, width 32, intermediate 48, 4 heads, 2 kv heads."""
    from toys import make_llama

    return make_llama()


@pytest.fixture(scope="session")
def smollm2() -> LlamaForCausalLM:
    """SmolLM2-135M in float32, read once by a worker (13 s): tests change copies of it."""
    from sdslora.app.config.spec import ModelSpec
    from sdslora.app.models import base_models

    return base_models.find(ModelSpec(base_models.SMOLLM2, dtype="float32")).load()


@pytest.fixture
def input_ids() -> Tensor:
    """Four sequences of twelve tokens, (4, 12)."""
    import torch

    from toys import VOCABULARY

    return torch.randint(0, VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny

    return tiny.save_model(tmp_path_factory.mktemp("model"), chat=True)


@pytest.fixture(scope="session")
def outline_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with its weights missing: whatever works here loads none."""
    import tiny

    directory = tiny.save_model(tmp_path_factory.mktemp("outline"), chat=True)
    (directory / "model.safetensors").unlink()
    return directory


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny

    return tiny.save_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", tiny.rows(100))


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny_images

    return tiny_images.save_folder(tmp_path_factory.mktemp("images") / "digits")


@pytest.fixture(scope="session")
def vit_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny_images

    return tiny_images.save_model(tmp_path_factory.mktemp("vit"))


@pytest.fixture
def sdslora(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run ``sdslora`` with these arguments."""
    from sdslora.cli import main
    from tiny import Result

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Result(status, captured.out, captured.err)

    return run


@pytest.fixture
def recipe(tmp_path: Path, model_dir: Path, data_file: Path) -> MakeRecipe:
    """Write a recipe of 20 short steps; keywords such as ``data__size=3`` change it."""
    import yaml

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
