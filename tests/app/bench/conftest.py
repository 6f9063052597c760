"""A cache of the test's own."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SDSLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bench"
