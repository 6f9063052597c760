"""Train, export, and load the export in stock PEFT, in a process that has no sdslora."""

import subprocess
import sys

import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from sdslora import SdsLoraConfig, SdsLoraScheduler, to_plain_lora

STOCK = """
import sys, torch
from peft import PeftModel
from transformers import LlamaForCausalLM
model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained("base"), "served-adapter")
expected = torch.load("expected.pt")
def difference(model):
    return (model(expected["rows"]).logits - expected["logits"]).abs().max()
print("difference of the logits:", difference(model))
print("merged:", difference(model.merge_and_unload()))
assert "sdslora" not in sys.modules
"""

torch.manual_seed(0)
base = LlamaForCausalLM(  # your model: AutoModelForCausalLM.from_pretrained(...)
    LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
)
base.save_pretrained("base")
model = get_peft_model(base, SdsLoraConfig(r=8, preset="tuned", target_modules="all-linear"))
trainable = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trainable, lr=5e-3, weight_decay=0.0)
scheduler = SdsLoraScheduler(model, optimizer, total_steps=30)
for _ in range(30):
    rows = (torch.randint(64, (16, 1)) + torch.arange(16)) % 64  # your data: here, counting
    loss = model(input_ids=rows, labels=rows).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    scheduler.step()
print(f"loss {loss.item():.3f}")

print(to_plain_lora(model, "served-adapter"))
with torch.no_grad():
    torch.save({"rows": rows, "logits": model.eval()(rows).logits}, "expected.pt")
subprocess.run([sys.executable, "-c", STOCK], check=True)
