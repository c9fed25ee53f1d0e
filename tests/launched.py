"""Start programs in two processes on this machine that meet over the loopback interface."""

import json
import os
import subprocess
import sys
from pathlib import Path

TIMEOUT_S = 240

TRAIN_ALL = """
import json, sys
from lorakit.training import Recipe, train

for path, how in json.loads(sys.argv[1]):
    train(Recipe.load(path), resume=how == "resume")
"""


def environment(**changes):
    """Return this process's environment, for programs that share two cores."""
    own = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return own | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **changes}


def torchrun(*command, processes=2, **changes):
    """Run a program under torchrun; returns the finished process, whatever its exit code."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return run([*launcher, f"--nproc-per-node={processes}", *command], **changes)


def run(command, **changes):
    """Run a command to its end."""
    return subprocess.run(
        [str(part) for part in command],
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def write_recipe(path: Path, **values):
    """Write a recipe; its run directory has the file's name."""
    values["output"] = str(path.with_suffix(""))
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


def metric_rows(run_dir):
    """Return the rows of a run's metrics.jsonl without their times."""
    lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "wall_s"} for line in lines]
