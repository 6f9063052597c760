"""``SdsLoraModel``: the tuner that PEFT calls."""

import copy
from typing import NoReturn

from torch import Tensor, nn

from .config import SdsLoraConfig
from .injection import SdsInjection
from .loading import BASES, require_all, without_mismatched_tensors
from .weighted import WeightedAdapterModel


class SdsLoraModel(SdsInjection, WeightedAdapterModel):
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
        super(SdsInjection, self).inject_adapter(self.model, target)
        self._copy_tensors(source, target)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: SdsLoraConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        if not any(BASES in key for key in state_dict):
            raise ValueError(
                "the adapter file has no bases (`lora_sds` tensors), without which A and B are "
                "another function: it is not an SDS-LoRA adapter, or an incomplete one"
            )
        tensors: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        tensors = without_mismatched_tensors(model, adapter_name, tensors)
        require_all(model, adapter_name, tensors)
        return tensors

    def subtract_mutated_init(self, *args: object, **kwargs: object) -> NoReturn:
        """Raise ``ValueError``: no initialisation of SDS-LoRA changes the base weights.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "SDS-LoRA does not support path_initial_model_for_weight_conversion: the base weights "
            "are unchanged. Use sdslora.to_plain_lora for a plain LoRA adapter."
        )

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """The names of buffers that DistributedDataParallel does not broadcast in each forward.

        Every rank computes the same bases from the same A and B. The names are those of the buffers
        in a ``PeftModel``.
        """
        return [f"base_model.{name}" for name, _ in self.named_buffers() if BASES in name]
