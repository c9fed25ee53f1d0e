"""Runs on one base in one process, whose forward and backward passes are computed together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lorakit.recipes.frozen_part_section import FrozenPartConfig
from lorakit.recipes.recipe import Recipe
from lorakit.training.callbacks import EventHandler
from lorakit.training.run import TrainResult, train
from lorakit.training.stop_request import StopRequest
from lorakit.training.together.agreement import require_agreement, require_possible
from lorakit.training.together.base import BaseInProcess
from lorakit.training.together.meeting_point import meeting
from lorakit.training.together.stacked_model import Leaves, Pass, StackedModel
from lorakit.training.together.stacking import Inputs, kind_of
from lorakit.training.together.turns import Turn, Turns

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

    from lorakit.training.setup import Setup
    from lorakit.training.tasks import Task


@dataclass(frozen=True)
class _Backward:
    """The request to pass on the gradients of all outputs that a run has got."""


class RunGroup:
    """Trains runs on one base in this process; runs may join and leave between steps.

    Each run is an ordinary `train` in a thread, with its model, trainer and directory; only one
    thread runs at a time. In place of its backbone's forward a run waits for the others, and the
    batches of all are stacked and run as one, each row under its run's adapter. After it has
    computed its loss and the gradients of its part it waits again, and one backward pass gives all
    adapters their gradients.

    Example:
        >>> group = RunGroup()  # doctest: +SKIP
        >>> runs = [group.start(recipe) for recipe in recipes]  # doctest: +SKIP
        >>> results = [run.wait() for run in runs]  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._turns = Turns(self._serve)
        self._base = BaseInProcess()
        self._runs: list[GroupedRun] = []
        self._model: StackedModel | None = None
        self._open: list[Leaves] = []
        self._gone: list[str] = []
        self._settled: Recipe | None = None

    def start(
        self,
        recipe: Recipe,
        *,
        resume: bool = False,
        planned_bytes: int | None = None,
        on_event: EventHandler | None = None,
        stop: StopRequest | None = None,
    ) -> GroupedRun:
        """Start a run, from any thread.

        Args:
            recipe: A recipe with the base of the others.
            resume: See `lorakit.train`.
            planned_bytes: See `lorakit.train`.
            on_event: See `lorakit.train`; called in the run's thread.
            stop: See `lorakit.train`.

        Raises:
            ConfigError: It cannot run with those that have been started.
        """
        recipe = recipe.with_absolute_paths()
        require_agreement([*(run.recipe for run in self._runs), recipe])
        options = {"resume": resume, "planned_bytes": planned_bytes}
        run = GroupedRun(
            self, len(self._runs), recipe, {**options, "on_event": on_event, "stop": stop}
        )
        self._runs.append(run)
        self._turns.start(run.turn)
        return run

    # ---- what runs ask for ----

    def load_base(
        self,
        recipe: Recipe,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        labels: tuple[str, ...] | None,
    ) -> PreTrainedModel:
        """Return a run's modules over the weights that all share."""
        return self._base.load(recipe, task, tokenizer, labels)

    def with_settled_dtype(self, recipe: Recipe) -> Recipe:
        """Return a recipe with the dtype that `dtype: auto` has become in the first run."""
        first = self._settled
        if first is None or recipe.dtype != "auto":
            return recipe
        bf16 = {"bf16": True} if first.training.get("bf16") else {}
        training = {**recipe.training, **bf16}
        return recipe.model_copy(update={"dtype": first.dtype, "training": training})

    def settle(self, recipe: Recipe) -> None:
        """Keep the base of the first run that is ready to train."""
        if self._settled is None:
            self._settled = recipe
            self._base.settle()

    def join(self, name: str, model: nn.Module) -> None:
        """Carry a run's adapter in the model of all."""
        if self._model is None:
            device = next(model.parameters()).device
            self._model = StackedModel(self._base.pristine, device)
        self._model.attach(name, model)

    def leave(self, name: str) -> None:
        """Carry a run's adapter no longer, once backward is done."""
        self._gone.append(name)
        if not self._open:
            self._remove_gone()

    def _remove_gone(self) -> None:
        model: Any = self._model
        gone, self._gone = self._gone, []
        for name in gone:
            model.detach(name)

    def ask(self, turn: Turn, request: Pass | _Backward) -> Any:
        """Wait for the others, and return what is computed together."""
        return self._turns.ask(turn, request)

    def _serve(self, turns: Sequence[Turn]) -> None:
        """Compute something for some runs; all of them wait.

        Passes of evaluations come first, so that the others stay in step.
        """
        passes = [turn for turn in turns if isinstance(turn.request, Pass)]
        if not passes:
            _answer(turns, self._backward)
            return
        evaluating = [turn for turn in passes if not turn.request.has_graph]
        chosen = evaluating or passes
        kind = _kind(chosen[0].request)
        alike = [turn for turn in chosen if _kind(turn.request) == kind]
        _answer(alike, lambda: self._forward(alike))

    def _forward(self, turns: Sequence[Turn]) -> list[Any]:
        passes = [turn.request for turn in turns]
        model: Any = self._model
        outputs, leaves = model.forward(passes, [turn.state for turn in turns])
        if passes[0].has_graph:
            self._open.append(leaves)
        return outputs

    def _backward(self) -> None:
        opened, self._open = self._open, []
        for leaves in opened:
            leaves.backward()
        self._remove_gone()


