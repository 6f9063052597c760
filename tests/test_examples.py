"""Every example runs, from nothing, in an empty directory, and says what it should."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from sdslora import SdsLoraCallback, SdsLoraConfig

ROOT = Path(__file__).parent.parent
EXAMPLES = {
    "quickstart.py": "quickstart-adapter",
    "trainer.py": "trainer-adapter",
    "trl_sft.py": "trl-adapter",
    "accelerate_loop.py": "accelerate-adapter",
    "lightning_module.py": "lightning-adapter",
    "serve_anywhere.py": "served-adapter",
}
"""With the plain LoRA adapter that each writes."""


def test_each_is_listed_and_short():
    lengths = {
        path.name: len(path.read_text().splitlines())
        for path in (ROOT / "examples").iterdir()
        if path.suffix == ".py"
    }
    assert lengths.keys() == EXAMPLES.keys() | {"llama_factory.py"}
    assert max(lengths.values()) <= 60


def test_llama_factory_is_given_our_adapter_and_callback(monkeypatch):
    """Against stand-ins of its two modules; docs/trainers.md tells what ran in it."""
    given = []
    adapter = SimpleNamespace(LoraConfig=None)
    modules = {
        "llamafactory": SimpleNamespace(model=SimpleNamespace(adapter=adapter)),
        "llamafactory.model": SimpleNamespace(adapter=adapter),
        "llamafactory.model.adapter": adapter,
        "llamafactory.train": SimpleNamespace(),
        "llamafactory.train.tuner": SimpleNamespace(
            run_exp=lambda callbacks: given.extend(callbacks)
        ),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    runpy.run_path(str(ROOT / "examples/llama_factory.py"), run_name="__main__")
    config = adapter.LoraConfig(r=4, target_modules=["q_proj"])
    assert isinstance(config, SdsLoraConfig)
    assert config.preset == "tuned"
    assert [type(callback) for callback in given] == [SdsLoraCallback]


def test_the_first_page_shows_the_first_example():
    script = (ROOT / "examples/quickstart.py").read_text()
    assert len(script.splitlines()) < 30
    assert f"```python\n{script}```" in (ROOT / "docs/index.md").read_text()


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name])
    # what is already imported here costs each process ten seconds
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    adapter = EXAMPLES[name]
    tensors = load_file(tmp_path / adapter / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() and tensor.any() for tensor in tensors.values())
    printed = capfd.readouterr().out
    [error] = re.findall(rf"in {adapter}: relative error ([\d.e+-]+)", printed)
    assert float(error) < 1e-6
    if name == "serve_anywhere.py":
        differences = [
            float(line.split("tensor(")[1].rstrip(")"))
            for line in printed.splitlines()
            if line.startswith(("difference of the logits", "merged"))
        ]
        assert len(differences) == 2
        assert max(differences) < 1e-5
