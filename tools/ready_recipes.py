"""Fill the memory and time in the first lines of recipes/ready/, by arithmetic or from a run.

The memory comes from sdslora.app.run.capacity, and so does the time on a GPU. The time on a CPU is
that of the run in docs/quickstart/. ``--check`` changes nothing and fails where a file differs.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sdslora.app.commands import recipes
from sdslora.app.run import capacity
from sdslora.app.run.capacity import DECODERS, VISION, Gpu, Shape, Weights

QUICKSTART = Path(__file__).parents[1] / "docs" / "quickstart"
RUN, TIMES = QUICKSTART / "run.json", QUICKSTART / "processor_seconds.json"
SHAPES: dict[str, Shape] = {
    "smollm2": DECODERS["smollm2-135m"],
    "meta-llama/Meta-Llama-3-8B": DECODERS["llama3-8b"],
    "meta-llama/Meta-Llama-3-8B-Instruct": DECODERS["llama3-8b"],
    "meta-llama/Meta-Llama-3-70B-Instruct": DECODERS["llama3-70b"],
    "google/vit-base-patch16-224-in21k": VISION["vit-base"],
}
POSITIONS = 197  # of an image in patches of 16 pixels, and the class token
GPUS = {
    "1 GPU of 16 GB": Gpu("RTX 4080", 16 * 10**9, 97e12),
    "1 GPU of 24 GB": Gpu("RTX 4090", 24 * 10**9, 165e12),
    "1 GPU of 80 GB": Gpu("A100", 80 * 10**9, 312e12),
    "2 GPUs of 24 GB": Gpu("RTX 4090", 24 * 10**9, 165e12),
    "8 GPUs of 80 GB": Gpu("A100", 80 * 10**9, 312e12),
}
"""By the recipe's hardware; dense bfloat16 operations from the data sheets."""


class Case(NamedTuple):
    """What decides memory and time of a recipe."""

    shape: Shape
    rank: int
    tokens: int
    """Of a GPU in one pass."""
    passes: int
    """In a step."""
    checkpointing: bool
    weights: Weights
    gpus: int
    """That share the base model."""
    pairs: bool = False
    """Of answers: two sequences a row, and a reference that reads both."""


def of_yaml(tree: dict[str, Any]) -> Case:
    """The case of a recipe of ``sdslora train``."""
    training, model = tree["training"], tree["model"]
    shape = SHAPES[model["name_or_path"]]
    length = training.get("max_length", POSITIONS)
    pairs = tree.get("task") == "dpo"
    # the command's default on a GPU; image classifiers and CPUs have float32
    weights: Weights = "bfloat16" if "dtype" in model else "float32"
    if "quantization_config" in model.get("options", {}):
        weights = "nf4"
    return Case(
        shape,
        tree["adapter"]["r"],
        training["per_device_train_batch_size"] * length * (2 if pairs else 1),
        training.get("gradient_accumulation_steps", 1),
        training.get("gradient_checkpointing", False),
        weights,
        tree.get("distributed", {}).get("processes", 1),
        pairs,
    )


def bytes_of(case: Case) -> float:
    """The bytes on each GPU."""
    parts = capacity.sds_lora_bytes(
        case.shape,
        case.rank,
        case.tokens,
        case.gpus,
        case.checkpointing,
        chunked_loss=not case.pairs,  # TRL's DPOTrainer has all logits at once, in older versions
        weights=case.weights,
    )
    return sum(parts.values())


def facts(path: Path) -> dict[str, str]:
    """The memory and time of a recipe, as its first lines have them."""
    if path.suffix != ".yaml":
        return {}
    case = of_yaml(yaml.safe_load(path.read_text(encoding="utf-8")))
    hardware = recipes.read(path, []).facts["hardware"]
    on_each = " on each" if case.gpus > 1 else ""
    memory = f"{bytes_of(case) / 1e9:.1f} GB{on_each} (estimated)"
    return {
        "memory": memory,
        "time": gpu_time(case, GPUS[hardware]) if hardware in GPUS else cpu_time(),
    }


def gpu_time(case: Case, gpu: Gpu) -> str:
    """The time of a step by arithmetic."""
    tokens = case.passes * case.tokens
    seconds = capacity.seconds(case.shape, case.rank, tokens, gpu, case.checkpointing)
    if case.pairs:  # the reference's forward pass, as many operations as a repeated one
        seconds += capacity.seconds(case.shape, case.rank, tokens, gpu, checkpointing=True)
        seconds -= capacity.seconds(case.shape, case.rank, tokens, gpu, checkpointing=False)
    return f"{seconds:.2g} s a step on an {gpu.name} (estimated)"


def cpu_time() -> str:
    """The time of a step in the quickstart's training, with its start and its evaluations."""
    (train,) = (seconds for command, seconds in read(TIMES).items() if " train " in command)
    seconds = train / read(RUN)["metrics"]["train"]["steps"]
    return f"{seconds:.2g} s of a CPU core a step, all included (measured)"


def read(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def filled(path: Path) -> str:
    """The recipe with its facts."""
    text = path.read_text(encoding="utf-8")
    for fact, value in facts(path).items():
        text = re.sub(
            rf"^((?:# )?{fact}: ).*$", rf"\g<1>{value}", text, count=1, flags=re.MULTILINE
        )
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for recipe in recipes.catalogue().values():
        file = recipe.files[0]
        if (new := filled(file)) != file.read_text(encoding="utf-8"):
            if check:
                sys.exit(f"{file} is not what the arithmetic says: run {sys.argv[0]}")
            file.write_text(new, encoding="utf-8")
