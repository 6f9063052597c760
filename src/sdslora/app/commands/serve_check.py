"""``sdslora serve-check``: the adapter in other software, compared with the adapter here."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import PeftModel
from torch import Tensor

from ...export.gguf_lora import ARCHITECTURES, GGUF_NAME
from ...export.plain_lora import vllm_rank
from ..config.parsing import parse
from ..errors import RunFailed, UserError
from ..evaluation.inference import inference, to_accelerator
from ..files import reject_used
from ..models import base_models, model_card, saved_adapters, serving
from ..models.base_models import LanguageModel
from ..models.saved_adapters import BaseModelSpec, SavedAdapter
from ..models.serving import Continuation
from .export import ExportSpec, write

PROMPTS = (
    "Once upon a time, there was",
    "The capital of Italy is",
    "def fibonacci(n):",
    "To make bread, you need",
)
SHARE = 0.1
"""A difference up to this share of what the adapter changes counts as rounding."""
ROUNDING = 1e-4
"""A difference that is always rounding."""


@dataclass
class ServeCheckSpec:
    """Export an adapter, load it in other software, compare, and print the commands to serve it.

    Stock PEFT is always checked, llama.cpp and vLLM where they are installed.

    Args:
        adapter_dir: The adapter, or the output directory of a run.
        output_dir: Where to keep the exported adapter; by default it is removed after the check.
        model: The base model; the one that the adapter names where not given.
        base_gguf: The base model as a GGUF file, for llama.cpp; not needed where the base model
            itself is read from a GGUF file.
        tokens: Tokens by which llama.cpp and vLLM continue each prompt.
    """

    adapter_dir: str
    model: BaseModelSpec
    output_dir: str | None = None
    base_gguf: str | None = None
    tokens: int = 16

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise UserError(f"tokens must be 1 or more, not {self.tokens}")
        if self.base_gguf is not None and not Path(self.base_gguf).is_file():
            raise UserError(f"base_gguf: there is no file {self.base_gguf}")


@dataclass(frozen=True)
class Row:
    """A line of the table: a difference and the adapter's change for scale, or why there is none.

    Attributes:
        software: its name.
        compared: what was compared, or why nothing was.
        difference: the largest absolute difference from the adapter here.
        change: the largest absolute change by the adapter.
    """

    software: str
    compared: str
    difference: float | None = None
    change: float | None = None

    @property
    def differs(self) -> bool:
        """True where the difference is more than rounding."""
        if self.difference is None or self.change is None:
            return False
        # not <=: a NaN differs
        return not self.difference <= max(SHARE * self.change, ROUNDING)


def command(argv: Sequence[str]) -> None:
    """Run ``sdslora serve-check`` with these arguments."""
    serve_check(parse(ServeCheckSpec, argv, "sdslora serve-check", ("adapter_dir",)))


def serve_check(spec: ServeCheckSpec) -> list[Row]:
    """Export, compare, print the table and the commands; return the table.

    Raises:
        UserError: where the adapter or its base model are missing, or it is no language model.
        RunFailed: where software cannot load the adapter, or computes something else.
    """
    if spec.output_dir is not None:
        reject_used(Path(spec.output_dir))
    adapter = saved_adapters.find(spec.adapter_dir, spec.model)
    if not isinstance(adapter.source, LanguageModel):
        raise UserError("serve-check reads adapters of language models; `sdslora export` writes it")
    with TemporaryDirectory() as name:
        plain = Path(spec.output_dir or Path(name, "plain"))
        rank = write(ExportSpec(spec.adapter_dir, str(plain), spec.model)).rank
        rows = list(_check(spec, adapter, plain, rank, Path(name)))
    print(_table(rows))
    print("\nto serve it:")
    kept = Path(spec.output_dir or "plain")
    for line in _commands(spec, adapter, kept, rank):
        print(f"  {line}")
    wrong = [row.software for row in rows if row.differs]
    if wrong:
        raise RunFailed(
            f"{' and '.join(wrong)} computes something else: the difference is over {SHARE:.0%} of "
            "what the adapter changes"
        )
    return rows


def _check(
    spec: ServeCheckSpec, adapter: SavedAdapter, plain: Path, rank: int, folder: Path
) -> Iterator[Row]:
    tokenizer = adapter.processor()
    prompts = [tokenizer(text).input_ids for text in PROMPTS]
    model = adapter.load()
    to_accelerator(model, spec.model.options)

    probe = _padded(prompts, tokenizer.pad_token_id)
    with inference(model):
        inputs = {name: tensor.to(model.device) for name, tensor in probe.items()}
        logits = model(**inputs, use_cache=False).logits
    result = serving.compare_in_stock_peft(plain, probe, logits, adapter.source)
    count = int(probe["attention_mask"].sum())
    yield Row("stock PEFT", f"logits at {count} tokens", *result.values())
    yield _llama_row(spec, adapter, model, prompts, folder)
    yield _vllm_row(spec, adapter, model, prompts, plain, vllm_rank(rank))


def _llama_row(
    spec: ServeCheckSpec,
    adapter: SavedAdapter,
    model: PeftModel,
    prompts: list[list[int]],
    folder: Path,
) -> Row:
    packed = base_models.gguf_path(adapter.source.spec)
    base = Path(spec.base_gguf) if spec.base_gguf else packed
    kind = getattr(model.config, "model_type", None)
    for missing in ("xllamacpp", "gguf"):
        if find_spec(missing) is None:
            return Row("llama.cpp", f"not installed here (pip install {missing})")
    if kind not in ARCHITECTURES:
        return Row("llama.cpp", f"not checked: no GGUF export for models of type {kind}")
    if base is None:
        return Row("llama.cpp", "not checked: give the base model by --base_gguf FILE")
    gguf = folder / "gguf"
    write(ExportSpec(spec.adapter_dir, str(gguf), spec.model, format="gguf"))
    theirs = serving.continue_in_llama_cpp(
        base, gguf / GGUF_NAME, prompts, spec.tokens, dequantize=base == packed
    )
    return _continued("llama.cpp", model, prompts, theirs)


def _vllm_row(
    spec: ServeCheckSpec,
    adapter: SavedAdapter,
    model: PeftModel,
    prompts: list[list[int]],
    plain: Path,
    rank: int | None,
) -> Row:
    if find_spec("vllm") is None:
        return Row("vLLM", "not installed here (pip install vllm)")
    if rank is None:
        return Row("vLLM", "not checked: the rank is above all that vLLM allows")
    theirs = serving.continue_in_vllm(plain, prompts, spec.tokens, rank, adapter.source)
    return _continued("vLLM", model, prompts, theirs)


def _continued(
    software: str, model: PeftModel, prompts: list[list[int]], theirs: list[Continuation]
) -> Row:
    """Return the row of a continuation: its tokens' log-probabilities there and here."""
    difference, change, count = 0.0, 0.0, 0
    for prompt, continuation in zip(prompts, theirs, strict=True):
        if not continuation:
            continue
        ids = [i for i, _ in continuation]
        values = torch.tensor([value for _, value in continuation])
        own = _log_probabilities(model, prompt, ids)
        with model.disable_adapter():
            base = _log_probabilities(model, prompt, ids)
        difference = max(difference, (own - values).abs().max().item())
        change = max(change, (own - base).abs().max().item())
        count += len(ids)
    return Row(software, f"log-probabilities of {count} tokens", difference, change)


