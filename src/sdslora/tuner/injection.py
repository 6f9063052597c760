"""A tuner's work with an SDS-LoRA configuration: checks, adoption of layers, merging."""

import copy
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import (
    BaseTuner,
    BaseTunerLayer,
    _maybe_include_all_linear_layers,
)
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from .adapted_layers import adapter_layers
from .config import SdsLoraConfig
from .layers import SdsParamWrapper, adopt, reject_unsupported, reject_without_weight
from .layers.experts import log_coverage, reject_parameters
from .layers.hira import reject_merged
from .layers.quantized import merge_error_warning
from .loading import BASES, reject_larger_than_file
from .tied import untie_adapted
from .validation.patterns import reject_slow
from .validation.tokens import reject_unknown_tokens


class SdsInjection(BaseTuner):
    """A mixin for PEFT's tuners; adapters of other methods are treated as the tuner does."""

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: object, **kwargs: Any
    ) -> None:
        """Add an adapter; one named ``ref`` with the configuration of ``default`` is its copy.

        TRL's trainers (DPO, GRPO, ...) use it as the reference of an adapter that they train on.
        They copy only the parameters, which without bases and phase are another function.
        """
        configs = self.peft_config
        if not isinstance(configs[adapter_name], SdsLoraConfig):
            super().inject_adapter(model, adapter_name, *args, **kwargs)
            return
        if Path(adapter_name).is_absolute():
            raise ValueError(
                f"an adapter is saved in a folder of its name, and {adapter_name!r} is an absolute "
                "path, outside of every output directory: choose a name"
            )
        if tensors := kwargs.get("state_dict"):
            # PEFT takes the layers from the names; bases alone make no layer
            kwargs["state_dict"] = {k: t for k, t in tensors.items() if BASES not in k}
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        is_loading = kwargs.get("low_cpu_mem_usage", False)
        if adapter_name == "ref" and configs["ref"] == configs.get("default") and not is_loading:
            self._copy_tensors("default", "ref")
        elif not configs[adapter_name].inference_mode:
            log_coverage(model, adapter_name)

    def merge_adapter(self, *args: object, **kwargs: object) -> None:
        """Merge as PEFT does; a ``UserWarning`` gives the error of merging into quantized weights.

        Where an adapter changes an embedding that is tied to the output layer, it is untied first.
        """
        with self._merging():
            super().merge_adapter(*args, **kwargs)

    def _unload_and_optionally_merge(
        self, merge: bool = True, *args: object, **kwargs: object
    ) -> nn.Module:
        with self._merging() if merge else nullcontext():
            base: nn.Module = super()._unload_and_optionally_merge(merge, *args, **kwargs)
        return base

    def _merging(self) -> AbstractContextManager[None]:
        if not any(isinstance(config, SdsLoraConfig) for config in self.peft_config.values()):
            return nullcontext()
        untie_adapted(self.model)
        return merge_error_warning(self.model)

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        super()._prepare_model(peft_config, model)
        if not isinstance(peft_config, SdsLoraConfig):
            return
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

    def _check_new_adapter_config(self, config: PeftConfig) -> None:
        if isinstance(config, SdsLoraConfig):
            config.validate()
            reject_slow(config, (name for name, _ in self.model.named_modules()))
        super()._check_new_adapter_config(config)

    def _create_and_replace(
        self,
        config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **parameter: object,
    ) -> None:
        super()._create_and_replace(
            config, adapter_name, target, target_name, parent, current_key, **parameter
        )
        if not isinstance(config, SdsLoraConfig):
            return
        layer = getattr(parent, target_name)
        # the parameter of a second adapter has its wrapper already, maybe inside another wrapper
        if isinstance(target, SdsParamWrapper) and target.parameter_name == parameter.get(
            "parameter_name"
        ):
            layer = target
        adopt(layer, adapter_name, current_key, config)

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
