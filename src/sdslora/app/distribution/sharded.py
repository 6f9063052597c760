"""A Trainer whose model FSDP2 or DeepSpeed may shard: it saves and resumes the adapter alone.

Transformers gathers the whole base model to save an adapter, or saves none. Here the adapter's
tensors are gathered, and a checkpoint of FSDP2 has the files of a single process.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import Trainer, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from ... import SdsLoraConfig
from .. import processes
from ..models import trained_adapter
from ..models.base_models import Source
from . import strategies


class Sharded(Trainer):
    """A mix-in for trainers: it also trains on CPUs under FSDP2 and DeepSpeed."""

    model: Any
    optimizer: Any
    lr_scheduler: Any

    def create_accelerator_and_postprocess(self) -> None:
        """Make the accelerator for the engine that the environment names."""
        if self.args.use_cpu:
            _use_engine_on_cpu(self.args)
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.cpu_ram_efficient_loading:
            self.accelerator.prepare = _without_buffers(self.accelerator.prepare)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter, gathered from all processes where it is sharded."""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            super().save_model(output_dir, _internal_call)
            return
        self._save(output_dir, state_dict=dict(_whole_adapter(self.model)))
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = self.optimizer.state_dict()
        state["state"] = {
            number: {name: _whole(value) for name, value in entry.items()}
            for number, entry in state["state"].items()
        }
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder = Path(checkpoint)
        state = torch.load(folder / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for number, entry in state["state"].items():
            for name, value in entry.items():
                entry[name] = _placed(value, parameters[number])
        self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))

    def _load_from_checkpoint(self, checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            _load_adapter(self.model, Path(checkpoint))
        else:
            super()._load_from_checkpoint(checkpoint, model)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled:
            _load_adapter(self.model, Path(str(self.state.best_model_checkpoint)))
        else:
            super()._load_best_model()


def load_adapted(source: Source, config: SdsLoraConfig, training: TrainingArguments) -> PeftModel:
    """Return the base model with a new adapter, in the part that this process is to have.

    Under FSDP2 only the first process reads the weights. In the others the frozen ones are on the
    meta device, and the rest is zero, until the trainer shards the model.
    """
    if strategies.waits_for_weights(source.spec.options):
        base = source.skeleton().eval()
    else:
        with strategies.partitioned_load(training):
            base = source.load()
    if hasattr(base, "generation_config"):  # of the files
        base.generation_config = processes.from_first(base.generation_config)
    model = trained_adapter.attach(base, config, source)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.zeros_like(buffer, device="cpu")
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta and parameter.requires_grad:
                module._parameters[name] = nn.Parameter(torch.zeros_like(parameter, device="cpu"))
    return model


def _use_engine_on_cpu(args: TrainingArguments) -> None:
    """Set up the engine, which Accelerate does not use on CPUs by itself."""
    strategy = strategies.current()
    if strategy == "ddp" or PartialState().distributed_type != DistributedType.MULTI_CPU:
        return
    state = Accelerator(cpu=True, mixed_precision=args.mixed_precision).state
    if strategy == "fsdp2":
        PartialState().distributed_type = state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        return
    import deepspeed

    # an operation of its own, compiled for minutes; gloo does as well
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    PartialState().distributed_type = state.distributed_type = DistributedType.DEEPSPEED
    plugin: Any = args.deepspeed_plugin
    args.deepspeed_plugin = None
    state.deepspeed_plugins = plugin
    plugin.select(_from_accelerator_state=True)


def _without_buffers(prepare: Callable[..., object]) -> Callable[..., object]:
    """Return Accelerate's ``prepare`` without the buffers, which it takes for sharded.

    It sends the first process's weights to the others. The buffers are sent here.
    """

    def prepare_parameters(*args: object, **kwargs: object) -> object:
        modules = [m for arg in args if isinstance(arg, nn.Module) for m in arg.modules()]
        left_out = {
            module: module._buffers.keys() - module._non_persistent_buffers_set
            for module in modules
        }
        for module, names in left_out.items():
            module._non_persistent_buffers_set |= names
        prepared = prepare(*args, **kwargs)
        for module, names in left_out.items():
            module._non_persistent_buffers_set -= names
            for _, buffer in sorted(module._buffers.items()):
                if buffer is not None:
                    dist.broadcast(buffer, src=0)
        return prepared

    return prepare_parameters


def _whole_adapter(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the trainable parameters and the bases, whole and on the CPU; all processes call it."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, _whole(parameter)
    for name, buffer in model.named_buffers():
        if ".lora_" in name:
            yield name, buffer.detach().cpu()


def _whole(value: Any) -> Any:
    """Return a tensor whole and on the CPU, in float32 if ZeRO has such masters."""
    if isinstance(value, DTensor):
        return value.full_tensor().detach().cpu()
    if hasattr(value, "ds_id") or hasattr(value, "_hp_mapping"):
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(value).detach().cpu()
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _placed(value: Any, like: Tensor) -> Any:
    """Return this process's part of a tensor shaped as ``like``, placed as that is."""
    if not (isinstance(value, Tensor) and isinstance(like, DTensor) and value.shape == like.shape):
        return value
    value = value.to(like.device, like.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def _load_adapter(model: nn.Module, folder: Path) -> None:
    """Write a saved adapter into a model that FSDP2 shards."""
    saved: Mapping[str, Tensor] = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    for name, target in get_peft_model_state_dict(model).items():
        target.copy_(_placed(saved[name], target))
