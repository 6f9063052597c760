"""Fill the tables of docs/costs.md from the JSON files in results/."""

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from page import main, table
from sdslora.core.fused import WEIGHT_TRAFFIC

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from contenders import base_model

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
PAGE = Path(__file__).parents[1] / "docs" / "costs.md"

Row = dict[str, Any]
"""One of a results file."""


@cache
def floor(model: str, layers: int | None, rank: int, tokens: int, dtype: str) -> float:
    """SDS-LoRA's multiply-adds in all linear layers over those of a LoRA that wastes nothing.

    Of each token, forward and backward, without attention: the frozen base needs 2 m n, LoRA 3 r
    (m + n), SDS-LoRA 5 r (m + n), or 2 r (m + n) and 4 r m n for all tokens, where it does that.
    """
    base = lora = sds = 0.0
    for name, module in base_model(model, "meta", torch.bfloat16, layers).named_modules():
        if not isinstance(module, nn.Linear):
            continue
        m, n = module.out_features, module.in_features
        base += 2 * m * n
        if not name.endswith("lm_head"):
            lora += 3 * rank * (m + n)
            apart = 5 * rank * (m + n)
            merged = 2 * rank * (m + n) + 4 * rank * m * n / tokens
            merges = dtype == "float32" and (apart - merged) * tokens > WEIGHT_TRAFFIC * m * n
            sds += merged if merges else apart
    return (base + sds) / (base + lora)


def hardware(results: dict[str, Any]) -> str:
    """What produced the figures."""
    return table(
        ["figures", "device", "threads", "torch", "PEFT", "transformers"],
        [
            [name, *(data["hardware"][key] for key in _HARDWARE)]
            for name, data in sorted(results.items())
        ],
    )


_HARDWARE = ("device", "threads", "torch", "peft", "transformers")


def step_cost(measured: list[Row], device: str) -> str:
    """Ratios of step times."""
    rows = []
    for row in measured:
        peft, fused = row["against PEFT LoRA"], row["against fused LoRA"]["SDS-LoRA"]
        mine = peft["SDS-LoRA"]
        rows.append(
            [
                *_case(row),
                *_times(device, "SDS-LoRA", row["seconds"]),
                f"**{mine['median']:.3f}** ({mine['low']:.3f} to {mine['high']:.3f})",
                f"{fused['median']:.3f} ({fused['low']:.3f} to {fused['high']:.3f})",
                f"{_floor(row):.3f}",
                f"{peft['PEFT DoRA']['median']:.3f}",
                f"{peft['frozen base']['median']:.3f}",
            ]
        )
    header = ["SDS-LoRA / PEFT LoRA", "SDS-LoRA / fused LoRA", "its floor"]
    if device in _ABSOLUTE:
        header.insert(0, "SDS-LoRA, ms")
    return table([*_CASE, *header, "PEFT DoRA / PEFT LoRA", "frozen base / PEFT LoRA"], rows)


def _floor(row: dict[str, Any]) -> float:
    tokens = row["batch"] * row["sequence"]
    return floor(row["model"], row["layers"], row["rank"], tokens, row["dtype"])


def memory(measured: list[Row], device: str) -> str:
    """Ratios of memory, and where they come from."""
    rows = []
    for row in measured:
        mine, its = row["bytes"]["SDS-LoRA"], row["bytes"]["PEFT LoRA"]
        rows.append(
            [
                *_case(row),
                f"**{row['against PEFT LoRA']['SDS-LoRA']:.3f}**",
                f"{row['against PEFT LoRA']['PEFT DoRA']:.3f}",
                *(f"{(mine[kind] - its[kind]) / 2**20:+.1f}" for kind in mine),
            ]
        )
    kinds = [f"{kind}, MiB" for kind in measured[0]["bytes"]["SDS-LoRA"]]
    return table([*_CASE, "SDS-LoRA / PEFT LoRA", "PEFT DoRA / PEFT LoRA", *kinds], rows)


def counted(results: dict[str, Any]) -> str:
    """How far the counts of memory are from what an allocator had, where both are there."""

    def peaks(name: str) -> dict[Any, int]:
        return {
            (*_case(row), contender): kinds["peak"]
            for row in results[name]["rows"]
            for contender, kinds in row["bytes"].items()
        }

    counts, measured = peaks("memory-meta"), peaks("memory-cuda")
    shares = [1 - counts[case] / peak for case, peak in measured.items() if case in counts]
    device = results["memory-cuda"]["hardware"]["device"]
    return (
        f"Of the {len(shares)} peaks that were measured on the {device}, the counts are "
        f"{min(shares):.1%} to {max(shares):.1%} short."
    )


