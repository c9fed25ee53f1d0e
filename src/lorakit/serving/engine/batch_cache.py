"""Keys and values of the rows that decode together.

All rows write the same column at a step, so one copy of keys and one of values per layer is all
that a step costs, and the rows of the batch are what `generate` calls left-padded:

    column   0 1 2 3 4 5 6 7
    row 0    · a a a a a →      `begin` is the first column that any row uses, `end` the next that
    row 1    · · · · b b →      all rows write
    row 2    · · c c c c →

A row that joins is copied so that it ends where the others end. The place of a row that leaves is
taken by the last one. Columns outside of a row are zero: attention multiplies them by a weight of
zero, and what an earlier request left there might be infinite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of a layer, each (rows, heads, tokens, width)."""

_SPARE_COLUMNS = 64
"""Columns that a new layout has beyond those in use, at least."""


class BatchCache(Cache):
    """What a model reads and writes at a step of decoding.

    Attributes:
        begin: The first column in use.
        end: The column that the next step writes.
        starts: The first column of each row.
    """

    def __init__(
        self,
        like: Sequence[KeysValues | None],
        budget_bytes: int,
        most_rows: int,
        visiting_rows: int = 0,
    ):
        """Create an empty cache.

        Args:
            like: Keys and values of each layer for one token, which give shapes, dtype and device;
                None for a layer that uses those of another layer.
            budget_bytes: What all layers may take together.
            most_rows: Rows at most.
            visiting_rows: Rows that may join for one step besides, where the memory has place.
        """
        super().__init__(layers=[_BatchLayer(self, each) for each in like])
        self._most_rows = most_rows
        self._visiting_rows = visiting_rows
        self._budget_columns = budget_bytes // max(self.column_bytes, 1)
        self._capacity = (0, 0)  # rows, columns
        first = next(each[0] for each in like if each is not None)
        self._device = first.device
        self._columns = torch.empty(0, dtype=torch.long, device=self._device)
        self._starts = torch.empty(0, dtype=torch.long, device=self._device)
        self.begin = self.end = 0
        self.starts: list[int] = []

    # ---- sizes ----

    @property
    def column_bytes(self) -> int:
        """Bytes of one token in all layers."""
        return sum(layer.column_bytes for layer in self._batch_layers)

    @property
    def allocated_bytes(self) -> int:
        """Bytes that the buffers take."""
        rows, columns = self._capacity
        return rows * columns * self.column_bytes

    @property
    def most_tokens(self) -> int:
        """Tokens that one row can have when it is alone."""
        return self._budget_columns

    def fits(self, lengths: Sequence[int]) -> bool:
        """Return whether rows of these numbers of tokens fit too, with some columns to go on."""
        rows = len(self.starts) + len(lengths)
        columns = max(self.end - self.begin, *lengths)
        if rows == 1:
            return columns < self._budget_columns
        spare = columns // 8 + 2
        return rows <= self._most_rows and rows * (columns + spare) <= self._budget_columns

    def can_be_visited(self) -> bool:
        """Return whether the visiting rows, of one token each, fit into the buffers as they are."""
        rows = len(self.starts) + self._visiting_rows
        return rows <= self._capacity[0] and 0 < self.end < self._capacity[1]

    # ---- what a step needs ----

    def attention_mask(self) -> Tensor:
        """Return 1 for the columns that each row uses, with the one that is written: (rows, *)."""
        return (self._columns[self.begin : self.end + 1] >= self._starts[:, None]).long()

    def position_ids(self) -> Tensor:
        """Return the position of the token that each row writes next, (rows, 1)."""
        return (self.end - self._starts)[:, None]

    def has_room(self) -> bool:
        """Return whether each row has place for one more token, after a new layout if need be."""
        if self.end < self._capacity[1]:
            return True
        rows, live = len(self.starts), self.end - self.begin
        if rows * (live + 1) > self._budget_columns:
            return False
        self._lay_out(rows, live + 1, live)
        return True

    def advance(self) -> None:
        """Take the column into use that a step has written."""
        self.end += 1

    # ---- rows ----

    def join(self, layers: Sequence[KeysValues | None], tokens: int) -> None:
        """Append a row; `fits` must have said yes.

        Args:
            layers: Keys and values of each layer, (1, heads, tokens, width).
            tokens: Their number.
        """
        rows, live = len(self.starts), self.end - self.begin
        if rows + 1 > self._capacity[0] or tokens > self.end or self.end >= self._capacity[1]:
            self._lay_out(rows + 1, max(live, tokens) + 1, max(live, tokens))
        start = self.end - tokens
        for layer, given in zip(self._batch_layers, layers, strict=True):
            layer.write(rows, start, self.end, given)
        self._set_starts([*self.starts, start])

    def leave(self, row: int) -> None:
        """Take a row out; the last row takes its place."""
        last = len(self.starts) - 1
        start, moved = self.starts[row], self.starts[last]
        for layer in self._batch_layers:
            if row != last:
                layer.copy_row(last, row, moved, self.end)
                layer.clear(row, start, moved)
            layer.clear(last, moved, self.end)
        starts = list(self.starts)
        starts[row] = moved
        self._set_starts(starts[:-1])

    def row(self, row: int) -> list[KeysValues | None]:
        """Return views of the keys and values of a row, (1, heads, tokens, width) of each layer."""
        place = slice(row, row + 1), slice(None), slice(self.starts[row], self.end)
        return [layer.part(place) for layer in self._batch_layers]

    def _set_starts(self, starts: list[int]) -> None:
        self.starts = starts
        if not starts:
            self.begin = self.end = 0
        self.begin = min(starts, default=0)
        self._starts = torch.tensor(starts, dtype=torch.long, device=self._device)

    def _lay_out(self, rows: int, columns: int, end: int) -> None:
        """Give the buffers place for these rows and columns; those in use end at a column."""
        spare = max(_SPARE_COLUMNS, columns // 4)
        row_capacity = min(self._most_rows, 1 << (rows - 1).bit_length()) + self._visiting_rows
        if row_capacity * (columns + spare) > self._budget_columns:
            row_capacity = rows
        most = max(self._budget_columns // row_capacity, columns)
        capacity = row_capacity, min(columns + spare, most)
        offset = end - self.end
        for layer in self._batch_layers:
            layer.lay_out(capacity, len(self.starts), (self.begin, self.end), offset)
        self._capacity = capacity
        self._columns = torch.arange(capacity[1], device=self._device)
        self.end += offset
        self._set_starts([start + offset for start in self.starts])
        self.end = end

    @property
    def _batch_layers(self) -> list[_BatchLayer]:
        return self.layers  # type: ignore[return-value]  # made with these layers


class _BatchLayer(CacheLayerMixin):
    """Buffers of one layer, (row capacity, heads, column capacity, width)."""

    def __init__(self, cache: BatchCache, like: KeysValues | None):
        super().__init__()
        self.cache = cache
        self.is_initialized = True
        self.column_bytes = 0
        if like is not None:
            self.keys, self.values = (
                each.new_empty(0, each.shape[1], 0, each.shape[3]) for each in like
            )
            self.column_bytes = sum(each[0, :, 0].nbytes for each in like)

    def buffers(self) -> KeysValues | tuple[()]:
        return () if self.keys is None else (self.keys, self.values)  # type: ignore[return-value]  # both or neither

    # ---- what a model calls ----

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> KeysValues:
        """Write one token of each row; return all that the rows attend to."""
        rows, begin, end = len(key_states), self.cache.begin, self.cache.end
        keys, values = self.keys[:rows], self.values[:rows]  # type: ignore[index]  # both or neither
        keys[:, :, end : end + 1] = key_states
        values[:, :, end : end + 1] = value_states
        return keys[:, :, begin : end + 1], values[:, :, begin : end + 1]

    def get_seq_length(self) -> int:
        """Return the columns before the one that is written."""
        return self.cache.end - self.cache.begin

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many columns are attended to, and the number of the first."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Return -1, as buffers grow."""
        return -1

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the buffers exist from the beginning."""

    # ---- rows ----

    def write(self, row: int, start: int, end: int, given: KeysValues | None) -> None:
        for buffer, part in zip(self.buffers(), given or (), strict=True):
            buffer[row, :, start:end] = part[0]

    def copy_row(self, source: int, target: int, start: int, end: int) -> None:
        for buffer in self.buffers():
            buffer[target, :, start:end] = buffer[source, :, start:end]

    def clear(self, row: int, start: int, end: int) -> None:
        for buffer in self.buffers():
            buffer[row, :, start : max(start, end)] = 0

    def part(self, place: Any) -> KeysValues | None:
        return None if self.keys is None else (self.keys[place], self.values[place])  # type: ignore[index]  # both or neither

    def lay_out(
        self, capacity: tuple[int, int], rows: int, used: tuple[int, int], offset: int
    ) -> None:
        """Replace the buffers by ones of another capacity, with the used columns moved right."""
        if self.keys is None:
            return
        begin, end = used
        fresh: list[Tensor] = []
        for buffer in self.buffers():
            new = buffer.new_zeros(capacity[0], buffer.shape[1], capacity[1], buffer.shape[3])
            new[:rows, :, begin + offset : end + offset] = buffer[:rows, :, begin:end]
            fresh.append(new)
        self.keys, self.values = fresh
