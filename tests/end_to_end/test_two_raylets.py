"""A search on a cluster of two raylets on this machine, joined by its address."""

import csv

import yaml

from forked import run

_CLUSTER = """
import sys
from ray.cluster_utils import Cluster
from lorakit.__main__ import main

cluster = Cluster()
cluster.add_node(num_cpus=1, include_dashboard=False)
cluster.add_node(num_cpus=1)
sys.argv += ["--address", cluster.address]
try:
    main()
finally:
    cluster.shutdown()
"""


def test_a_search_uses_both_machines_of_a_cluster(
    tiny_llama_dir, prompt_jsonl, tmp_path, forked_workers
):
    values = {
        "model": tiny_llama_dir,
        "task": "CAUSAL_LM",
        "data": {"train": prompt_jsonl, "validation_fraction": 0.25},
        "lora": {"r": 2},
        "training": {"per_device_train_batch_size": 1, "use_cpu": True},
        "search": {
            "trials": 2,
            "max_epochs": 6,
            "cpus_per_trial": 1,
            "asha": None,
            "space": {"training.learning_rate": {"log_uniform": [1e-4, 1e-2]}},
        },
        "output": str(tmp_path / "search"),
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    done = run(_CLUSTER, "tune", recipe, **forked_workers)
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "search" / "trials.csv").open(encoding="utf-8") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["finished", "finished"]
    # Each raylet has one CPU, so two trials at once are one on each.
    printed = done.stdout
    second_starts = max(printed.index("trial-001 starts"), printed.index("trial-002 starts"))
    assert second_starts < min(
        printed.index("trial-001 epoch 6/6"), printed.index("trial-002 epoch 6/6")
    )
