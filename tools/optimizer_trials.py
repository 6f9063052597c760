"""Train with every optimizer of the Trainer's, of torch's and of pytorch-optimizer's.

A program: writes docs/results/reliability/optimizers.json, which docs/optimizers.md shows. Packages
that are not installed are left out; give their folder in PYTHONPATH. Outcomes of earlier runs stay
for what this machine lacks. Names of optimizers as arguments: these alone.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from optimizers import FAMILIES, PRESETS, Unavailable, names, outcome

from sdslora.app.files import write_json

RESULT = Path(__file__).parents[1] / "docs" / "results" / "reliability" / "optimizers.json"
PACKAGES = [
    "torch",
    "transformers",
    "bitsandbytes",
    "torchao",
    "schedulefree",
    "grokadamw",
    "torch-optimi",
    "galore-torch",
    "apollo-torch",
    "lomo-optim",
    "pytorch_optimizer",
]


def outcomes(family: str, only: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each optimizer of a family, and what each preset does with it."""
    for name in names(family):
        if only and name not in only:
            continue
        tried = {}
        for preset in PRESETS:
            try:
                tried[preset] = outcome(FAMILIES[family](name), preset)
            except Unavailable as reason:
                tried[preset] = f"not tried: {reason}"
        print(f"{family} {name}: {tried['paper'][:60]}")
        yield name, tried


def _was_tried(by_preset: dict[str, str] | None) -> bool:
    return by_preset is not None and not by_preset["paper"].startswith("not tried")


def main() -> None:
    """Try them all."""
    warnings.simplefilter("ignore")
    earlier = json.loads(RESULT.read_text()) if RESULT.exists() else {"versions": {}}
    versions, families = earlier["versions"], earlier.get("optimizers", {})
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            print(f"{package} is not installed")
    for family in FAMILIES:
        known = families.setdefault(family, {})
        try:
            for name, by_preset in outcomes(family, sys.argv[1:]):
                if not (_was_tried(known.get(name)) and not _was_tried(by_preset)):
                    known[name] = by_preset
                write_json(RESULT, {"versions": versions, "optimizers": families})
        except ImportError:
            print(f"{family} is not installed")


if __name__ == "__main__":
    main()
