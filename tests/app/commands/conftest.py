"""A finished run of the tiny model, trained once; helpers of the exports' tests."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "export"))


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, model_dir: Path, data_file: Path) -> Path:
    """The output directory of twelve steps with a large rate; the tokenizer has a chat template."""
    from sdslora.cli import main

    run = tmp_path_factory.mktemp("trained") / "run"
    options = {
        "output_dir": run, "model.name_or_path": model_dir, "data.source": data_file,
        "data.chat": "true", "data.system": "Add.", "adapter.r": 4, "adapter.warmup_steps": 3,
        "training.learning_rate": 3e-2, "training.max_steps": 12,
        "training.per_device_train_batch_size": 8, "training.use_cpu": "true",
        "training.disable_tqdm": "true", "evaluation.exact_match": "false",
    }  # fmt: skip
    assert main(["train", *(f"--{key}={value}" for key, value in options.items())]) == 0
    return run
