"""What the tests of the command in several processes train."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and rows, for the runs of a module."""
    folder = tmp_path_factory.mktemp("shared")
    tiny.save_model(folder / "model", chat=True)
    tiny.save_rows(folder / "rows.jsonl", tiny.rows(100))
    return folder
