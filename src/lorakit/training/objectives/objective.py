"""The protocol of an objective: from log-probabilities of answers to a loss for each example."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Answers:
    """Log-probabilities of the answers of a batch, summed over their tokens."""

    sums: Tensor
    """(examples, 2)."""
    tokens: Tensor
    """Number of tokens of each answer that count, (examples, 2)."""
    prompt_sums: Tensor
    """Those of the prompts, where these count, (examples,)."""
    prompt_tokens: Tensor
    examples: Tensor
    """Which examples count, (examples,), bool; the others only pad the batch of a process."""
    votes: Any = None
    """1 for a good and 0 for a bad first answer, (examples,); None for pairs."""

    @property
    def means(self) -> Tensor:
        """Mean log-probability of a token of each answer, (examples, 2)."""
        return self.sums / self.tokens.clamp(min=1)


@dataclass(frozen=True)
class Compared:
    """The result of an objective for a batch."""

    losses: Tensor
    """Loss of each example, (examples,), with its graph."""
    measures: Mapping[str, Tensor]
    """Sum and count of what is reported, (2,) each, without a graph."""


class Objective(ABC):
    """Compares the answers of a batch."""

    needs_reference: ClassVar[bool] = True
    """Whether it compares with the reference's log-probabilities."""
    counts_prompts: ClassVar[bool] = False
    """Whether the log-probabilities of prompts are needed too."""
    metric_names: ClassVar[tuple[str, ...]] = (
        *("loss", "accuracy", "margin", "chosen_reward", "rejected_reward"),
        *("chosen_log_prob", "rejected_log_prob", "kl"),
    )
    """Metrics of an evaluation, without their "eval_" prefix."""

    @abstractmethod
    def compare(self, policy: Answers, reference: Tensor | None) -> Compared:
        """Return the loss of each example.

        Args:
            policy: The answers under the model in training.
            reference: Log-probabilities of the answers under the reference, (examples, 2); None
                if the objective needs none.
        """


def pair_measures(policy: Answers, rewards: Tensor) -> dict[str, Tensor]:
    """Return what is reported of pairs.

    Args:
        policy: The answers.
        rewards: What the model gives each answer, (examples, 2).
    """
    rewards, sums = rewards.detach(), policy.sums.detach()
    is_right = (rewards[:, 0] > rewards[:, 1]).to(rewards.dtype)
    return {
        "accuracy": sum_and_count(is_right, policy.examples),
        "chosen_reward": sum_and_count(rewards[:, 0], policy.examples),
        "rejected_reward": sum_and_count(rewards[:, 1], policy.examples),
        "chosen_log_prob": sum_and_count(sums[:, 0], policy.examples),
        "rejected_log_prob": sum_and_count(sums[:, 1], policy.examples),
    }


def sum_and_count(values: Tensor, counts: Tensor) -> Tensor:
    """Return the sum of the values that count and their number, (2,)."""
    values = values.detach().float()
    return torch.stack([torch.where(counts, values, 0.0).sum(), counts.sum().to(values.dtype)])


def chosen_nll(policy: Answers, *, with_prompts: bool = False) -> Tensor:
    """Return the mean negative log-likelihood of the tokens of the chosen answers, a scalar."""
    sums, tokens = policy.sums[:, 0], policy.tokens[:, 0]
    if with_prompts:
        sums, tokens = sums + policy.prompt_sums, tokens + policy.prompt_tokens
    counted = policy.examples.to(sums.dtype)
    return -(sums * counted).sum() / (tokens * counted).sum().clamp(min=1)
