"""Transformers' Trainer: one callback, `SdsLoraCallback`."""

import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from sdslora import SdsLoraCallback, SdsLoraConfig, to_plain_lora

torch.manual_seed(0)
model = LlamaForCausalLM(  # your model: AutoModelForCausalLM.from_pretrained(...)
    LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
)
# your data: here, counting upwards from a random number
rows = [
    {"input_ids": row, "labels": row}
    for row in (torch.randint(64, (128, 1)) + torch.arange(16)) % 64
]

model = get_peft_model(model, SdsLoraConfig(r=8, preset="tuned", target_modules="all-linear"))
model.print_trainable_parameters()
arguments = TrainingArguments(
    "trainer-run",
    max_steps=60,
    per_device_train_batch_size=16,
    learning_rate=5e-3,
    logging_steps=10,
    save_strategy="no",
    report_to="none",
    use_cpu=True,
)
Trainer(model, arguments, train_dataset=rows, callbacks=[SdsLoraCallback()]).train()
print(to_plain_lora(model, "trainer-adapter"))
