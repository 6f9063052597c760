"""Loads exported adapters as a stranger would: a process with PEFT and without sdslora.

``python stock_peft.py CASES OUTPUTS``: CASES is a JSON file ``{name: [base model, adapter
directory]}``; OUTPUTS becomes a file of what each adapted model computes, or why it did not load.
"""

import json
import sys
from pathlib import Path

import nets
import torch
from peft import LoraConfig, PeftModel

torch.set_num_threads(1)


def computed(kind: str, directory: str) -> dict[str, torch.Tensor]:
    base = nets.make(kind)
    x = nets.inputs(base)
    model = PeftModel.from_pretrained(base, directory).eval()
    assert type(model.peft_config["default"]) is LoraConfig
    loaded = nets.outputs(model, x)
    return {"loaded": loaded, "merged": nets.outputs(model.merge_and_unload(), x)}


results = {}
for name, (kind, directory) in json.loads(Path(sys.argv[1]).read_text()).items():
    try:
        results[name] = computed(kind, directory)
    except Exception as error:
        results[name] = f"{type(error).__name__}: {error}"
assert "sdslora" not in sys.modules
torch.save(results, sys.argv[2])
