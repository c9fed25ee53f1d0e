"""Where the rows of a batch, or the segments of a packed sequence, lie in a tensor."""

from __future__ import annotations

from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lorakit.errors import ShapeError

Place = tuple[Any, ...]
"""An index of some rows of a batch, or of some tokens of a packed sequence."""


class RowPlaces(NamedTuple):
    """The rows that have an adapter, in tensors of a batch."""

    index: tuple[int, ...]
    """The number of each row's adapter, or -1."""
    lengths: tuple[int, ...] | None
    """Tokens of each row where rows are segments of one packed sequence."""

    def of(self, number: int, device: torch.device) -> Place:
        """Return the index of all rows, or tokens of segments, of an adapter."""
        rows = self._rows_of(number)
        if self.lengths is None:
            return (torch.tensor(rows, device=device),)
        ends = list(accumulate(self.lengths))
        tokens = [t for row in rows for t in range(ends[row] - self.lengths[row], ends[row])]
        return torch.zeros(1, dtype=torch.long, device=device), torch.tensor(tokens, device=device)

    def of_copy(self, number: int) -> list[Place]:
        """Return an index for each call of a trained copy: all rows at once, or each segment."""
        rows = self._rows_of(number)
        if self.lengths is None:
            return [(torch.tensor(rows),)]
        ends = list(accumulate(self.lengths))
        return [(slice(None), slice(ends[row] - self.lengths[row], ends[row])) for row in rows]

    def are_in(self, value: Any) -> bool:
        """Return whether a value is a tensor of all rows, or of the tokens of all segments."""
        if not isinstance(value, Tensor) or not value.ndim:
            return False
        if self.lengths is None:
            return len(value) == len(self.index)
        return value.ndim > 1 and value.shape[:2] == (1, sum(self.lengths))

    def replace(self, result: Any, share: Any, place: Place) -> Any:
        """Return a result with some rows replaced by those of another, of the same structure.

        Raises:
            ShapeError: A tensor of the result does not have all rows.
        """
        if isinstance(result, Tensor):
            if not self.are_in(result):
                raise ShapeError(
                    f"Adapters are given for {len(self.index)} rows, but a trained module returns "
                    f"a tensor of shape {tuple(result.shape)}, expected {self._expected}. Run the "
                    "rows of each adapter in a separate batch."
                )
            changed = result.clone()
            changed[place] = share.to(result.dtype)
            return changed
        if isinstance(result, tuple | list):
            pairs = zip(result, share, strict=True)
            return type(result)(self.replace(one, other, place) for one, other in pairs)
        return result

    def check(self, x: Tensor, what: str) -> None:
        """Check that an input has all rows.

        Raises:
            ShapeError: It does not; names what reads it.
        """
        if self.are_in(x):
            return
        if self.lengths is not None:
            raise ShapeError(
                f"Adapters are given for segments of {sum(self.lengths)} tokens, but the input of "
                f"{what} has shape {tuple(x.shape)}, expected {self._expected}. Pack all segments "
                "into one sequence."
            )
        raise ShapeError(
            f"Adapters are given for {len(self.index)} rows, but the input of {what} has shape "
            f"{tuple(x.shape)}, expected {self._expected}. Name one adapter for each row of the "
            "batch; generate() repeats the names as it repeats rows for beams."
        )

    @property
    def _expected(self) -> str:
        if self.lengths is None:
            return f"{len(self.index)} as its first dimension"
        return f"(1, {sum(self.lengths)}, …)"

    def _rows_of(self, number: int) -> list[int]:
        return [row for row, position in enumerate(self.index) if position == number]
