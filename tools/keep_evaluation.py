"""Keep an evaluation's figures and generations in docs/results/evaluation.

``sdslora evaluate --tasks`` writes ``metrics.json`` and ``generations.jsonl``. The prompts and
HumanEval's tests, which are the data sets' own, are left out; the rest is compressed, to the same
bytes for the same rows. Of paths only the last part is kept.
"""

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

from sdslora.app.files import read_json, write_json

KEPT = Path(__file__).parents[1] / "docs" / "results" / "evaluation"


def keep(evaluation: Path) -> Path:
    """From the evaluation's directory to one of the same name."""
    folder = KEPT / evaluation.name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "metrics.json", relative(read_json(evaluation / "metrics.json")))
    lines = []
    for line in (evaluation / "generations.jsonl").read_text().splitlines():
        record = json.loads(line)
        del record["prompt"]
        if record["task"] == "humaneval":
            del record["target"]
        lines.append(json.dumps(record))
    text = "\n".join(lines) + "\n"
    (folder / "generations.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    return folder


def relative(value: Any) -> Any:
    """Without the folders of the machine that it ran on."""
    if isinstance(value, dict):
        return {key: relative(inner) for key, inner in value.items()}
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("evaluations", nargs="+", type=Path)
    for directory in parser.parse_args().evaluations:
        print(keep(directory))
