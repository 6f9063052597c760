"""``SdsLoraModel``: the tuner that PEFT calls."""

import copy
from pathlib import Path
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer, _maybe_include_all_linear_layers
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from .adapted_layers import adapter_layers
from .config import SdsLoraConfig
from .layers import SdsParamWrapper, adopt, reject_unsupported, reject_without_weight
from .layers.experts import log_coverage, reject_parameters
from .layers.hira import reject_merged
from .layers.quantized import merge_error_warning
from .loading import reject_larger_than_file, require_all, without_mismatched_tensors
from .tied import untie_adapted
from .validation.patterns import reject_slow
from .validation.tokens import reject_unknown_tokens
from .weighted import WeightedAdapterModel


class SdsLoraModel(WeightedAdapterModel):
    """A model with SDS-LoRA adapters, as :func:`peft.get_peft_model` builds it.

    Its methods work as those of :class:`peft.LoraModel` do.
    """

    def clone_adapter(self, source: str, target: str) -> None:
        """Copy an adapter with its bases and phase under a new, frozen, inactive name.

        Trainers copy only the parameters for their reference adapter. That gives another function,
        because bases and phase are buffers.

        Raises:
            ValueError: where ``source`` does not exist, or ``target`` exists.
        """
        if source not in self.peft_config:
            raise ValueError(
                f"there is no adapter {source!r} to clone; there are {list(self.peft_config)}"
            )
        if target in self.peft_config:
            raise ValueError(f"adapter {target!r} exists already: delete it, or choose a new name")
        self.peft_config[target] = copy.deepcopy(self.peft_config[source])
        super().inject_adapter(self.model, target)
        self._copy_tensors(source, target)

    def _copy_tensors(self, source: str, target: str) -> None:
        for _, layer in adapter_layers(self.model, source):
            layer.scaling[target] = layer.scaling[source]
            layer.lora_sds[target] = copy.deepcopy(layer.lora_sds[source])
            parameters = layer.adapter_parameters(target), layer.adapter_parameters(source)
            for mine, its in zip(*parameters, strict=True):
                mine.data = its.detach().clone()
        for module in self.model.modules():
            if isinstance(module, AuxiliaryTrainingWrapper):  # modules_to_save and the like
                tensors = module.state_dict()
                for name, twin in tensors.items():
                    parts = name.split(".")
                    if source in parts:
                        parts[parts.index(source)] = target
                        tensors[".".join(parts)].copy_(twin)

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Add an adapter; one named ``ref`` with the configuration of ``default`` is its copy.

        TRL's trainers (DPO, GRPO, ...) use it as the reference of an adapter that they train on.
        They copy only the parameters, which without bases and phase are another function.
        """
        if Path(adapter_name).is_absolute():
            raise ValueError(
                f"an adapter is saved in a folder of its name, and {adapter_name!r} is an absolute "
                "path, outside of every output directory: choose a name"
            )
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        is_loading = kwargs.get("low_cpu_mem_usage", False)
        configs = self.peft_config
        if adapter_name == "ref" and configs["ref"] == configs.get("default") and not is_loading:
            self._copy_tensors("default", "ref")
        elif not configs[adapter_name].inference_mode:
            log_coverage(model, adapter_name)

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Merge as PEFT does; a ``UserWarning`` gives the error of merging into quantized weights.

        Where an adapter changes an embedding that is tied to the output layer, it is untied first.
        """
        untie_adapted(self.model)
        with merge_error_warning(self.model):
            super().merge_adapter(*args, **kwargs)

    def _unload_and_optionally_merge(
        self, merge: bool = True, *args: Any, **kwargs: Any
    ) -> nn.Module:
        if merge:
            untie_adapted(self.model)
        with merge_error_warning(self.model):
            base: nn.Module = super()._unload_and_optionally_merge(merge, *args, **kwargs)
        return base

    def _prepare_model(self, peft_config: SdsLoraConfig, model: nn.Module) -> None:
        super()._prepare_model(peft_config, model)
        _maybe_include_all_linear_layers(peft_config, model)  # PEFT does it later
        # Reject before the first layer is replaced: a half-wrapped model helps nobody
        reject_parameters(model, peft_config.target_parameters or ())
        reject_unknown_tokens(peft_config, model)
        modules = dict(model.named_modules())
        attentions = [n for n, m in modules.items() if isinstance(m, nn.MultiheadAttention)]
        targets = {}
        for name, module in modules.items():
            if name and self._check_target_module_exists(peft_config, name):
                base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
                reject_unsupported(base, name, attentions)
                if peft_config.use_hira:
                    reject_without_weight(base, name)
                    reject_merged(module, name)
                targets[name] = base
        reject_larger_than_file(peft_config, targets)

    def _check_new_adapter_config(self, config: SdsLoraConfig) -> None:
        config.validate()
        reject_slow(config, (name for name, _ in self.model.named_modules()))
        super()._check_new_adapter_config(config)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: SdsLoraConfig, adapter_name: str, state_dict: dict[str, Any]
    ) -> dict[str, Any]:
        if not any(".lora_sds." in key for key in state_dict):
            raise ValueError(
                "the adapter file has no bases (`lora_sds` tensors), without which A and B are "
                "another function: it is not an SDS-LoRA adapter, or not a whole one"
            )
        tensors: dict[str, Any] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        tensors = without_mismatched_tensors(model, adapter_name, tensors)
        require_all(model, adapter_name, tensors)
        return tensors

    def subtract_mutated_init(self, *args: Any, **kwargs: Any) -> Any:
        """Raise ``ValueError``: no initialisation of SDS-LoRA changes the base weights.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "SDS-LoRA does not support path_initial_model_for_weight_conversion: the base weights "
            "are as they were. Use sdslora.to_plain_lora for a plain LoRA adapter."
        )

    def _create_and_replace(
        self,
        lora_config: SdsLoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        *,
        parameter_name: str | None = None,
    ) -> None:
        super()._create_and_replace(
            lora_config,
            adapter_name,
            target,
            target_name,
            parent,
            current_key,
            parameter_name=parameter_name,
        )
        layer = getattr(parent, target_name)
        # the parameter of a second adapter has its wrapper already, maybe inside another wrapper
        if isinstance(target, SdsParamWrapper) and target.parameter_name == parameter_name:
            layer = target
        adopt(layer, adapter_name, current_key, lora_config)

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """The names of buffers that DistributedDataParallel does not broadcast in each forward.

        Every rank computes the same bases from the same A and B. The names are those of the buffers
        in a ``PeftModel``.
        """
        return [f"base_model.{name}" for name, _ in self.named_buffers() if ".lora_sds." in name]
