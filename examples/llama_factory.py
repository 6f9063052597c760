"""SDS-LoRA in LLaMA-Factory, which has no place for an adapter that is not its own.

Its function ``run_exp`` takes a callback, and it builds its adapter from the name ``LoraConfig`` in
one module: that name is replaced. Its configuration file stays as for LoRA, except that
``lora_alpha: 4`` and ``use_rslora: true`` give the paper's scaling:

    python llama_factory.py train.yaml
"""

from functools import partial

import llamafactory.model.adapter
from llamafactory.train.tuner import run_exp

from sdslora import SdsLoraCallback, SdsLoraConfig

llamafactory.model.adapter.LoraConfig = partial(SdsLoraConfig, preset="tuned")

if __name__ == "__main__":
    run_exp(callbacks=[SdsLoraCallback()])
