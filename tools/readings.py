"""``sdslora compare`` with two readings of the paper each, where its text leaves a choice::

    python tools/readings.py recipes/studies/small-vision-clock.yaml
    python tools/readings.py recipes/studies/small-language-clock.yaml
    python tools/readings.py recipes/studies/small-vision-head.yaml

docs/method.md says what came out. The variants answer a question and are no options of the package.
"""

import sys
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from sdslora.core import RefreshSchedule
from sdslora.methods import METHODS, Batches, Settings
from sdslora.methods.base.layers import ADAPTER
from sdslora.methods.sds_lora import SdsLora
from sdslora.studies.compare.command import command
from sdslora.tuner import SdsLoraConfig

SOURCE = "docs/method.md"


@dataclass(frozen=True)
class MainStageSchedule(RefreshSchedule):
    """The refresh schedule with ``t`` and ``T`` counted from the end of the warm-up."""

    def interval(self, step: int) -> int:
        """Steps between refreshes once ``step`` steps are completed."""
        main = self.total_steps - self.warmup_steps
        return self.phases * (step - self.warmup_steps) // main + 1

    def action(self, step: int) -> str:
        """What follows ``step`` completed optimizer steps."""
        if step <= self.warmup_steps:
            return super().action(step)
        return "refresh" if (step - self.warmup_steps) % self.interval(step) == 0 else "none"


@dataclass(frozen=True)
class MainStageClock(SdsLora):
    """SDS-LoRA whose schedule starts with the main stage instead of the training."""

    name = "sds-lora-main-stage-clock"
    source = SOURCE

    def attach(
        self, model: nn.Module, settings: Settings, calibration: Batches | None = None
    ) -> nn.Module:
        """Wrap a plain model; its configuration makes the other schedule."""
        adapted = super().attach(model, settings, calibration)
        config: SdsLoraConfig = adapted.peft_config[ADAPTER]

        def schedule(total_steps: int, *, in_warmup: bool = True) -> RefreshSchedule:
            warmup = config.warmup_steps if in_warmup else 0
            return MainStageSchedule(total_steps, warmup, config.refresh_phases)

        config.schedule = schedule
        return adapted


@dataclass(frozen=True)
class WithHead(SdsLora):
    """SDS-LoRA beside a classifier head that is new and trained whole.

    Args:
        resets: what loses its optimizer state when the main stage starts: ``"everything"`` or the
            ``"adapter"`` alone.
    """

    name = "sds-lora-with-head"
    source = SOURCE

    resets: Literal["everything", "adapter"] = "everything"

    def attach(
        self, model: nn.Module, settings: Settings, calibration: Batches | None = None
    ) -> nn.Module:
        """Wrap a plain model, whose head is drawn anew."""
        model.classifier.reset_parameters()
        adapted = super().attach(
            model, replace(settings, modules_to_save=["classifier"]), calibration
        )
        # the refresh options are filled in already, so that only the reset follows from this
        adapted.peft_config[ADAPTER].preset = "paper" if self.resets == "everything" else "tuned"
        return adapted


# at the top of the module: the processes of the runs import it too
METHODS.update({method.name: method for method in (MainStageClock, WithHead)})

if __name__ == "__main__":
    command(sys.argv[1:])
