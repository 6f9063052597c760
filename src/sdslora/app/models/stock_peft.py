"""A script that checks an exported adapter in a process without this package.

Usage: python -P stock_peft.py ADAPTER_DIR PROBE_FILE MODEL_JSON

PROBE_FILE holds ``input_ids``, ``attention_mask`` (n, t) and the ``logits`` (n, t, v) of the
original adapter. MODEL_JSON holds the arguments of ``AutoModelForCausalLM.from_pretrained``. The
script prints JSON: the largest absolute difference of the logits and, for scale, their largest
change by the adapter.
"""

import json
import sys

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def main(adapter_dir: str, probe_file: str, model_json: str) -> None:
    """Load base model and adapter, and compare the logits."""
    probe = load_file(probe_file)
    arguments = json.loads(model_json)
    base = AutoModelForCausalLM.from_pretrained(arguments.pop("path"), **arguments)
    model = PeftModel.from_pretrained(base, adapter_dir).eval()
    with torch.no_grad():
        inputs = {name: probe[name] for name in ("input_ids", "attention_mask")}
        logits = model(**inputs).logits
        with model.disable_adapter():
            base_logits = model(**inputs).logits
    tokens = probe["attention_mask"].bool()

    def largest(difference: torch.Tensor) -> float:
        return difference.abs()[tokens].max().item()

    if "sdslora" in sys.modules:
        raise RuntimeError("sdslora was imported: this shows nothing about stock PEFT")
    differences = {
        "max_logit_difference": largest(logits - probe["logits"]),
        "max_change_by_adapter": largest(logits - base_logits),
    }
    print(json.dumps(differences))


if __name__ == "__main__":
    main(*sys.argv[1:])
