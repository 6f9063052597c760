"""``SdsMixedModel``: the tuner of PEFT's ``PeftMixedModel``, which this method can share."""

import peft.mixed_model
import peft.tuners.mixed.model
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_MIXED_MODEL_MAPPING
from peft.tuners.mixed import MixedModel

from .config import SdsLoraConfig
from .injection import SdsInjection
from .registration import SdsPeftType


class SdsMixedModel(SdsInjection, MixedModel):
    """A model with adapters of several methods: ΔW is added to what the others change.

    Layers of SDS-LoRA lie beside those of LoRA in one module, and around those of LoHa, LoKr, OFT
    and the like, or inside them.
    """

    def _check_new_adapter_config(self, config: PeftConfig) -> None:
        if isinstance(config, SdsLoraConfig) and config.use_hira:
            raise ValueError(
                "SDS-LoRA does not support use_hira=True in a mixed model: ΔW is multiplied with "
                "the base weight, which merging an adapter of another method changes. Use "
                "get_peft_model(..., mixed=False), or use_hira=False."
            )
        super()._check_new_adapter_config(config)


def register_in_mixed_models() -> None:
    """Extend PEFT's list of methods that mix, and give ``PeftMixedModel`` the tuner above."""
    PEFT_TYPE_TO_MIXED_MODEL_MAPPING[SdsPeftType.SDSLORA] = SdsMixedModel
    for module in (peft.tuners.mixed, peft.tuners.mixed.model):
        if SdsPeftType.SDSLORA not in module.COMPATIBLE_TUNER_TYPES:
            module.COMPATIBLE_TUNER_TYPES += (SdsPeftType.SDSLORA,)
    peft.mixed_model.MixedModel = SdsMixedModel
