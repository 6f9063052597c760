"""Fill the tables of docs/optimizers.md from what was tried."""

import json
from pathlib import Path

from page import main, table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "optimizers.md"
RESULT = ROOT / "docs" / "results" / "reliability" / "optimizers.json"
PLACES = {
    "trainer": "transformers",
    "torch": "torch.optim",
    "pytorch_optimizer": "pytorch_optimizer",
}


def by_optimizer(tried: dict[str, dict[str, str]]) -> str:
    """One row an optimizer."""
    rows = [[f"`{name}`", *map(_short, presets.values())] for name, presets in tried.items()]
    works = sum(presets["paper"] == "works" for presets in tried.values())
    body = table(["optimizer", 'preset "paper"', 'preset "tuned"'], rows)
    return f'{works} of {len(rows)} train with `preset="paper"`.\n\n{body}'


def _short(outcome: str) -> str:
    """Without what every message has, and safe in a table."""
    if outcome == "works" or outcome.startswith("not tried"):
        return outcome.replace("|", "\\|")
    reason = outcome.removeprefix("SDS-LoRA does not support ").removeprefix("the optimizer ")
    reason, _, rest = reason.partition(". docs/")
    reason = (reason.partition(": ")[2] or reason) + "".join(rest.partition(" (plain LoRA")[1:])
    return f"rejected: {reason}".replace("|", "\\|")


def versions(known: dict[str, str]) -> str:
    """What was installed."""
    return ", ".join(f"{name} {number}" for name, number in sorted(known.items()))


if __name__ == "__main__":
    result = json.loads(RESULT.read_text())
    tables = {place: by_optimizer(result["optimizers"][name]) for place, name in PLACES.items()}
    main(PAGE, tables | {"versions": versions(result["versions"])}, __doc__)
