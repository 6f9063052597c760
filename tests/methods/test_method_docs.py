"""The page on adding a method: its code runs, and its method keeps the contract."""

from __future__ import annotations

import re
from pathlib import Path

import contract
import pytest
import torch

from sdslora import methods
from sdslora.methods import METHODS, make_method

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "add_a_method.md"


def run(block: str, names: dict[str, object]) -> None:
    exec(compile(block, str(PAGE), "exec", dont_inherit=True), names)


@pytest.fixture
def example(monkeypatch):
    """The method of the page, registered as it says."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, object] = {
        "__name__": "sdslora.methods.half_lora",
        "__package__": "sdslora.methods",
    }
    run(blocks[0], names)
    monkeypatch.setitem(METHODS, "half-lora", names["HalfLora"])
    return blocks, names


def test_the_example_keeps_the_contract(example, tmp_path):
    method = make_method("half-lora")
    contract.check_function_kept(method)
    model = contract.trained(method, 5)
    contract.check_effective_gradient(method, model)
    contract.check_plain_pairs(method, model)
    contract.check_export(method, model, tmp_path / "plain")
    contract.check_resume(method)


def test_the_example_is_used_as_the_page_says(example, tmp_path, monkeypatch):
    blocks, names = example
    monkeypatch.chdir(tmp_path)
    names |= {"model": contract.base(), "batches": [contract.BATCH] * 9}
    torch.manual_seed(0)
    run(blocks[1], names)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    assert names["loss"] < 4.1  # log 64 is 4.16


def test_the_page_names_what_is_there():
    page = PAGE.read_text()
    for name in re.findall(r"`(\w+)\(", page):
        assert hasattr(methods.FactorMethod, name) or hasattr(methods, name), name


def test_the_page_of_comparisons_names_every_method():
    page = (DOCS / "compare.md").read_text()
    assert [name for name in METHODS if f"`{name}`" not in page] == []
