"""Thousands of hostile configurations, recipes and adapters: a clear error or a correct load.

As a program, writes what came of them into docs/results/reliability/fuzz.json.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import resource
import shutil
import signal
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from mutations import OPTIONS, TENSORS, Change, adapters, options, recipes
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from sdslora import SdsLoraConfig
from sdslora.app.config.parsing import parse
from sdslora.app.config.spec import TrainSpec
from sdslora.app.errors import UserError
from sdslora.app.files import write_json
from sdslora.app.models import saved_adapters
from sdslora.app.run.record import hardware, versions
from toys import make_llama, sds_model, train

RESULT = Path(__file__).parents[1] / "docs" / "results" / "reliability" / "fuzz.json"
LIMIT = 2.0  # seconds of processor time that an input may take
ENOUGH = 64 * 2**20  # bytes that one of these small inputs may let the process grow by

SHARES = {"configuration": 0.32, "recipe": 0.03, "adapter": 0.3, "beside": 0.175, "over": 0.175}
"""Of the inputs, by the door that they come in by. A recipe takes a hundred times as long."""

RECIPE: dict[str, Any] = {
    "output_dir": "run",
    "model": {"name_or_path": "smollm2"},
    "data": {"source": "rows.jsonl"},
    "adapter": {"r": 4, "warmup_steps": 3},
    "training": {"learning_rate": 1e-3, "num_train_epochs": 2, "use_cpu": True},
}
_SECTIONS = {
    "": ["output_dir", "model", "data", "adapter", "resume", "checks", "diagnostics"],
    "model": ["name_or_path", "dtype", "options", "revision", "gguf_file"],
    "data": ["source", "holdout", "size", "prompt", "options", "overlong", "validation"],
    "adapter": OPTIONS,
    "training": ["learning_rate", "max_steps", "seed", "num_train_epochs", "warmup_ratio"],
}


class TooSlow(BaseException):
    """An input that took longer than the limit; no code under test catches it."""


@dataclass
class Findings:
    """What came of the inputs of one door."""

    outcomes: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    """The clear ones, by type."""
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As the result's file has it."""
        return {
            "inputs": self.outcomes.total(),
            "outcomes": dict(sorted(self.outcomes.items())),
            "errors": dict(self.errors.most_common()),
            "slowest input, seconds of processor time": round(self.slowest, 3),
            "failures": self.failures,
        }


Door = Callable[[Any, Path], str]
"""Takes an input and an empty folder; returns the outcome, or raises a clear error."""


# Not one of these is a crash: each comes with words about the file.
_CLEAR = (ValueError, OSError, SafetensorError)


def fuzz(door: str, count: int, number: int, work: Path) -> Findings:
    """Give ``count`` inputs to a door.

    Args:
        door: of :data:`SHARES`.
        count: inputs.
        number: seed of the inputs.
        work: an empty folder.
    """
    findings = Findings()
    inputs, enter = doors(work)[door]

    # only generated: a failure is noted, and those that follow are tried as well
    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def one(value: Any) -> None:
        attempt(findings, enter, value, work)

    with warnings.catch_warnings(), at_work():
        warnings.simplefilter("ignore")
        one()
    return findings


def attempt(findings: Findings, enter: Door, value: Any, work: Path) -> None:
    """Give one input to a door, and note what came of it."""
    folder = work / "input"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    before, size = _seconds(), _bytes()
    try:
        with _limited():
            outcome = enter(value, folder)
    except _CLEAR as error:
        outcome = "clear error"
        findings.errors[type(error).__name__] += 1
        if len(str(error)) < 10:
            outcome = "error without words"
    except RuntimeError as error:
        # PyTorch's own for another shape
        outcome = "clear error" if "size mismatch" in str(error) else "crash"
        findings.errors[type(error).__name__] += 1
    except TooSlow:
        outcome = "hang"
    except Exception as error:
        outcome = f"crash: {type(error).__name__}: {error}"
    if _bytes() - size > ENOUGH:
        outcome = "memory"
    findings.slowest = max(findings.slowest, _seconds() - before)
    if outcome not in ("clear error", "correct load"):
        findings.failures.append(f"{outcome}: {_shown(value, folder)}"[:600])
        outcome = outcome.partition(":")[0]
    findings.outcomes[outcome] += 1


def doors(work: Path) -> dict[str, tuple[Any, Door]]:
    """What each door is given, and what happens behind it."""
    good = work / "good"
    base = make_llama(num_hidden_layers=1, hidden_size=16, intermediate_size=24)
    if not good.exists():
        model = sds_model(copy.deepcopy(base), r=2, rank_pattern={"q_proj": 3})
        train(model, 5)
        model.save_pretrained(good)
    beside = PeftModel.from_pretrained(copy.deepcopy(base), good, adapter_name="mine")
    changes = adapters(good)
    return {
        "configuration": (options, _configuration),
        "recipe": (recipes(RECIPE, _SECTIONS), _recipe),
        "adapter": (changes, _Loading(good, base, None)),
        "beside": (changes, _Loading(good, beside, "other")),
        "over": (changes, _Loading(good, beside, "mine")),
    }


def _configuration(given: dict[str, Any], folder: Path) -> str:
    """Built, saved and read again, it is what was given."""
    config = SdsLoraConfig(**given)
    config.save_pretrained(str(folder))
    again = SdsLoraConfig.from_pretrained(folder)
    return "correct load" if again == config and _holds(config, given) else "another configuration"


