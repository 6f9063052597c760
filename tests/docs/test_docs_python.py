"""Every Python block runs, those of a page one after another in one namespace."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from pages import PAGES, blocks
from prepared import SETUPS, Names

ELSEWHERE = {"docs/add_a_method.md"}
"""Its blocks are run by tests/methods/test_method_docs.py."""
RUN = [page for page in PAGES if blocks(page, "python") and page not in ELSEWHERE]


@pytest.mark.parametrize("page", RUN)
def test_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: Names = {"__name__": "page"}
    with contextlib.closing(SETUPS[page](names, monkeypatch)) as setup:
        for block in blocks(page, "python"):
            next(setup)
            exec(compile(block, page, "exec", dont_inherit=True), names)
        with pytest.raises(StopIteration):
            next(setup)
