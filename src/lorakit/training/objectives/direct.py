"""Objectives that compare log-probabilities with those of a reference, for pairs of answers."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lorakit.errors import TrainingError
from lorakit.training.objectives.objective import (
    Answers,
    Compared,
    Objective,
    chosen_nll,
    compare_pairs,
)


@dataclass(frozen=True)
class PairObjective(Objective):
    """A loss of r, the log-ratios log π(y|x) - log π_ref(y|x) of both answers."""

    beta: float
    sft_weight: float = 0.0
    """Weight of the negative log-likelihood of the chosen answers."""

    def compare(self, policy: Answers, reference: Tensor | None) -> Compared:
        """Return the loss of each pair."""
        ratios = policy.sums - require_reference(reference)
        compared = ratios / policy.tokens.clamp(min=1) if self.counts_tokens else ratios
        losses = self.losses(compared[:, 0] - compared[:, 1])
        if self.sft_weight:
            losses = losses + self.sft_weight * chosen_nll(policy)
        rewards = self.beta * ratios
        return compare_pairs(losses, policy, rewards, counts_tokens=self.counts_tokens)

    @property
    @abstractmethod
    def counts_tokens(self) -> bool:
        """Whether log-ratios are means over tokens."""

    @abstractmethod
    def losses(self, differences: Tensor) -> Tensor:
        """Return the loss of each pair, (examples,), from r_chosen - r_rejected, (examples,)."""


@dataclass(frozen=True)
class DPO(PairObjective):
    """-log σ(β (r_chosen - r_rejected)), or the hinge max(0, 1 - β (r_chosen - r_rejected)).

    Source: Rafailov et al. 2023, arXiv:2305.18290, equation 7; the hinge: Zhao et al. 2023,
    arXiv:2305.10425.
    """

    loss: Literal["sigmoid", "hinge"] = "sigmoid"
    length_normalized: bool = False
    """Whether log-ratios are means over tokens."""

    @property
    def counts_tokens(self) -> bool:
        """Whether log-ratios are means over tokens."""
        return self.length_normalized

    def losses(self, differences: Tensor) -> Tensor:
        """Return the loss of each pair, (examples,)."""
        margins = self.beta * differences
        return torch.relu(1 - margins) if self.loss == "hinge" else -F.logsigmoid(margins)


@dataclass(frozen=True)
class IPO(PairObjective):
    """(r_chosen - r_rejected - 1/(2β))², with log-ratios that are means over tokens.

    Source: Azar et al. 2023, arXiv:2310.12036, equation 17. Its authors normalize by length.
    """

    @property
    def counts_tokens(self) -> bool:
        """Always."""
        return True

    def losses(self, differences: Tensor) -> Tensor:
        """Return the loss of each pair, (examples,)."""
        return (differences - 1 / (2 * self.beta)) ** 2


def require_reference(reference: Tensor | None) -> Tensor:
    """Return the reference's log-probabilities."""
    if reference is None:
        raise TrainingError(
            "The objective cannot be computed: got no log-probabilities of the reference, "
            "expected some. Report this to lorakit."
        )
    return reference
