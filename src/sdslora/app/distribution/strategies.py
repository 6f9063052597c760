"""The engine that shares a training among processes, chosen by the environment as Accelerate does.

``accelerate launch`` sets these variables; :func:`choose` sets them for a recipe's strategy.
"""

import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import processes
from ..config.distributed_spec import STRATEGIES, Strategy
from ..errors import UserError

_DEEPSPEED, _FSDP = "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"
_STAGE, _FILE = "ACCELERATE_DEEPSPEED_ZERO_STAGE", "ACCELERATE_DEEPSPEED_CONFIG_FILE"
_OTHERS = ("ACCELERATE_USE_MEGATRON_LM", "ACCELERATE_USE_PARALLELISM_CONFIG")
_ENVIRONMENTS: dict[Strategy, dict[str, str]] = {
    "ddp": {},
    "fsdp2": {
        _FSDP: "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",  # only the first process reads the base model
    },
    "zero2": {_DEEPSPEED: "true", _STAGE: "2"},
    "zero3": {_DEEPSPEED: "true", _STAGE: "3"},
}


def current() -> Strategy:
    """Return the strategy that this process's environment names.

    Raises:
        UserError: for an engine or a version that ``sdslora train`` does not support.
    """
    for variable in _OTHERS:
        if is_set(variable):
            raise UserError(
                f"`sdslora train` trains under {', '.join(STRATEGIES)}, and the launcher sets "
                f"{variable}: choose one of these in Accelerate's settings"
            )
    if is_set(_DEEPSPEED):
        stage = _zero_stage()
        if stage not in (2, 3):
            raise UserError(
                f"`sdslora train` needs ZeRO stage 2 or 3, not {stage}: set zero_stage in the "
                "launcher's settings"
            )
        return "zero3" if stage == 3 else "zero2"
    if is_set(_FSDP):
        version = os.environ.get("FSDP_VERSION", "1")
        if version != "2":
            raise UserError(
                f"`sdslora train` needs FSDP2, not FSDP{version}, which flattens parameters: set "
                "fsdp_version: 2 in Accelerate's settings"
            )
        return "fsdp2"
    return "ddp"


def choose(strategy: Strategy | None) -> None:
    """Make this process train under ``strategy``; None leaves the choice to the launcher.

    Raises:
        UserError: where the launcher has chosen another one, or the engine is not installed.
    """
    launched = current()
    if strategy and launched not in ("ddp", strategy):
        raise UserError(
            f"distributed.strategy is {strategy}, and the launcher set up {launched}: leave one out"
        )
    strategy = strategy or launched
    require_installed(strategy)
    if launched == "ddp":
        os.environ.update(_ENVIRONMENTS[strategy])


def require_installed(strategy: Strategy) -> None:
    """Raise ``UserError`` where the strategy's engine is not installed."""
    if strategy.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            f"distributed.strategy {strategy} needs DeepSpeed: pip install deepspeed; fsdp2 needs "
            "no further package"
        )


def usable_gpus() -> int:
    """Return the number of GPUs that processes can share a training on."""
    import torch

    kind = torch.accelerator.current_accelerator()
    if kind is None or kind.type == "mps":
        return 0
    return torch.accelerator.device_count()


def require_gpus(number: int, use_cpu: bool) -> None:
    """Check that each of the processes on this machine gets a GPU, or that none has one.

    Raises:
        UserError: where there are GPUs, and fewer than processes.
    """
    gpus = 0 if use_cpu else usable_gpus()
    if 0 < gpus < number:
        raise UserError(
            f"{number} processes need as many GPUs, and this machine has {gpus}: lower "
            "distributed.processes, or set training.use_cpu: true"
        )


def waits_for_weights(options: Mapping[str, object]) -> bool:
    """Return whether this process gets the base model's weights from the first one.

    Args:
        options: further arguments of ``from_pretrained``; with any, each process reads the files.
    """
    return (
        current() == "fsdp2"
        and is_set("FSDP_CPU_RAM_EFFICIENT_LOADING")
        and not processes.is_first()
        and not options
    )


@contextmanager
def partitioned_load(training: Any) -> Iterator[None]:
    """Under ZeRO-3, let Transformers partition a model in the block while it loads.

    Args:
        training: the ``TrainingArguments``. They ask for it at once, for any model that is made.
    """
    plugin = training.deepspeed_plugin
    if plugin is not None:
        plugin.set_deepspeed_weakref()
    try:
        yield
    finally:
        load_whole(training)


def load_whole(training: Any) -> None:
    """Take back the request of ``TrainingArguments`` to partition models."""
    if training.deepspeed_plugin is not None:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()


def _zero_stage() -> int:
    path = os.environ.get(_FILE, "none")
    if path == "none":
        return int(os.environ.get(_STAGE, "2"))
    settings = json.loads(Path(path).read_text(encoding="utf-8"))
    zero = settings.get("zero_optimization", {})
    return int(zero.get("stage", 0)) if isinstance(zero, Mapping) else 0


def is_set(variable: str) -> bool:
    """Return whether a variable of the environment is true."""
    return os.environ.get(variable, "false").lower() == "true"
