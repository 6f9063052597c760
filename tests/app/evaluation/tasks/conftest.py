"""The real data, where it is at hand."""

import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).parents[4].parent / "shared" / "data"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    directory = Path(os.environ.get("SDSLORA_DATA", _BESIDE))
    if not directory.is_dir():
        pytest.skip(f"{directory} is not there; SDSLORA_DATA says where the data is")
    return directory
