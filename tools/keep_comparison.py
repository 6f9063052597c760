"""Keep a comparison in docs/results: its report, and all of its runs in one compressed file.

``python tools/keep_comparison.py runs/compare/small-vision [PICTURE.png ...]`` keeps the pictures
that a page shows. ``runs.json.gz`` holds ``{"config": ..., "runs": [...]}``. ``--again`` writes all
reports and pictures again, after a change of how ``sdslora compare`` shows them.
"""

import argparse
import gzip
import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sdslora.studies.compare import plots
from sdslora.studies.compare.report import markdown
from sdslora.studies.statistics.names import in_words
from sdslora.studies.statistics.statistics import compare

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


def again(folder: Path) -> None:
    """Write report and pictures of ``folder`` from its runs; the reference stays."""
    report = folder / "report.md"
    runs = kept_runs(folder.name)
    header = re.search(r"^\| (.*) against \|", report.read_text(), re.MULTILINE)
    labels = {name: run["label"] for run in runs for name in (run["label"], in_words(run["label"]))}
    reference = labels[header[1].replace("\\", "")] if header else None
    comparison = compare(runs, reference)
    report.write_text(markdown(comparison))
    pictures = list(folder.glob("*.png"))
    if pictures:
        with TemporaryDirectory() as drawn:
            plots.save(comparison, Path(drawn))
            for picture in pictures:
                picture.write_bytes((Path(drawn) / picture.name).read_bytes())


def main() -> None:
    """Keep what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "comparison", type=Path, nargs="?", help="the output_dir of `sdslora compare`"
    )
    parser.add_argument("pictures", nargs="*", help="pictures that a page shows")
    parser.add_argument("--again", action="store_true", help="write all reports again")
    arguments = parser.parse_args()
    if arguments.again:
        for report in sorted(RESULTS.glob("*/report.md")):
            again(report.parent)
    elif arguments.comparison:
        keep(arguments.comparison, RESULTS / arguments.comparison.name, arguments.pictures)
    else:
        parser.error("name the output_dir of a comparison, or give --again")


if __name__ == "__main__":
    main()
