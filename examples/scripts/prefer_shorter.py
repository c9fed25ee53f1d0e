"""Teach the quickstart's model that shorter is better, by DPO.

    prefer_shorter.py [FOLDER] [PAIRS] [HELD_OUT]

The pairs are made by rule from the docstrings of this Python's standard library: the first words
are the prompt, the next six the chosen answer, and the next eighteen the rejected one. Nothing is
downloaded. Ends with an error if the held-out accuracy is not above 0.9.
"""

import json
import random
import sys
import time
from pathlib import Path

from lorakit import Recipe, train
from lorakit.quickstart.docstrings import collect_docstrings
from lorakit.quickstart.model_files import base_model_path

PROMPT, CHOSEN, REJECTED = 6, 6, 18  # words
SEED, GOAL = 0, 0.9

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/prefer-shorter")
count = int(sys.argv[2]) if len(sys.argv) > 2 else 240
held_out = int(sys.argv[3]) if len(sys.argv) > 3 else 200
started_s = time.monotonic()

pairs = []
for docstring in collect_docstrings():
    words = docstring.text.split()
    if len(words) >= PROMPT + REJECTED:
        prompt, answer = words[:PROMPT], words[PROMPT:]
        pairs.append(
            {
                "prompt": " ".join(prompt),
                "chosen": " " + " ".join(answer[:CHOSEN]),
                "rejected": " " + " ".join(answer[:REJECTED]),
            }
        )
random.Random(SEED).shuffle(pairs)
splits = {"validation": pairs[:held_out], "train": pairs[held_out : held_out + count]}
files = {name: folder / f"{name}.jsonl" for name in splits}
folder.mkdir(parents=True, exist_ok=True)
for name, rows in splits.items():
    files[name].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

recipe = Recipe.check(
    {
        "model": str(base_model_path()),
        "task": "CAUSAL_LM",
        # Without the likelihood of the chosen answers, both answers would become unlikely.
        "objective": {"type": "dpo", "sft_weight": 1.0},
        "dtype": "float32",
        "data": {"train": str(files["train"]), "validation": str(files["validation"])},
        "lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
        "training": {
            "learning_rate": 1e-3,
            "num_train_epochs": 1,
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 64,
            "eval_on_start": True,
            "seed": SEED,
        },
        "output": str(folder / "run"),
    },
    "prefer_shorter.py",
)
evaluations = []
result = train(
    recipe,
    on_event=lambda name, event: name == "evaluation" and evaluations.append(event["metrics"]),
)
before, after = evaluations[0], result.metrics
print(f"{len(splits['train'])} pairs to learn from, {len(splits['validation'])} held out")
print(
    f"held-out accuracy: {before['eval_accuracy']:.3f} before, {after['eval_accuracy']:.3f} after"
)
for answer in ("chosen", "rejected"):
    key = f"eval_{answer}_log_prob"
    print(f"log-probability of {answer} answers: {before[key]:.1f} before, {after[key]:.1f} after")
print(f"{time.monotonic() - started_s:.0f} s, with {result.run_dir}")
if after["eval_accuracy"] <= GOAL:
    sys.exit(f"The accuracy is not above {GOAL}.")
