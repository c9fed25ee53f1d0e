"""The command on a cluster of two machines, joined by its address: searches, a kill, Ctrl-C."""

import csv
import json
import os
import signal
import time

import pytest
import yaml

from forked import LORAKIT, Program, run
from launched import write_recipe
from lorakit.recipes import checkpoints
from lorakit.recipes.directory_lock import has_ended, lock_holder
from lorakit.training import RunDirectory

_PATIENCE_S = 240

# Two raylets on this machine, of one CPU each. Nobody reads their logs.
_CLUSTER = """
import signal
from ray._private.node import Node
from ray.cluster_utils import Cluster

Node.start_monitor = Node.start_log_monitor = lambda node: None

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until it is waited for
cluster = Cluster()
cluster.add_node(num_cpus=1, include_dashboard=False)
cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
signal.sigwait({signal.SIGTERM})
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def address(forked_workers):
    """Return the address of a cluster."""
    with Program(_CLUSTER, environment=os.environ | forked_workers) as cluster:
        deadline = time.monotonic() + _PATIENCE_S
        while not cluster.printed("stdout").endswith("\n"):
            assert time.monotonic() < deadline, "no cluster"
            assert cluster.process.exitcode is None, cluster.printed("stderr")
            time.sleep(0.05)
        yield cluster.printed("stdout").strip()
        os.kill(cluster.process.pid, signal.SIGTERM)
        cluster.finished()


@pytest.fixture
def write_search(tiny_llama_dir, prompt_jsonl, tmp_path):
    """Write the recipe of a search on CPUs of their own; returns its path."""

    def write(**search):
        values = {
            "model": tiny_llama_dir,
            "task": "CAUSAL_LM",
            "data": {"train": prompt_jsonl, "validation_fraction": 0.25},
            "lora": {"r": 2, "target_modules": ["q_proj", "v_proj"]},
            "training": {"per_device_train_batch_size": 1, "use_cpu": True},
            "search": {
                "cpus_per_trial": 1,
                "asha": None,
                "space": {"training.learning_rate": {"log_uniform": [1e-4, 1e-2]}},
            }
            | search,
            "output": str(tmp_path / "search"),
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    return write


def test_a_search_uses_both_machines(write_search, address, forked_workers):
    recipe = write_search(trials=2, max_epochs=6)
    done = run(LORAKIT, "tune", recipe, "--address", address, **forked_workers)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["status"] for row in _rows(recipe)] == ["finished", "finished"]
    # Each raylet has one CPU, so two trials at once are one on each.
    printed = done.stdout
    second_starts = max(printed.index("trial-001 starts"), printed.index("trial-002 starts"))
    assert second_starts < min(
        printed.index("trial-001 epoch 6/6"), printed.index("trial-002 epoch 6/6")
    )


def test_a_killed_search_goes_on_where_it_was(write_search, address, forked_workers):
    # One at once, so that one is under way when another has finished.
    recipe = write_search(trials=3, max_epochs=3, max_concurrent=1)
    trials = recipe.parent / "search" / "trials"
    deadline = time.monotonic() + _PATIENCE_S
    command = (LORAKIT, "tune", recipe, "--address", address)
    with Program(*command, environment=os.environ | forked_workers) as killed:
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
    before = {trial: _evaluations(trial) for trial in finished}
    begun = {trial: json.loads(_evaluations(trial)[0]) for trial in half}
    _wait_until_ended(half)

    resumed = run(*command, "--resume", **forked_workers)
    assert resumed.returncode == 0, resumed
    rows = _rows(recipe)
    assert [row["trial"] for row in rows] == [f"trial-{n:03d}" for n in range(1, 4)]
    assert {row["status"] for row in rows} == {"finished"}, rows
    assert {row["epochs"] for row in rows} == {"3"}
    for trial, lines in before.items():
        assert _evaluations(trial) == lines, "a finished trial was trained again"
    for trial, row in begun.items():
        assert json.loads(_evaluations(trial)[0]) == row, "a trial began from its beginning"
    assert (trials.parent / "best.yaml").exists()


def _rows(recipe):
    with (recipe.parent / "search" / "trials.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _evaluations(trial):
    """Return the evaluations of a trial's epochs: the lines as they were written."""
    return (trial / "metrics.jsonl").read_text(encoding="utf-8").splitlines()


def _wait_until_ended(trials):
    """Wait until the trials of the killed driver have ended too, as Ray ends them."""
    deadline = time.monotonic() + _PATIENCE_S
    while not all(has_ended(holder) for trial in trials if (holder := lock_holder(trial))):
        assert time.monotonic() < deadline, "a trial outlives its search"
        time.sleep(0.1)


# A plan takes a process that imports the libraries again; a suite that runs in the background
# ignores the signal, and what it starts would too.
_IN_A_TERMINAL = """
import os, signal
import lorakit.planning.separate_process
from lorakit.__main__ import main

lorakit.planning.separate_process.plan_in_separate_process = lambda *_: None
os.setsid()
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""


def test_ctrl_c_leaves_a_run_to_resume(
    tiny_llama_dir, prompt_jsonl, tmp_path, address, forked_workers
):
    training = {"max_steps": 20_000, "save_strategy": "steps", "save_steps": 2, "use_cpu": True}
    recipe = write_recipe(
        tmp_path / "interrupted.yaml",
        model=tiny_llama_dir,
        task="CAUSAL_LM",
        data={"train": prompt_jsonl, "validation_fraction": 0.25},
        lora={"r": 2},
        training=training,
    )
    path = recipe.with_suffix("")
    on_ray = ("--ray", "1", "--address", address)
    command = (_IN_A_TERMINAL, "train", recipe, *on_ray)
    with Program(*command, environment=os.environ | forked_workers) as program:
        deadline = time.monotonic() + _PATIENCE_S
        while not list(path.glob("checkpoint-*/manifest.json")):
            assert time.monotonic() < deadline, "no checkpoint"
            assert program.process.exitcode is None, program.printed("stderr")
            time.sleep(0.1)
        os.kill(program.process.pid, signal.SIGINT)
        ended = program.finished(60)
    assert ended.returncode == 130, ended
    newest = checkpoints.newest_complete(path)
    again = f"resume with: lorakit train {recipe} {' '.join(on_ray)} --resume"
    assert f"Interrupted. Saved {newest}; {again}" in ended.stderr
    assert not RunDirectory.open(path).is_finished and not list(path.parent.glob(".*"))
