"""LoRA in transformers.Trainer: transformers_trainer.py MODEL CSV OUTPUT (columns text, label)."""

import sys

from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from lorakit import LoraConfig, add_adapter, save_adapter

model_name, csv_file, output = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model_name)
rows = load_dataset("csv", data_files=csv_file, split="train").class_encode_column("label")
model = AutoModelForSequenceClassification.from_pretrained(
    model_name, num_labels=rows.features["label"].num_classes
)
print(add_adapter(model, LoraConfig(r=8, lora_alpha=32, task_type="SEQ_CLS")))
rows = rows.map(lambda row: tokenizer(row["text"], truncation=True), remove_columns="text")
arguments = TrainingArguments(
    output, learning_rate=1e-3, save_strategy="no", report_to="none", disable_tqdm=True
)
trainer = Trainer(
    model, arguments, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer)
)
trainer.train()
save_adapter(model, output)
