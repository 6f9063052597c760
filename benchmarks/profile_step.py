"""Where a training step's time goes, kind by kind, for the contenders that are close to each other.

Sums of each operation's own time, by torch's profiler.
"""

from collections import Counter
from statistics import median

from torch.autograd import DeviceType
from torch.profiler import profile

from cases import Case, benches, step_arguments
from contenders import Training
from measuring import write

CONTENDERS = ("PEFT LoRA", "fused LoRA", "SDS-LoRA")
CPU = [Case("smollm2-135m", 4, 128, rank) for rank in (8, 32)]
GPU = [Case("llama-3-8b", 4, 1024, 32, "bfloat16")]
KINDS = {
    "matrix products": ("aten::mm", "aten::bmm", "aten::addmm", "aten::addmm_", "aten::linear"),
    "full-size elementwise": ("aten::mul", "aten::add", "aten::add_", "aten::mul_", "aten::sum"),
    "packing, copies, casts": (
        "aten::cat",
        "aten::copy_",
        "aten::clone",
        "aten::_to_copy",
        "aten::addcmul",
    ),
}


def kind(operation: str) -> str:
    """The kind that an operation counts under."""
    return next(
        (name for name, members in KINDS.items() if operation in members), "everything else"
    )


def milliseconds(run: Training, device: str) -> Counter[str]:
    """Of one step, by kind."""
    with profile() as profiler:
        run.step()
    total: Counter[str] = Counter()
    for event in profiler.key_averages():
        # a GPU's kernels are listed by themselves as well, beside what launched them
        if event.device_type != DeviceType.CPU:
            continue
        own = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        total[kind(event.key)] += own / 1000
    return total


def main() -> None:
    """Profile the contenders in turn, case by case; the medians of the rounds."""
    options = step_arguments(__doc__).parse_args()
    rows = []
    for bench in benches(options, CPU, GPU):
        runs = {name: bench.training(name) for name in CONTENDERS}
        for run in runs.values():
            run.step()
        rounds: dict[str, list[Counter[str]]] = {name: [] for name in CONTENDERS}
        for _ in range(options.rounds):
            for name, run in runs.items():
                rounds[name].append(milliseconds(run, options.device))
        measured = {
            name: {what: median(step[what] for step in steps) for what in steps[0]}
            for name, steps in rounds.items()
        }
        rows.append({**bench.case.to_dict(), "milliseconds": measured})
        print(bench.case)
        for name, kinds in measured.items():
            parts = ", ".join(f"{what} {time:.1f}" for what, time in sorted(kinds.items()))
            print(f"  {name:12} {sum(kinds.values()):8.1f} ms: {parts}")
        if not options.quick:
            write("profile_step", options.device, rows)


if __name__ == "__main__":
    main()
