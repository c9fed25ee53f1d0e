"""Principal components of rows that come batch by batch."""

import torch
from torch import Tensor

from lorakit.ops.factored_svd import truncated_dense

EXACT_WIDTH = 1024
"""Up to this many columns the covariance is kept whole; above it its largest components alone."""

_OVERSAMPLING = 16


class StreamedComponents:
    """Sums up rows, and gives the directions in which they vary most.

    Narrow rows are summed up in a covariance in float64, whose eigenvectors are the components
    exactly. Of wide ones twice the wanted number of components is kept and put above each new
    batch before it is decomposed, so that memory stays at a few rows.

    Source: Ross et al. 2008, "Incremental learning for robust visual tracking", section 3.1.
    """

    def __init__(self, components: int, exact: bool | None = None) -> None:
        """Begin without rows.

        Args:
            components: How many are wanted.
            exact: Whether to keep the whole covariance; None decides by the number of columns.
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
        """Take rows (n, width) into account; none is fine."""
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
        # The two means apart are one more direction in which rows vary.
        apart = (before - mean) * (seen * len(rows) / self._count) ** 0.5
        if self._exact:
            own = rows.T @ rows + torch.outer(apart, apart)
            self._gram = own if self._gram is None else self._gram + own
            return
        parts = [rows, apart.to(rows.dtype)[None]]
        stacked = torch.cat(parts if self._kept is None else [self._kept, *parts])
        kept = min(2 * self._wanted + _OVERSAMPLING, *stacked.shape)
        directions, lengths = truncated_dense(stacked, kept)
        self._kept = torch.linalg.vector_norm(lengths, dim=0)[:, None] * directions

    @property
    def is_empty(self) -> bool:
        """Whether no rows have come."""
        return self._count == 0

    @torch.no_grad()
    def result(self) -> tuple[Tensor, Tensor]:
        """Return the components, and the share of the variance that each explains.

        Returns: (k, width) with orthonormal rows in float32, and (k,) in descending order in
            float64; k is the number that was asked for, or the width where that is less.
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
            raise ValueError("There are no components of no rows.")
        k = self._wanted
        shares = values.clamp_min(0)[:k] / variance.clamp_min(torch.finfo(torch.float64).tiny)
        return directions[:k].float().contiguous(), shares
