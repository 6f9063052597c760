"""Hostile inputs: values, recipes and adapters that someone wrote to do harm, or by mistake."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from hypothesis import strategies as st
from safetensors.torch import load_file, save
from torch import Tensor

from sdslora import SdsLoraConfig

OPTIONS = [field.name for field in dataclasses.fields(SdsLoraConfig)]
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_SLOW = ("(a+)+$", "(.*.*)*x", "(?:(?:[a-z_.0-9]+)+)+!", "(a|a|[a-z])*(.*)*!", "(_?p?r?o?j?)*+x")
_NAMES = ("q_proj", "up_proj", "all-linear", r".*\.(q|v)_proj", "lm_head", "../../etc/passwd")
_ODD = (
    *(None, True, False, 0, -1, 1, 2, 3, 4, 8, 33, 10**5, 10**9, 2**63, 10**30),
    *(0.0, 0.5, -0.5, 1.5, 1e308, math.nan, math.inf, -math.inf),
    *("", "4", "nan", "(", "[", "*", "a{99999999999}", "\0", "é\U0001f600", "x" * 30_000, *_SLOW),
    *_NAMES,
)

scalars = st.sampled_from(_ODD) | st.integers(-10, 100) | st.floats() | st.text(max_size=12)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*_NAMES, *_SLOW, "(", ""]) | st.text(max_size=6), inner)
    ),
    max_leaves=5,
)
options = st.dictionaries(st.sampled_from(OPTIONS), values, max_size=4)


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """``good`` with a few bytes changed, put in or taken out, or its end cut off."""
    data = bytearray(good)
    # the beginning is where the structure is
    places = st.integers(0, min(len(data), 200)) | st.integers(0, len(data))
    for _ in range(draw(st.integers(1, 4))):
        place, piece = draw(places), draw(st.binary(max_size=6))
        match draw(st.sampled_from(["change", "put in", "take out", "cut"])):
            case "change":
                data[place : place + len(piece)] = piece
            case "put in":
                data[place:place] = piece
            case "take out":
                del data[place : place + 5]
            case "cut":
                del data[place:]
    return bytes(data)


def recipes(tree: dict[str, Any], sections: dict[str, list[str]]) -> st.SearchStrategy[bytes]:
    """YAML of a recipe in which some keys have other values, and damaged texts of it."""
    good = yaml.safe_dump(tree)

    @st.composite
    def changed(draw: st.DrawFn) -> bytes:
        made = json.loads(json.dumps(tree))
        for _ in range(draw(st.integers(1, 3))):
            section = draw(st.sampled_from(sorted(sections)))
            key = draw(st.sampled_from(sections[section]) | st.text(max_size=6))
            if not section:
                made[key] = draw(values)
            elif isinstance(made.setdefault(section, {}), dict):
                made[section][key] = draw(values)
        return yaml.safe_dump(made, allow_unicode=True).encode()

    tags = st.sampled_from(
        ["!!python/object/apply:os.system [false]", "!!python/name:os.system", "&a [*a]", "<<: 3"]
    )
    tagged = tags.map(lambda tag: f"{good}\nchecks: {tag}\n".encode())
    return changed() | damaged(good.encode()) | tagged | st.binary(max_size=60)


Change = Callable[[Path], None]
"""Changes an adapter in its folder."""


def adapters(folder: Path) -> st.SearchStrategy[Change]:
    """Changes of the configuration or of the tensors of the adapter in ``folder``."""
    config = json.loads((folder / CONFIG).read_text())
    return (
        options.map(lambda new: _other_text(CONFIG, json.dumps(config | new).encode()))
        | damaged((folder / CONFIG).read_bytes()).map(lambda data: _other_text(CONFIG, data))
        | values.map(lambda value: _other_text(CONFIG, json.dumps(value).encode()))
        | damaged((folder / TENSORS).read_bytes()).map(lambda data: _other_text(TENSORS, data))
        | _other_tensors(load_file(folder / TENSORS)).map(lambda data: _other_text(TENSORS, data))
        | st.sampled_from([CONFIG, TENSORS]).map(lambda name: lambda place: (place / name).unlink())
    )


def _other_text(name: str, data: bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return change


@st.composite
def _other_tensors(draw: st.DrawFn, good: dict[str, Tensor]) -> bytes:
    """A whole file with tensors missing, renamed, added, of other shapes, types and values."""
    tensors = dict(good)
    for _ in range(draw(st.integers(1, 3))):
        if not tensors:
            break
        key = draw(st.sampled_from(sorted(tensors)))
        tensor = tensors[key]
        match draw(
            st.sampled_from(["drop", "rename", "add", "shape", "empty", "type", "value", "phase"])
        ):
            case "drop":
                del tensors[key]
            case "rename":
                old, new = draw(
                    st.sampled_from([("layers.0", "layers.9"), ("lora_A", "lora_B"), (".", "..")])
                )
                tensors[key.replace(old, new)] = tensors.pop(key)
            case "add":
                tensors[draw(st.sampled_from(["", "x", f"{key}.weight", f"{key}\n"]))] = tensor
            case "shape":
                tensors[key] = tensor.new_zeros(draw(st.lists(st.integers(0, 40), max_size=3)))
            case "empty":
                tensors[key] = tensor.new_zeros(10**9, 0)
            case "type":
                kinds = [torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.float64]
                tensors[key] = tensor.to(draw(st.sampled_from(kinds)))
            case "value":
                tensors[key] = torch.full_like(
                    tensor, draw(st.sampled_from([math.nan, math.inf, 0.0, 1e30]))
                )
            case "phase":
                gate = draw(st.sampled_from([k for k in good if k.endswith("gate")]))
                tensors[gate] = torch.full((1,), draw(st.sampled_from([0.0, 1.0, 0.5, math.nan])))
    return save({key: tensor.contiguous().clone() for key, tensor in tensors.items()})
