"""Loading through PEFT: safetensors only, and whole or not at all.

PEFT unpickles a file before a method gets its tensors. Where loading fails, it leaves half an
adapter in the model. So its functions are wrapped for adapters of this method.
"""

import functools
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import peft.utils.save_and_load
import torch
from peft import PeftConfig, PeftMixedModel, PeftModel
from peft.tuners.tuners_utils import _get_in_out_features
from peft.utils import CONFIG_NAME
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from .._peft import PEFT_PREFIX
from .adapted_layers import adapter_layers
from .adapter_file import numbers_in_file, reject_pickle
from .config import SdsLoraConfig
from .registration import SdsPeftType

T = TypeVar("T")

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
BASES = ".lora_sds."
"""The part of a tensor's name that marks a basis."""
_ROOM_TO_SPARE = 8
_room: ContextVar[int | None] = ContextVar("_room", default=None)
"""The count of numbers in the file that is being loaded; None outside of loading."""


_ignore_sizes: ContextVar[bool] = ContextVar("_ignore_sizes", default=False)
"""True while an adapter is loaded with PEFT's ``ignore_mismatched_sizes``."""


def wrap_peft() -> None:
    """Wrap PEFT's functions, once, however often it is called."""
    if hasattr(PeftModel.load_adapter, "__wrapped__"):
        return
    for kind in (PeftModel, PeftMixedModel):
        from_pretrained = kind.__dict__["from_pretrained"].__func__
        kind.from_pretrained = classmethod(_check_before_loading(from_pretrained))
    PeftModel.load_adapter = _load_whole_or_undo(PeftModel.load_adapter)
    peft.inject_adapter_in_model = _reject_bases(peft.inject_adapter_in_model)
    peft.utils.save_and_load.torch_load = _reject_pickles(peft.utils.save_and_load.torch_load)


@contextmanager
def adapter_from(directory: str | PathLike[str]) -> Iterator[None]:
    """Check the file in ``directory``, from which the adapters of the block get their tensors.

    Raises:
        ValueError: where the tensors are in a pickle, or in no whole safetensors file. In the
            block, for an adapter that is larger than the file.
    """
    reject_pickle(directory)
    token = _room.set(numbers_in_file(directory))
    try:
        yield
    finally:
        _room.reset(token)


def reject_larger_than_file(config: SdsLoraConfig, targets: Mapping[str, nn.Module]) -> None:
    """Raise ``ValueError`` where A and B would be far larger than their file.

    The check comes before they are allocated: anyone can write a rank of a million into a
    configuration. For smaller differences :func:`require_all` names the tensor.

    Args:
        config: the configuration of a new adapter.
        targets: the modules that get A and B, by their names.
    """
    room = _room.get()
    if room is None:
        return
    ranks: dict[str, int] = config.rank_pattern or {}
    default: int = config.r
    adapter_size = 0
    for name, module in targets.items():
        rank = ranks.get(get_pattern_key(ranks, name), default)
        # (None, None) for a module that PEFT rejects later
        adapter_size += rank * sum(size or 0 for size in _get_in_out_features(module))
    if adapter_size > _ROOM_TO_SPARE * room:
        raise ValueError(
            f"an adapter of rank r={config.r} for {len(targets)} layers of this model has "
            f"{adapter_size} numbers, and the adapter file holds only {room}: its "
            "configuration does not match its tensors, or belongs to another model"
        )


def require_all(model: nn.Module, adapter: str, tensors: Mapping[str, Tensor]) -> None:
    """Compare a file's tensors for ``adapter`` with the model, before anything is loaded.

    Args:
        model: the model that the adapter is in.
        adapter: its name.
        tensors: the file's tensors by their names in the model.

    Raises:
        ValueError: for a tensor that is missing, belongs to no layer, or holds no floating-point
            numbers, and where the layers disagree on the phase.
        RuntimeError: for another shape, as from PyTorch.
    """
    file_tensors = {key.removeprefix(PEFT_PREFIX): tensor for key, tensor in tensors.items()}
    model_tensors = {
        f"{name.removeprefix(PEFT_PREFIX)}.{key}": tensor
        for name, layer in adapter_layers(model, adapter)
        for key, tensor in layer.state_dict(keep_vars=True).items()
        if key.startswith("lora_") and adapter in key.split(".")
    }
    for key, tensor in model_tensors.items():
        if key not in file_tensors:
            raise ValueError(f"the adapter file has no tensor for {key}: it is incomplete")
        shape = tuple(getattr(tensor, "ds_shape", tensor.shape))  # DeepSpeed's shards have none
        if tuple(file_tensors[key].shape) != shape:
            raise RuntimeError(
                f"size mismatch for {key}: {tuple(file_tensors[key].shape)} in the adapter file, "
                f"{shape} in the model. The adapter belongs to another model, or to another "
                "configuration"
            )
        if file_tensors[key].dtype not in _FLOATS:
            raise ValueError(
                f"{key} holds {file_tensors[key].dtype} in the adapter file: floats are needed"
            )
    for key in file_tensors:
        if ".lora_" in key and key not in model_tensors:
            raise ValueError(
                f"the adapter file has {key}, a tensor of a layer that has no adapter here: "
                "the adapter belongs to another model, or to another configuration"
            )
    phases = {float(file_tensors[key]) for key in model_tensors if key.endswith(".gate")}
    if len(phases) > 1 or phases - {0.0, 1.0}:
        raise ValueError(
            f"the layers of the adapter file must all be in one phase, gate 0 or 1, not {phases}"
        )


