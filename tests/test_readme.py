"""README.md is short, its script is an example that runs, and its numbers are measured ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COSTS = (ROOT / "docs/costs.md").read_text()


def test_it_is_read_in_ten_minutes():
    assert len(README.splitlines()) <= 150
    assert len(README.split()) <= 1000


def test_the_script_is_an_example():
    script = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert script is not None
    assert script.group(1) == (ROOT / "examples/quickstart.py").read_text()


def test_the_costs_are_those_of_their_page():
    [costs] = re.findall(r"\*\*Costs:\*\*(.*?)\n- ", README, re.DOTALL)
    numbers = re.findall(r"\d\.\d\d", costs)
    summary = COSTS.split("<!-- hardware -->")[0]
    assert numbers
    assert [number for number in numbers if number not in summary] == []


def test_the_demo_takes_what_it_says():
    seconds = json.loads((ROOT / "docs/demo/demo.json").read_text())["seconds"]
    assert "about five minutes" in README
    assert round(seconds / 60) == 5
