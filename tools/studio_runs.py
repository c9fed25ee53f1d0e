"""The runs in the pictures of the studio: short trainings of the packaged base on docstrings.

`make_runs` fills a folder, and goes on where it was: two runs that have finished, one with
an analysis, one that was stopped, and a search. `RunningRun` trains one more while
pictures are taken.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lorakit.errors import StoppedError
from lorakit.planning import plan
from lorakit.quickstart.docstrings import write_docstrings
from lorakit.quickstart.model_files import base_model_path
from lorakit.recipes.recipe import Recipe
from lorakit.runs.index import RunIndex
from lorakit.runs.new_recipe import recipe_like
from lorakit.runs.notes import write_note, write_tags
from lorakit.runs.process import stop_run
from lorakit.runs.queue import RunQueue
from lorakit.training.run import train
from lorakit.training.stop_request import StopRequest

RUN, OTHER, STOPPED = "docstrings-r16", "docstrings-r4", "docstrings-fast"
SEARCH, RUNNING = "docstrings-search", "docstrings-long"
EXAMPLES = 1_000
STOP_AT_STEP = 60
WAIT_S = 180
RUNNING_STEPS = 60
"""Steps that the running run has logged before its first picture."""


def recipe(root: Path, name: str, **changes: Any) -> Recipe:
    """Return the recipe of a run; `changes` are dotted keys with "__" for the dot."""
    values: dict[str, Any] = {
        "model": str(root / "models" / "quickstart"),
        "task": "SEQ_CLS",
        "dtype": "float32",
        "data": {
            "train": str(root / "data" / "train.jsonl"),
            "validation": str(root / "data" / "validation.jsonl"),
            "max_length": 64,
        },
        "lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
        "training": {
            "learning_rate": 2e-3,
            "num_train_epochs": 4,
            "per_device_train_batch_size": 16,
            "logging_steps": 1,
            "eval_strategy": "epoch",
        },
        "output": str(root / name),
    }
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    return Recipe.check(values, "the recipe").with_changes(changed, "the recipe")


def make_runs(root: Path) -> None:
    """Train those runs of the pictures that are not there; ten minutes on two cores."""
    shutil.copytree(base_model_path(), root / "models" / "quickstart", dirs_exist_ok=True)
    if not (root / "data").exists():
        write_docstrings(root / "data", max_rows=EXAMPLES)
    _train_stopped_run(root)
    _search(root)
    for name, rank in ((OTHER, 4), (RUN, 16)):
        if not (root / name).exists():
            wanted = recipe(root, name, lora__r=rank, lora__lora_alpha=2 * rank)
            train(wanted, planned_bytes=plan(wanted).measurable_bytes)
    if not (root / RUN / "notes.json").exists():
        folder = root / RUN
        _lorakit("analyze", str(folder), "--no-base", "--output", str(folder / "analysis"))
        write_tags(folder, ["best so far"])


def _train_stopped_run(root: Path) -> None:
    if (root / STOPPED).exists():
        return
    stop = StopRequest()

    def stop_in_time(name: str, payload: dict[str, Any]) -> None:
        if name == "step" and payload["step"] >= STOP_AT_STEP:
            stop.set()

    try:
        train(recipe(root, STOPPED, training__learning_rate=2e-2), on_event=stop_in_time, stop=stop)
    except StoppedError:
        write_note(root / STOPPED, "The loss does not fall with this learning rate.")


def _search(root: Path) -> None:
    search = {
        "trials": 6,
        "metric": "accuracy",
        "max_epochs": 3,
        "asha": None,
        "space": {
            "training.learning_rate": {"log_uniform": [3e-4, 1e-2]},
            "lora.r": {"choice": [2, 4, 8, 16]},
            "lora.lora_dropout": {"uniform": [0.0, 0.3]},
        },
    }
    written = root / "recipes" / "search.yaml"
    if not (root / SEARCH / "best.yaml").exists():
        written.parent.mkdir(exist_ok=True)
        written.write_text(recipe(root, SEARCH, search=search).to_yaml(), encoding="utf-8")
        resume = ["--resume"] if (root / SEARCH).exists() else []
        _lorakit("tune", str(written), *resume)


class RunningRun:
    """A run in the queue of a folder that trains within `with`, and leaves nothing."""

    def __init__(self, root: Path):
        """Name the folder."""
        self.root = root
        self._recipe = root / f"{RUNNING}.yaml"

    def __enter__(self) -> "RunningRun":
        """Start the run and wait until it has logged some steps."""
        shutil.rmtree(self.root / RUNNING, ignore_errors=True)
        long = recipe(
            self.root, RUNNING, training__num_train_epochs=100, training__learning_rate=1e-3
        )
        about = {"task": "SEQ_CLS", "model": str(long.model)}
        self._recipe.write_text(recipe_like(long, RUNNING), encoding="utf-8")
        self._job = RunQueue(self.root).add(["train", self._recipe.name], RUNNING, about=about)
        self._wait(lambda row: (row.step or 0) >= RUNNING_STEPS)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the run and remove it."""
        self._recipe.unlink()
        stop_run(self.root, RUNNING)
        self._wait(lambda row: row.state != "running")
        RunQueue(self.root).cancel(self._job.number)
        shutil.rmtree(self.root / RUNNING)

    def _wait(self, is_so: Any) -> None:
        deadline = time.monotonic() + WAIT_S
        while not any(row.path == RUNNING and is_so(row) for row in RunIndex(self.root).refresh()):
            if time.monotonic() > deadline:
                sys.exit(f"{RUNNING} did not go on for {WAIT_S} s; see {self._job.folder}.")
            time.sleep(0.5)


def _lorakit(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "lorakit", *words], check=True)
