"""Measure the time and memory of a few real steps of a recipe."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from lorakit.files.atomic import scratch_directory
from lorakit.planning.planned_examples import example_tokens
from lorakit.planning.step_memory import StepMemory, longest_batch, run_step
from lorakit.recipes.recipe import Recipe
from lorakit.training.callbacks import ignore_event
from lorakit.training.preview import optimizer_steps
from lorakit.training.setup import Setup, prepare

_STEPS = 3
_WARM_UP = 1


@dataclass(frozen=True)
class Measurement:
    """Time and memory of a few real steps."""

    step_s: float
    """Median seconds of an optimizer step after the first."""
    updates: int
    """Optimizer steps of the whole run."""
    memory: StepMemory
    """Memory of one more step, on a batch of the longest examples."""

    @property
    def run_s(self) -> float:
        """Seconds for the steps of the whole run, without evaluations."""
        return self.step_s * self.updates


def measure(recipe: Recipe) -> Measurement:
    """Load base and data of a recipe and train three steps; nothing is kept.

    Args:
        recipe: The recipe; its run directory is not created.

    Raises:
        LorakitError: As `train` would raise.
    """
    clock = _Clock()
    with _open_trainer(recipe, [clock]) as (setup, trainer):
        updates = optimizer_steps(setup.arguments, len(setup.encoded.train))
        setup.arguments.max_steps = _STEPS
        trainer.train()
        memory = _count_memory(setup, trainer)
    return Measurement(statistics.median(clock.steps_s[_WARM_UP:]), updates, memory)


def count_step(recipe: Recipe, before: Callable[[], None] = lambda: None) -> StepMemory:
    """Load base and data of a recipe and count the memory of a step of the longest examples.

    Args:
        recipe: The recipe; its run directory is not created.
        before: Called after loading, before the step.

    Raises:
        LorakitError: As `train` would raise.
    """
    with _open_trainer(recipe, []) as (setup, trainer):
        before()
        return _count_memory(setup, trainer)


@contextmanager
def _open_trainer(recipe: Recipe, callbacks: list[Any]) -> Iterator[tuple[Setup, Any]]:
    """Yield the setup and trainer of a recipe, writing to a temporary directory only."""
    with scratch_directory("lorakit-plan-") as scratch:
        elsewhere = {"output": str(scratch / "run")}
        setup = prepare(recipe.with_changes(elsewhere, "the measurement"), ignore_event)
        arguments = setup.arguments
        for name in ("eval_strategy", "save_strategy", "logging_strategy"):
            setattr(arguments, name, type(getattr(arguments, name))("no"))
        arguments.load_best_model_at_end = False
        yield setup, setup.build_trainer(callbacks)


def _count_memory(setup: Setup, trainer: Any) -> StepMemory:
    encoded: Any = setup.encoded.train
    examples = sorted(encoded, key=example_tokens, reverse=True)
    batch = trainer._prepare_inputs(longest_batch(trainer, examples, len(examples)))
    trainer.optimizer = None  # a fresh one
    return run_step(trainer, batch)


class _Clock(TrainerCallback):
    """Records the duration of each optimizer step."""

    def __init__(self) -> None:
        self.steps_s: list[float] = []
        self._began_s = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._began_s = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.steps_s.append(time.perf_counter() - self._began_s)
