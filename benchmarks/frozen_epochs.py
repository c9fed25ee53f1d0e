"""Epochs of real runs that adapt the upper layers alone, with the layers below computed or kept.

An epoch has all that it has in `lorakit train`: drawing the order, batches, steps, logs, the
evaluation of the validation examples and a checkpoint. Two runs of one process take turns epoch by
epoch; the first epoch of each, which fills the cache, does not count.
"""

import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import turns
from benchmarks.models import Shape, save_with_tokenizer
from benchmarks.options import Options
from benchmarks.results import Row
from benchmarks.step import row_fields
from lorakit.recipes.recipe import Recipe
from lorakit.training import train
from lorakit.training.together.turns import Turn, Turns

ALL = "all layers"
SHARES = {"upper half": 2, "upper quarter": 4}
"""The share of the layers that is adapted, by its inverse."""
EPOCH = "epoch"
_STEPS = 6
_VALIDATION_SHARE = 9
"""A recipe holds out one example for so many to train on, by default."""


def computed(share: str) -> str:
    """Return what the tables call a run that computes the layers below.

    >>> computed("upper half")
    'upper half, below computed'
    """
    return f"{share}, below computed"


def kept(share: str) -> str:
    """Return what the tables call a run that reads their output, as in later epochs."""
    return f"{share}, below kept"


def measure_epochs(
    options: Options, shape: Shape, dtype: torch.dtype, dropout: float, shares: Sequence[str]
) -> list[Row]:
    """Measure the epochs of a run for each share, in turn with those of its reference."""
    r = options.r or 8
    common = row_fields("frozen_part", shape, dtype, dropout, r)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_with_tokenizer(shape, folder / "model", dtype)
        _write_texts(folder / "texts.jsonl", shape)
        training = {"num_train_epochs": options.rounds + 1, "use_cpu": not options.on_cuda}
        training["per_device_train_batch_size"] = shape.rows
        for share in shares:
            adapted = max(1, shape.layers // SHARES[share])
            upper = {"layers_to_transform": [*range(shape.layers - adapted, shape.layers)]}
            is_half = share == "upper half"
            reference = (computed(share), upper) if is_half else (ALL, {})
            recipes: dict[str, Recipe] = {}
            for variant, chosen in ((kept(share), upper), reference):
                output = folder / variant.replace(" ", "-")
                values = {
                    "model": str(folder / "model"),
                    "task": "CAUSAL_LM",
                    "dtype": str(dtype).removeprefix("torch."),
                    "data": {"train": str(folder / "texts.jsonl"), "max_length": shape.length},
                    "lora": {"r": r, "lora_alpha": 2 * r, "lora_dropout": dropout, **chosen}
                    | {"target_modules": list(shape.targets)},
                    "evaluation": {"compare_with_base": False},
                    "frozen_part": {"cache_directory": str(folder / "kept")},
                    "training": training,
                    "output": str(output),
                }
                if variant != kept(share):
                    values["frozen_part"] = {"cache_bytes": 0}
                recipes[variant] = Recipe.check(values, "the benchmark's recipe")
            found = options.compared(
                Epochs(recipes).seconds(), (reference[0],), measure=EPOCH, unit="s", **common
            )
            rows += options.keep(found)
    return rows


def _write_texts(path: Path, shape: Shape) -> None:
    """Write texts that are longer than a row, for so many steps and their validation."""
    generator = random.Random(0)
    words = ["def", "return", "value", "self", "the", "list", "of", "names", "if", "not", "None"]
    count = shape.rows * _STEPS
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count + count // _VALIDATION_SHARE + 1):
            text = " ".join(generator.choice(words) for _ in range(2 * shape.length))
            file.write(f"{json.dumps({'text': text})}\n")


class Epochs:
    """Runs that take turns epoch by epoch."""

    def __init__(self, recipes: Mapping[str, Recipe]):
        """Create the runs.

        Args:
            recipes: The recipe of each variant, of as many epochs.
        """
        self._recipes = recipes
        self._turns = Turns(self._serve)
        self._ended: dict[str, list[float]] = {variant: [] for variant in recipes}
        self._began: dict[str, float] = {}
        self._runs: dict[str, Turn] = {}

    def seconds(self) -> dict[str, list[float]]:
        """Run them; return the seconds of each epoch after the first."""
        for variant in self._recipes:
            self._runs[variant] = Turn(variant, lambda variant=variant: self._train(variant))
        self._turns.start(*self._runs.values())
        for run in self._runs.values():
            run.is_over.wait()
            if run.error is not None:
                raise run.error
        return {variant: seconds[1:] for variant, seconds in self._ended.items()}

    def _train(self, variant: str) -> None:
        def on_event(name: str, payload: dict[str, Any]) -> None:
            if name == "evaluation":
                self._ended[variant].append(time.perf_counter() - self._began[variant])
                self._turns.ask(self._runs[variant], "the next epoch")
                self._began[variant] = time.perf_counter()

        self._began[variant] = time.perf_counter()
        train(self._recipes[variant], on_event=on_event)

    def _serve(self, waiting: Sequence[Turn]) -> None:
        """Let the run of which the fewest epochs have ended go on; each is first in turn."""
        done = min(len(self._ended[turn.name]) for turn in waiting)
        order = turns([*self._recipes], done)
        behind = [turn for turn in waiting if len(self._ended[turn.name]) == done]
        min(behind, key=lambda turn: order.index(turn.name)).succeed(None)
