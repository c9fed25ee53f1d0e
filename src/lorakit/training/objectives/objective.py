"""The protocol of an objective: from log-probabilities of answers to a loss for each example."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lorakit.analysis.example_scores import Metric
from lorakit.training.losses.counted_answers import CountedAnswers


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
    is_right: Tensor
    """Whether the model itself is right about each example, (examples,), bool: for a pair whether
    it finds the chosen answer likelier, without a reference."""
    measures: Mapping[str, Tensor]
    """Sum and count of what is reported, (2,) each, without a graph."""


class Objective(ABC):
    """Compares the answers of a batch."""

    needs_reference: ClassVar[bool] = True
    """Whether it compares with the reference's log-probabilities."""
    counts_prompts: ClassVar[bool] = False
    """Whether the log-probabilities of prompts are needed too."""
    metric: ClassVar[Metric] = "preference accuracy"
    """What the mean of `Compared.is_right` is."""
    metric_names: ClassVar[tuple[str, ...]] = (
        *("loss", "accuracy", "preference_accuracy", "margin", "chosen_reward", "rejected_reward"),
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


def compare_pairs(
    losses: Tensor, policy: Answers, rewards: Tensor, *, counts_tokens: bool
) -> Compared:
    """Return the result for pairs, with what is reported of them.

    Args:
        losses: Loss of each pair, (examples,).
        policy: The answers.
        rewards: What the model gives each answer, (examples, 2).
        counts_tokens: Whether the likelier answer is that with the higher mean over tokens, as the
            objective compares, rather than the higher sum.
    """
    rewards, sums = rewards.detach(), policy.sums.detach()
    log_probs = policy.means.detach() if counts_tokens else sums
    is_right = log_probs[:, 0] > log_probs[:, 1]
    measures = {
        "accuracy": sum_and_count(rewards[:, 0] > rewards[:, 1], policy.examples),
        "preference_accuracy": sum_and_count(is_right, policy.examples),
        "chosen_reward": sum_and_count(rewards[:, 0], policy.examples),
        "rejected_reward": sum_and_count(rewards[:, 1], policy.examples),
        "chosen_log_prob": sum_and_count(sums[:, 0], policy.examples),
        "rejected_log_prob": sum_and_count(sums[:, 1], policy.examples),
    }
    return Compared(losses, is_right, measures)


def sum_and_count(values: Tensor, counts: Tensor) -> Tensor:
    """Return the sum of the values that count and their number, (2,)."""
    values = values.detach().float()
    return torch.stack([torch.where(counts, values, 0.0).sum(), counts.sum().to(values.dtype)])


def right_answers(is_right: Tensor, counted: CountedAnswers) -> Tensor:
    """Return points and weights of the examples of a batch, (examples, 2).

    Args:
        is_right: Which examples the model is right about, (examples,), bool.
        counted: The answers of the batch; an example that does not count has no weight.
    """
    counts = counted.examples.to(is_right.device)
    return torch.stack([is_right & counts, counts], 1).float()


def chosen_nll(policy: Answers, *, with_prompts: bool = False) -> Tensor:
    """Return the mean negative log-likelihood of the tokens of the chosen answers, a scalar."""
    sums, tokens = policy.sums[:, 0], policy.tokens[:, 0]
    if with_prompts:
        sums, tokens = sums + policy.prompt_sums, tokens + policy.prompt_tokens
    counted = policy.examples.to(sums.dtype)
    return -(sums * counted).sum() / (tokens * counted).sum().clamp(min=1)
