"""Tokenized examples of a run, and examples as the model receives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

    from lorakit.data.mixture import Mixture
    from lorakit.data.stream import EncodedStream


@dataclass(frozen=True)
class Encoded:
    """Tokenized examples, ready for the trainer."""

    train: Dataset
    validation: Dataset | None
    notes: tuple[str, ...] = ()
    """Notes on what was done to the examples, one sentence each, such as how many were cut."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings that inference needs (max_length, source_prefix, format); `save_settings` writes
    them beside the adapter."""
    cut_examples: int = 0
    """Number of training examples that were truncated."""
    class_weights: tuple[float, ...] | None = None
    """Weight of each class in the training loss; None weighs all alike."""
    kept: np.ndarray | None = None
    """Index of each training example among those given, if some were left out."""
    mixture: Mixture | None = None
    """How often an epoch has each training example; None is once."""
    stream: EncodedStream | None = None
    """The examples to train on where they are read when needed; `train` has the first of them."""

    @property
    def epoch_examples(self) -> int:
        """Number of training examples of an epoch."""
        return len(self.train) if self.mixture is None else sum(self.mixture.counts())

    def with_mixture(self, mixture: Mixture | None) -> Encoded:
        """Return the examples with the mixture of those they were encoded from."""
        if mixture is not None and self.kept is not None:
            mixture = mixture.select(self.kept)
        return replace(self, mixture=mixture)


@dataclass(frozen=True)
class PreviewExample:
    """One example as the model receives it."""

    tokens: list[str]
    counted: list[bool]
    """Which tokens count in the loss (the model is trained to predict them)."""
    note: str
    """What the tokens do not show, such as the label of a text."""
    prompt: int = 0
    """Number of leading tokens that are the prompt, where a rejected answer is beside the other."""
    rejected: PreviewExample | None = None
    """The rejected answer to the same prompt, without it."""
