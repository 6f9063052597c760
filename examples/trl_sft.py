"""TRL's SFTTrainer: give it the configuration and the callback."""

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from sdslora import SdsLoraCallback, SdsLoraConfig, to_plain_lora

# your data: here, sums of two digits
rows = [(f"{a} + {b} = ", f"{a + b}") for a in range(10) for b in range(10)]
data = Dataset.from_list([{"prompt": prompt, "completion": answer} for prompt, answer in rows])

# your model and tokenizer: AutoModelForCausalLM, AutoTokenizer.from_pretrained(...)
words = ["<pad>", "<eos>", "+", "=", *map(str, range(19))]
tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
)

trainer = SFTTrainer(
    model,
    SFTConfig(
        "trl-run",
        max_steps=60,
        per_device_train_batch_size=20,
        learning_rate=5e-3,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
    ),
    train_dataset=data,
    processing_class=PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>"
    ),
    peft_config=SdsLoraConfig(r=8, preset="tuned", target_modules="all-linear"),
    callbacks=[SdsLoraCallback()],
)
trainer.train()
print(to_plain_lora(trainer.model, "trl-adapter"))
