"""The model card of an adapter: README.md with its method, base, data, results, and how to load it.

It takes the place of the stock cards that TRL and PEFT write into the same folder.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from .. import Json
from ..files import read_json, write_text
from ..run import record
from ..run.record import Config, RunRecord
from .base_models import SMOLLM2, SMOLLM2_HUB_ID

NAME = "README.md"
_PAPER = "[SDS-LoRA](https://arxiv.org/abs/2606.16454)"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PLAIN_NAME = re.compile(r"[\w./\\:~@ -]*")
"""No quotes and no line breaks."""

AdapterConfig = Mapping[str, Json]
"""The content of an ``adapter_config.json``, of any PEFT method."""
Form = Literal["peft", "merged", "gguf", "kohya", "diffusers", "hira"]
"""The format of the files beside the card; "peft" for all adapters that PEFT saves."""


def write(
    folder: Path,
    run: RunRecord | None,
    *,
    of: Path | None = None,
    form: Form = "peft",
    name: str | None = None,
) -> None:
    """Write the card into ``folder``; a model without an adapter gets none.

    Args:
        folder: the folder of the files.
        run: the content of ``run.json`` of the adapter's run, where it is known.
        of: the folder with the adapter's configuration; by default ``folder``.
        form: the format of the files.
        name: the name that the folder will have, if not its own.
    """
    config = read_json((of or folder) / "adapter_config.json")
    if config is None:
        return
    has_classes = (folder / "config.json").is_file()
    run = run if run is not None and _is_training(run) else None
    write_text(folder / NAME, text(config, run, form, name or folder.name, has_classes))


def text(
    config: AdapterConfig,
    run: RunRecord | None,
    form: Form,
    name: str,
    has_classes: bool = False,
) -> str:
    """Return the card. The arguments are those of :func:`write`."""
    base = hub_name(config.get("base_model_name_or_path") or "")
    if not _PLAIN_NAME.fullmatch(base):  # it goes into Python that people run
        base = ""
    parts = [
        *_front_matter(base, config, form),
        f"# {name}\n",
        f"{_KIND[form]}, trained with {_PAPER}.\n"
        if run or _is_ours(config)
        else f"{_KIND[form]}.\n",
        *_facts(base, config, run),
        *(_results(run["metrics"]) if run else ()),
        "## Load it\n",
        _LOAD[form].format(
            name=name, base=base or "BASE", **_classes(config, has_classes, base or "BASE", name)
        ),
    ]
    if form == "peft" and _is_ours(config):
        parts += [f"\nFor software without sdslora: `sdslora export {name} plain`."]
    return "\n".join(parts) + "\n"


def hub_name(base: str) -> str:
    """Return the name under which other software finds the base model."""
    return SMOLLM2_HUB_ID if base == SMOLLM2 else base


_KIND = {
    "peft": "A low-rank adapter",
    "hira": "A HiRA adapter",
    "merged": "A model with its adapter merged into the weights",
    "gguf": "A LoRA adapter for llama.cpp",
    "kohya": "A LoRA adapter with kohya's keys, for ComfyUI and others",
    "diffusers": "A LoRA adapter for Diffusers",
}
_PEFT = """\
```python
{registration}from peft import PeftModel
from transformers import {imports}

{base_line}
model = PeftModel.from_pretrained(base, "{name}")
```"""
_LOAD = {
    "peft": _PEFT,
    "hira": _PEFT,
    "merged": """\
```python
from transformers import {auto}

model = {auto}.from_pretrained("{name}")
```""",
    "gguf": """\
```sh
llama-server -m BASE.gguf --lora {name}/adapter.gguf
```

`BASE.gguf` is {base}, written by llama.cpp's `convert_hf_to_gguf.py`.""",
    "kohya": "Copy `lora.safetensors` to ComfyUI's `models/loras/`.",
    "diffusers": """\
```python
pipeline.load_lora_weights("{name}")
```""",
}


_TASKS = {
    "sft": "supervised fine-tuning",
    "dpo": "direct preference optimization (DPO)",
    "reward": "a reward model",
    "grpo": "group relative policy optimization (GRPO)",
}


def _is_ours(config: AdapterConfig) -> bool:
    return config.get("peft_type") == "SDSLORA"


def _is_training(run: RunRecord) -> bool:
    """Return whether a record is that of ``sdslora train``; a comparison's has other keys."""
    return {"metrics", "seed", "versions"} <= run.keys() and {"data", "training"} <= run[
        "config"
    ].keys()


