"""Measure Table 6: the time and memory of a training step of SDS-LoRA and of LoRA.

Both train the same base in turn, in one process. The memory of a step on a GPU is the allocator's
peak. Elsewhere it is the tensors that autograd saved, with parameters, gradients and moments.
"""

import copy
import gc
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ....app.config.spec import ModelSpec
from ....app.errors import UserError
from ....app.evaluation.inference import to_accelerator
from ....app.models import base_models
from ....app.progress import Progress
from ....app.run.record import Config
from ....methods import Settings, make_method
from ...plotting.markdown import table
from ..target import Numbers, results
from . import cost_page, estimate, page
from .paper_settings import LLAMA3
from .table import OUTPUT

METHODS = ("lora", "sds-lora")
_WARM_STEPS = 12  # past the ten of plain LoRA, the re-parameterization, and a first refresh


@dataclass
class CostSpec:
    """Measure training steps of LoRA and of SDS-LoRA in turn, on random tokens.

    Args:
        output_dir: Directory of the results.
        scale: Whose settings these are: "small" or "paper".
        model: A model by path, Hub id, or this package's names.
        rank: r.
        rows: Of a step.
        tokens: Of a row.
        rounds: Steps of each that are measured.
        dry_run: Print what would be done, and stop.
    """

    output_dir: str
    scale: str
    model: str
    rank: int
    rows: int
    tokens: int
    rounds: int
    dry_run: bool = False

    def __post_init__(self) -> None:
        for name in ("rank", "rows", "tokens", "rounds"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, not {getattr(self, name)}")


@dataclass(frozen=True)
class CostTable:
    """Table 6, which compares costs."""

    @property
    def title(self) -> str:
        """The title, in a few words."""
        return "Table 6: time and memory of a training step"

    @property
    def spec(self) -> type[CostSpec]:
        """The dataclass of its settings."""
        return CostSpec

    @property
    def scales(self) -> Mapping[str, Mapping[str, object]]:
        """A model that fits a CPU, and one of the paper's size.

        The paper does not name the model of this table, nor its rank: LLaMA3-8B and 8 are ours.
        """
        common = {"output_dir": OUTPUT, "rank": 8}
        return {
            "small": {**common, "model": "smollm2", "rows": 2, "tokens": 128, "rounds": 5},
            "paper": {**common, "model": LLAMA3.name, "rows": 32, "tokens": 512, "rounds": 50},
        }

    @property
    def plan(self) -> Callable[[CostSpec], str]:
        """The function that describes the steps, after the paper's figures at paper scale."""
        return _plan

    def produce(self, name: str, spec: CostSpec, config: Config) -> Path:
        """Measure, write the table, and return its folder.

        Raises:
            UserError: if there is no such model.
        """
        numbers = measure(spec)
        content = results(name, self.title, config, numbers)
        print(table(*cost_page.cells(numbers)))
        return page.write_files(content, cost_page.texts(content))


def measure(spec: CostSpec) -> Numbers:
    """Return the seconds of every step, and the bytes of a step, by method."""
    base = base_models.find(ModelSpec(spec.model)).load().requires_grad_(False)
    to_accelerator(base, {})
    vocabulary: int = base.config.get_text_config().vocab_size
    torch.manual_seed(0)
    tokens = torch.randint(vocabulary, (spec.rows, spec.tokens), device=base.device)
    bytes_of = {}
    for name in METHODS:  # one at a time in memory
        bytes_of[name] = _Training(name, base, spec, tokens).bytes()
        gc.collect()
    trainings = {name: _Training(name, base, spec, tokens) for name in METHODS}
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for _ in Progress(range(spec.rounds), title="rounds"):
        for name, training in trainings.items():
            seconds[name].append(training.seconds())
    return {
        "device": str(base.device),
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "bytes": bytes_of,
    }


class _Training:
    """A training of ``base``, whose weights are shared, by one method, after its warm-up."""

    def __init__(self, name: str, base: nn.Module, spec: CostSpec, tokens: Tensor) -> None:
        model = copy.deepcopy(base, {id(p): p for p in base.parameters()})
        method = make_method(name)
        self.model = method.attach(model, Settings(spec.rank, "all-linear", "CAUSAL_LM"))
        self.optimizer = method.optimizer(self.model, 1e-4)
        total = _WARM_STEPS + spec.rounds + 2
        self.scheduler = method.scheduler(self.model, self.optimizer, total)
        self.tokens = tokens
        self.model.train()
        for _ in range(_WARM_STEPS):
            self.step()

    def step(self) -> None:
        """Run one training step, and the method's own work after it."""
        self._loss().backward()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)

    def seconds(self) -> float:
        """Return the seconds of one step."""
        _synchronize()
        start = time.perf_counter()
        self.step()
        _synchronize()
        return time.perf_counter() - start

    def bytes(self) -> int:
        """Return the bytes of a step: the peak on a GPU, else those when its backward begins."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self.step()
            return torch.cuda.max_memory_allocated()
        moments = [v for state in self.optimizer.state.values() for v in state.values()]
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        weights = [*self.model.parameters(), *self.model.buffers()]
        storages = _storages([*weights, *(v for v in moments if isinstance(v, Tensor))])

        def pack(tensor: Tensor) -> Tensor:
            storages.update(_storages([tensor]))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self._loss()
        loss.backward()  # frees the tensors of the graph
        self.optimizer.zero_grad(set_to_none=True)
        return sum(storages.values()) + sum(p.nbytes for p in trainable)

    def _loss(self) -> Tensor:
        loss: Tensor = self.model(input_ids=self.tokens, labels=self.tokens, use_cache=False).loss
        return loss


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Return the bytes of each distinct storage under ``tensors``, by address."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _plan(spec: CostSpec) -> str:
    description = (
        f"{' and '.join(METHODS)} on {spec.model}, rank {spec.rank}: {spec.rounds} steps of "
        f"{spec.rows} x {spec.tokens} tokens each, in turn, after {_WARM_STEPS} of warm-up"
    )
    if spec.model != LLAMA3.name:
        return description
    steps = len(METHODS) * (2 * _WARM_STEPS + 1 + spec.rounds)
    cost = estimate.of_steps(spec.rank, spec.rows * spec.tokens, steps)
    return f"{table(*cost_page.cells(None))}\n\n{description}\n{cost}"
