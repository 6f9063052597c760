"""A 70B model sharded over eight cards of 80 GB, by Accelerate and FSDP2.

hardware: 8 GPUs of 80 GB
memory: 27.0 GB on each (estimated)
time: 14 s a step on an A100 (estimated)

``sdslora train`` does not shard, so this is a script, with Accelerate's settings beside it:

    accelerate launch --config_file llama3-70b-sharded.accelerate.yaml llama3-70b-sharded.py \\
        chats.jsonl

chats.jsonl has rows with ``messages``. The script was run on tiny models on a CPU, never at this
size. For the command afterwards: `sdslora export runs/llama3-70b-sharded plain`.
"""

import sys

from accelerate import PartialState
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from sdslora import SdsLoraCallback, SdsLoraConfig

MODEL = "meta-llama/Meta-Llama-3-70B-Instruct"
RANK = 32
ROWS = 2  # of each GPU in a step
LENGTH = 2048  # tokens of a row
OUTPUT = "runs/llama3-70b-sharded"


def main(source: str, model: str = MODEL, steps: str = "-1") -> None:
    """Train on the rows of ``source`` and save the whole adapter."""
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(model, dtype="bfloat16"),
        SFTConfig(
            OUTPUT,
            learning_rate=1e-4,  # not tuned for this model: try 5e-5 and 2e-4
            num_train_epochs=1,
            max_steps=int(steps),
            per_device_train_batch_size=ROWS,
            gradient_accumulation_steps=1,
            max_length=LENGTH,
            gradient_checkpointing=True,
            save_strategy="no",
            logging_steps=10,
            report_to="none",
        ),
        train_dataset=load_dataset("json", data_files=source, split="train"),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=SdsLoraConfig(
            r=RANK, preset="tuned", target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[SdsLoraCallback()],
    )
    trainer.train()
    accelerator = trainer.accelerator
    tensors = accelerator.get_state_dict(trainer.model)  # gathered from all processes
    if PartialState().is_main_process:
        accelerator.unwrap_model(trainer.model).save_pretrained(OUTPUT, state_dict=tensors)
        trainer.processing_class.save_pretrained(OUTPUT)


if __name__ == "__main__":
    main(*sys.argv[1:])
