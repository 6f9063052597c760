"""Fill the table of best learning rates in docs/choose.md, from the kept comparisons."""

from pathlib import Path

from findings_page import TUNED, escaped, results
from page import main, table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "choose.md"
MEASURED = [
    ("small vision", 4, "small-vision-default", "small-vision"),
    ("small vision", 8, "small-vision-rate-rank8", ""),
    ("small vision", 16, "small-vision-rate-rank16", ""),
    ("small language", 4, "small-language-default", "small-language"),
    ("small language", 8, "small-language-rate-rank8", ""),
    ("small language", 16, "small-language-rate-rank16", ""),
]
"""Model, rank, a comparison with the tuned preset, and one with the paper's and ``full``."""
NOT_MEASURED = "not measured"


def best_rate(comparison: str, *labels: str) -> str:
    """Return the best rate of the first label that the comparison has."""
    contenders = results(comparison) if comparison else {}
    rates = [
        contenders[escaped(label)]["best rate"] for label in labels if escaped(label) in contenders
    ]
    return rates[0] if rates else NOT_MEASURED


def rates() -> str:
    """Return the best rate by model, rank and method."""
    rows = [
        [
            f"[{model}](results/{tuned}/report.md)",
            rank,
            best_rate(tuned, "sds-lora preset=tuned", TUNED),
            best_rate(paper, "sds-lora"),
            best_rate(tuned, "rslora"),
            best_rate(tuned, "lora+"),
            best_rate(paper, "full"),
        ]
        for model, rank, tuned, paper in MEASURED
    ]
    header = ["model", "rank", '`"tuned"`', '`"paper"`', "rsLoRA", "LoRA+", "full fine-tuning"]
    return table(header, rows)


if __name__ == "__main__":
    main(PAGE, {"rates": rates()}, __doc__)
