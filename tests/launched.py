"""Train in two processes on this machine that meet over the loopback interface."""

import json
import shutil
from pathlib import Path

from fixtures.runs import TIMES
from forked import run_together

PASSAGES = 5
"""Neutral passages that a run is judged by here, not all: two processes have unequal shares."""

# Trains one recipe after the other in the same processes. "kill" ends one process in the midst of
# it by kill -9, "ask" lets one of them ask for a stop, "resume" goes on, and "fail" has an error.
# Each process notes how many rows it has tokenized, the seeds of its dropout masks, whether the
# model was sharded, where it was stopped, and its errors.
TRAIN_ALL = """
import json, os, signal, sys
from pathlib import Path

import lorakit.layers.updates.low_rank_update as update
import lorakit.training.encode_once as encode_once
from fixtures.runs import write_blank
from lorakit.errors import LorakitError, StoppedError
from lorakit.training import Recipe, report, train, validation_predictions
from lorakit.distributed.processes import should_report_error, process_rank
from lorakit.training.stop_request import StopRequest
from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin
from lorakit.training.verdict import judge

passages = judge.neutral_passages()[:{passages}]
judge.neutral_passages = lambda: passages
report.plot_losses = lambda run, *_: write_blank(None, run.loss_plot)
validation_predictions.plot_confusion = lambda *given: write_blank(None, given[2])
jobs, notes = json.loads(sys.argv[1]), Path(sys.argv[2])
seen = {"rows": [], "seeds": [], "sharded": [], "errors": []}
draw, encode_once_per_machine = update.draw_seed, encode_once.encode_once_per_machine
step = AdapterTrainerMixin.training_step

def draw_seed():
    seed = draw()
    seen["seeds"].append(int(seed))
    return seed

def counted(encode, **options):
    def counting():
        encoded = encode()
        seen["rows"][-1] += len(encoded.train)
        return encoded
    seen["rows"].append(0)
    return encode_once_per_machine(counting, **options)

def step_and_look(self, *args, **kwargs):
    parameter = next(p for p in self.model.parameters() if p.requires_grad)
    seen["sharded"][-1] = hasattr(parameter, "full_tensor")
    if how == "kill" and self.state.global_step == 5 and process_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "ask" and self.state.global_step == 3 and process_rank() == 1:
        stop.set()
    return step(self, *args, **kwargs)

update.draw_seed = draw_seed
import lorakit.training.setup as setup
setup.encode_once_per_machine = counted
AdapterTrainerMixin.training_step = step_and_look
for path, how in jobs:
    seen["sharded"].append(None)
    stop = StopRequest()
    try:
        train(Recipe.load(path), resume=how == "resume", stop=stop)
    except StoppedError as stopped:
        seen["stopped_at"] = stopped.checkpoint.name
    except LorakitError as error:
        if how != "fail":
            raise
        seen["errors"].append([type(error).__name__, str(error), should_report_error(error)])
notes.with_suffix(f".{process_rank()}").write_text(json.dumps(seen))
"""


def train_all(jobs, folder, processes=2):
    """Train (recipe, how) one after the other; returns how each process ended, and what it saw."""
    notes = folder / "seen"
    given = json.dumps([(str(path), how) for path, how in jobs])
    code = TRAIN_ALL.replace("{passages}", str(PASSAGES))
    ended = run_together(code, given, notes, count=processes)
    files = [notes.with_suffix(f".{rank}") for rank in range(processes)]
    return ended, [json.loads(file.read_text()) for file in files if file.exists()]


def write_recipe(path: Path, **values):
    """Write a recipe; its run directory has the file's name."""
    values["output"] = str(path.with_suffix(""))
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


def without_dropout(model, copy):
    """Copy a model directory, and let its base drop nothing."""
    shutil.copytree(model, copy)
    config = json.loads((copy / "config.json").read_text())
    changed = {
        key: 0.0 if "dropout" in key and isinstance(value, float) else value
        for key, value in config.items()
    }
    (copy / "config.json").write_text(json.dumps(changed))
    return str(copy)


def metric_rows(run_dir):
    """Return the rows of a run's metrics.jsonl without their times."""
    lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]
