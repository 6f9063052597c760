"""docs/reliability.md says what the results say, and names tests that exist."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_results_say():
    command = [sys.executable, ROOT / "tools/reliability_page.py", "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_every_fault_is_injected_by_a_test(monkeypatch):
    from faults import FAULTS

    assert len(FAULTS) == len({fault for fault, _, _ in FAULTS})
    for _, _, test in FAULTS:
        path, _, name = test.partition("::")
        tree = ast.parse((ROOT / path).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
