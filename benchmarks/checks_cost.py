"""Claim: everything that is verified while training takes less than 0.5% of it.

A check is made once, looks at the gradients of two steps, and is verified twice; `reset` and
`saved` come once.
"""

import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from peft import PeftModel

from cases import Case, benches, step_arguments
from measuring import alternate, write
from sdslora.training import CHECKS, Check, CheckFailed
from sdslora.training.checks import ResetComplete, WatchedTraining, make_checks, require_saved
from sdslora.tuner import PhasedAdapter

STEPS = 100
"""Of a short training: in a longer one, the share is smaller."""
CPU = [Case("smollm2-135m", 1, 128, 8)]
"""One short row a step: a larger batch takes longer, and its checks do not."""
GPU = [Case("llama-3-8b", 1, 1024, rank, "bfloat16") for rank in (8, 32)]
STEP = "training step"


def life(name: Check, watched: WatchedTraining, saved: Path) -> None:
    """All that a check does in one training."""
    parameters = watched.adapters[0].parameters
    # nothing is trained here, so that some of them fail, once their work is done
    with suppress(CheckFailed):
        if name == "saved":
            require_saved(saved, watched.adapters)
        elif name == "reset":
            before = [parameter.detach().clone() for parameter in parameters]
            ResetComplete(watched.optimizer, parameters, before).verify()
        else:
            [check] = make_checks([name], watched)
            for _ in range(2):
                for hook in list(watched.optimizer._optimizer_step_pre_hooks.values()):
                    hook(watched.optimizer, (), {})
                with suppress(CheckFailed):
                    check.verify()


def main() -> None:
    """Time the checks beside training steps."""
    options = step_arguments(__doc__).parse_args()
    rows = []
    for bench in benches(options, CPU, GPU):
        training = bench.training("SDS-LoRA")
        assert isinstance(training.model, PeftModel)
        assert training.optimizer is not None
        adapter = PhasedAdapter(training.model, "default")
        watched = WatchedTraining(training.model, training.optimizer, [adapter], 0)
        with tempfile.TemporaryDirectory() as folder:
            training.model.save_pretrained(folder)
            runs: dict[str, Callable[[], object]] = {STEP: training.step}
            runs |= {name: partial(life, name, watched, Path(folder)) for name in CHECKS}
            seconds = alternate(runs, options.rounds, options.device)
        medians = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
        shares = {name: medians[name] / (STEPS * medians[STEP]) for name in CHECKS}
        frozen = [p for p in training.model.parameters() if not p.requires_grad]
        rows.append(
            {
                **bench.case.to_dict(),
                "steps": STEPS,
                "seconds": seconds,
                "share of the training": {**shares, "all": sum(shares.values())},
                "bytes of frozen weights read": 3 * sum(p.nbytes for p in frozen),
            }
        )
        print(bench.case, {name: f"{share:.4%}" for name, share in shares.items()})
    if not options.quick:
        write("checks_cost", options.device, rows)


if __name__ == "__main__":
    main()
