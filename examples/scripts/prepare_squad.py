"""Write SQuAD as prompts and completions: prepare_squad.py [OUTPUT] [DATASET]."""

import json
import sys
from pathlib import Path

from datasets import load_dataset

output = Path(sys.argv[1] if len(sys.argv) > 1 else "data/squad.jsonl")
dataset = sys.argv[2] if len(sys.argv) > 2 else "rajpurkar/squad"
is_file = dataset.endswith((".json", ".jsonl"))
rows = load_dataset("json", data_files=dataset) if is_file else load_dataset(dataset)
output.parent.mkdir(parents=True, exist_ok=True)
with output.open("w", encoding="utf-8") as file:
    for row in rows["train"]:
        prompt = f"Context: {row['context']}\nQuestion: {row['question']}\nAnswer:"
        completion = f" {row['answers']['text'][0]}"
        file.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")
print(f"Wrote {output}. Next: lorakit train examples/recipes/answer-questions-bloom.yaml")
