"""The changes that importing the package makes in PEFT and torch.

- Three tables of ``peft.mapping`` and ``peft.utils.hotswap.CONFIG_KEYS_TO_CHECK`` get an entry
  ``SDSLORA``: PEFT looks configuration, tuner and prefix of an adapter up there. PEFT 0.20 also
  gets a member of its enumeration ``PeftType``.
- ``PeftModel.from_pretrained``, ``PeftModel.load_adapter`` and
  ``peft.utils.save_and_load.torch_load`` are wrapped: an adapter of this method loads whole or not
  at all, and never from a pickle.
- A hook follows the step of every torch optimizer: a training without the schedule warns.

Adapters of other methods, and optimizers that train no SDS-LoRA adapter, behave as before.
"""

from .training import watchdog
from .tuner import SdsLoraConfig, SdsLoraModel, loading
from .tuner.registration import register


def install() -> None:
    """Make the changes, once, however often it is called."""
    register(SdsLoraConfig, SdsLoraModel)
    loading.wrap_peft()
    watchdog.watch_optimizers()
