"""Many adapters and large ones: memory that does not grow, outputs that are each adapter's own.

As a program, writes what it measured into docs/results/reliability/load.json.
"""

from __future__ import annotations

import argparse
import copy
import gc
import random
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from torch.profiler import ProfilerActivity, profile

from sdslora import SdsLoraConfig
from sdslora.app.files import write_json
from sdslora.app.run.record import hardware, versions
from sdslora.core import RefreshMode
from sdslora.tuner import LIVE_LAYERS, PhasedAdapter
from toys import VOCABULARY, logits, make_llama, sds_layers, sds_model

RESULT = Path(__file__).parents[1] / "docs" / "results" / "reliability" / "load.json"
BOUNDS: dict[RefreshMode, float] = {"qr": 2.25, "preserve": 8.0}
"""Of the memory that a refresh takes, in sizes of the bases (see :func:`refreshed`)."""


def saved_and_loaded(count: int, work: Path) -> dict[str, Any]:
    """Load, change, save and remove one adapter after another on one model.

    Memory is looked at after a tenth of them, which fill the caches of all libraries, and at the
    end.
    """
    model = sds_model(make_llama(), r=2, target_modules=["q_proj", "up_proj"])
    _in_main_stage(model, seed=0)
    model.save_pretrained(work / "next", selected_adapters=["default"])
    warm = count // 10
    for number in range(1, count + 1):
        model.load_adapter(work / "next", "next")
        for parameter in PhasedAdapter(model, "next").parameters:
            parameter.data += 1.0
        model.save_pretrained(work, selected_adapters=["next"])
        model.delete_adapter("next")
        if number == warm:
            before = _held()
    after = _held()
    file = work / "next" / "adapter_model.safetensors"
    model.load_adapter(work / "next", "last")
    pairs = zip(
        PhasedAdapter(model, "last").parameters,
        PhasedAdapter(model, "default").parameters,
        strict=True,
    )
    expected = ((mine, sum([1.0] * count, start=its)) for mine, its in pairs)
    return {
        "adapters": count,
        "growth of resident memory, bytes an adapter": (after[0] - before[0]) / (count - warm),
        "of these by reading the file alone": _kept_by_reading(file, count),
        "bytes of one adapter": file.stat().st_size,
        "layers left behind": after[1] - before[1],
        "difference of the last adapter": max(
            float((a - b).detach().abs().max()) for a, b in expected
        ),
    }


