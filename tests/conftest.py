"""Fixtures that every test folder shares. The functions behind them are in ``toys.py``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from toys import VOCABULARY, logits, make_llama, sds_model, train

__all__ = ["VOCABULARY", "logits", "make_llama", "sds_model", "train"]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Bitwise comparisons need one order of summation; and the cores are shared."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny_llama() -> LlamaForCausalLM:
    """A random two-layer Llama: vocabulary 64, width 32, intermediate 48, 4 heads, 2 kv heads."""
    return make_llama()


@pytest.fixture
def input_ids() -> Tensor:
    """Four sequences of twelve tokens, (4, 12)."""
    return torch.randint(0, VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(1))