def _front_matter(base: str, config: AdapterConfig, form: Form) -> list[str]:
    lines = ["---"]
    # the Hub rejects a card whose base model is a local path
    if _HUB_ID.fullmatch(base) and not Path(base).exists():
        lines += [f"base_model: {base}"]
    lines += [f"library_name: {'transformers' if form == 'merged' else 'peft'}"]
    if config.get("task_type") == "CAUSAL_LM":
        lines += ["pipeline_tag: text-generation"]
    return [*lines, "tags:", "- lora", "- sds-lora", "---", ""]


def _facts(base: str, config: AdapterConfig, run: RunRecord | None) -> Iterator[str]:
    facts = {
        "method": _method(config),
        "base model": f"`{base}`",
        "rank": str(config.get("r")),
        "layers": _layers(config.get("target_modules")),
    }
    if run:
        settings, rows = run["config"], run.get("rows", {})
        training = settings["training"]
        steps = run["metrics"].get("train", {}).get("steps")
        facts |= {
            "task": _TASKS[settings.get("task", "sft")],
            "data": f"`{settings['data']['source']}`: {rows.get('train')} rows trained on, "
            f"{rows.get('validation')} held out",
            "training": f"{f'{steps} steps, ' if steps else ''}learning rate "
            f"{training['learning_rate']:g}, batch {_rows_a_step(settings)}, "
            f"seed {run['seed']}",
            "versions": ", ".join(f"{k} {v}" for k, v in run["versions"].items()),
        }
    yield "| | |"
    yield "|---|---|"
    yield from (f"| {key} | {value} |" for key, value in facts.items())
    yield ""


def _rows_a_step(settings: Config) -> int:
    training = settings["training"]
    processes = settings.get("distributed", {}).get("processes") or 1
    accumulated: int = training.get("gradient_accumulation_steps", 1)
    rows: int = training["per_device_train_batch_size"]
    return rows * accumulated * int(processes)


def _layers(target_modules: object) -> str:
    """Return the kinds of the adapted layers, or the pattern of their names."""
    if not isinstance(target_modules, list):
        return f"`{target_modules}`"
    kinds = sorted({name.rpartition(".")[2] for name in target_modules})
    return ", ".join(f"`{kind}`" for kind in kinds)


def _method(config: AdapterConfig) -> str:
    if not _is_ours(config):
        return f"{config.get('peft_type')}, which stock PEFT loads"
    hira = ", multiplied with the weights (`use_hira`)" if config.get("use_hira") else ""
    return f"SDS-LoRA{hira}, preset `{config.get('preset', 'paper')}`"


def _results(metrics: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Yield the figures on the held-out rows, before and after the training."""
    measured = {when: metrics[when] for when in ("before", "after") if when in metrics}
    keys = dict.fromkeys(
        key for figures in measured.values() for key in figures if key not in ("rows", "seconds")
    )
    if not keys:
        return
    rows = next(reversed(measured.values()))["rows"]
    yield f"## Results on {rows} held-out rows\n"
    yield f"| | {' | '.join(f'{when} training' for when in measured)} |"
    yield "|---|" + "---|" * len(measured)
    for key in keys:
        cells = " | ".join(_number(key, figures.get(key)) for figures in measured.values())
        yield f"| {key.replace('_', ' ')} | {cells} |"
    yield ""


def _number(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if key == "loss" else f"{value:.1%}"


def _classes(config: AdapterConfig, has_classes: bool, base: str, name: str) -> dict[str, str]:
    """Return the parts of the Python snippet that depend on the kind of model."""
    mapping = config.get("auto_mapping") or {}
    causal = config.get("task_type") == "CAUSAL_LM"
    is_reward = config.get("task_type") == "SEQ_CLS"
    auto = "AutoModelForCausalLM" if causal else str(mapping.get("base_model_class", "AutoModel"))
    auto = auto if auto.isidentifier() else "AutoModel"
    auto = "AutoModelForSequenceClassification" if is_reward else auto
    options = ", num_labels=1" if is_reward else ""
    imports, line = auto, f'base = {auto}.from_pretrained("{base}"{options})'
    if has_classes and not causal:
        imports = f"AutoConfig, {auto}"
        line = (
            f'config = AutoConfig.from_pretrained("{name}")  # the classes\n'
            f'base = {auto}.from_pretrained(\n    "{base}", config=config, '
            "ignore_mismatched_sizes=True\n)"
        )
    registration = (
        "import sdslora  # registers the method: pip install sds-lora\n" if _is_ours(config) else ""
    )
    return {"auto": auto, "imports": imports, "base_line": line, "registration": registration}


def of_run(folder: Path) -> None:
    """Write the card of the adapter that a run saved in ``folder``, with the run's figures."""
    write(folder, record.of_adapter(folder))
