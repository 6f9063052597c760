"""Fill the tables of docs/distribute.md: what was tried, and the plan for many processes."""

import json
from math import ceil
from pathlib import Path
from typing import NamedTuple

from page import main, table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "distribute.md"
RESULT = ROOT / "docs" / "results" / "reliability" / "distribution.json"

RANK = 32
IN_NODE, BETWEEN_NODES = 400e9, 50e9
"""Bytes a second that a process receives: NVLink, and one 400 Gb/s adapter a GPU."""
NODE = 8
"""Processes in a node."""
SHARD = 64
"""Processes that a model is sharded over at most; more of them hold copies of it."""
TINY = {"width": 32, "intermediate": 48, "kv": 16, "layers": 2}
"""The model of the tests, whose refreshes were counted, at rank 4."""


class Llama(NamedTuple):
    """Sizes of a model whose linear layers are all adapted."""

    width: int
    intermediate: int
    kv: int
    layers: int

    def groups(self) -> list[tuple[int, int, int]]:
        """(L, m, n): L layers of m outputs and n inputs, those of one shape together."""
        d, f, kv = self.width, self.intermediate, self.kv
        square = [(2 * self.layers, d, d)]
        return [
            *square,
            (2 * self.layers, kv, d),
            (2 * self.layers, f, d),
            (self.layers, d, f),
        ]

    def bases(self, rank: int) -> int:
        """Bytes of all bases in float32: ``4 r Σ (m + n)``."""
        return sum(4 * rank * count * (m + n) for count, m, n in self.groups())


MODELS = {
    "8B": Llama(4096, 14336, 1024, 32),
    "70B": Llama(8192, 28672, 1024, 80),
    "405B": Llama(16384, 53248, 1024, 126),
}


class Traffic(NamedTuple):
    """Bytes that one process receives: from within its shard group, and from other copies."""

    inner: float
    outer: float


def replicated(model: Llama, processes: int, rank: int = RANK) -> float:
    """A refresh under DDP: ``(N − 1) ⌈L/N⌉`` layers' bases, of each shape."""
    return sum(
        (processes - 1) * ceil(count / processes) * 4 * rank * (m + n)
        for count, m, n in model.groups()
    )


def sharded(model: Llama, copies: int, shard: int, rank: int = RANK) -> Traffic:
    """A refresh under FSDP2, over ``copies`` times ``shard`` processes.

    All-to-all of A and B within the shard group, then all-gather of the bases: within the group,
    then between the copies.
    """
    inner = outer = 0.0
    for count, m, n in model.groups():
        layers = ceil(count / copies)  # of one shard group
        own = ceil(layers / shard)  # of one process
        # A's r rows and B's m rows are what is sharded
        rows = ceil(rank / shard) * n + ceil(m / shard) * rank
        inner += (shard - 1) * own * 4 * (rows + rank * (m + n))
        outer += (copies - 1) * layers * 4 * rank * (m + n)
    return Traffic(inner, outer)


def plan() -> str:
    """Bytes and time of a refresh."""
    rows = []
    for name, model in MODELS.items():
        for processes in (8, 64, 512, 1024):
            shard = min(processes, SHARD)
            copies = processes // shard
            traffic = sharded(model, copies, shard)
            within = IN_NODE if shard <= NODE else BETWEEN_NODES
            seconds = traffic.inner / within + traffic.outer / BETWEEN_NODES
            ddp = replicated(model, processes)
            ddp_seconds = ddp / (IN_NODE if processes <= NODE else BETWEEN_NODES)
            rows.append(
                [
                    name,
                    processes,
                    f"{model.bases(RANK) / 1e9:.2f}",
                    f"{copies} × {shard}",
                    f"{sum(traffic) / 1e9:.2f}",
                    f"{1e3 * seconds:.0f}",
                    f"{ddp / 1e9:.2f}" if name == "8B" else "does not fit",
                    f"{1e3 * ddp_seconds:.0f}" if name == "8B" else "",
                ]
            )
    return table(
        ["model", "N", "bases, GB", "FSDP2: copies × shard", "GB", "ms", "DDP: GB", "ms"],
        rows,
    )


def engines() -> str:
    """What was tried."""
    rows = []
    for name, row in json.loads(RESULT.read_text())["engines"].items():
        resumed = " and ".join(map(str, row["resumed bit for bit after steps"]))
        rows.append(
            [
                name,
                f"{row['steps']} steps, {row['refreshes']} refreshes",
                f"{row['difference of the losses']:.0e}",
                "yes" if row["same bases in all processes"] else "**no**",
                f"after step {resumed}: bit for bit",
                f"{row['difference of the logits in one process']:.0e}",
            ]
        )
    return table(
        [
            "engine, 2 processes",
            "trained",
            "losses, relative to one process",
            "bases have the same bits in all",
            "saved and resumed",
            "loaded in one process: logits differ by",
        ],
        rows,
    )


def counted() -> str:
    """Bytes counted on the tests' model, beside the formula's."""
    tiny = Llama(**TINY)
    rows = []
    for name, by_count in json.loads(RESULT.read_text())["bytes received in a refresh"].items():
        for processes, count in by_count.items():
            n = int(processes)
            formula = replicated(tiny, n, 4) if name == "DDP" else sum(sharded(tiny, 1, n, 4))
            rows.append([name, n, count, round(formula)])
    return table(["engine", "N", "bytes received, counted", "by the formula"], rows)


if __name__ == "__main__":
    main(PAGE, {made.__name__: made() for made in (engines, plan, counted)}, __doc__)
