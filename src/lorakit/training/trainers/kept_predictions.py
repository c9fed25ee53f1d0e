"""Keep what evaluations predict, so that the examples need not be evaluated again for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from lorakit.training.predicted import Evaluated, Predicted
from lorakit.training.trainers.batching import example_sampler

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class KeptPredictionsMixin(_Base):
    """Mixin for a trainer class that keeps the predictions of its latest and best evaluation."""

    read_predictions: Callable[[Evaluated], Predicted] | None = None
    """Reads predictions from the arrays of an evaluation; None keeps none."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._predicted: dict[int, Predicted] = {}
        super().__init__(*args, **kwargs)

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate, and keep the predictions under the current optimizer step."""
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        if self.read_predictions is not None and output.predictions is not None:
            best = self.state.best_global_step  # of the evaluations before this one
            kept = {step: found for step, found in self._predicted.items() if step == best}
            order = list(example_sampler(dataloader))
            found = Evaluated(output.predictions, output.label_ids, order)
            self._predicted = kept | {self.state.global_step: self.read_predictions(found)}
        return output

    def predicted_at(self, step: int) -> Predicted | None:
        """Return the predictions of the evaluation at an optimizer step, if this process ran it."""
        return self._predicted.get(step)
