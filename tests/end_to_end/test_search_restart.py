"""A search whose driver is killed, and restarted: nothing that had finished runs again."""

import csv
import json
import os
import signal
import time

import pytest

from forked import LORAKIT, Program, run
from lorakit.recipes.directory_lock import has_ended, lock_holder

_PATIENCE_S = 240


@pytest.fixture
def recipe(tiny_llama_dir, prompt_jsonl, tmp_path):
    import yaml

    values = {
        "model": tiny_llama_dir,
        "task": "CAUSAL_LM",
        "data": {"train": prompt_jsonl, "validation_fraction": 0.25},
        "lora": {"r": 2, "target_modules": ["q_proj", "v_proj"]},
        "training": {"per_device_train_batch_size": 1, "use_cpu": True},
        "search": {
            "trials": 3,
            "max_epochs": 3,
            "max_concurrent": 1,  # so that one is under way when another has finished
            "asha": None,
            "space": {"training.learning_rate": {"log_uniform": [1e-4, 1e-2]}},
        },
        "output": str(tmp_path / "search"),
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def first_evaluations(trial):
    """Return when the epochs of a trial were evaluated first: the lines as they were written."""
    return (trial / "metrics.jsonl").read_text(encoding="utf-8").splitlines()


def test_a_killed_search_goes_on_where_it_was(recipe, forked_workers):
    trials = recipe.parent / "search" / "trials"
    deadline = time.monotonic() + _PATIENCE_S
    environment = os.environ | forked_workers
    with Program(LORAKIT, "tune", recipe, environment=environment) as killed:
        while time.monotonic() < deadline:
            finished = sorted(path.parent for path in trials.glob("*/report.md"))
            under_way = [
                path
                for path in trials.glob("*/checkpoint-*")
                if (path / "manifest.json").exists() and path.parent not in finished
            ]
            if finished and under_way:
                break
            assert killed.process.exitcode is None, killed.finished()
            time.sleep(0.05)
        else:
            pytest.fail("no trial finished in time")
        os.kill(killed.process.pid, signal.SIGKILL)
        assert killed.finished().returncode == -signal.SIGKILL
    half = {path.parent for path in under_way}
    before = {trial: first_evaluations(trial) for trial in finished}
    begun = {trial: json.loads(first_evaluations(trial)[0]) for trial in half}
    _wait_until_ended(half)

    resumed = run(LORAKIT, "tune", recipe, "--resume", **forked_workers)
    assert resumed.returncode == 0, resumed
    with (trials.parent / "trials.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == [f"trial-{n:03d}" for n in range(1, 4)]
    assert {row["status"] for row in rows} == {"finished"}, rows
    assert {row["epochs"] for row in rows} == {"3"}
    for trial, lines in before.items():
        assert first_evaluations(trial) == lines, "a finished trial was trained again"
    for trial, row in begun.items():
        assert json.loads(first_evaluations(trial)[0]) == row, "a trial began from its beginning"
    assert (trials.parent / "best.yaml").exists()


def _wait_until_ended(trials):
    """Wait until the trials of the killed driver have ended too, as its Ray ends them."""
    deadline = time.monotonic() + _PATIENCE_S
    while not all(has_ended(holder) for trial in trials if (holder := lock_holder(trial))):
        assert time.monotonic() < deadline, "a trial outlives its search"
        time.sleep(0.1)
