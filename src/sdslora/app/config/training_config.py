"""The training section of a recipe: TRL's ``SFTConfig`` with this project's defaults."""

from dataclasses import dataclass

import torch
from trl import SFTConfig

from .. import processes
from ..distribution import strategies
from ..errors import UserError

# Arguments of SFTConfig that have no effect here, each with the key to set instead.
_ELSEWHERE = {
    "model_init_kwargs": "model.options",
    "trust_remote_code": "model.trust_remote_code",
    "chat_template_path": "data.chat_template",
    "dataset_text_field": "data.prompt and data.completion",
    "dataset_kwargs": "the data section",
    "assistant_only_loss": "data.completion (only the completion bears loss)",
    "resume_from_checkpoint": "resume",
    "pad_token": "the tokenizer's own files",
    "fsdp": "distributed.strategy",
    "fsdp_config": "distributed.strategy, or Accelerate's settings",
    "deepspeed": "distributed.strategy, or Accelerate's settings",
}


@dataclass
class TrainingConfig(SFTConfig):
    """All arguments of TRL's SFTTrainer, with this project's defaults.

    Args:
        num_train_epochs: Passes over the training rows; 3 where one has fewer than 100 steps.
        per_device_train_batch_size: Rows of a batch; 16 or 8 where 32 would leave fewer than 30
            steps an epoch. It counts for one process.
        gradient_checkpointing: Recompute the activations in the backward pass: a third slower, in a
            fraction of their memory. null: on in `sdslora train` from 1B parameters.
        early_stopping_patience: Stop after that many evaluations without a better
            metric_for_best_model (by default the loss); null never stops early.
    """

    output_dir: str | None = None
    num_train_epochs: float = 1.0
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 32
    learning_rate: float = 2e-4
    lr_scheduler_type: str = "cosine"
    weight_decay: float = 0.0
    # None: by the size of the model. TRL always trades a third of the speed for memory.
    gradient_checkpointing: bool | None = None  # type: ignore[assignment]
    # None: on where the GPU has it.
    bf16: bool | None = None  # type: ignore[assignment]
    # Every A and B gets a gradient in every step; a search for others costs a pass over the graph.
    ddp_find_unused_parameters: bool | None = False
    logging_steps: float = 10
    save_total_limit: int | None = 2
    report_to: str | list[str] | None = "none"
    completion_only_loss: bool | None = True
    seed: int = 0
    early_stopping_patience: int | None = None

    def __post_init__(self) -> None:
        patience = self.early_stopping_patience
        if patience is not None:
            if patience < 1:
                raise UserError(f"training.early_stopping_patience must be 1 or more: {patience}")
            if self.eval_strategy == "no":
                raise UserError(
                    "training.early_stopping_patience needs evaluations while training: set "
                    "training.eval_strategy to steps or epoch"
                )
            self.metric_for_best_model = self.metric_for_best_model or "loss"
        if processes.are_launched() and not self.use_cpu:
            # Accelerate forms no group of processes on CPUs unless it is asked to
            self.use_cpu = strategies.usable_gpus() == 0 or strategies.is_set("ACCELERATE_USE_CPU")
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not self.use_cpu and _gpu_has_bf16()
        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False
        super().__post_init__()
        strategies.load_whole(self)
        for name, place in _ELSEWHERE.items():
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise UserError(f"training.{name} has no effect here: set {place} instead")


def _gpu_has_bf16() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
