"""Count the labels of a batch in the collator, where reading them makes no device wait."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import register_dataclass

from lorakit.config import NOT_COUNTED
from lorakit.training.throughput import is_counted, real_tokens

COUNTED = "counted"
"""Key of a batch under which its `CountedLabels` travel with it."""


@dataclass(frozen=True)
class CountedLabels:
    """The labels of a batch that count in its loss."""

    labels: int
    """Their number."""
    tokens: int
    """Number of input tokens without padding, in the batch rows that have a counted label."""
    positions: Tensor
    """Their positions in the flattened labels, (labels,), int64."""
    targets: Tensor
    """The labels themselves, (labels,)."""
    example_tokens: tuple[int, ...] = field(default=(), kw_only=True)
    """Number of tokens of each example, if they are concatenated in one batch row."""

    def to(self, device: Any, non_blocking: bool = False) -> CountedLabels:
        """Move the tensors to a device, as accelerate's loader does with a batch."""
        return self._with_tensors(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> CountedLabels:
        """Pin the tensors, as torch's loader does with a batch."""
        return self._with_tensors(lambda t: t.pin_memory())

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> CountedLabels:
        return replace(self, positions=change(self.positions), targets=change(self.targets))

    def select(self, hidden: Tensor) -> Tensor:
        """Select the vectors of counted labels: (batch, tokens, in) to (labels, in)."""
        return hidden.reshape(-1, hidden.shape[-1])[self.positions.to(hidden.device)]


register_dataclass(
    CountedLabels,
    field_names=["labels", "tokens", "positions", "targets"],
    drop_field_names=["example_tokens"],
)


def count_labels(batch: Mapping[str, Any], *, shifts: bool) -> CountedLabels:
    """Count the labels of a batch; reads them, so call it while they are in the CPU's memory.

    Args:
        batch: A batch with labels, (batch,) or (batch, tokens), -100 where one does not count, or
            numbers, (batch,) or (batch, numbers), NaN where one does not count.
        shifts: Whether a token's target is the next label, as in causal language models.
    """
    labels: Tensor = batch["labels"]
    targets = F.pad(labels[:, 1:], (0, 1), value=NOT_COUNTED) if shifts else labels
    targets = targets.reshape(-1)
    positions = is_counted(targets).nonzero().squeeze(1)
    tokens = int(real_tokens(batch)) if "input_ids" in batch else 0
    return CountedLabels(len(positions), tokens, positions, targets[positions])


@dataclass(frozen=True)
class CountingCollator:
    """A collator whose batches have their `CountedLabels`."""

    collate: Callable[[list[Any]], Mapping[str, Any]]
    count: Callable[[Mapping[str, Any]], CountedLabels]
    """Counts the labels of a batch."""

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        """Collate examples and count their labels."""
        batch = self.collate(examples)
        counted = self.count(batch)
        if len(batch["labels"]) < len(examples):
            tokens = tuple(len(example["input_ids"]) for example in examples)
            counted = replace(counted, example_tokens=tokens)
        return {**batch, COUNTED: counted}


def split_batch(
    batch: Mapping[str, Any], count: Callable[[Mapping[str, Any]], CountedLabels]
) -> tuple[dict[str, Any], Any]:
    """Return a model's inputs, with labels, and its `CountedLabels`, counted here if absent."""
    inputs = {key: value for key, value in batch.items() if key != COUNTED}
    counted: CountedLabels | None = batch.get(COUNTED)
    return inputs, count(inputs) if counted is None else counted
