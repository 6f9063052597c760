"""``make demo``: a real model trained, measured, exported, and loaded back by stock PEFT.

Everything lands in the recipe's output directory: the run, ``plain/`` (the exported adapter),
``loss.png``, and ``demo.json`` with all figures.
"""

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sdslora import to_plain_lora
from sdslora.app.commands import train
from sdslora.app.config.parsing import parse
from sdslora.app.config.spec import TrainSpec
from sdslora.app.errors import exit_status
from sdslora.app.files import write_json
from sdslora.app.models import serving
from sdslora.app.run import plan
from sdslora.studies.plotting import loss_curve

FIGURES = "demo.json"
_PROBES = 8  # rows whose logits are compared


def main(argv: Sequence[str]) -> None:
    """Run the demonstration; arguments are those of ``sdslora train``."""
    start = time.perf_counter()
    spec = parse(TrainSpec, argv, "python tools/demo.py")
    output_dir = Path(spec.output_dir)
    if (output_dir / FIGURES).exists():  # an earlier demonstration
        shutil.rmtree(output_dir)
    prepared = plan.make(spec)
    trained = train.run(prepared)

    plain = output_dir / "plain"
    exported = to_plain_lora(trained.model, plain)
    print(exported)
    agreement = _compare(trained, prepared, plain)
    loss_curve.loss_curve(
        trained.record["log_history"],
        prepared.schedule,
        output_dir / "loss.png",
        f"SDS-LoRA: {spec.model.name_or_path} on {spec.data.source}",
    )
    figures = {
        "before": trained.record["metrics"]["before"],
        "after": trained.record["metrics"]["after"],
        "steps": prepared.schedule.total_steps,
        "plain_rank": exported.rank,
        "stock_peft": agreement,
        "seconds": round(time.perf_counter() - start, 1),
        "versions": trained.record["versions"],
        "hardware": trained.record["hardware"],
        "seed": trained.record["seed"],
    }
    write_json(output_dir / FIGURES, figures)
    print(_report(figures, output_dir))


def _compare(trained: train.Trained, prepared: plan.Plan, plain: Path) -> dict[str, float]:
    """The logits of the trained model and of stock PEFT with the exported adapter."""
    probe = prepared.work.batch("validation", slice(_PROBES))
    del probe["labels"]
    device = trained.model.device
    with torch.no_grad():
        logits = trained.model.eval()(**{k: v.to(device) for k, v in probe.items()}).logits
    return serving.compare_in_stock_peft(plain, probe, logits, prepared.work.source)


def _report(figures: dict[str, Any], output_dir: Path) -> str:
    before, after, agreement = figures["before"], figures["after"], figures["stock_peft"]
    return "\n".join(
        [
            "",
            f"                  before     after   ({after['rows']} held-out rows)",
            f"exact match    {before['exact_match']:9.1%} {after['exact_match']:9.1%}",
            f"loss           {before['loss']:9.4f} {after['loss']:9.4f}",
            "",
            f"plain LoRA of rank {figures['plain_rank']} in stock PEFT: the logits differ by at "
            f"most {agreement['max_logit_difference']:.1e}; the adapter changes them by up to "
            f"{agreement['max_change_by_adapter']:.1f}",
            f"{figures['steps']} steps; {figures['seconds']:.0f} s in all; "
            f"loss curve and figures in {output_dir}/",
        ]
    )


if __name__ == "__main__":
    sys.exit(exit_status(main, sys.argv[1:]))
