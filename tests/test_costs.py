"""The figures in docs/costs.md are those that the benchmarks wrote."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_of_costs_is_what_the_results_say():
    command = [sys.executable, ROOT / "tools/costs_page.py", "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
