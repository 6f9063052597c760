"""The changes that importing the package makes in PEFT and torch.

- Three tables of ``peft.mapping`` and ``peft.utils.hotswap.CONFIG_KEYS_TO_CHECK`` get an entry
  ``SDSLORA``: PEFT looks configuration, tuner and prefix of an adapter up there. PEFT 0.20 also
  gets a member of its enumeration ``PeftType``.
- ``LoraConfig(**options)`` returns our configuration where the options have ``sds_format``: loaders
  that know LoRA alone, such as Diffusers', rebuild it so from a file's metadata.
- ``PeftMixedModel`` accepts the method: PEFT's list of types that mix gets the same entry, and its
  tuner ``MixedModel`` a subclass of ours.
- ``from_pretrained`` of ``PeftModel`` and ``PeftMixedModel``, ``PeftModel.load_adapter``,
  ``peft.inject_adapter_in_model`` and ``peft.utils.save_and_load.torch_load`` are wrapped: an
  adapter of this method loads whole or not at all, never from a pickle, and not as plain LoRA.
- A hook follows the step of every torch optimizer: a training without the schedule warns.

Adapters of other methods, and optimizers that train no SDS-LoRA adapter, behave as before.
"""

from .training import watchdog
from .tuner import SdsLoraConfig, SdsLoraModel, loading
from .tuner.mixed import register_in_mixed_models
from .tuner.registration import register


def install() -> None:
    """Make the changes, once, however often it is called."""
    register(SdsLoraConfig, SdsLoraModel)
    register_in_mixed_models()
    loading.wrap_peft()
    watchdog.watch_optimizers()
