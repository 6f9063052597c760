"""Loading through PEFT: safetensors only, and whole or not at all.

PEFT unpickles a file before a method sees its tensors, and where loading fails it leaves the model
with half an adapter in it. So three of its functions are wrapped, for adapters of this method.
"""

import functools
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from os import PathLike
from pathlib import Path
from typing import Any

import peft.utils.save_and_load
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import _get_in_out_features
from peft.utils import CONFIG_NAME
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from .._peft import PEFT_PREFIX
from .adapted_layers import adapter_layers
from .adapter_file import numbers_in_file, refuse_pickle
from .config import SdsLoraConfig
from .registration import SdsPeftType

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_BASES = ".lora_sds."
"""In the names of the bases' tensors."""
_ROOM_TO_SPARE = 8
_room: ContextVar[int | None] = ContextVar("_room", default=None)
"""How many numbers the file holds that an adapter is being loaded from; None outside of loading."""


_ignoring_sizes: ContextVar[bool] = ContextVar("_ignoring_sizes", default=False)
"""Whether the adapter is being loaded with PEFT's ``ignore_mismatched_sizes``."""


def wrap_peft() -> None:
    """Wrap PEFT's functions. Once, however often it is called."""
    if hasattr(PeftModel.load_adapter, "__wrapped__"):
        return
    from_pretrained = PeftModel.__dict__["from_pretrained"].__func__
    PeftModel.from_pretrained = classmethod(_looking_first(from_pretrained))
    PeftModel.load_adapter = _whole_or_undone(PeftModel.load_adapter)
    peft.inject_adapter_in_model = _refusing_bases(peft.inject_adapter_in_model)
    peft.utils.save_and_load.torch_load = _refusing_pickles(peft.utils.save_and_load.torch_load)


@contextmanager
def adapter_from(directory: str | PathLike[str]) -> Iterator[None]:
    """Adapters that are made in the block get their tensors from the file in ``directory``.

    Raises:
        ValueError: where the tensors are in a pickle, or in no whole safetensors file; in the
            block, for an adapter that is larger than the file.
    """
    refuse_pickle(directory)
    token = _room.set(numbers_in_file(directory))
    try:
        yield
    finally:
        _room.reset(token)


def refuse_larger_than_file(config: SdsLoraConfig, targets: Mapping[str, nn.Module]) -> None:
    """Raise ``ValueError`` where A and B would be far larger than the file that they come from.

    Before they are allocated: a rank of a million in a configuration costs its writer nothing.
    Smaller differences are left to :func:`require_all`, which names the tensor.

    Args:
        config: of an adapter that is about to be made.
        targets: the modules that get A and B, by their names.
    """
    room = _room.get()
    if room is None:
        return
    ranks: dict[str, int] = config.rank_pattern or {}
    default: int = config.r
    wanted = 0
    for name, module in targets.items():
        rank = ranks.get(get_pattern_key(ranks, name), default)
        # (None, None) for a module that PEFT refuses later
        wanted += rank * sum(size or 0 for size in _get_in_out_features(module))
    if wanted > _ROOM_TO_SPARE * room:
        raise ValueError(
            f"an adapter of rank r={config.r} for {len(targets)} layers of this model has {wanted} "
            f"numbers, and the adapter file holds {room} in all: its "
            "configuration is not that of its tensors, or of another model"
        )


def require_all(model: nn.Module, adapter: str, tensors: Mapping[str, Tensor]) -> None:
    """Compare what a file has for ``adapter`` with the model, before anything is loaded.

    Args:
        model: the model that the adapter is in.
        adapter: its name.
        tensors: by the names that they have in the model.

    Raises:
        ValueError: for a tensor that is missing, belongs to no layer, or holds no floating-point
            numbers, and where the layers disagree on the phase.
        RuntimeError: for another shape, as from PyTorch.
    """
    given = {key.removeprefix(PEFT_PREFIX): tensor for key, tensor in tensors.items()}
    expected = {
        f"{name.removeprefix(PEFT_PREFIX)}.{key}": tensor
        for name, layer in adapter_layers(model, adapter)
        for key, tensor in layer.state_dict(keep_vars=True).items()
        if key.startswith("lora_") and adapter in key.split(".")
    }
    for key, tensor in expected.items():
        if key not in given:
            raise ValueError(f"the adapter file has no tensor for {key}: it is not whole")
        shape = tuple(getattr(tensor, "ds_shape", tensor.shape))  # DeepSpeed's shards have none
        if tuple(given[key].shape) != shape:
            raise RuntimeError(
                f"size mismatch for {key}: {tuple(given[key].shape)} in the adapter file, {shape} "
                "in the model. It is the adapter of another model, or not of this configuration"
            )
        if given[key].dtype not in _FLOATS:
            raise ValueError(
                f"{key} holds {given[key].dtype} in the adapter file: floats are needed"
            )
    for key in given:
        if ".lora_" in key and key not in expected:
            raise ValueError(
                f"the adapter file has {key}, a tensor of a layer that has no adapter here: it is "
                "the adapter of another model, or not of this configuration"
            )
    phases = {float(given[key]) for key in expected if key.endswith(".gate")}
    if len(phases) > 1 or phases - {0.0, 1.0}:
        raise ValueError(
            f"the layers of the adapter file must all be in one phase, gate 0 or 1, not {phases}"
        )


