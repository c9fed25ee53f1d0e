"""ORPO: the likelihood of the chosen answer, and its odds against the rejected one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lorakit.training.objectives.objective import (
    Answers,
    Compared,
    Objective,
    chosen_nll,
    compare_pairs,
)


@dataclass(frozen=True)
class ORPO(Objective):
    """NLL(x, y_chosen) - β log σ(log odds(y_chosen) - log odds(y_rejected)); without a reference.

    odds(y) = p / (1 - p) of p, the geometric mean of the probabilities of y's tokens.

    Source: Hong et al. 2024, arXiv:2403.07691, equations 4 to 7. As in TRL, the likelihood is that
    of prompt and answer.
    """

    needs_reference: ClassVar[bool] = False
    counts_prompts: ClassVar[bool] = True

    beta: float

    def compare(self, policy: Answers, reference: Tensor | None) -> Compared:
        """Return the loss of each pair."""
        means = policy.means
        # An example that does not count has no tokens, whose probability would be 1.
        means = torch.where(policy.examples[:, None], means, -1.0)
        log_odds = means - _log_1_minus_exp(means)
        gain = F.logsigmoid(log_odds[:, 0] - log_odds[:, 1])
        losses = chosen_nll(policy, with_prompts=True) - self.beta * gain
        return compare_pairs(losses, policy, self.beta * policy.means, counts_tokens=True)


def _log_1_minus_exp(x: Tensor) -> Tensor:
    """Return log(1 - exp(x)) of x < 0, exact near 0 and far from it.

    Source: Mächler 2012, "Accurately computing log(1 - exp(-|a|))".
    """
    is_near = x > -math.log(2)
    # Each branch gets numbers that are harmless where the other is taken.
    near = torch.log(-torch.expm1(torch.where(is_near, x, -0.5)))
    far = torch.log1p(-torch.exp(torch.where(is_near, -1.0, x)))
    return torch.where(is_near, near, far)
