"""Claim: a training step of SDS-LoRA costs no more than one of PEFT's LoRA."""

import gc

import torch
from contenders import CONTENDERS, base_model, training
from measuring import alternate, arguments, ratios, write

# (model, batch, sequence, ranks)
CPU = [("smollm2-135m", 4, 128, (8, 32)), ("llama-3-8b-slice", 1, 256, (8, 32))]
GPU = [("llama-3-8b", 1, 1024, (8, 32)), ("gemma-2b", 4, 1024, (8, 32))]
QUICK = [("smollm2-135m", 1, 16, (8,))]
VARIANTS = {
    "plain": {},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "compiled": {"compile": True},
}


def main() -> None:
    """Time all contenders in turn, for every model, rank and variant."""
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="*", help="only these")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=["plain"])
    options = parser.parse_args()
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    cases = QUICK if options.quick else GPU if options.device == "cuda" else CPU

    rows = []
    for model, batch, sequence, ranks in cases:
        if options.models and model not in options.models:
            continue
        base = base_model(model, options.device, dtype, layers=2 if options.quick else None)
        tokens = torch.randint(0, base.config.vocab_size, (batch, sequence), device=options.device)
        for rank in ranks:
            for variant in options.variants:
                runs = {
                    name: training(name, base, rank, tokens, **VARIANTS[variant]).step
                    for name in CONTENDERS
                }
                seconds = alternate(runs, options.rounds, options.device, warmup=2)
                row = {
                    "model": model,
                    "batch": batch,
                    "sequence": sequence,
                    "rank": rank,
                    "dtype": str(dtype),
                    "variant": variant,
                    "seconds": seconds,
                    "against PEFT LoRA": ratios(seconds, "PEFT LoRA"),
                    "against fused LoRA": ratios(seconds, "fused LoRA"),
                }
                rows.append(row)
                print(model, "rank", rank, variant)
                for name, ratio in row["against PEFT LoRA"].items():
                    fused = row["against fused LoRA"][name]["median"]
                    print(
                        f"  {name:12} {ratio['median']:.3f} of PEFT LoRA "
                        f"({ratio['low']:.3f} to {ratio['high']:.3f}), {fused:.3f} of fused LoRA"
                    )
                del runs
                gc.collect()
    if not options.quick:
        write("step_cost", options.device, rows)


if __name__ == "__main__":
    main()
