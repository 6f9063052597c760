"""Claim: with ``use_hira`` a step costs no more than one of PEFT's HiRA, in PEFT LoRA's memory."""

import gc

from cases import GPU, Case, benches, step_arguments
from contenders import FULL_RANK
from measuring import alternate, ratios, write
from memory import cpu_bytes, gpu_bytes

CPU = [
    *(Case("smollm2-135m", 4, 128, rank, layers=8) for rank in (8, 32)),
    Case("smollm2-135m", 16, 128, 32, layers=8),
]
CONTENDERS = ("PEFT LoRA", *FULL_RANK)


def main() -> None:
    """Time and weigh the contenders, case by case."""
    options = step_arguments(__doc__).parse_args()
    measured_bytes = gpu_bytes if options.device == "cuda" else cpu_bytes
    rows = []
    for bench in benches(options, CPU, GPU):
        held = {}
        for name in CONTENDERS:
            held[name] = sum(measured_bytes(bench.training(name)).values())
            gc.collect()
        runs = {name: bench.training(name).step for name in CONTENDERS}
        seconds = alternate(runs, options.rounds, options.device, warmup=2)
        row = {
            **bench.case.to_dict(),
            "seconds": seconds,
            "bytes": held,
            "against PEFT LoRA": ratios(seconds, "PEFT LoRA"),
            "against PEFT HiRA": ratios(seconds, "PEFT HiRA"),
        }
        rows.append(row)
        print(bench.case)
        for name, ratio in row["against PEFT LoRA"].items():
            print(
                f"  {name:18} {ratio['median']:.3f} of PEFT LoRA's time "
                f"({ratio['low']:.3f} to {ratio['high']:.3f}), "
                f"{held[name] / held['PEFT LoRA']:.3f} of its memory"
            )
        if not options.quick:
            write("hira_cost", options.device, rows)


if __name__ == "__main__":
    main()