def _kept_by_reading(file: Path, times: int) -> float:
    """Bytes that stay of each ``load_file``: the reader of safetensors keeps some of each name."""
    for _ in range(times // 10):
        load_file(file)
    before = _held()
    for _ in range(times):
        load_file(file)
    return (_held()[0] - before[0]) / times


def switched(adapters: int, times: int) -> dict[str, Any]:
    """Many adapters on one model, switched at random; each must give what it gives alone."""
    ids = torch.randint(0, VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(1))
    names = [f"adapter{number}" for number in range(adapters)]
    model: PeftModel | None = None
    alone = {}
    for number, name in enumerate(names):
        rank = 1 + number % 4
        config = SdsLoraConfig(r=rank, target_modules=["q_proj", "up_proj"])
        if model is None:
            model = PeftModel(make_llama(), config, adapter_name=name).eval()
        else:
            model.add_adapter(name, config)
        _in_main_stage(model, seed=number, adapter=name)
        single = PeftModel(make_llama(), copy.deepcopy(config), adapter_name=name).eval()
        _in_main_stage(single, seed=number, adapter=name)
        alone[name] = logits(single, ids)
    assert model is not None
    draw, wrong = random.Random(0), 0
    for _ in range(times):
        name = draw.choice(names)
        model.set_adapter(name)
        wrong += not torch.equal(logits(model, ids), alone[name])
    with model.disable_adapter():
        wrong += not torch.equal(logits(model, ids), logits(make_llama(), ids))
    outputs = {tuple(output.flatten().tolist()) for output in alone.values()}
    return {
        "adapters on one model": adapters,
        "switches": times,
        "different outputs": len(outputs),
        "outputs of another adapter": wrong,
    }


def refreshed(layers: int, rank: int, width: int) -> dict[str, Any]:
    """The most memory that a refresh takes beside the model, in sizes of all its bases together.

    A refresh writes its results into the tensors that are there, so that what it takes is of the
    size of the factors, 2 · width · rank numbers a layer, and never of the weights'. By arithmetic,
    where all layers have one shape: ``qr`` takes A and then B, half a size each; the stacked
    copy, the factorization's own, its result, and that with its signs fixed are 2 sizes.
    ``preserve`` holds old and new of all four factors (4 sizes) and as much on the way. Counted
    are PyTorch's allocations: what a process holds depends on what it has freed before.
    """
    base = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
    model = sds_model(base, r=rank, target_modules=[str(number) for number in range(layers)])
    _in_main_stage(model, seed=0)
    adapter = PhasedAdapter(model, "default")
    size = layers * 2 * width * rank * 4
    result: dict[str, Any] = {"layers": layers, "rank": rank, "width": width}
    result["bytes of the bases"] = size
    result["bounds"] = BOUNDS
    for mode in BOUNDS:
        taken = _most_allocated(partial(adapter.refresh_bases, mode))
        result[f"memory of a {mode} refresh, in sizes of the bases"] = round(taken / size, 2)
    result["largest |QᵀQ − I|"] = max(
        float((Q.mT @ Q - torch.eye(rank)).abs().max())
        for layer in sds_layers(model).values()
        for Q in (layer.adapter_state("default").Q_A, layer.adapter_state("default").Q_B)
    )
    return result


def _most_allocated(action: Callable[[], object]) -> int:
    """The most bytes at once that an action has PyTorch allocate on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        action()
    results = profiled.profiler.kineto_results
    events = sorted(
        (event.start_ns(), event.nbytes())
        for event in results.events()
        if event.name() == "[memory]"
    )
    return max(accumulate(size for _, size in events))


def _in_main_stage(model: nn.Module, seed: int, adapter: str = "default") -> None:
    """Give the adapter random A and B, and take it past its warm-up."""
    random_numbers = torch.Generator().manual_seed(seed)
    phased = PhasedAdapter(model, adapter)
    for parameter in phased.parameters:
        parameter.data = torch.randn(parameter.shape, generator=random_numbers)
    phased.start_main_stage()


def _held() -> tuple[int, int]:
    """Resident memory in bytes, and adapted layers alive, once all garbage is collected."""
    gc.collect()
    return _resident(), len(LIVE_LAYERS)


def _resident() -> int:
    return psutil.Process().memory_info().rss


def main() -> None:
    """Measure, and write the result's file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=1000, help="saved and loaded in turn")
    given = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"versions": versions(), "hardware": hardware()}
    with tempfile.TemporaryDirectory() as work:
        result["saved and loaded"] = saved_and_loaded(given.adapters, Path(work))
    result["switched"] = switched(64, 1000)
    result["refreshed"] = refreshed(layers=224, rank=256, width=512)
    write_json(RESULT, result)
    for name in ("saved and loaded", "switched", "refreshed"):
        print(name, result[name], flush=True)
    if failures := broken(result):
        raise SystemExit("; ".join(failures))


def broken(result: dict[str, Any]) -> list[str]:
    """What does not hold of the figures."""
    files, turns, refresh = (result[name] for name in ("saved and loaded", "switched", "refreshed"))
    found = []
    per_adapter = files["growth of resident memory, bytes an adapter"]
    ours = per_adapter - files["of these by reading the file alone"]
    if ours > files["bytes of one adapter"] / 10 or files["layers left behind"]:
        found.append("memory grows with the adapters that were loaded")
    if files["difference of the last adapter"]:
        found.append("an adapter was changed by saving and loading")
    if turns["outputs of another adapter"]:
        found.append("an adapter gave other outputs than alone")
    for mode, bound in BOUNDS.items():
        taken = refresh[f"memory of a {mode} refresh, in sizes of the bases"]
        if taken > bound:
            found.append(f"a {mode} refresh took {taken} sizes of the bases, more than {bound}")
    return found


if __name__ == "__main__":
    main()
