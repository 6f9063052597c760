"""What the engines cannot train, checked before a model is loaded."""

from collections.abc import Iterator

from ..config.distributed_spec import SHARDS_BASE
from ..config.spec import TrainSpec
from ..errors import UserError
from ..models.base_models import Source


def check(spec: TrainSpec, source: Source, trained_names: list[str]) -> None:
    """Check a specification, whose strategy is resolved, against the limits of its engine.

    Args:
        spec: the specification.
        source: the base model.
        trained_names: the names of all trainable tensors.

    Raises:
        UserError: for the first setting that the engine cannot train.
    """
    if (spec.distributed.processes or 1) > 1:
        for limit in _limits(spec, source, trained_names):
            raise UserError(f"distributed.strategy {spec.distributed.strategy}: {limit}")


def _limits(spec: TrainSpec, source: Source, trained_names: list[str]) -> Iterator[str]:
    strategy, adapter = spec.distributed.strategy or "ddp", spec.adapter
    if "device_map" in spec.model.options:
        yield "model.options.device_map spreads one process over the GPUs: leave it out"
    if strategy in SHARDS_BASE and (
        spec.model.options.get("quantization_config")
        or getattr(source.config, "quantization_config", None)
    ):
        yield "a quantized base is not sharded: use ddp"
    if strategy != "ddp" and spec.task != "sft":
        yield f"task: {spec.task} trains under ddp only"
    if strategy != "ddp" and adapter.target_parameters:
        yield "adapter.target_parameters trains under ddp only"
    optimizer = str(getattr(spec.training.optim, "value", spec.training.optim))
    if strategy == "fsdp2" and "adafactor" in optimizer:
        yield "the factored moments of adafactor are not resumed: use adamw_torch, or ddp"
    if not strategy.startswith("zero"):
        return
    if "adam" not in optimizer:
        yield f"training.optim must be of Adam's family, such as adamw_torch, not {optimizer}"
    others = [name for name in trained_names if ".lora_" not in name]
    if others:
        yield (
            f"it trains the adapter alone, and {others[0]} is trained too (modules_to_save, bias, "
            "a new head): use fsdp2 or ddp"
        )
    if strategy == "zero3" and adapter.use_hira:
        yield "adapter.use_hira needs whole weights: use fsdp2 or zero2"
