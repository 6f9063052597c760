"""Claim: training with SDS-LoRA needs no more memory than with PEFT's LoRA.

On a GPU, the allocator's peak over a step. On a CPU, what a step holds at the end of its forward
pass: the tensors that autograd saved (each storage once), parameters, buffers, and the gradients
and optimizer state of the trainable parameters.
"""

import gc
from collections.abc import Iterable
from typing import Any

import torch
from contenders import CONTENDERS, Training, base_model, training
from measuring import arguments, write
from step_cost import CPU, GPU, QUICK, VARIANTS
from torch import Tensor


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
    del loss
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


def main() -> None:
    """Measure all contenders, one after the other, for every model, rank and variant."""
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="*", help="only these")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=["plain"])
    options = parser.parse_args()
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    cases = QUICK if options.quick else GPU if options.device == "cuda" else CPU

    rows: list[dict[str, Any]] = []
    for model, batch, sequence, ranks in cases:
        if options.models and model not in options.models:
            continue
        base = base_model(model, options.device, dtype, layers=2 if options.quick else None)
        tokens = torch.randint(0, base.config.vocab_size, (batch, sequence), device=options.device)
        for rank in ranks:
            for variant in options.variants:
                measured = {}
                for name in CONTENDERS:
                    run = training(name, base, rank, tokens, **VARIANTS[variant])
                    measured[name] = (gpu_bytes if options.device == "cuda" else cpu_bytes)(run)
                    del run
                    gc.collect()
                total = {name: sum(kinds.values()) for name, kinds in measured.items()}
                print(model, "rank", rank, variant)
                for name, kinds in measured.items():
                    parts = ", ".join(f"{kind} {size / 2**20:.1f}" for kind, size in kinds.items())
                    share = total[name] / total["PEFT LoRA"]
                    print(f"  {name:12} {share:.4f} of PEFT LoRA; MiB: {parts}")
                rows.append(
                    {
                        "model": model,
                        "batch": batch,
                        "sequence": sequence,
                        "rank": rank,
                        "dtype": str(dtype),
                        "variant": variant,
                        "bytes": measured,
                        "against PEFT LoRA": {n: t / total["PEFT LoRA"] for n, t in total.items()},
                    }
                )
    if not options.quick:
        write("memory", options.device, rows)


if __name__ == "__main__":
    main()
