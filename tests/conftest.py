"""Fixtures that every test folder shares. The functions behind them are in ``toys.py``."""

from __future__ import annotations

import gc
from itertools import groupby
from typing import TYPE_CHECKING

import pytest

# pytest-xdist's controller loads this file and runs no test: what is dear to import waits.
if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a slow test first, so that no worker is left alone with one at the end."""
    files = [list(tests) for _, tests in groupby(items, key=lambda item: item.path)]
    files.sort(key=lambda tests: not any(item.get_closest_marker("slow") for item in tests))
    items[:] = [item for tests in files for item in tests]


def pytest_collection_finish() -> None:
    """Every training ends with a full garbage collection: not of what was imported until now."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Bitwise comparisons need one order of summation; and the cores are shared."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def tiny_llama() -> LlamaForCausalLM:
    """A random two-layer Llama: vocabulary 64, width 32, intermediate 48, 4 heads, 2 kv heads."""
    from toys import make_llama

    return make_llama()


@pytest.fixture(scope="session")
def smollm2() -> LlamaForCausalLM:
    """SmolLM2-135M in float32, read once by a worker (13 s): tests change copies of it."""
    from sdslora.experiments import models
    from sdslora.experiments.spec import ModelSpec

    return models.find(ModelSpec(models.SMOLLM2, dtype="float32")).load()


@pytest.fixture
def input_ids() -> Tensor:
    """Four sequences of twelve tokens, (4, 12)."""
    import torch

    from toys import VOCABULARY

    return torch.randint(0, VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(1))
