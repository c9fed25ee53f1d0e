"""Which update acts on which row of a batch, or on which segment of a packed sequence."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lorakit.errors import ShapeError
from lorakit.ops.native.cpu_kernels import Group, Groups
from lorakit.ops.operands import LinearOperands, LowRankTerm, check_shapes
from lorakit.ops.quantized import Weight
from lorakit.ops.term_table import (
    TermTable,
    as_spans,
    down_group,
    spans_in_batches,
    spans_of,
    up_group,
)

Needs = list[tuple[bool, bool]]
"""Whether (A, B) of each term need a gradient."""


class PerRowTerms:
    """Which update acts on which row of a batch.

    Attributes:
        terms: The updates of the distinct adapters; they share one dropout seed, unless the rows
            of each are a batch with its own masks.
        index: For each batch row the position of its update, or -1 for none.
        biases: A trained bias of each update, or None for the base's; empty if none has one.
        lengths: Tokens of each row where the rows are segments of one packed sequence; None where
            they are the rows of a batch, of one length.
        own_tokens: Tokens of each row without padding, where the rows of each update are a batch
            whose masks are those of the batch alone; None where all rows are one batch.
        groups: What compiled products were given, by number of tokens.
        table: The terms among others, described to the compiled products already, if they are.
    """

    def __init__(
        self,
        terms: Sequence[LowRankTerm],
        index: Sequence[int],
        biases: Sequence[Tensor | None] = (),
        lengths: Sequence[int] | None = None,
        table: tuple[TermTable, Sequence[int]] | None = None,
        own_tokens: Sequence[int] | None = None,
    ):
        """Create the terms of a batch.

        Args:
            terms: See above.
            index: See above.
            biases: See above.
            lengths: See above.
            table: A table that has the terms, whose shapes were checked, and the slot of each; none
                of them drops elements if the rows have `own_tokens`.
            own_tokens: See above.
        """
        self.terms = tuple(terms)
        self.index = tuple(index)
        self.biases = tuple(biases) if any(bias is not None for bias in biases) else ()
        self.lengths = None if lengths is None else tuple(lengths)
        self.own_tokens = None if own_tokens is None else tuple(own_tokens)
        self.groups: dict[int, tuple[Groups, Groups]] = {}
        self.table = table
        self._row_scales: list[Tensor | None] = []
        self._checked: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    @property
    def largest_rank(self) -> int:
        """Columns of u."""
        return max(term.A.shape[0] for term in self.terms)

    def check_shapes(self, x: Tensor, W0: Weight) -> None:
        """Check the shapes of the input, the weight and the terms, the latter once.

        Raises:
            ShapeError: They do not fit; names the shapes.
        """
        if self._checked != (x.shape, W0.shape):
            check_shapes(
                x.shape, LinearOperands(W0, None, self.terms if self.table is None else ())
            )
            if self.lengths is not None:
                _check_segments(x, self.lengths)
            elif x.ndim < 2 or x.shape[0] != len(self.index):
                raise ShapeError(
                    f"Adapters are given for {len(self.index)} rows, but the input of an adapted "
                    f"layer has shape {tuple(x.shape)}, expected {len(self.index)} as its first "
                    "dimension. Name one adapter for each row of the batch; generate() repeats the "
                    "names as it repeats rows for beams."
                )
            self._checked = (x.shape, W0.shape)

    def spans(self, tokens: int) -> list[tuple[int, int, int]]:
        """Return (first token, end, term) of each run of rows with one update, of all tokens."""
        return self._spans_and_shifts(tokens)[0]

    def mask_shifts(self, tokens: int) -> list[int]:
        """Return for each of `spans` what to add to a token's number for its row in the mask."""
        return self._spans_and_shifts(tokens)[1]

    def _spans_and_shifts(self, tokens: int) -> tuple[list[tuple[int, int, int]], list[int]]:
        if self.own_tokens is not None:
            return spans_in_batches(self.index, tokens // len(self.index), self.own_tokens)
        spans = spans_of(self.index, self._lengths_of(tokens))[0]
        return spans, [0] * len(spans)

    def kernel_groups(self, tokens: int) -> tuple[Groups, Groups]:
        """Return the groups of `down` and of `up_` for compiled products, of all tokens."""
        if tokens not in self.groups:
            if self.table is not None:
                table, slots = self.table
                if self.own_tokens is not None:
                    spans = as_spans(self.spans(tokens))
                else:
                    spans = spans_of(self.index, self._lengths_of(tokens))[1]
                self.groups[tokens] = table.groups(slots, spans)
            else:
                self.groups[tokens] = (
                    Groups(self.down_groups(tokens)),
                    Groups(self.up_groups(tokens)),
                )
        return self.groups[tokens]

    def down_groups(self, tokens: int) -> list[Group]:
        """Return the groups of `down` for each of `spans`, with their masks."""
        spans, shifts = self._spans_and_shifts(tokens)
        return [
            down_group(begin, end, self.terms[n], shift)
            for (begin, end, n), shift in zip(spans, shifts, strict=True)
        ]

    def up_groups(self, tokens: int) -> list[Group]:
        """Return the groups of `up_` for each of `spans`."""
        return [up_group(begin, end, self.terms[n]) for begin, end, n in self.spans(tokens)]

    def _lengths_of(self, tokens: int) -> tuple[int, ...]:
        return self.lengths or (tokens // len(self.index),) * len(self.index)

    def along_tokens(self, values: Tensor, h: Tensor) -> Tensor:
        """Return values of each row, (rows, width), in a shape and dtype to combine with h."""
        if self.lengths is not None:
            counts = torch.tensor(self.lengths, device=h.device)
            return values.repeat_interleave(counts, 0).view(*h.shape[:-1], -1).to(h.dtype)
        return values.view(len(h), *[1] * (h.ndim - 2), -1).to(h.dtype)

    def row_biases(self, bias: Tensor | None) -> Tensor:
        """Return the bias of each row, (rows, out).

        Args:
            bias: The base's, for rows without a trained one.
        """
        given = next(trained for trained in self.biases if trained is not None)
        rest = torch.zeros_like(given) if bias is None else bias.to(given.dtype)
        stacked = torch.stack([rest if b is None else b for b in (*self.biases, None)])
        return stacked[torch.tensor(self.index, device=given.device)]  # -1 is the last, the base's

    def row_scales(self) -> Tensor | None:
        """Return c of each row, (rows, out), 1 where its term has none; None if no term has one."""
        if torch.is_grad_enabled():
            return self._compute_row_scales()
        if not self._row_scales:
            self._row_scales.append(self._compute_row_scales())
        return self._row_scales[0]

    def _compute_row_scales(self) -> Tensor | None:
        scales = [
            None if scale is None else scale.lengths.to(scale.norms.dtype) / scale.norms
            for scale in (*(term.row_scale for term in self.terms), None)
        ]
        given = next((scale for scale in scales if scale is not None), None)
        if given is None:
            return None
        stacked = torch.stack([torch.ones_like(given) if c is None else c for c in scales])
        return stacked[torch.tensor(self.index, device=given.device)]  # -1 is the last, the ones


def _check_segments(x: Tensor, lengths: Sequence[int]) -> None:
    tokens = x.numel() // x.shape[-1]
    if tokens != sum(lengths) or any(size != 1 for size in x.shape[:-2]):
        raise ShapeError(
            f"Adapters are given for segments of {sum(lengths)} tokens, but the input of an "
            f"adapted layer has shape {tuple(x.shape)}, expected (1, {sum(lengths)}, features). "
            "Pack all segments into one sequence, or name an adapter for each row of a batch."
        )
