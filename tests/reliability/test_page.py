"""docs/reliability.md names tests that exist."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_fault_is_injected_by_a_test():
    from faults import FAULTS

    assert len(FAULTS) == len({fault for fault, _, _ in FAULTS})
    for _, _, test in FAULTS:
        path, _, name = test.partition("::")
        tree = ast.parse((ROOT / path).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
