"""Claim: training with SDS-LoRA needs no more memory than with PEFT's LoRA.

On a GPU, the allocator's peak over a step; with ``--device meta``, that of the same models, counted
without one. On a CPU, what a step holds at the end of its forward
pass: the tensors that autograd saved (each storage once), parameters, buffers, and the gradients
and optimizer state of the trainable parameters.
"""

import gc
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from cases import GPU, Case, benches, step_arguments
from contenders import CONTENDERS, Training
from counted import LivePeak
from measuring import write

CPU = [
    Case("smollm2-135m", 4, 128, rank, dtype, variant)
    for dtype, variant in (
        ("float32", "plain"),
        ("float32", "gradient checkpointing"),
        ("bfloat16", "plain"),  # slow on a CPU
    )
    for rank in (8, 32)
]
# so many tokens that making W + ΔW pays
CPU.insert(2, Case("smollm2-135m", 16, 128, 32))
META = [
    Case("llama-3-8b", batch, 1024, rank, "bfloat16", variant)
    for variant in ("plain", "gradient checkpointing", "checkpointing, chunked loss")
    for batch in (4, 1)
    for rank in (8, 32)
]


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes by address of the distinct storages under ``tensors``."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def cpu_bytes(run: Training) -> dict[str, int]:
    """Bytes held at the end of the forward pass, by kind."""
    run.step()
    state = storages(
        value
        for values in (run.optimizer.state.values() if run.optimizer else ())
        for value in values.values()
        if isinstance(value, Tensor)
    )
    held = storages([*run.model.parameters(), *run.model.buffers()])
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in held:
            saved.update(storages([tensor]))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = run.model(input_ids=run.tokens, labels=run.tokens).loss
    loss.backward()  # gives back what the graph holds
    return {
        "saved for backward": sum(saved.values()),
        "parameters and buffers": sum(held.values()),
        "gradients": sum(p.nbytes for p in run.model.parameters() if p.requires_grad),
        "optimizer state": sum(state.values()),
    }


def gpu_bytes(run: Training) -> dict[str, int]:
    """The allocator's peak over a step, in bytes, with everything else that is alive."""
    run.step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run.step()
    torch.cuda.synchronize()
    return {"peak": torch.cuda.max_memory_allocated()}


def counted_bytes(run: Training) -> dict[str, int]:
    """The same of a model on the meta device, as by an allocator that wastes nothing."""
    with LivePeak([*run.model.parameters(), *run.model.buffers()]) as counter:
        run.step()
        counter.reset()
        run.step()
    return {"peak": counter.peak}


MEASURES = {"cpu": cpu_bytes, "cuda": gpu_bytes, "meta": counted_bytes}


def main() -> None:
    """Measure all contenders, one after the other, case by case."""
    options = step_arguments(__doc__).parse_args()
    measured_bytes = MEASURES[options.device]
    rows: list[dict[str, Any]] = []
    for bench in benches(options, CPU, GPU, META):
        measured = {}
        for name in CONTENDERS:
            measured[name] = measured_bytes(bench.training(name))
            gc.collect()
        total = {name: sum(kinds.values()) for name, kinds in measured.items()}
        print(bench.case)
        for name, kinds in measured.items():
            parts = ", ".join(f"{kind} {size / 2**20:.1f}" for kind, size in kinds.items())
            share = total[name] / total["PEFT LoRA"]
            print(f"  {name:12} {share:.4f} of PEFT LoRA; MiB: {parts}")
        against = {name: size / total["PEFT LoRA"] for name, size in total.items()}
        rows.append({**bench.case.to_dict(), "bytes": measured, "against PEFT LoRA": against})
        if not options.quick:
            write("memory", options.device, rows)


if __name__ == "__main__":
    main()