def without_mismatched(
    model: nn.Module, adapter: str, tensors: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors without those of layers that have another size here, where that is wanted.

    Such a layer gets no change: its A and B stay as they are made, and its bases are zero.
    """
    if not _ignoring_sizes.get():
        return tensors
    left_out: dict[str, Tensor] = {}
    for name, layer in adapter_layers(model, adapter):
        own = {
            f"{PEFT_PREFIX}{name.removeprefix(PEFT_PREFIX)}.{key}": tensor
            for key, tensor in layer.state_dict(keep_vars=True).items()
            if key.startswith("lora_") and adapter in key.split(".")
        }
        if any(k in tensors and tensors[k].shape != t.shape for k, t in own.items()):
            left_out |= {k: t for k, t in own.items() if not k.endswith(".gate")}
    if not left_out:
        return tensors
    warnings.warn(
        f"ignore_mismatched_sizes=True: {len(left_out)} tensors of the adapter file have another "
        f"size than this model's, {next(iter(left_out))} for one; the adapter leaves these layers "
        "as they are",
        UserWarning,
        stacklevel=2,
    )
    # what is there already, so that nothing is missing; bases of zero leave nothing of A and B
    return tensors | {k: t.detach() for k, t in left_out.items()}


def _looking_first(from_pretrained: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(from_pretrained)
    def load(cls: type[PeftModel], model: Any, model_id: Any, *args: Any, **kwargs: Any) -> Any:
        folder = Path(model_id, kwargs.get("subfolder") or "")
        with adapter_from(folder) if _is_ours(folder) else nullcontext():
            return from_pretrained(cls, model, model_id, *args, **kwargs)

    return load


def _whole_or_undone(load_adapter: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load_adapter)
    def load(self: PeftModel, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        held = self.peft_config.get(adapter_name)
        # from_pretrained has made the adapter already, and nothing is loaded into it yet
        is_new = held is None or _room.get() is not None
        folder = Path(model_id, kwargs.get("subfolder") or "")
        ignoring = _ignoring_sizes.set(bool(kwargs.get("ignore_mismatched_sizes")))
        ours = _is_ours(folder) or (isinstance(held, SdsLoraConfig) and folder.is_dir())
        try:
            with adapter_from(folder) if ours else nullcontext():
                return load_adapter(self, model_id, adapter_name, *args, **kwargs)
        except Exception as error:
            if is_new and isinstance(self.peft_config.get(adapter_name), SdsLoraConfig):
                _take_away(self, adapter_name)
            if isinstance(error, KeyError) and ours:  # PEFT's, for what stands beside A and B
                raise ValueError(
                    f"the adapter file has no tensor for {error}: it is not whole"
                ) from error
            raise
        finally:
            _ignoring_sizes.reset(ignoring)

    return load


def _is_ours(folder: Path) -> bool:
    """Whether a local folder holds an adapter of this method; what is on the Hub is not known."""
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        return bool(config["peft_type"] == SdsPeftType.SDSLORA)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _refusing_bases(inject: Callable[..., Any]) -> Callable[..., Any]:
    """Reject what training scripts of Diffusers save of an adapter, loaded as if it were LoRA's.

    Their file has the bases, without which A and B are another function, and no scaling.
    """

    @functools.wraps(inject)
    def checked(peft_config: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        tensors = kwargs.get("state_dict") or {}
        if not isinstance(peft_config, SdsLoraConfig) and any(_BASES in key for key in tensors):
            raise ValueError(
                "the file holds an SDS-LoRA adapter (lora_sds tensors), which is no LoRA adapter: "
                "write it with sdslora.export.to_diffusers, whose file every loader reads, or load "
                "it with add_adapter(SdsLoraConfig(...)) and peft.set_peft_model_state_dict"
            )
        return inject(peft_config, model, *args, **kwargs)

    return checked


def _refusing_pickles(torch_load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(torch_load)
    def load(file: Any, *args: Any, **kwargs: Any) -> Any:
        if _is_ours(Path(file).parent):  # downloaded from the Hub, where it has no other file
            refuse_pickle(Path(file).parent)
        return torch_load(file, *args, **kwargs)

    return load


def _take_away(model: PeftModel, adapter: str) -> None:
    """Leave the model as it was before the adapter; the base model, if it was the only one."""
    if len(model.peft_config) > 1:
        model.delete_adapter(adapter)
    else:
        model.base_model.unload()
