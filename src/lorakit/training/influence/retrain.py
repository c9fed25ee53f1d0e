"""Train a run again without its most harmful examples, and compare the two."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from datasets import Dataset, DatasetDict

from lorakit.errors import ConfigError, OutputExistsError
from lorakit.recipes.run_directory import RunDirectory
from lorakit.training.callbacks import EventHandler
from lorakit.training.evaluation import evaluate
from lorakit.training.influence.blame import Blame
from lorakit.training.run import TrainResult, train
from lorakit.training.setup import Setup


@dataclass(frozen=True)
class Retrained:
    """A run and the one without some of its examples, measured on the same validation examples."""

    before: dict[str, float]
    """Metrics of the run, with "eval_" prefixes."""
    after: dict[str, float]
    """Metrics of the run without them."""
    result: TrainResult
    data: Path
    """The examples of the new run, a saved dataset with its two splits."""


def run_without(path: str | Path, setup: Setup, count: int) -> Path:
    """Return the directory of the run without `count` examples, if it can be trained.

    Args:
        path: The run directory.
        setup: The run's data.
        count: Number of examples to leave out.

    Raises:
        ConfigError: No examples would be left, or there are no validation examples.
        OutputExistsError: The run without these examples exists.
    """
    run, splits = RunDirectory.open(path), setup.splits
    if splits.validation is None:
        raise ConfigError(
            "The two runs cannot be compared: got a run without validation examples, expected "
            "some. Train it with data.validation."
        )
    if count >= len(splits.train):
        raise ConfigError(
            f"No examples would be left: got --drop {count:,} of {len(splits.train):,} training "
            "examples, expected fewer. Drop some of them."
        )
    output = run.path.with_name(f"{run.path.name}-without-{count}")
    if output.exists():
        raise OutputExistsError(
            f"Cannot train without {count:,} examples: got {output}, which exists, expected a new "
            "directory. Move it away, or drop another number of examples."
        )
    return output


def retrain_without(
    path: str | Path, found: Blame, count: int, on_event: EventHandler | None = None
) -> Retrained:
    """Train a run again without the first examples of a blame.

    Args:
        path: The run directory.
        found: The result of `blame`.
        count: Number of examples to leave out.
        on_event: As in `train`.

    Raises:
        ConfigError, OutputExistsError: As `run_without` raises.
    """
    run, splits = RunDirectory.open(path), found.setup.splits
    output = run_without(path, found.setup, count)
    dropped = {row.index for row in found.rows[:count]}
    kept = [index for index in range(len(splits.train)) if index not in dropped]
    data = run.path.with_name(f"{output.name}-data")
    held_out = cast(Dataset, splits.validation)  # run_without refuses a run without them
    both = DatasetDict({"train": splits.train.select(kept), "validation": held_out})
    both.save_to_disk(str(data))
    recipe = run.recipe()
    named = {
        "data.train": str(data),
        "data.train_split": "train",
        "output": str(output),
        **dict.fromkeys(
            (
                *("data.validation", "data.validation_split", "data.subset", "data.delimiter"),
                *("data.max_train_rows", "data.max_validation_rows"),
            )
        ),
    }
    before = evaluate(run.path)
    result = train(recipe.with_changes(named, "the run without examples"), on_event=on_event)
    return Retrained(before, evaluate(output), result, data)
