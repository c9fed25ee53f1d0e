"""Batches of examples of like length, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler

_POOL_STEPS = 50
"""Optimizer steps whose examples are sorted together; more would hardly save padding."""
_FEWEST_POOLS = 4
"""Pools of a small dataset, so that a step has other examples in each epoch."""


def token_lengths(examples: Any) -> Tensor:
    """Return the number of tokens of each example in each tensor that is padded, (n, 1 or 2).

    The second column has the lengths of targets, if they are separate sequences.

    Args:
        examples: Encoded examples with `input_ids` and `labels`.
    """
    inputs = _list_lengths(examples, "input_ids")
    if inputs is None:
        raise KeyError("input_ids")
    labels = _list_lengths(examples, "labels")
    if labels is None or torch.equal(labels, inputs):
        return inputs[:, None]
    return torch.stack([inputs, labels], 1)


def _list_lengths(examples: Any, column: str) -> Tensor | None:
    """Return the lengths of the lists in a column, or None if it has none."""
    if isinstance(examples, Dataset):
        if column not in examples.column_names:
            return None
        # Arrow stores where each list begins, so that no list needs to be read.
        table: Any = examples.with_format("arrow", columns=[column])[:]
        lists = table[column]
        is_list = pa.types.is_list(lists.type) or pa.types.is_large_list(lists.type)
        if not is_list or pa.types.is_floating(lists.type.value_type):
            return None  # one label, or numbers that are no sequence
        lengths = [np.array([], dtype=np.int64)]
        lengths += [chunk.value_lengths().to_numpy().astype(np.int64) for chunk in lists.chunks]
        return torch.from_numpy(np.concatenate(lengths))
    values = [example.get(column) for example in examples]
    if not all(isinstance(value, list) or getattr(value, "ndim", 0) for value in values):
        return None
    return torch.tensor([len(value) for value in values])


def like_length_order(lengths: Tensor, step_examples: int, generator: torch.Generator) -> Tensor:
    """Return a random order of examples in which those of an optimizer step are of like length.

    Random pools of examples are sorted and cut into steps, and the steps are shuffled. The order
    does not depend on how a step is divided into batches and processes. The step with the longest
    example comes first, so that memory runs out at once or not at all; the incomplete step comes
    last.

    Args:
        lengths: The result of `token_lengths`.
        step_examples: Number of examples of an optimizer step.
        generator: Source of the random numbers.

    Returns: The numbers of the examples, (n,).
    """
    keys = lengths[:, 0] * (int(lengths.max()) + 1) + lengths[:, -1]
    order = torch.randperm(len(keys), generator=generator)
    steps = len(keys) // step_examples
    pool = max(min(steps // _FEWEST_POOLS, _POOL_STEPS), 1) * step_examples
    order = torch.cat([p[keys[p].argsort(descending=True, stable=True)] for p in order.split(pool)])
    whole, rest = order[: steps * step_examples], order[steps * step_examples :]
    whole = whole.view(steps, step_examples)[torch.randperm(steps, generator=generator)]
    if steps:
        longest = int(keys[whole].amax(1).argmax())
        whole[[0, longest]] = whole[[longest, 0]]
    return torch.cat([whole.flatten(), rest])


def longest_first(lengths: Tensor) -> Tensor:
    """Return the order of examples from the longest to the shortest, the same at every call."""
    keys = lengths[:, 0] * (int(lengths.max()) + 1) + lengths[:, -1]
    return keys.argsort(descending=True, stable=True)


def padding_share(lengths: Tensor, order: Tensor, batch_size: int, multiple: int = 1) -> float:
    """Return which share of the tokens of batches is padding, from 0 to 1.

    Args:
        lengths: The result of `token_lengths`.
        order: The order of the examples.
        batch_size: Number of examples of a batch.
        multiple: Number of tokens that a batch is padded to a multiple of.
    """
    ordered = lengths[order]
    whole = len(ordered) // batch_size * batch_size
    longest = ordered[:whole].view(-1, batch_size, lengths.shape[1]).amax(1)
    padded = batch_size * int(_round_up(longest, multiple).sum())
    if whole < len(ordered):
        last = _round_up(ordered[whole:].amax(0), multiple)
        padded += (len(ordered) - whole) * int(last.sum())
    return 1 - int(ordered.sum()) / padded if padded else 0.0


def _round_up(lengths: Tensor, multiple: int) -> Tensor:
    return -(-lengths // multiple) * multiple


class LikeLengthSampler(Sampler[int]):
    """Yields `like_length_order`; the order of an epoch depends on the seed and its number alone.

    A resumed run therefore continues with the examples that were left.
    """

    def __init__(self, lengths: Tensor, step_examples: int, seed: int):
        self._lengths, self._step_examples, self._seed = lengths, step_examples, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the epoch, from 0."""
        self._epoch = epoch

    def order(self) -> Tensor:
        """Return the order of the examples in this epoch."""
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return like_length_order(self._lengths, self._step_examples, generator)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())

    def __len__(self) -> int:
        return len(self._lengths)
