"""Principal components of vectors that come batch by batch."""

import torch
from torch import Tensor

from lorakit.ops.factored_svd import truncate_dense

EXACT_WIDTH = 1024
"""Largest width at which the full covariance is kept; above it, only its largest components."""

_OVERSAMPLING = 16


class StreamedComponents:
    """Accumulates vectors, and returns the directions in which they vary most.

    For narrow vectors it sums the covariance in float64, whose eigenvectors are exactly the
    components. For wide ones it keeps twice the requested number of components and stacks them on
    each new batch before decomposing it, so memory stays at a few vectors.

    Source: Ross et al. 2008, "Incremental learning for robust visual tracking", section 3.1.
    """

    def __init__(self, components: int, exact: bool | None = None) -> None:
        """Create an empty accumulator.

        Args:
            components: Number of components to return.
            exact: Whether to keep the full covariance; None decides by the width.
        """
        self._wanted = components
        self._exact = exact
        self._count = 0
        self._squares = 0.0
        self._mean: Tensor | None = None
        self._gram: Tensor | None = None
        self._kept: Tensor | None = None

    @torch.no_grad()
    def add(self, rows: Tensor) -> None:
        """Add vectors (n, width); n may be 0."""
        if not len(rows):
            return
        if self._exact is None:
            self._exact = rows.shape[1] <= EXACT_WIDTH
        rows = rows.to(torch.float64 if self._exact else torch.float32)
        mean = rows.double().mean(dim=0)
        seen, self._count = self._count, self._count + len(rows)
        self._squares += rows.double().square().sum().item()
        before = mean if self._mean is None else self._mean
        self._mean = before + (mean - before) * (len(rows) / self._count)
        rows = rows - mean.to(rows.dtype)
        # The difference of the means is one more direction in which vectors vary.
        shift = (before - mean) * (seen * len(rows) / self._count) ** 0.5
        if self._exact:
            gram = rows.T @ rows + torch.outer(shift, shift)
            self._gram = gram if self._gram is None else self._gram + gram
            return
        new = [rows, shift.to(rows.dtype)[None]]
        stacked = torch.cat(new if self._kept is None else [self._kept, *new])
        kept = min(2 * self._wanted + _OVERSAMPLING, *stacked.shape)
        directions, lengths = truncate_dense(stacked, kept)
        self._kept = torch.linalg.vector_norm(lengths, dim=0)[:, None] * directions

    @property
    def is_empty(self) -> bool:
        """Whether no vectors were added."""
        return self._count == 0

    @torch.no_grad()
    def result(self) -> tuple[Tensor, Tensor]:
        """Return the components, and the share of the variance that each explains.

        Returns: (k, width) with orthonormal rows in float32, and (k,) in descending order in
            float64; k is the requested number, or the width if that is less.
        """
        if self._gram is not None:
            values, vectors = torch.linalg.eigh(self._gram)
            values, directions = values.flip(0), vectors.flip(1).T
            variance = self._gram.diagonal().sum()
        elif self._kept is not None and self._mean is not None:
            _, lengths, directions = torch.linalg.svd(self._kept, full_matrices=False)
            values = lengths.double().square()
            variance = self._squares - self._count * self._mean.square().sum()
        else:
            raise ValueError("There are no components of no vectors.")
        k = self._wanted
        shares = values.clamp_min(0)[:k] / variance.clamp_min(torch.finfo(torch.float64).tiny)
        return directions[:k].float().contiguous(), shares
