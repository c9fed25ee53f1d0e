"""LoRA in TRL's SFTTrainer: trl_sft.py MODEL JSONL OUTPUT (columns prompt, completion)."""

import sys

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from lorakit import LoraConfig, add_adapter, save_adapter

model_name, jsonl_file, output = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(model_name)
print(add_adapter(model, LoraConfig(r=16, lora_alpha=32)))
trainer = SFTTrainer(
    model,
    SFTConfig(output, learning_rate=1e-3, save_strategy="no", report_to="none", bf16=False),
    train_dataset=load_dataset("json", data_files=jsonl_file, split="train"),
    processing_class=AutoTokenizer.from_pretrained(model_name),
)
trainer.train()
save_adapter(model, output)
