"""Weights of the sources of training examples, and what an epoch draws from each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lorakit.data.like_length import LikeLengthSampler, like_length_order


@dataclass(frozen=True)
class Mixture:
    """How often an epoch has the examples of each source."""

    weights: tuple[float, ...]
    """Weight of each source, above 0; 2 is twice each example, 0.5 a random half of them."""
    source_of: np.ndarray
    """Index of the source of each training example."""

    def select(self, chosen: Sequence[int] | np.ndarray) -> Mixture:
        """Return the mixture of a selection of the examples."""
        return replace(self, source_of=self.source_of[np.asarray(chosen, dtype=np.int64)])

    def counts(self) -> tuple[int, ...]:
        """Return the number of examples that an epoch draws from each source."""
        sizes = np.bincount(self.source_of, minlength=len(self.weights))
        return tuple(
            max(round(weight * int(size)), 1) if size else 0
            for weight, size in zip(self.weights, sizes, strict=True)
        )

    def mean_draws(self) -> np.ndarray:
        """Return how often an epoch has each training example on average, float64."""
        sizes = np.bincount(self.source_of, minlength=len(self.weights))
        return (np.array(self.counts()) / np.maximum(sizes, 1))[self.source_of]

    def draw(self, generator: torch.Generator) -> Tensor:
        """Return the numbers of the examples of an epoch, in the order of the sources.

        Each example comes as often as the whole part of its source's weight says, and a random
        choice of the source's examples once more.

        Args:
            generator: Source of the random numbers.
        """
        drawn: list[Tensor] = []
        for source, count in enumerate(self.counts()):
            examples = torch.from_numpy(np.flatnonzero(self.source_of == source))
            if not len(examples):
                continue
            whole, rest = divmod(count, len(examples))
            extra = torch.randperm(len(examples), generator=generator)[:rest]
            drawn += [examples.repeat(whole), examples[extra.sort().values]]
        return torch.cat(drawn)


class MixtureSampler(LikeLengthSampler):
    """Yields the examples that an epoch draws, shuffled, or in batches of like length.

    The examples and the order of an epoch depend on the seed and its number alone, so that a
    resumed run continues with the examples that were left.
    """

    def __init__(self, mixture: Mixture, lengths: Tensor | None, step_examples: int, seed: int):
        """Create the sampler.

        Args:
            mixture: What an epoch draws.
            lengths: The result of `token_lengths` for batches of like length; None shuffles.
            step_examples: Number of examples of an optimizer step.
            seed: The seed.
        """
        size = torch.zeros(len(mixture.source_of), 1) if lengths is None else lengths
        super().__init__(size, step_examples, seed)
        self._mixture, self._is_shuffled = mixture, lengths is None

    def order(self) -> Tensor:
        """Return the order of the examples in this epoch."""
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        drawn = self._mixture.draw(generator)
        if self._is_shuffled:
            return drawn[torch.randperm(len(drawn), generator=generator)]
        return drawn[like_length_order(self._lengths[drawn], self._step_examples, generator)]

    def __len__(self) -> int:
        return sum(self._mixture.counts())
