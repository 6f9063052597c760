"""A loop of your own, with Accelerate: `SdsLoraScheduler`, stepped after the optimizer."""

import torch
from accelerate import Accelerator
from peft import get_peft_model
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from sdslora import SdsLoraConfig, SdsLoraScheduler, to_plain_lora

EPOCHS = 8

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
rows = (torch.randint(64, (128, 1)) + torch.arange(16)) % 64

accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
model = get_peft_model(model, SdsLoraConfig(r=8, preset="tuned", target_modules="all-linear"))
trainable = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trainable, lr=5e-3, weight_decay=0.0)
loader = DataLoader(rows, batch_size=8, shuffle=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

total_steps = EPOCHS * len(loader) // accelerator.gradient_accumulation_steps
scheduler = SdsLoraScheduler(model, optimizer, total_steps)
for epoch in range(EPOCHS):
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(input_ids=batch, labels=batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()  # acts only where the optimizer took a step
    print(f"epoch {epoch}: loss {loss.item():.3f}, {scheduler.refresh_count} refreshes")
print(to_plain_lora(accelerator.unwrap_model(model), "accelerate-adapter"))