def _recipe(text: bytes, folder: Path) -> str:
    """The command line's errors alone are clear here."""
    path = folder / "recipe.yaml"
    path.write_bytes(text)
    try:
        spec = parse(TrainSpec, [str(path)], "sdslora train")
    except UserError:
        raise
    except Exception as error:
        raise AssertionError(f"{type(error).__name__} instead of UserError: {error}") from error
    assert isinstance(spec.adapter, SdsLoraConfig)
    return "correct load"


class _Loading:
    """An adapter that was changed is loaded: onto a base, beside another adapter, or over it.

    Args:
        good: the folder of the adapter that is changed.
        start: the model that it is loaded onto.
        name: of the adapter where ``start`` has adapters already.
    """

    def __init__(self, good: Path, start: nn.Module, name: str | None) -> None:
        self.good, self.start, self.name = good, start, name

    def __call__(self, change: Change, folder: Path) -> str:
        shutil.copytree(self.good, folder, dirs_exist_ok=True)
        change(folder)
        config = saved_adapters.read_config(str(folder))
        if not isinstance(config, SdsLoraConfig):
            return "correct load"  # of another method, which the file now says it is
        model = copy.deepcopy(self.start)
        before = _state(model)
        try:
            loaded = self._load(model, folder)
        except Exception:
            if _state(model) != before:
                return "partial state"
            raise
        return self._judge(loaded, folder)

    def _load(self, model: Any, folder: Path) -> PeftModel:
        if self.name is None:
            return PeftModel.from_pretrained(model, folder)
        model.load_adapter(folder, self.name)
        return model

    def _judge(self, model: PeftModel, folder: Path) -> str:
        """Whether the model has the numbers that the file has."""
        name = self.name or "default"
        file = load_file(folder / TENSORS)
        ours = get_peft_model_state_dict(model, adapter_name=name)
        for key, tensor in ours.items():
            theirs = file[key].to(tensor.dtype)
            if not torch.equal(tensor.nan_to_num(), theirs.nan_to_num()):
                return "other numbers"
        given = json.loads((folder / "adapter_config.json").read_text())
        # over an adapter that is there, PEFT loads tensors alone
        fits = self.name == "mine" or _holds(model.peft_config[name], given)
        return "correct load" if fits else "another configuration"


def _holds(config: SdsLoraConfig, given: dict[str, Any]) -> bool:
    """Whether the numbers of a configuration are those given; null stands for a preset's."""
    names = ("r", "lora_alpha", "use_rslora", "warmup_steps", "refresh_phases", "refresh_mode")
    names += ("refresh_every", "transport_momentum")
    return all(getattr(config, n) == given[n] for n in names if given.get(n) is not None)


def _state(model: nn.Module) -> Any:
    """All that a rejected load must leave: modules, tensors bit for bit, adapters, which is active.

    Of the base model alone, PEFT freezes the parameters; that is not looked at.
    """
    modules = [(name, type(module)) for name, module in model.named_modules()]
    tensors = {k: (t.dtype, t.numpy().tobytes()) for k, t in model.state_dict().items()}
    adapters = dict(model.peft_config) if isinstance(model, PeftModel) else {}
    active = (
        model.active_adapters if isinstance(model, PeftModel) else hasattr(model, "peft_config")
    )
    return modules, tensors, adapters, active


def _shown(value: Any, folder: Path) -> str:
    if not callable(value):
        return repr(value)
    config = folder / "adapter_config.json"
    text = config.read_bytes() if config.exists() else b"no configuration"
    if b'"SDSLORA"' in text and text != (folder.parent / "good" / config.name).read_bytes():
        good = json.loads((folder.parent / "good" / config.name).read_text())
        try:
            return repr({k: v for k, v in json.loads(text).items() if v != good.get(k)})
        except (ValueError, AttributeError):
            return repr(text)
    file = folder / TENSORS
    try:
        return repr({k: (v.dtype, tuple(v.shape)) for k, v in load_file(file).items()})
    except Exception as error:
        return f"{error}"


@contextmanager
def _limited() -> Iterator[None]:
    """Raise :class:`TooSlow` in what takes longer: a signal stops even a regular expression."""
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


@contextmanager
def at_work() -> Iterator[None]:
    """Let the timer of :func:`_limited` raise, as long as this lasts."""

    def stop(*_: object) -> None:
        raise TooSlow

    old = signal.signal(signal.SIGPROF, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGPROF, old)


def _seconds() -> float:
    """Processor time of this process and of those that it waited for."""
    mine, theirs = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return mine.ru_utime + mine.ru_stime + theirs.ru_utime + theirs.ru_stime


def _bytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Try every door, and write the result's file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "seed": given.seed,
        "limit in seconds": LIMIT,
        "versions": versions(["hypothesis", "safetensors"]),
        "hardware": hardware(),
        "doors": {},
    }
    for door, share in SHARES.items():
        with tempfile.TemporaryDirectory() as work:
            findings = fuzz(door, round(share * given.inputs), given.seed, Path(work))
        result["doors"][door] = findings.to_dict()
        print(door, dataclasses.asdict(findings)["outcomes"], flush=True)
        for failure in findings.failures[:20]:
            print("   ", failure, flush=True)
    write_json(RESULT, result)
    if any(door["failures"] for door in result["doors"].values()):
        raise SystemExit("an input was neither rejected clearly nor loaded correctly")


if __name__ == "__main__":
    main()
