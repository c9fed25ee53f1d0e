"""Runs on one base in one process, whose forward and backward passes are computed together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypedDict, Unpack

from lorakit.errors import ConfigError
from lorakit.recipes.recipe import Recipe
from lorakit.training.callbacks import EventHandler
from lorakit.training.run import TrainResult, train
from lorakit.training.stop_request import StopRequest
from lorakit.training.together.agreement import ADVICE, find_unshared_part, require_agreement
from lorakit.training.together.base import BaseInProcess
from lorakit.training.together.meeting_point import meeting
from lorakit.training.together.shared_passes import Seat, SharedPasses
from lorakit.training.together.turns import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

    from lorakit.training.frozen_part import FrozenPart
    from lorakit.training.setup import Setup
    from lorakit.training.tasks import Task


_NOTE = (
    "This run shared its process and its passes with others: the peak of memory is that of all, "
    "and times include theirs."
)


class RunOptions(TypedDict, total=False):
    """Arguments of `lorakit.train` that each run of a group has for itself."""

    resume: bool
    planned_bytes: int | None
    on_event: EventHandler | None
    stop: StopRequest | None


class RunGroup:
    """Trains runs on one base in this process; runs may join and leave between steps.

    Each run is an ordinary `train` in a thread, with its model, trainer and directory; only one
    thread runs at a time. Instead of its backbone's forward a run waits for the others, and the
    batches of all are stacked and run as one, each row under its run's adapter. After it has
    computed its loss and the gradients of its part it waits again, and one backward pass gives all
    adapters their gradients.

    Example:
        >>> group = RunGroup()  # doctest: +SKIP
        >>> runs = [group.start(recipe) for recipe in recipes]  # doctest: +SKIP
        >>> results = [run.wait() for run in runs]  # doctest: +SKIP
    """

    def __init__(self, advice: str = ADVICE) -> None:
        """Create a group without runs.

        Args:
            advice: What the error of a run that cannot join says to do.
        """
        self.advice = advice
        self.passes = SharedPasses()
        self.base = BaseInProcess(advice)
        self._recipes: list[Recipe] = []  # not the runs, whose errors hold trainers

    def start(self, recipe: Recipe, **options: Unpack[RunOptions]) -> GroupedRun:
        """Start a run, from any thread; see `add`.

        Raises:
            ConfigError: It cannot run with those that have been started.
        """
        run = self.add(recipe, **options)
        self.begin(run)
        return run

    def add(self, recipe: Recipe, **options: Unpack[RunOptions]) -> GroupedRun:
        """Add a run that `begin` starts.

        Args:
            recipe: A recipe with the base of the others.
            options: Arguments of `lorakit.train`; `on_event` is called in the run's thread.

        Raises:
            ConfigError: It cannot run with those that have been added.
        """
        recipe = recipe.with_absolute_paths()
        require_agreement([*self._recipes, recipe], self.advice)
        run = GroupedRun(self, len(self._recipes), recipe, options)
        self._recipes.append(recipe)
        return run

    def begin(self, *runs: GroupedRun) -> None:
        """Start runs, from any thread; those that start at once take their first step together."""
        self.passes.start(*(run.turn for run in runs))


class GroupedRun:
    """A run of a group; what `train` shares with the others."""

    def __init__(self, group: RunGroup, number: int, recipe: Recipe, options: RunOptions):
        """Create the run; `RunGroup.add` does."""
        self.recipe = recipe
        self.turn = Turn(f"run-{number}", lambda: self._train(options))
        self._group = group

    def _train(self, options: RunOptions) -> TrainResult:
        recipe = self._group.base.with_settled_dtype(self.recipe)
        return train(recipe, host=self, **options)

    def wait(self) -> TrainResult:
        """Wait for the end of the run, and return its result.

        Raises:
            LorakitError: What `lorakit.train` raises.
        """
        self.turn.is_over.wait()
        if self.turn.error is not None:
            raise self.turn.error
        return self.turn.result

    # ---- what `train` asks its host ----

    def load_base(
        self,
        recipe: Recipe,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        labels: tuple[str, ...] | None,
    ) -> PreTrainedModel:
        """Return the run's modules over the weights that all share."""
        return self._group.base.load(recipe, task, tokenizer, labels)

    @contextmanager
    def training(
        self, setup: Setup, trainer: Trainer, frozen: FrozenPart
    ) -> Iterator[tuple[str, ...]]:
        """Compute with the others in this block, from the first step on."""
        problem = find_unshared_part(setup.model, trainer.args)
        if problem is not None:
            output, advice = setup.recipe.output, self._group.advice
            raise ConfigError(f"Cannot train {output} with others: {problem}. {advice}")
        self._group.base.settle(setup.recipe)
        passes = self._group.passes

        def join() -> Seat:
            seat = passes.join(self.turn, setup.model, self._group.base.pristine, frozen)
            joined.callback(passes.leave, self.turn)
            return seat

        with ExitStack() as joined, meeting(trainer, join):
            yield (_NOTE,)
