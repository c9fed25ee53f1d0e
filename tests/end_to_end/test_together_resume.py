"""A group killed with kill -9: each run resumes, together or alone, to what it is without that."""

import json
import signal

from fixtures.together import lora, require_equal_runs
from forked import run
from lorakit.recipes import checkpoints
from lorakit.training import Recipe, train, train_together

KILLED = """
import os, signal, sys
from lorakit.training import train_together

def on_event(run, name, payload):
    if (run, name) == (1, "step") and payload["step"] == 5:
        os.kill(os.getpid(), signal.SIGKILL)

train_together(sys.argv[1:], on_event=on_event)
"""


def test_a_killed_group_resumes_together_and_alone(tiny_llama_dir, prompt_jsonl, tmp_path):
    def write(name, every, **values):
        path = tmp_path / f"{name}.yaml"
        training = {
            "max_steps": 9,
            "per_device_train_batch_size": 4,
            "learning_rate": 5e-3,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": every,
            "use_cpu": True,
        }
        recipe = {
            "model": tiny_llama_dir,
            "task": "CAUSAL_LM",
            "data": {"train": prompt_jsonl},
            "output": str(tmp_path / name),
            "training": training,
            **values,
        }
        path.write_text(json.dumps(recipe))
        return path

    def pair(prefix):
        return [
            write(f"{prefix}-0", 2, lora=lora(2, "q_proj", lora_dropout=0.2)),
            write(f"{prefix}-1", 3, lora=lora(3, "v_proj", "up_proj", lora_dropout=0.4)),
        ]

    straight = [train(Recipe.load(path)) for path in pair("straight")]
    for prefix in ("together", "alone"):
        paths = pair(prefix)
        done = run(KILLED, *paths)
        assert done.returncode == -signal.SIGKILL, done.stderr
        found = [checkpoints.newest_complete(path.with_suffix("")).name for path in paths]
        assert found == ["checkpoint-4", "checkpoint-3"]
        if prefix == "together":
            resumed = train_together(paths, resume=True)
        else:
            resumed = [train(Recipe.load(path), resume=True) for path in paths]
        for ours, theirs in zip(resumed, straight, strict=True):
            require_equal_runs(ours, theirs)
