"""What is done in several processes, and what each process saw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from engines import ENGINES, Engine, batch, empty
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial

from sdslora import SdsLoraScheduler
from sdslora.training.checks.digests import digests
from sdslora.training.distributed import DistributedPartition

A_PARAMETER = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
STEPS = 50
WARMUP = 10
SAVED = (WARMUP, 25)
"""Steps after which a training is saved: the one that resets the optimizer, and a later one."""


def trained(
    engine: Engine,
    folder: Path | None = None,
    begin: int = 0,
    end: int = STEPS,
    batches: int = 1,
) -> dict[str, Any]:
    """Losses of the steps after ``begin``; states saved on the way where there is a ``folder``."""
    scheduler = SdsLoraScheduler(engine.model, engine.optimizer, STEPS)
    if begin:
        engine.load(folder / str(begin))
        scheduler.load_state_dict(json.loads((folder / f"{begin}.json").read_text()))
    losses, reports, same, refreshes = [], [], True, scheduler.refresh_count
    for step in range(begin + 1, end + 1):
        losses.append(engine.step(*(batch(step * batches + i) for i in range(batches))))
        reports.append(scheduler.step(measure=step < 20))
        if scheduler.refresh_count > refreshes or step == WARMUP:
            refreshes = scheduler.refresh_count
            same = same and bases_are_the_same(engine)
        if folder is not None and not begin and step in SAVED:
            engine.save(empty(folder / str(step)))
            (folder / f"{step}.json").write_text(json.dumps(scheduler.state_dict()))
    return {
        "losses": losses,
        "same_bases": same,
        "refreshes": scheduler.refresh_count,
        "report": next((tuple(report) for report in reports if report is not None), None),
        "shared": isinstance(scheduler.adapters[0].layer_partition, DistributedPartition),
        "sharded": is_sharded(engine.peft.get_parameter(A_PARAMETER)),
    }


def is_sharded(parameter: torch.nn.Parameter) -> bool:
    return isinstance(parameter, DTensor) or hasattr(parameter, "ds_id")


def bases_are_the_same(engine: Engine) -> bool:
    """Bit for bit in every process; A and B too, where each has all of them."""
    if not dist.is_initialized():
        return True
    tensors = [(n, b) for n, b in engine.peft.named_buffers() if ".lora_sds." in n]
    tensors += [
        (n, p)
        for n, p in engine.peft.named_parameters()
        if ".lora_" in n and not isinstance(p, DTensor) and p.numel()
    ]
    mine = digests(tensors)
    all_of_them: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(all_of_them, mine)
    assert len(mine) >= 3 * 14
    return all(its == mine for its in all_of_them)


def whole_life(name: str, folder: Path, **options: Any) -> dict[str, Any]:
    """Trained, saved on the way, exported; and resumed from each state saved."""
    engine = ENGINES[name](**options)
    result = trained(engine, folder)
    engine.export(empty(folder / "adapter"))
    resumed = {b: trained(ENGINES[name](**options), folder, b)["losses"] for b in SAVED}
    return result | {"resumed": resumed}


def lives(names: list[str], folder: Path) -> dict[str, Any]:
    """Of several engines, one after the other."""
    return {name: whole_life(name, folder / name) for name in names}


def uneven() -> dict[str, Any]:
    return trained(ENGINES["FSDP2"](r=2), end=WARMUP + 5)


def tuned(folder: Path, **more: Any) -> dict[str, Any]:
    """Of every engine itself; and gone back to where no momentum had been carried over yet."""
    options, end, found = {"preset": "tuned", "ramp_steps": 3, **more}, WARMUP + 5, {}
    for name in ENGINES:
        if name.startswith("Accelerate") or (more.get("use_hira") and name.endswith("ZeRO-3")):
            continue
        engine = ENGINES[name](**options)
        result = trained(engine, folder / name, end=end)
        found[name] = result | {"again": trained(engine, folder / name, WARMUP, end)["losses"]}
    return found


def accumulated() -> dict[str, Any]:
    return trained(ENGINES["DDP"](), end=WARMUP + 5, batches=2)


def refused() -> str:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    tensor = DTensor.from_local(torch.ones(2, 3), mesh, [Partial()])
    try:
        DistributedPartition(mesh).gather([tensor])
    except ValueError as error:
        return str(error)
    raise AssertionError("not refused")


def alone(end: int = STEPS, batches: int = 1, **options: Any) -> tuple[dict[str, Any], Engine]:
    """The same training in one process."""
    engine = Engine(**options)
    return trained(engine, end=end, batches=batches), engine
