"""KTO: single answers with a good or a bad vote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lorakit.analysis.example_scores import Metric
from lorakit.distributed.processes import sum_over_processes
from lorakit.training.objectives.direct import require_reference
from lorakit.training.objectives.objective import Answers, Compared, Objective, sum_and_count


@dataclass(frozen=True)
class KTO(Objective):
    """w (1 - σ(±β (r - z))), + for a good and - for a bad vote.

    r is the log-ratio of the answer, and z the mean log-ratio of answers to other prompts, at
    least 0 and without a gradient: an estimate of KL(π || π_ref). Each example has such an answer
    as its second one.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, equations 7 and 8.
    """

    metric: ClassVar[Metric] = "accuracy"
    metric_names: ClassVar[tuple[str, ...]] = tuple(
        name for name in Objective.metric_names if name != "preference_accuracy"
    )

    beta: float
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def compare(self, policy: Answers, reference: Tensor | None) -> Compared:
        """Return the loss of each answer."""
        ratios = policy.sums - require_reference(reference)
        total, count = sum_over_processes(sum_and_count(ratios[:, 1], policy.examples))
        z = (total / count.clamp(min=1)).clamp(min=0)
        is_good = policy.votes.to(torch.bool)
        sign = torch.where(is_good, 1.0, -1.0)
        weight = torch.where(is_good, self.desirable_weight, self.undesirable_weight)
        rewards = self.beta * ratios[:, 0]
        losses = weight * (1 - torch.sigmoid(sign * (rewards - self.beta * z)))
        is_right = (ratios[:, 0] > z) == is_good
        measures = {"accuracy": sum_and_count(is_right, policy.examples)}
        for name, chosen in (("chosen", is_good), ("rejected", ~is_good)):
            counts = policy.examples & chosen
            measures[f"{name}_reward"] = sum_and_count(rewards, counts)
            measures[f"{name}_log_prob"] = sum_and_count(policy.sums[:, 0], counts)
        return Compared(losses, is_right, measures)
