"""Software that serves an exported adapter: what it computes, and the command that starts it.

Each runs in a process of its own.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import save_file
from torch import Tensor

from .. import Json
from ..errors import RunFailed
from . import llama_greedy, stock_peft, vllm_greedy
from .base_models import Source

Continuation = list[tuple[int, float]]
"""Token ids with their log-probabilities."""


def vllm_command(base: str, folder: Path, rank: int | None) -> str:
    """Return the command that serves the adapter in ``folder`` by vLLM.

    Args:
        base: the base model.
        folder: of the plain LoRA adapter.
        rank: the ``max_lora_rank`` that vLLM needs; None where the adapter's rank is too large.
    """
    if rank is None:
        return "sdslora merge ...: the rank is above all that vLLM allows"
    lora = shlex.quote(f"{folder.name}={folder}")
    options = f"--enable-lora --max-lora-rank {rank} --lora-modules {lora}"
    return f"vllm serve {shlex.quote(base)} {options}"


def llama_command(adapter: Path, base: str = "BASE.gguf") -> str:
    """Return the command that serves the adapter's GGUF file by llama.cpp."""
    return f"llama-server -m {shlex.quote(base)} --lora {shlex.quote(str(adapter))}"


def compare_in_stock_peft(
    plain: Path, probe: dict[str, Tensor], logits: Tensor, source: Source
) -> dict[str, float]:
    """Load the plain adapter in a process that never imports this package, and compare the logits.

    Args:
        plain: the exported adapter.
        probe: ``input_ids`` and ``attention_mask``, (n, t).
        logits: (n, t, v), of the original adapter.
        source: the base model.

    Returns:
        ``max_logit_difference`` and, for scale, ``max_change_by_adapter``.

    Raises:
        RunFailed: where stock PEFT cannot load the adapter.
    """
    with TemporaryDirectory() as name:
        file = Path(name, "probe.safetensors")
        save_file(probe | {"logits": logits.cpu().contiguous()}, file)
        arguments = json.dumps({"path": source.path, **source.load_arguments}, default=str)
        return _run("stock PEFT", stock_peft.__file__, plain, file, arguments)


def continue_in_llama_cpp(
    base: Path, adapter: Path, prompts: Sequence[list[int]], tokens: int, *, dequantize: bool
) -> list[Continuation]:
    """Return the greedy continuation of each prompt by llama.cpp.

    Args:
        base: the base model's GGUF file.
        adapter: the adapter's GGUF file.
        prompts: as token ids.
        tokens: the most tokens of a continuation.
        dequantize: whether to write the base in float32 first.
    """
    with TemporaryDirectory() as name:
        if dequantize:
            llama_greedy.dequantized(base, base := Path(name, "base.gguf"))
        file = _write_prompts(Path(name), prompts)
        return _run("llama.cpp", llama_greedy.__file__, base, adapter, file, tokens)


def continue_in_vllm(
    plain: Path, prompts: Sequence[list[int]], tokens: int, rank: int, source: Source
) -> list[Continuation]:
    """Return the greedy continuation of each prompt by vLLM; arguments as above."""
    with TemporaryDirectory() as name:
        file = _write_prompts(Path(name), prompts)
        dtype = str(source.dtype).removeprefix("torch.")
        return _run("vLLM", vllm_greedy.__file__, source.path, plain, file, tokens, rank, dtype)


def _write_prompts(folder: Path, prompts: Sequence[list[int]]) -> Path:
    file = folder / "prompts.json"
    file.write_text(json.dumps(list(prompts)), encoding="utf-8")
    return file


def _run(software: str, script: str, *arguments: object) -> Json:
    """Run a script, and return the JSON in the last line that it prints."""
    # -P: the script's own directory is not imported from
    command = [sys.executable, "-P", script, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        last_lines = "\n".join(result.stderr.strip().splitlines()[-5:])
        raise RunFailed(f"{software} could not use the export:\n{last_lines}")
    return json.loads(result.stdout.strip().splitlines()[-1])
