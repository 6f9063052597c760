"""``sdslora serve-check``: in stock PEFT and llama.cpp for real, in vLLM against a stand-in."""

import os
from pathlib import Path

import llama_cpp
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sdslora.app.commands import serve_check
from tiny import Run

VLLM = """
import os
from types import SimpleNamespace as N

class SamplingParams(N): pass

class LLM:
    def __init__(self, **options):
        assert options["enable_lora"] and options["max_lora_rank"] == 8
    def generate(self, prompts, sampling, lora_request):
        assert (sampling.temperature, os.path.isdir(lora_request.path)) == (0, True)
        token = len(prompts[0]["prompt_token_ids"])
        value = float(os.environ["STAND_IN_VALUE"])
        one = N(token_ids=[5], logprobs=[{5: N(logprob=value)}])
        return [N(outputs=[one]) for _ in prompts]
"""
LORA = """
class LoRARequest:
    def __init__(self, name, number, path):
        self.path = path
"""


@pytest.fixture
def stock_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its check aside, which takes a process of its own."""
    figures = {"difference": 0.0, "change": 1.0}
    monkeypatch.setattr(serve_check.serving, "compare_in_stock_peft", lambda *_: figures)


def rows_of(out: str) -> dict[str, list[str]]:
    """The cells of the table, by software."""
    lines = out.partition("software")[2].partition("\n\n")[0].splitlines()[1:]
    cells = [[cell for cell in line.split("  ") if cell] for line in lines]
    return {name: [cell.strip() for cell in rest] for name, *rest in cells}


def test_peft_and_llama_cpp(
    sdslora: Run, trained_run: Path, model_dir: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base.gguf"
    llama_cpp.write_base(AutoModelForCausalLM.from_pretrained(model_dir), base)
    plain = tmp_path / "plain"
    argv = (f"--output_dir={plain}", f"--base_gguf={base}", "--tokens=4")
    result = sdslora("serve-check", trained_run, *argv)
    assert result.status == 0, result.err
    rows = rows_of(result.out)
    assert rows.keys() == {"stock PEFT", "llama.cpp", "vLLM"}
    for name in ("stock PEFT", "llama.cpp"):
        _, difference, change = rows[name]
        assert float(difference) < 1e-3 < 0.1 < float(change), name
    assert rows["vLLM"] == ["not installed here (pip install vllm)"]
    assert (plain / "adapter_config.json").is_file()
    commands = result.out.partition("to serve it:\n")[2]
    assert f"vllm serve {model_dir} --enable-lora --max-lora-rank 8" in commands
    assert f"llama-server -m {base} --lora {tmp_path}/plain-gguf/adapter.gguf" in commands
    assert "next:" not in result.out

    result = sdslora("serve-check", trained_run, f"--output_dir={plain}")
    assert (result.status, "exists and is not empty" in result.err) == (2, True)


@pytest.mark.usefixtures("stock_peft")
def test_nothing_is_kept_by_default(
    sdslora: Run, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = sdslora("serve-check", trained_run)
    assert result.status == 0, result.err
    assert os.listdir(tmp_path) == []
    assert "not checked: give the base model by --base_gguf FILE" in result.out
    assert f"  sdslora export {trained_run} plain\n" in result.out


@pytest.mark.usefixtures("stock_peft")
@pytest.mark.parametrize("right", [True, False])
def test_vllm_by_a_stand_in(
    right: bool, sdslora: Run, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log-probability that it says is compared with the adapter's own."""
    package = tmp_path / "packages" / "vllm"
    (package / "lora").mkdir(parents=True)
    (package / "__init__.py").write_text(VLLM)
    (package / "lora" / "__init__.py").write_text("")
    (package / "lora" / "request.py").write_text(LORA)
    monkeypatch.syspath_prepend(package.parent)
    path = os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("STAND_IN_VALUE", "-3.5" if right else "-9.0")

    def log_probabilities(model, prompt, ids):
        assert ids == [5]
        is_base = any(getattr(m, "disable_adapters", None) is True for m in model.modules())
        return torch.tensor([-1.0 if is_base else -3.5])

    monkeypatch.setattr(serve_check, "_log_probabilities", log_probabilities)
    result = sdslora("serve-check", trained_run)
    _, difference, change = rows_of(result.out)["vLLM"]
    assert float(change) == 2.5
    assert float(difference) == (0 if right else 5.5)
    assert result.status == (0 if right else 1)
    assert right or "vLLM computes something else" in result.err


def test_another_adapter_is_noticed(
    sdslora: Run, trained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = serve_check.write

    def broken(spec):
        result = write(spec)
        file = Path(spec.output_dir) / "adapter_model.safetensors"
        tensors = load_file(file)
        next(iter(tensors.values())).mul_(3)
        save_file(tensors, file, metadata={"format": "pt"})
        return result

    monkeypatch.setattr(serve_check, "write", broken)
    result = sdslora("serve-check", trained_run)
    assert result.status == 1
    assert "stock PEFT computes something else" in result.err


def test_no_language_model(sdslora: Run, trained_run: Path, tmp_path: Path, vit_dir: Path) -> None:
    result = sdslora("serve-check", trained_run, f"--model.name_or_path={vit_dir}")
    assert (result.status, "language models" in result.err) == (2, True)
    for option, message in (("--tokens=0", "tokens must be"), ("--base_gguf=no", "no file no")):
        result = sdslora("serve-check", trained_run, option)
        assert (result.status, message in result.err) == (2, True)


def test_a_difference_that_is_no_number_differs() -> None:
    row = serve_check.Row("x", "y", float("nan"), 1.0)
    assert row.differs
    assert not serve_check.Row("x", "y", 0.09, 1.0).differs
    assert serve_check.Row("x", "y", 0.11, 1.0).differs
    assert not serve_check.Row("x", "y", 1e-5, 0.0).differs
