"""PEFT's method comparison with SDS-LoRA: beside its ``run.py``, which stays as it is.

Takes the arguments of ``run.py``. Two things are added: PEFT knows the method, and its schedule
follows every step of the optimizer.
"""

import runpy
from pathlib import Path
from typing import Any

import torch
import utils  # PEFT's, beside this file

from sdslora import SdsLoraScheduler  # importing it registers the method with PEFT

get_optimizer_and_scheduler = utils.get_optimizer_and_scheduler


def with_schedule(model: torch.nn.Module, *, max_steps: int, **options: Any) -> Any:
    """PEFT's optimizer and schedule of the rate, and ours after each of the optimizer's steps."""
    optimizer, lr_scheduler = get_optimizer_and_scheduler(model, max_steps=max_steps, **options)
    schedule = SdsLoraScheduler(model, optimizer, max_steps)
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return optimizer, lr_scheduler


utils.get_optimizer_and_scheduler = with_schedule
runpy.run_path(str(Path(__file__).with_name("run.py")), run_name="__main__")
