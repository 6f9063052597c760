"""Does an exported adapter work where this package was never imported? Run as a script.

Usage: python -P stock_peft.py ADAPTER_DIR PROBE_FILE MODEL_JSON

PROBE_FILE holds ``input_ids``, ``attention_mask`` (n, t) and the ``logits`` (n, t, v) that the
original adapter gave; MODEL_JSON the arguments of ``AutoModelForCausalLM.from_pretrained``. Prints
JSON: the largest absolute difference of the logits, and, for scale, by how much the adapter changes
those of the base model.
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
    seen = probe["attention_mask"].bool()

    def largest(difference: torch.Tensor) -> float:
        return difference.abs()[seen].max().item()

    if "sdslora" in sys.modules:
        raise RuntimeError("sdslora was imported: this shows nothing about stock PEFT")
    found = {
        "max_logit_difference": largest(logits - probe["logits"]),
        "max_change_by_adapter": largest(logits - base_logits),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
