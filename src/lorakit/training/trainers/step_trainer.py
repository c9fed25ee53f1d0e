"""Let a `Step` compute the losses of a transformers Trainer, in training and in evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_pt_utils import nested_detach
from transformers.trainer_utils import EvalLoopOutput

from lorakit.analysis.example_scores import ExampleScores, Metric
from lorakit.distributed.processes import all_gather_object
from lorakit.training.losses.counted_labels import CountingCollator, split_batch
from lorakit.training.losses.example_losses import ExampleLoss
from lorakit.training.step import LogitsStep, MeanStep, Step
from lorakit.training.trainers.batching import temporarily
from lorakit.training.trainers.running_measures import RunningMeasures

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class StepTrainerMixin(_Base):
    """Mixin for a trainer class whose losses are those of its `step`.

    The loss of an optimizer step is the mean over the labels of all its batches, including those of
    other processes, and `eval_loss` is the mean over all labels, not over batches.
    """

    step: Step
    notes: tuple[str, ...] = ()
    """Notes on how the model is trained, one sentence each."""
    why_constant: str | None = None
    """Why no gradient may reach the adapter, where the trainer knows."""
    current_gradient_accumulation_steps: int = 1
    """Number of batches of an optimizer step; the Trainer sets it."""
    example_scores: ExampleScores | None = None
    """The scores of the texts or pairs of the latest evaluation by the step's metric, in the order
    of its loader; None for classifiers of whole texts."""
    _sums: Tensor
    """Loss, labels and hits of an evaluation so far, (3,)."""
    _scored: list[Tensor | None]
    """Points and weights of the examples of each batch of an evaluation so far, (examples, 2)."""
    _evaluated: RunningMeasures
    """What the step measures in an evaluation."""

    def use_step(self, step: Step) -> None:
        """Compute all losses by a step."""
        self.step = step
        self._scored = []
        self._evaluated = RunningMeasures()
        self.measured = RunningMeasures()
        """What the step has measured in training since the last log."""
        self.model_accepts_loss_kwargs = True  # the loss is a share of the step's, in any model

    @contextmanager
    def as_language_model(self) -> Iterator[None]:
        """Evaluate encoded texts inside the block by their loss; only language models can."""
        yield

    def precision(self, model: Any) -> torch.autocast:
        """Return the context that a model trains in, to try it; it may be entered repeatedly."""
        half = torch.bfloat16 if self.args.bf16 else torch.float16
        is_half = self.args.bf16 or self.args.fp16
        return torch.autocast(model.device.type, half, enabled=is_half)

    def timed_batch(self, examples: list[Any]) -> Mapping[str, Any]:
        """Collate examples into inputs of the model, to time it with."""
        return self.data_collator(examples)

    # ---- counting where batches are made ----

    def counting_collator(self) -> CountingCollator:
        """Return a collator whose batches have their labels counted."""
        return CountingCollator(self.data_collator, self.step.count)

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Create a loader whose batches have their labels counted."""
        with temporarily(self, data_collator=self.counting_collator()):
            return super()._get_dataloader(*args, **kwargs)

    def _get_num_items_in_batch(
        self, batch_samples: Sequence[Any], device: torch.device
    ) -> float | Tensor | None:
        """Return how many labels count in the batches of a step.

        In several processes it is their mean, since the gradients are averaged. Without
        `average_tokens_across_devices` the loss is the mean of the processes' losses; at the end of
        an epoch some may have no labels, and so no loss.
        """
        if not batch_samples:
            return None
        counted = [split_batch(batch, self.step.count)[1] for batch in batch_samples]
        labels = sum(count.labels for count in counted)
        if self.args.world_size == 1:
            return labels
        here = torch.full((), labels, dtype=torch.int64, device=device)
        of_each: Any = self.accelerator.gather(here)
        if self.args.average_tokens_across_devices:
            return of_each.sum() / self.accelerator.num_processes
        return labels * (of_each > 0).sum() / self.accelerator.num_processes

    # ---- losses ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the mean loss of a batch, or its share of the mean over a step.

        Args:
            model: The model, possibly wrapped.
            inputs: A batch with labels.
            return_outputs: Whether to return the model's outputs too; the outputs of a language
                model have logits of no token.
            num_items_in_batch: From `_get_num_items_in_batch`; None for this batch only.
        """
        batches = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
        share = self.step.share(model, inputs, num_items_in_batch, batches)
        if model.training:
            self.count_tokens(share.counted.tokens)
            self.measured.add(share.measures)
        return (share.loss, share.outputs) if return_outputs else share.loss

    def count_tokens(self, tokens: int) -> None:
        """Receive the number of tokens of a batch in training, without padding."""

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **options: Any,
    ) -> tuple[Tensor | None, Any, Tensor | None]:
        """Evaluate a batch, and add its sums to those of the evaluation."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            found = self.step.evaluate(model, inputs)
        if found.labels:
            self._sums = self._sums.to(found.loss.device) + found.sums()
            self._evaluated.add(found.measures)
        self._scored.append(found.examples)
        loss = (found.loss / max(found.labels, 1)).float()
        if prediction_loss_only:
            return loss, None, None
        return loss, self._predictions(found.outputs, ignore_keys), inputs["labels"].detach()

    def _predictions(self, outputs: Any, ignore_keys: list[str] | None) -> Any:
        """Return the outputs of a model other than the loss, as the Trainer does."""
        if outputs is None:
            return ()
        if ignore_keys is None:
            config = getattr(self.model, "config", None)
            ignore_keys = getattr(config, "keys_to_ignore_at_inference", ["cache"])
        if isinstance(outputs, dict):
            left_out = {"loss", *(ignore_keys or ())}
            found = tuple(value for key, value in outputs.items() if key not in left_out)
        else:
            found = outputs[1:]
        found = nested_detach(found)
        return found[0] if len(found) == 1 else found

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate; the metrics of the loss are over all labels that count."""
        self._sums, self._scored = torch.zeros(3, device=self.args.device), []
        self._evaluated = RunningMeasures()
        output = super().evaluation_loop(*args, **kwargs)
        self.example_scores = _in_loader_order(self._scored, self.step.metric)
        here = self._sums.to(self.args.device, torch.float32)
        sums: Tensor = self.accelerator.reduce(here, "sum")  # type: ignore[assignment]  # a tensor gives a tensor
        loss, labels, hits = sums.tolist()
        if labels and output.metrics is not None:
            accuracy = None if math.isnan(hits) else hits / labels
            prefix = kwargs.get("metric_key_prefix", "eval")
            found = self.loss_metrics(loss / labels, accuracy) | self._evaluated.means()
            for name, value in found.items():
                output.metrics[f"{prefix}_{name}"] = value
        return output

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log; with the training loss also what the step has measured."""
        if "loss" in logs:
            logs = {**logs, **self.measured.means()}
            self.measured = RunningMeasures()
        super().log(logs, *args, **kwargs)

    def loss_metrics(self, loss: float, accuracy: float | None) -> dict[str, float]:
        """Return the metrics that follow from the sums of an evaluation.

        Args:
            loss: Mean loss.
            accuracy: Share of correct top predictions, if the step counts them.
        """
        return {"loss": loss}


def _in_loader_order(scored: Sequence[Tensor | None], metric: Metric) -> ExampleScores | None:
    """Return the scores of all processes' batches, which took turns.

    Examples without weight are padding, or repeated so that all processes have as many batches.
    """
    here = [None if one is None else one.cpu().double().numpy() for one in scored]
    everywhere = all_gather_object(here)
    batches = [one for turn in zip_longest(*everywhere) for one in turn if one is not None]
    if not batches:
        return None
    sums = np.concatenate(batches)
    points, weights = sums[sums[:, 1] > 0].T
    return ExampleScores(metric, points, weights)


class ClassifierTrainer(StepTrainerMixin, Trainer):
    """transformers' Trainer for models whose loss is the mean over the labels of a batch."""

    def __init__(self, *args: Any, example_loss: ExampleLoss | None = None, **kwargs: Any):
        """Create the trainer.

        Args:
            args: Arguments of transformers' Trainer.
            example_loss: The loss of the logits; None takes the model's.
            kwargs: Arguments of transformers' Trainer.
        """
        super().__init__(*args, **kwargs)
        if example_loss is None:
            self.use_step(MeanStep(smoother=self.label_smoother))
        else:
            self.use_step(LogitsStep(loss=example_loss))
