"""One training loop over every engine that spreads it over processes."""

from __future__ import annotations

import importlib.util
import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate import (
    Accelerator,
    DistributedType,
    FullyShardedDataParallelPlugin,
    PartialState,
)
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DeepSpeedPlugin
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from toys import VOCABULARY, make_llama, sds_model

ROWS = 12
"""Of a global batch."""


def batch(step: int) -> Tensor:
    """Arithmetic sequences modulo the vocabulary: the same global batch in every process."""
    generator = torch.Generator().manual_seed(step)
    start = torch.randint(0, VOCABULARY, (ROWS, 1), generator=generator)
    stride = torch.randint(1, 5, (ROWS, 1), generator=generator)
    return (start + stride * torch.arange(12)) % VOCABULARY


class Engine:
    """One process, and what the others do differently."""

    def __init__(self, **options: Any) -> None:
        self.peft = sds_model(make_llama(), **{"r": 5, "warmup_steps": 10} | options).train()
        self.model: nn.Module = self.peft
        self.wrap()
        self.optimizer = self.make_optimizer()
        self.prepare()

    def wrap(self) -> None:
        """Before the optimizer is made."""

    def make_optimizer(self) -> Any:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.0)

    def prepare(self) -> None:
        """After it."""

    def loss(self, ids: Tensor) -> Tensor:
        """Of this process's rows of a global batch."""
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        mine = ids[rank::world]
        return self.model(input_ids=mine, labels=mine).loss

    def step(self, *batches: Tensor) -> float:
        """One optimizer step, its batches accumulated; the mean loss over all processes."""
        losses = []
        for ids in batches:
            with nullcontext() if ids is batches[-1] else self.unsynchronized():
                loss = self.loss(ids) / len(batches)
                self.backward(loss)
            losses.append(loss.detach())
        self.optimizer.step()
        self.optimizer.zero_grad()
        total = torch.stack(losses).sum()
        if dist.is_initialized():
            dist.all_reduce(total)
            total /= dist.get_world_size()
        return total.item()

    def unsynchronized(self) -> AbstractContextManager:
        """Where gradients only accumulate."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def save(self, folder: Path) -> None:
        """Everything that a resumed training needs, in the engine's own way."""
        torch.save([self.peft.state_dict(), self.optimizer.state_dict()], folder / "state.pt")

    def load(self, folder: Path) -> None:
        model, optimizer = torch.load(folder / "state.pt")
        self.peft.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)

    def export(self, folder: Path) -> None:
        """The adapter for one process, whole, as PEFT saves it."""
        if not dist.is_initialized() or dist.get_rank() == 0:
            self.peft.save_pretrained(folder)


class DDP(Engine):
    """``DistributedDataParallel`` itself."""

    def wrap(self) -> None:
        self.model = DistributedDataParallel(self.peft, find_unused_parameters=False)

    def unsynchronized(self) -> AbstractContextManager:
        return self.model.no_sync()


class FSDP2(Engine):
    """``fully_shard`` itself, saved by torch's distributed checkpoints."""

    def wrap(self) -> None:
        for layer in self.peft.base_model.model.model.layers:
            fully_shard(layer)
        fully_shard(self.peft)

    def save(self, folder: Path) -> None:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder)

    def load(self, folder: Path) -> None:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        state = {"model": model, "optimizer": optimizer}
        dcp.load(state, checkpoint_id=folder)
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )

    def export(self, folder: Path) -> None:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        whole = get_model_state_dict(self.peft, options=options)
        if dist.get_rank() == 0:
            self.peft.save_pretrained(folder, state_dict=whole)


class Accelerated(Engine):
    """Accelerate over DDP."""

    def accelerator(self) -> Accelerator:
        return Accelerator(cpu=True)

    def prepare(self) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
        self.accelerate = self.accelerator()
        self.model, self.optimizer = self.accelerate.prepare(self.peft, self.optimizer)

    def backward(self, loss: Tensor) -> None:
        self.accelerate.backward(loss)

    def save(self, folder: Path) -> None:
        self.accelerate.save_state(str(folder), safe_serialization=True)

    def load(self, folder: Path) -> None:
        self.accelerate.load_state(str(folder))

    def export(self, folder: Path) -> None:
        whole = self.accelerate.get_state_dict(self.model)
        if dist.get_rank() == 0:
            self.accelerate.unwrap_model(self.model).save_pretrained(folder, state_dict=whole)


class AcceleratedFSDP2(Accelerated):
    """Accelerate over ``fully_shard``."""

    def accelerator(self) -> Accelerator:
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=[LlamaDecoderLayer.__name__],
            cpu_ram_efficient_loading=False,
            state_dict_type="SHARDED_STATE_DICT",
        )
        # Accelerate itself takes it up on accelerators only
        state = Accelerator(cpu=True).state
        PartialState().distributed_type = state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = plugin
        return Accelerator(cpu=True)


class Zero(Accelerated):
    """Accelerate over DeepSpeed's ZeRO."""

    stage = 2

    def accelerator(self) -> Accelerator:
        import deepspeed

        # Compiled for minutes where it is there; gloo does as well
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        plugin = DeepSpeedPlugin(zero_stage=self.stage, gradient_accumulation_steps=1)
        plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": ROWS // dist.get_world_size(),
            "zero_allow_untested_optimizer": True,
            "gradient_clipping": 0.0,  # where nothing is said, DeepSpeed clips to 1
        }
        plugin.deepspeed_config["zero_optimization"] |= {
            "stage3_param_persistence_threshold": 0,  # smaller parameters would stay whole
            "stage3_gather_16bit_weights_on_model_save": True,
        }
        # Accelerate itself takes it up on accelerators only
        state = Accelerator(cpu=True).state
        PartialState().distributed_type = state.distributed_type = DistributedType.DEEPSPEED
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        state.deepspeed_plugins = plugin
        plugin.select(_from_accelerator_state=True)
        return Accelerator(cpu=True)

    def prepare(self) -> None:
        super().prepare()
        assert type(self.model).__name__ == "DeepSpeedEngine"


class Zero3(Zero):
    """With the parameters partitioned too."""

    stage = 3


DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
"""It is no dependency of ours."""

ENGINES: dict[str, type[Engine]] = {
    "DDP": DDP,
    "Accelerate, DDP": Accelerated,
    "FSDP2": FSDP2,
    "Accelerate, FSDP2": AcceleratedFSDP2,
} | ({"DeepSpeed ZeRO-2": Zero, "DeepSpeed ZeRO-3": Zero3} if DEEPSPEED else {})


def empty(folder: Path) -> Path:
    """``folder``, empty, made by the first process."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    if dist.is_initialized():
        dist.barrier()
    return folder


def loaded(folder: Path) -> PeftModel:
    """The exported adapter on a fresh base model, in one process."""
    return PeftModel.from_pretrained(make_llama(), folder).eval()
