"""The loss of a token from its logits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class TokenLoss:
    """The loss of a token; by default the negative log-likelihood."""

    label_smoothing: float = 0.0
    """Share of the target probability that is spread over the vocabulary."""
    weighs_by_probability: bool = False
    """Dynamic fine-tuning: multiply by the token's detached probability (arXiv:2508.05629)."""

    @property
    def is_plain(self) -> bool:
        """Whether it is the negative log-likelihood."""
        return not self.label_smoothing and not self.weighs_by_probability

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each token: (tokens, vocabulary) and (tokens,) to (tokens,)."""
        losses = F.cross_entropy(
            logits, targets, reduction="none", label_smoothing=self.label_smoothing
        )
        return losses * (-losses).exp().detach() if self.weighs_by_probability else losses
