"""LoRA in a plain PyTorch loop: plain_pytorch_loop.py MODEL TEXT_FILE OUTPUT."""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorakit import LoraConfig, add_adapter, print_trainable_parameters, save_adapter

model_name, text_file, output = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model_name)
model = AutoModelForCausalLM.from_pretrained(model_name)
add_adapter(model, LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05))
print_trainable_parameters(model)

trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-3)
model.train()
for line in Path(text_file).read_text().splitlines():
    ids = tokenizer(line, return_tensors="pt").input_ids
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(f"last loss {loss.item():.3f}")
save_adapter(model, output)
