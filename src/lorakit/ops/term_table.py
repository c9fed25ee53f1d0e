"""Low-rank terms of one layer, described once to the compiled kernels for many batches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from lorakit.ops.dropout_mask import kernel_mask
from lorakit.ops.native.cpu_kernels import Group, Groups, GroupTable
from lorakit.ops.operands import LowRankTerm


class Spans(NamedTuple):
    """Runs of tokens with one term: first token, end and term of each."""

    begins: np.ndarray
    ends: np.ndarray
    terms: np.ndarray


class TermTable:
    """Groups of the terms of many adapters, of which each batch takes some."""

    def __init__(self) -> None:
        self._groups = GroupTable()
        self._new: dict[int, LowRankTerm] = {}  # not described to the kernels yet
        self._free: list[int] = []
        self._slots = 0

    def put(self, term: LowRankTerm, slot: int | None = None) -> int:
        """Write a term into a slot, a free one if None; return the slot."""
        if slot is None and self._free:
            slot = self._free.pop()
        elif slot is None:
            slot, self._slots = self._slots, self._slots + 1
        self._new[slot] = term
        return slot

    def free(self, slot: int) -> None:
        """Let go of a term, so that its slot can be used again."""
        self._new.pop(slot, None)
        self._groups.clear(slot)
        self._free.append(slot)

    def groups(self, slots: Sequence[int], spans: Spans) -> tuple[Groups, Groups]:
        """Return the groups of `down` and of `up_` of a batch.

        Args:
            slots: The slot of each term of the batch.
            spans: Runs of tokens; their terms are positions in `slots`.
        """
        while self._new:
            slot, term = self._new.popitem()
            self._groups.put(slot, down_group(0, 0, term), up_group(0, 0, term))
        chosen = np.asarray(slots)[spans.terms]
        return self._groups.take(chosen, spans.begins, spans.ends)


def down_group(begin: int, end: int, term: LowRankTerm, mask_shift: int = 0) -> Group:
    """Return the group of x Aᵀ of some tokens.

    Args:
        begin: The first token.
        end: The token after the last.
        term: Their term.
        mask_shift: Added to the number of a token, it gives the token's row in the term's mask.
    """
    seed = term.seed if term.drop_probability else None
    mask = kernel_mask(term.drop_probability, seed, mask_shift)
    return Group(begin, end, term.A, term.A.shape[0], mask=mask)


def up_group(begin: int, end: int, term: LowRankTerm) -> Group:
    """Return the group of s u Bᵀ of some tokens."""
    return Group(begin, end, term.B, term.B.shape[1], term.scaling)


@lru_cache(maxsize=64)
def spans_of(
    index: tuple[int, ...], lengths: tuple[int, ...]
) -> tuple[list[tuple[int, int, int]], Spans]:
    """Return (first token, end, term) of each run of rows with one term; rows without are left out.

    Args:
        index: The term of each row, or -1.
        lengths: Tokens of each row.
    """
    found: list[tuple[int, int, int]] = []
    begin = 0
    for term, run in groupby(zip(index, lengths, strict=True), key=itemgetter(0)):
        end = begin + sum(length for _, length in run)
        if term >= 0:
            found.append((begin, end, term))
        begin = end
    return found, as_spans(found)


def as_spans(listed: Sequence[tuple[int, int, int]]) -> Spans:
    """Return runs of tokens, each (first token, end, term), as columns."""
    table = np.array(listed, dtype=np.int64).reshape(-1, 3)
    return Spans(table[:, 0], table[:, 1], table[:, 2])


@lru_cache(maxsize=64)
def spans_in_batches(
    index: tuple[int, ...], length: int, own_tokens: tuple[int, ...]
) -> tuple[list[tuple[int, int, int]], list[int]]:
    """Return runs of tokens as `spans_of` does, without padding, and each run's mask shift.

    The rows of a term are a batch that was padded to the length of others; its mask is that of the
    batch before. Added to the number of a token, the shift gives the token's row in that mask.

    Args:
        index: The term of each row, or -1.
        length: Tokens of each row, with padding.
        own_tokens: Tokens of each row without it. Rows of another length, such as those that a
            pooler has left, have no padding.
    """
    if length != max(own_tokens):
        own_tokens = (length,) * len(own_tokens)
    spans: list[tuple[int, int, int]] = []
    shifts: list[int] = []
    taken: dict[int, int] = {}  # tokens of each term so far
    for row, (term, tokens) in enumerate(zip(index, own_tokens, strict=True)):
        begin, before = row * length, taken.get(term, 0)
        taken[term] = before + tokens
        if term < 0 or not tokens:
            continue
        end, shift = begin + tokens, before - begin
        if spans and spans[-1][1:] == (begin, term) and shifts[-1] == shift:
            spans[-1] = (spans[-1][0], end, term)
        else:
            spans.append((begin, end, term))
            shifts.append(shift)
    return spans, shifts
