"""The training step of a reward model: a classifier of one output scores two answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.analysis.example_scores import Metric
from lorakit.training.objectives.objective import right_answers, sum_and_count
from lorakit.training.step import AnswersStep, Evaluated, Share, in_float64, mean_over_step, wide

REWARD_METRICS = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward")
"""Metrics of an evaluation, without their "eval_" prefix."""


@dataclass(kw_only=True)
class RewardStep(AnswersStep):
    """-log σ(s_chosen - s_rejected) of the scores s, and c (s_chosen + s_rejected)².

    Source: Bradley and Terry 1952; the second term, which keeps scores around zero: Eisenstein et
    al. 2023, arXiv:2312.09244, equation 2.
    """

    center_rewards: float = 0.0
    """The factor c."""

    @property
    def metric(self) -> Metric:
        """What the scores of evaluated examples are."""
        return "accuracy"

    def share(
        self,
        model: nn.Module,
        batch: Mapping[str, Any],
        counted_in_step: float | Tensor | None = None,
        batches: int = 1,
    ) -> Share:
        """Return the summed loss of a batch over the number of pairs of the step."""
        parts, counted = self.split(batch)
        inputs = {key: parts[key].flatten(0, -2) for key in ("input_ids", "attention_mask")}
        outputs = model(**inputs, **self.options)
        scores = wide(outputs.logits).view(-1, 2)
        losses = -F.logsigmoid(scores[:, 0] - scores[:, 1])
        if self.center_rewards:
            losses = losses + self.center_rewards * scores.sum(1) ** 2
        examples = counted.examples.to(scores.device)
        loss = mean_over_step(torch.where(examples, losses, 0.0).sum(), counted, counted_in_step)
        return Share(loss, counted, outputs, _measures(scores.detach(), examples))

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batch: Mapping[str, Any]) -> Evaluated:
        """Return the summed loss of a batch, and what is measured, without a graph."""
        share = self.share(model, batch, 1)
        loss, scores = in_float64(share.loss), share.outputs.logits.view(-1, 2)
        counted: Any = share.counted
        examples = right_answers(scores[:, 0] > scores[:, 1], counted)
        return Evaluated(loss, share.counted.labels, None, None, examples, share.measures)


def _measures(scores: Tensor, examples: Tensor) -> dict[str, Tensor]:
    return {
        "accuracy": sum_and_count((scores[:, 0] > scores[:, 1]).float(), examples),
        "chosen_reward": sum_and_count(scores[:, 0], examples),
        "rejected_reward": sum_and_count(scores[:, 1], examples),
    }