def _log_probabilities(model: PeftModel, prompt: list[int], ids: list[int]) -> Tensor:
    """Return the log-probability of each of ``ids`` after what stands before it."""
    tokens = torch.tensor([prompt + ids], device=model.device)
    with inference(model):
        logits = model(input_ids=tokens, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    chosen = tokens[0, len(prompt) :, None]
    return logits.log_softmax(-1).gather(-1, chosen)[:, 0].cpu()


def _padded(prompts: list[list[int]], pad_id: int) -> dict[str, Tensor]:
    longest = max(map(len, prompts))
    ids = [prompt + [pad_id] * (longest - len(prompt)) for prompt in prompts]
    mask = [[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def _table(rows: Sequence[Row]) -> str:
    header = ("software", "compared", "largest difference", "change by the adapter")
    cells = [
        header,
        *((r.software, r.compared, *map(_number, (r.difference, r.change))) for r in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    return "\n".join(line.rstrip() for line in lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _commands(spec: ServeCheckSpec, adapter: SavedAdapter, plain: Path, rank: int) -> Iterator[str]:
    base = model_card.hub_name(adapter.source.spec.name_or_path)
    if spec.output_dir is None:
        yield f"sdslora export {spec.adapter_dir} {plain}"
    yield serving.vllm_command(base, plain, vllm_rank(rank))
    if getattr(adapter.source.config, "model_type", None) in ARCHITECTURES:
        gguf = plain.with_name(f"{plain.name}-gguf")
        yield f"sdslora export {spec.adapter_dir} {gguf} --format gguf"
        packed = base_models.gguf_path(adapter.source.spec)
        file = spec.base_gguf or (str(packed) if packed else "BASE.gguf")
        yield serving.llama_command(gguf / GGUF_NAME, file)
