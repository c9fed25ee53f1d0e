"""Keep what evaluations find for each example, so that these need not be evaluated again for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers.trainer_utils import EvalLoopOutput

from lorakit.analysis.example_scores import ExampleScores
from lorakit.training.predicted import Evaluated, Predicted
from lorakit.training.trainers.batching import example_sampler

if TYPE_CHECKING:
    from lorakit.training.trainers.step_trainer import StepTrainerMixin as _Base
else:
    _Base = object


@dataclass(frozen=True)
class KeptEvaluation:
    """What an evaluation found for each example."""

    predicted: Predicted | None
    """None if the task has no predictions, or the loss alone was asked for."""
    example_scores: ExampleScores | None
    """How good each text or pair of answers is by the metric of the step; None for classifiers of
    whole texts. In the order of the data, or of the evaluation if texts are packed."""
    divergence: float | None = None
    """KL divergence from the reference of an objective, in nats per token; None without one."""

    @property
    def scores(self) -> tuple[ExampleScores, ...]:
        """The scores of the examples by each metric that models are compared by."""
        if self.predicted is not None:
            return self.predicted.scores
        return () if self.example_scores is None else (self.example_scores,)


class KeptPredictionsMixin(_Base):
    """Mixin for a trainer class that keeps what its latest and best evaluation found."""

    read_predictions: Callable[[Evaluated], Predicted] | None = None
    """Reads predictions from the arrays of an evaluation; None keeps none."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._kept: dict[int, KeptEvaluation] = {}
        super().__init__(*args, **kwargs)

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate, and keep what is found under the current optimizer step."""
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        order = list(example_sampler(dataloader))
        predicted = None
        if self.read_predictions is not None and output.predictions is not None:
            predicted = self.read_predictions(
                Evaluated(output.predictions, output.label_ids, order)
            )
        scores = self.example_scores
        if scores is not None and len(scores) <= len(order):
            scores = scores.reorder(order)
        prefix = kwargs.get("metric_key_prefix", "eval")
        divergence = (output.metrics or {}).get(f"{prefix}_kl")
        best = self.state.best_global_step  # of the evaluations before this one
        kept = {step: found for step, found in self._kept.items() if step == best}
        self._kept = kept | {self.state.global_step: KeptEvaluation(predicted, scores, divergence)}
        return output

    def evaluation_at(self, step: int) -> KeptEvaluation | None:
        """Return what the evaluation at an optimizer step found, if this process ran it."""
        return self._kept.get(step)

    @contextmanager
    def evaluating_apart(self) -> Iterator[None]:
        """Evaluate inside the block without logging, and without changing what is kept."""
        callbacks, kept = self.callback_handler.callbacks, self._kept
        logged = len(self.state.log_history)
        self.callback_handler.callbacks, self._kept = [], {}
        try:
            yield
        finally:
            self.callback_handler.callbacks, self._kept = callbacks, kept
            del self.state.log_history[logged:]