class GroupedRun:
    """A run of a group; what `train` shares with the others."""

    def __init__(self, group: RunGroup, number: int, recipe: Recipe, options: dict[str, Any]):
        """Create the run; `RunGroup.start` does.

        Args:
            group: The group.
            number: Number of runs before it.
            recipe: Its recipe.
            options: Options of `train`.
        """
        self.recipe = recipe
        self.turn = Turn(f"run-{number}", lambda: self._train(options))
        self._group = group
        self._has_joined = False

    def _train(self, options: dict[str, Any]) -> TrainResult:
        recipe = self._group.with_settled_dtype(self.recipe)
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

    # ---- Host ----

    def load_base(
        self,
        recipe: Recipe,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        labels: tuple[str, ...] | None,
    ) -> PreTrainedModel:
        """Return the run's modules over the weights that all share."""
        return self._group.load_base(recipe, task, tokenizer, labels)

    def frozen_part(self, recipe: Recipe) -> FrozenPartConfig:
        """Compute the frozen blocks in each step, as the others read them."""
        return recipe.frozen_part.model_copy(update={"cache_bytes": 0})

    @contextmanager
    def training(self, setup: Setup, trainer: Trainer) -> Iterator[tuple[str, ...]]:
        """Meet the others in this block."""
        require_possible(setup, trainer)
        self._group.settle(setup.recipe)
        self._model: Any = setup.model
        with meeting(trainer, self):
            try:
                yield ()
            finally:
                if self._has_joined:
                    self._group.leave(self.turn.name)

    # ---- Meeting ----

    def begin(self) -> None:
        """Join the others."""
        if not self._has_joined:
            self._group.join(self.turn.name, self._model)
            self._has_joined = True

    def forward(self, adapter: bool, inputs: Inputs, dtype: torch.dtype | None) -> Any:
        """Return the outputs of the backbone, computed with those of the others."""
        name = self.turn.name
        has_graph = torch.is_grad_enabled()
        one = Pass(name, name if adapter else None, inputs, has_graph, dtype)
        return self._group.ask(self.turn, one)

    def backward(self) -> None:
        """Pass on the gradients of these outputs, together with those of the others."""
        self._group.ask(self.turn, _Backward())


def _kind(one: Pass) -> tuple[object, ...]:
    return (one.has_graph, one.autocast_dtype, *kind_of(one.inputs))


def _answer(turns: Sequence[Turn], compute: Callable[[], Sequence[Any] | None]) -> None:
    """Answer the requests of some runs by what is computed, or by the error."""
    try:
        answers = compute() or [None] * len(turns)
    except Exception as error:
        logging.getLogger(__name__).debug("A pass of several runs failed.", exc_info=True)
        for turn in turns:
            turn.fail(error)
        return
    for turn, answer in zip(turns, answers, strict=True):
        turn.succeed(answer)
