"""Claim: a training step of SDS-LoRA costs no more than one of PEFT's LoRA."""

from cases import GPU, Case, benches, step_arguments
from contenders import CONTENDERS
from measuring import alternate, ratios, write

CPU = [
    *(Case("smollm2-135m", 4, 128, rank) for rank in (8, 32)),
    # so many tokens that making W + ΔW pays
    Case("smollm2-135m", 16, 128, 32, layers=8),
    *(Case("llama-3-8b-slice", 1, 64, rank) for rank in (8, 32)),
]


def main() -> None:
    """Time all contenders in turn, case by case."""
    options = step_arguments(__doc__).parse_args()
    rows = []
    for bench in benches(options, CPU, GPU):
        runs = {name: bench.training(name).step for name in CONTENDERS}
        seconds = alternate(runs, options.rounds, options.device, warmup=2)
        row = {
            **bench.case.to_dict(),
            "seconds": seconds,
            "against PEFT LoRA": ratios(seconds, "PEFT LoRA"),
            "against fused LoRA": ratios(seconds, "fused LoRA"),
        }
        rows.append(row)
        print(bench.case)
        for name, ratio in row["against PEFT LoRA"].items():
            fused = row["against fused LoRA"][name]["median"]
            print(
                f"  {name:12} {ratio['median']:.3f} of PEFT LoRA "
                f"({ratio['low']:.3f} to {ratio['high']:.3f}), {fused:.3f} of fused LoRA"
            )
        if not options.quick:
            write("step_cost", options.device, rows)


if __name__ == "__main__":
    main()