def hira_cost(measured: list[Row], device: str) -> str:
    """Ratios of time and memory with ``use_hira``."""
    ours, its = "SDS-LoRA, use_hira", "PEFT HiRA"
    rows = []
    for row in measured:
        time, hira, held = row["against PEFT LoRA"], row["against PEFT HiRA"][ours], row["bytes"]
        rows.append(
            [
                *_case(row),
                *_times(device, ours, row["seconds"]),
                f"**{hira['median']:.3f}** ({hira['low']:.3f} to {hira['high']:.3f})",
                f"{time[ours]['median']:.3f}",
                f"{time[its]['median']:.3f}",
                *(f"{held[name] / held['PEFT LoRA']:.3f}" for name in (ours, its)),
            ]
        )
    header = ["`use_hira` / PEFT HiRA", "`use_hira` / PEFT LoRA", "PEFT HiRA / PEFT LoRA"]
    if device in _ABSOLUTE:
        header.insert(0, "`use_hira`, ms")
    memory = ["memory, `use_hira` / PEFT LoRA", "memory, PEFT HiRA / PEFT LoRA"]
    return table([*_CASE, *header, *memory], rows)


def refresh_cost(measured: list[Row], device: str) -> str:
    """A whole-model refresh against the loop."""
    rows, modes = [], ("qr", "preserve")
    for row in measured:
        if "against the loop" not in row:
            continue
        layers = "" if row["layers"] is None else f" ({row['layers']} layers)"
        line = [row["model"] + layers, row["rank"]]
        for mode in modes:
            line += _times(device, mode, row["seconds"][mode])
            line.append(f"{1 / row['against the loop'][mode]['median']:.1f}")
        rows.append(line)
    header = ["model", "rank"]
    for mode in modes:
        header += [f"`{mode}`, ms"] if device in _ABSOLUTE else []
        header.append(f"times faster than the loop, `{mode}`")
    return table(header, rows)


def refresh_share(measured: list[Row], device: str) -> str:
    """Each preset's refreshes beside a step."""
    [row] = measured
    rows = [
        [
            what,
            f"{row['refreshes per step']:.2f}" if name == "paper" else "1",
            f"{row['share of a step'][name]:.2%}",
            row.get("operations", {}).get(name, "not counted"),
        ]
        for name, what in _PRESETS.items()
        if name in row["share of a step"]
    ]
    where = f"{row['model']}, rank {row['rank']}, {row['tokens per step']} tokens a step:"
    header = ["refresh", "refreshes a step", "share of a step's time", "operations a refresh"]
    return f"{where}\n\n{table(header, rows)}"


_PRESETS = {
    "tuned": '`preset="tuned"`: `qr`, and the momentum carried over',
    "paper": '`preset="paper"`: `qr`',
    "former": "`preserve`, and the momentum carried over",
}
"""The refreshes that a training can have, by their names in the results."""


def scaling(measured: list[Row], device: str) -> str:
    """Fitted exponents."""
    return table(
        ["against", "sizes", "what a step adds", "a refresh"],
        [
            [
                row["axis"],
                ", ".join(map(str, row["sizes"])),
                f"{row['exponent of what a step adds']:.2f}",
                f"{row['exponent of a refresh']:.2f}",
            ]
            for row in measured
        ],
    )


def profile_step(measured: list[Row], device: str) -> str:
    """Time by kind of operation, in percent of a step of PEFT's LoRA."""
    rows = []
    for row in measured:
        whole = sum(row["milliseconds"]["PEFT LoRA"].values()) / 100
        for contender, kinds in row["milliseconds"].items():
            values = [f"{kinds.get(kind, 0) / whole:.1f}" for kind in _kinds(measured)]
            rows.append([*_case(row), contender, *values, f"{sum(kinds.values()) / whole:.1f}"])
    return table([*_CASE, "method", *_kinds(measured), "all"], rows)


def _kinds(measured: list[Row]) -> list[str]:
    return sorted(
        {kind for row in measured for kinds in row["milliseconds"].values() for kind in kinds}
    )


_ABSOLUTE = ("cuda",)
"""Devices whose times mean something by themselves."""


def _times(device: str, name: str, seconds: dict[str, list[float]]) -> list[str]:
    return [f"{1000 * median(seconds[name]):.1f}"] if device in _ABSOLUTE else []


_CASE = ["model", "tokens", "rank", "dtype", "variant"]


def _case(row: dict[str, Any]) -> list[object]:
    tokens = row["batch"] * row["sequence"]
    model = row["model"] + (f" ({row['layers']} layers)" if row["layers"] else "")
    return [model, tokens, row["rank"], row["dtype"], row["variant"]]


TABLES: dict[str, Callable[[list[Row], str], str]] = {
    made.__name__: made
    for made in (step_cost, memory, hira_cost, refresh_cost, refresh_share, scaling, profile_step)
}


def texts(results: dict[str, Any]) -> dict[str, str]:
    """Every table by the name of its place, ``<table>-<device>``."""
    found = {"hardware": hardware(results), "counted": counted(results)}
    for file, data in results.items():
        source, _, device = file.partition("-")
        for name, made in TABLES.items():
            if name == source:
                found[f"{name}-{device}"] = made(data["rows"], device)
    return found


if __name__ == "__main__":
    files = sorted(RESULTS.glob("*-*.json"))  # by device; startup.json is no cost of training
    main(PAGE, texts({path.stem: json.loads(path.read_text()) for path in files}), __doc__)
