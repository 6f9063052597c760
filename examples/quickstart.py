"""Fine-tune a language model with SDS-LoRA, then write a plain LoRA adapter."""

import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from sdslora import SdsLoraCallback, SdsLoraConfig, to_plain_lora

# Your model: AutoModelForCausalLM.from_pretrained(...). This one is tiny and needs no network.
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=2, **sizes))
# Your data. This model learns to count up from a random number.
counted = (torch.randint(64, (512, 1)) + torch.arange(16)) % 64
rows = [{"input_ids": row, "labels": row} for row in counted]

config = SdsLoraConfig(r=16, preset="tuned", target_modules="all-linear")
model = get_peft_model(model, config)
# 5e-3 suits this tiny model. For a real language model begin with 5e-4.
args = TrainingArguments("run", learning_rate=5e-3, num_train_epochs=2, report_to="none")
Trainer(model, args, train_dataset=rows, callbacks=[SdsLoraCallback()]).train()

print(to_plain_lora(model, "quickstart-adapter"))  # for vLLM, llama.cpp, stock PEFT, ...
