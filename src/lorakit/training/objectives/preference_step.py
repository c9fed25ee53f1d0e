"""The training step of an objective: log-probabilities of answers, and their comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.analysis.example_scores import Metric
from lorakit.data.preferences import REFERENCE_KEY, VOTES_KEY
from lorakit.injection.state import unwrap
from lorakit.training.losses.counted_answers import CountedAnswers
from lorakit.training.losses.output_loss import OutputLoss
from lorakit.training.objectives.objective import (
    Answers,
    Compared,
    Objective,
    right_answers,
    sum_and_count,
)
from lorakit.training.objectives.reference import reference_acts, reference_of
from lorakit.training.objectives.shared_prompts import attention_inputs
from lorakit.training.step import AnswersStep, Evaluated, Share, in_float64, mean_over_step, wide


@dataclass(kw_only=True)
class PreferenceStep(AnswersStep):
    """The loss of a language model that compares two answers to each prompt.

    The reference's log-probabilities come with the batch where they are known. Otherwise the same
    model computes them first, without gradients and with the adapter off.
    """

    output: OutputLoss
    objective: Objective
    auxiliary_weight: float = 0.0
    """Weight of a mixture of experts' auxiliary loss; 0 for none."""

    @property
    def metric(self) -> Metric:
        """What the scores of evaluated examples are."""
        return self.objective.metric

    def share(
        self,
        model: nn.Module,
        batch: Mapping[str, Any],
        counted_in_step: float | Tensor | None = None,
        batches: int = 1,
    ) -> Share:
        """Return the summed loss of a batch over the number of examples of the step."""
        inputs, counted = self.split(batch)
        reference = None
        if self.objective.needs_reference:
            reference = batch.get(REFERENCE_KEY)
            if reference is None:
                reference = self.reference(model, batch)
        outputs, x2d = self._hidden(model, inputs, counted)
        compared = self.objective.compare(self._answers(batch, counted, x2d), reference)
        loss = mean_over_step(self._sum(compared, counted), counted, counted_in_step)
        if self.auxiliary_weight:
            loss = loss + self.auxiliary_weight * outputs.aux_loss / batches
        return Share(loss, counted, outputs, compared.measures)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batch: Mapping[str, Any]) -> Evaluated:
        """Return the summed loss of a batch, what is measured, and the divergence per token."""
        inputs, counted = self.split(batch)
        acting = self._acting(model)
        with acting():
            _, expected = self._hidden(model, inputs, counted)
            reference = self._answers(batch, counted, expected).sums
        _, x2d = self._hidden(model, inputs, counted)
        compared = self.objective.compare(self._answers(batch, counted, x2d), reference)
        is_answer = counted.of_answers().to(x2d.device)
        divergences = self.output.divergences(x2d[is_answer], expected[is_answer], acting)
        every = torch.ones_like(divergences, dtype=torch.bool)
        measures = {**compared.measures, "kl": sum_and_count(divergences, every)}
        loss = in_float64(self._sum(compared, counted))
        scores = right_answers(compared.is_right, counted)
        return Evaluated(loss, counted.labels, None, None, scores, measures)

    @torch.no_grad()
    def reference(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Return the log-probabilities of the answers under the reference, (examples, 2)."""
        inputs, counted = self.split(batch)
        with self._acting(model)():
            _, x2d = self._hidden(model, inputs, counted)
            return self._answers(batch, counted, x2d).sums

    # ---- parts of a step ----

    def _acting(self, model: nn.Module) -> Callable[[], AbstractContextManager[None]]:
        return partial(reference_acts, model, reference_of(unwrap(model)))

    def _hidden(
        self, model: nn.Module, parts: Mapping[str, Any], counted: CountedAnswers
    ) -> tuple[Any, Tensor]:
        """Run the model; return outputs, and inputs of the output layer, (tokens, in)."""
        inputs = {**attention_inputs(unwrap(model), parts), **self.options}
        outputs, hidden = self.output.run(model, inputs)
        return outputs, counted.select(hidden)

    def _answers(self, batch: Mapping[str, Any], counted: CountedAnswers, x2d: Tensor) -> Answers:
        log_probs = wide(self.output.log_probs(x2d, counted.targets.to(x2d.device)))
        sums, prompt_sums = counted.sums(log_probs)
        tokens, prompt_tokens = counted.sums(torch.ones_like(log_probs, requires_grad=False))
        examples = counted.examples.to(x2d.device)
        votes = batch.get(VOTES_KEY)
        return Answers(sums, tokens, prompt_sums, prompt_tokens, examples, votes)

    def _sum(self, compared: Compared, counted: CountedAnswers) -> Tensor:
        examples = counted.examples.to(compared.losses.device)
        return torch.where(examples, compared.losses, 0.0).sum()
