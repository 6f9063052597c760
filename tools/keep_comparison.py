"""Keep a comparison in docs/results: its report, and all of its runs in one compressed file.

``python tools/keep_comparison.py runs/compare/small-vision [PICTURE.png ...]`` keeps the pictures
that a page shows. ``runs.json.gz`` holds ``{"config": ..., "runs": [...]}``.
"""

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "docs" / "results"
RUNS = "runs.json.gz"


def keep(comparison: Path, folder: Path, pictures: list[str]) -> None:
    """Write report, runs and ``pictures`` of ``comparison`` into ``folder``."""
    lines = (comparison / "runs.jsonl").read_text().splitlines()
    content = {
        "config": json.loads((comparison / "compare.json").read_text()),
        "runs": [json.loads(line) for line in lines],
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    (folder / RUNS).write_bytes(gzip.compress(text.encode(), mtime=0))
    for name in ["report.md", *pictures]:
        (folder / name).write_bytes((comparison / name).read_bytes())


def kept_runs(name: str) -> list[dict[str, Any]]:
    """Return the runs of the comparison ``docs/results/NAME``; none where it is not kept."""
    path = RESULTS / name / RUNS
    if not path.exists():
        return []
    runs: list[dict[str, Any]] = json.loads(gzip.decompress(path.read_bytes()))["runs"]
    return runs


def main() -> None:
    """Keep what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("comparison", type=Path, help="the output_dir of `sdslora compare`")
    parser.add_argument("pictures", nargs="*", help="pictures that a page shows")
    arguments = parser.parse_args()
    keep(arguments.comparison, RESULTS / arguments.comparison.name, arguments.pictures)


if __name__ == "__main__":
    main()
