"""A run killed with kill -9, twice, ends with the very bits of a run that was left alone."""

import json
import signal

import pytest
from safetensors.torch import load_file

from fixtures.runs import untimed_metrics
from forked import run
from lorakit.recipes import checkpoints
from lorakit.training import Recipe, RunDirectory, train

# Trains, and kills its own process: after an optimizer step, or in the middle of a save.
KILLED = """
import os, signal, sys
from lorakit.training import Recipe, train; from lorakit.recipes import checkpoints

recipe, resume, when, number = sys.argv[1:]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

if when == "step":
    def on_event(name, payload):
        if name == "step" and payload["step"] == int(number):
            die()
else:
    on_event, seal = None, checkpoints.seal
    def torn(checkpoint):
        if checkpoint.name == f"checkpoint-{number}":
            (checkpoint / "optimizer.pt").write_bytes(b"half")
            die()
        seal(checkpoint)
    checkpoints.seal = torn

train(Recipe.load(recipe), resume=resume == "resume", on_event=on_event)
"""


@pytest.fixture
def write(tiny_distilbert_dir, cls_csv, tmp_path):
    def make(name):
        path = tmp_path / f"{name}.yaml"
        values = {
            "model": tiny_distilbert_dir,
            "task": "SEQ_CLS",
            "data": {"train": cls_csv, "validation_fraction": 0.25},
            "lora": {"r": 4, "lora_dropout": 0.2},
            "training": {
                "per_device_train_batch_size": 4,
                "gradient_accumulation_steps": 2,
                "num_train_epochs": 3,
                "eval_strategy": "steps",
                "eval_steps": 3,
                "logging_steps": 2,
                "learning_rate": 5e-3,
                "use_cpu": True,
            },
            "output": str(tmp_path / name),
        }
        path.write_text(json.dumps(values))  # JSON is YAML
        return path

    return make


def run_until_killed(recipe, how, when, number):
    done = run(KILLED, recipe, how, when, number)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_killed_twice_and_resumed_gives_the_same_bits(write):
    straight = train(Recipe.load(write("straight")))
    assert straight.steps == 15

    recipe = write("killed")
    run_until_killed(recipe, "start", "step", 5)
    run = RunDirectory.open(recipe.with_suffix(""))
    assert checkpoints.newest_complete(run.path).name == "checkpoint-3"
    assert not run.is_finished

    run_until_killed(recipe, "resume", "save", 9)
    assert checkpoints.newest_complete(run.path).name == "checkpoint-6"
    assert (run.path / "checkpoint-9").exists()

    resumed = train(Recipe.load(recipe), resume=True)

    one, other = (
        load_file(result.adapter_path / "adapter_model.safetensors")
        for result in (straight, resumed)
    )
    assert one.keys() == other.keys()
    assert all(tensor.equal(other[name]) for name, tensor in one.items())
    assert untimed_metrics(resumed) == untimed_metrics(straight)
    assert resumed.metrics == straight.metrics
    assert resumed.train_loss == straight.train_loss
    assert run.is_finished
    assert sorted(p.name for p in run.path.iterdir() if p.name.startswith(".")) == []