def without_mismatched_tensors(
    model: nn.Module, adapter: str, tensors: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Replace the tensors of layers of another size, under ``ignore_mismatched_sizes``.

    Such a layer gets no change: its A and B stay as initialised, and its bases are zero.
    """
    if not _ignore_sizes.get():
        return tensors
    replacements: dict[str, Tensor] = {}
    for name, layer in adapter_layers(model, adapter):
        own = {
            f"{PEFT_PREFIX}{name.removeprefix(PEFT_PREFIX)}.{key}": tensor
            for key, tensor in layer.state_dict(keep_vars=True).items()
            if key.startswith("lora_") and adapter in key.split(".")
        }
        if any(k in tensors and tensors[k].shape != t.shape for k, t in own.items()):
            replacements |= {k: t for k, t in own.items() if not k.endswith(".gate")}
    if not replacements:
        return tensors
    warnings.warn(
        f"ignore_mismatched_sizes=True: {len(replacements)} tensors of the adapter file have "
        f"another size than this model's, {next(iter(replacements))} for one; the adapter leaves "
        "these layers as they are",
        UserWarning,
        stacklevel=2,
    )
    # the model's own tensors, so that none is missing; with bases of zero, A and B have no effect
    return tensors | {k: t.detach() for k, t in replacements.items()}


def _check_before_loading(from_pretrained: Callable[..., T]) -> Callable[..., T]:
    @functools.wraps(from_pretrained)
    def load(
        cls: type[PeftModel],
        model: nn.Module,
        model_id: str | PathLike[str],
        *args: object,
        **kwargs: Any,
    ) -> T:
        folder = Path(model_id, kwargs.get("subfolder") or "")
        with adapter_from(folder) if _is_ours(folder) else nullcontext():
            return from_pretrained(cls, model, model_id, *args, **kwargs)

    return load


def _load_whole_or_undo(load_adapter: Callable[..., T]) -> Callable[..., T]:
    @functools.wraps(load_adapter)
    def load(
        self: PeftModel,
        model_id: str | PathLike[str],
        adapter_name: str,
        *args: object,
        **kwargs: Any,
    ) -> T:
        existing_config = self.peft_config.get(adapter_name)
        # from_pretrained has added the adapter already, and has loaded nothing into it yet
        is_new = existing_config is None or _room.get() is not None
        folder = Path(model_id, kwargs.get("subfolder") or "")
        token = _ignore_sizes.set(bool(kwargs.get("ignore_mismatched_sizes")))
        ours = _is_ours(folder) or (isinstance(existing_config, SdsLoraConfig) and folder.is_dir())
        try:
            with adapter_from(folder) if ours else nullcontext():
                return load_adapter(self, model_id, adapter_name, *args, **kwargs)
        except Exception as error:
            if is_new and isinstance(self.peft_config.get(adapter_name), SdsLoraConfig):
                _remove_adapter(self, adapter_name)
            if isinstance(error, KeyError) and ours:  # from PEFT, for a tensor beside A and B
                raise ValueError(
                    f"the adapter file has no tensor for {error}: it is incomplete"
                ) from error
            raise
        finally:
            _ignore_sizes.reset(token)

    return load


def _is_ours(folder: Path) -> bool:
    """Return whether a local folder holds an adapter of this method; False for the Hub's."""
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        return bool(config["peft_type"] == SdsPeftType.SDSLORA)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _reject_bases(inject: Callable[..., T]) -> Callable[..., T]:
    """Reject files of Diffusers' training scripts that are loaded as plain LoRA.

    Without metadata these files have no scaling, and their bases make A and B another function.
    """

    @functools.wraps(inject)
    def inject_lora(peft_config: PeftConfig, model: nn.Module, *args: object, **kwargs: Any) -> T:
        tensors = kwargs.get("state_dict") or {}
        if not isinstance(peft_config, SdsLoraConfig) and any(BASES in key for key in tensors):
            raise ValueError(
                "the file holds an SDS-LoRA adapter (lora_sds tensors) without its configuration, "
                "which would load as plain LoRA, another function: save it with its metadata, "
                "write it with sdslora.export.to_diffusers, whose file every loader reads, or load "
                "it with add_adapter(SdsLoraConfig(...)) and peft.set_peft_model_state_dict"
            )
        return inject(peft_config, model, *args, **kwargs)

    return inject_lora


def _reject_pickles(torch_load: Callable[..., T]) -> Callable[..., T]:
    @functools.wraps(torch_load)
    def load(file: str | PathLike[str], *args: object, **kwargs: object) -> T:
        if _is_ours(Path(file).parent):  # downloaded from a Hub repository without safetensors
            reject_pickle(Path(file).parent)
        return torch_load(file, *args, **kwargs)

    return load


def _remove_adapter(model: PeftModel, adapter: str) -> None:
    """Remove an adapter that failed to load; without others, restore the base model."""
    if len(model.peft_config) > 1:
        model.delete_adapter(adapter)
    else:
        model.base_model.unload()
