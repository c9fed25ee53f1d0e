"""Find, in a batch of two answers for each prompt, the tokens whose log-probabilities count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import register_dataclass

from lorakit.config import NOT_COUNTED
from lorakit.data.preferences import FIRST, PADDING, PROMPT, SECOND, SEGMENTS
from lorakit.training.losses.counted_labels import CountedLabels
from lorakit.training.throughput import real_tokens


@dataclass(frozen=True)
class CountedAnswers(CountedLabels):
    """The tokens of a batch of answers that count.

    `labels` is the number of examples that count; positions and targets are those of tokens.
    """

    group: Tensor
    """Which log-probabilities each token's adds to, (tokens,): 2i for the first answer of example
    i, 2i + 1 for its second, 2n + i for its prompt."""
    examples: Tensor
    """Which examples count, (examples,), bool."""

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> CountedAnswers:
        tensors = (self.positions, self.targets, self.group, self.examples)
        return CountedAnswers(self.labels, self.tokens, *map(change, tensors))

    def of_answers(self) -> Tensor:
        """Return which tokens are an answer's, (tokens,), bool."""
        return self.group < 2 * len(self.examples)

    def sums(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add up a value of each token: (tokens,) to answers (examples, 2) and prompts (examples,).

        Each sum has one order, so that it has the same bits on every device.
        """
        count = len(self.examples)
        group = self.group.to(values.device)
        groups = torch.arange(3 * count, device=values.device)
        sums = torch.where(group == groups[:, None], values, 0.0).sum(1)
        return sums[: 2 * count].view(count, 2), sums[2 * count :]


register_dataclass(
    CountedAnswers,
    field_names=["labels", "tokens", "positions", "targets", "group", "examples"],
    drop_field_names=["example_tokens"],
)


def count_answers(batch: Mapping[str, Any]) -> CountedAnswers:
    """Count the answers of a batch; reads it, so call it while it is in the CPU's memory.

    Args:
        batch: A batch of `AnswerCollator`.
    """
    labels, segments = batch["labels"], batch[SEGMENTS]
    examples = (labels != NOT_COUNTED).flatten(1).any(1)
    count, width = len(labels), labels.shape[-1]
    # The token that predicts each token: the one before it, or the prompt's last for both answers.
    before = torch.arange(width, device=labels.device).expand_as(labels) - 1
    previous = F.pad(segments[..., :-1], (1, 0), value=PADDING)
    prompts = (segments == PROMPT).sum(-1, keepdim=True)
    before = torch.where((segments == SECOND) & (previous == FIRST), prompts - 1, before)
    counts = (labels != NOT_COUNTED) & (before >= 0)
    rows = torch.arange(labels.numel() // width, device=labels.device).view(*labels.shape[:-1], 1)
    example = torch.arange(count, device=labels.device).view(-1, *[1] * (labels.ndim - 1))
    group = torch.where(segments == PROMPT, 2 * count + example, 2 * example + segments - FIRST)
    return CountedAnswers(
        int(examples.sum()),
        int(real_tokens(batch)),
        (rows * width + before)[counts],
        labels[counts],
        group[counts],
        examples,
    )
