"""Run a model whose lower blocks take their result from a cache, where it is known.

Embeddings, masks and all blocks from the first adapted one on run unchanged. For a batch of known
examples the frozen blocks return their input, and the last of them returns the kept hidden states.
Otherwise the frozen blocks run without gradients, and their result is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lorakit.models.position_limits import position_limits
from lorakit.training.frozen_part.blocks import BlockOutput, FrozenBlocks, replacing_forwards
from lorakit.training.frozen_part.keys import Row, rows_of


class Store(Protocol):
    """Keeps hidden states, (tokens, hidden), by key."""

    def get(self, keys: Sequence[bytes]) -> Mapping[bytes, Tensor]:
        """Return what is known for some keys."""
        ...

    def put(self, states: Mapping[bytes, Tensor]) -> None:
        """Keep hidden states under their keys."""
        ...


@contextmanager
def caching_frozen_part(
    model: nn.Module,
    blocks: FrozenBlocks,
    store: Store,
    output: BlockOutput | None = None,
    *,
    piece_tokens: int | None = None,
) -> Iterator[CachedForward]:
    """Let a model take the output of its frozen blocks from a store, and put it there.

    Args:
        model: The model, whose frozen blocks have no active dropout.
        blocks: Its frozen blocks.
        store: The store of this base and depth.
        output: The form of what the blocks return; None for hidden states alone.
        piece_tokens: Examples are kept in pieces of so many tokens, so that those that begin alike
            share what they begin with. None keeps an example as one, as it must be where a token
            changes the hidden states of tokens before it.

    Yields: The state of the model's calls.
    """
    limits = position_limits(getattr(model, "config", None))
    forward = CachedForward(store, output or BlockOutput(), piece_tokens, limits)
    handles = [
        model.register_forward_pre_hook(forward.begin, with_kwargs=True),
        model.register_forward_hook(forward.end, always_call=True),
    ]
    *lower, last = blocks.frozen
    replaced = [(block, forward.passing_on(block.forward)) for block in lower]
    try:
        with replacing_forwards([*replaced, (last, forward.returning_kept(last.forward))]):
            yield forward
    finally:
        for handle in handles:
            handle.remove()


class CachedForward:
    """The state of one call of the model."""

    def __init__(
        self,
        store: Store,
        output: BlockOutput,
        piece_tokens: int | None = None,
        limits: Sequence[int] = (),
    ):
        self.examples = 0
        """Number of examples, in all calls so far, that were read or kept."""
        self.rows: Sequence[Row] | None = None
        """The examples of the batch; None where its blocks run as without a cache."""
        self.unknown: Sequence[int] = ()
        """Those of them, by number, of which a piece is not known."""
        self.output = output
        self._store = store
        self._piece_tokens = piece_tokens
        self._limits = limits
        self._known: Mapping[bytes, Tensor] = {}

    # ---- around the model ----

    def begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look up the examples of a batch."""
        self.rows = None if args else rows_of(kwargs, self._piece_tokens, self._limits)
        if self.rows is not None:
            keys = dict.fromkeys(piece.key for row in self.rows for piece in row.pieces)
            self._known = self._store.get([*keys])
            self.unknown = [
                number
                for number, row in enumerate(self.rows)
                if any(piece.key not in self._known for piece in row.pieces)
            ]
            self.examples += len(self.rows)

    def end(self, model: nn.Module, args: Any, output: Any) -> None:
        """Forget the batch."""
        self.rows, self.unknown, self._known = None, (), {}

    # ---- the hidden states of the batch ----

    def keep(self, states: Mapping[int, Tensor], by_others: Container[int] = ()) -> None:
        """Keep what is not known of some examples of the batch.

        What is known stays, so that an example has the same hidden states in every step, whatever
        else is in its batch and wherever a run is resumed.

        Args:
            states: Hidden states by number of the example, (tokens, hidden), without padding.
            by_others: Those of them that others put into the store.
        """
        new: dict[bytes, Tensor] = {}
        ours: set[bytes] = set()
        for number, found in states.items():
            row = self._row(number)
            for piece in row.pieces:
                if piece.key not in self._known:
                    part = found[piece.begin - row.begin : piece.end - row.begin]
                    new.setdefault(piece.key, part)
                    ours |= set() if number in by_others else {piece.key}
        self._store.put({key: new[key] for key in new if key in ours})
        self._known = {**self._known, **new}
        self.unknown = [number for number in self.unknown if number not in states]

    def read_states(self, tokens: int, device: torch.device) -> Tensor:
        """Return the hidden states of the batch, all known; zero where padded.

        Args:
            tokens: Tokens of a row, with padding.
            device: Where they are needed.

        Returns: (batch, tokens, hidden).
        """
        first = self._known[self._row(0).key]
        rows = [self._row(number) for number in range(len(self.rows or ()))]
        kept = first.new_zeros(len(rows), tokens, first.shape[-1], device=device)
        for number, row in enumerate(rows):
            for piece in row.pieces:
                kept[number, piece.begin : piece.end] = self._known[piece.key]
        return kept

    def _row(self, number: int) -> Row:
        if self.rows is None:
            raise LookupError(number)
        return self.rows[number]

    # ---- instead of the blocks' forward ----

    def passing_on(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return a forward that returns its input if the batch is known."""

        def run(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.rows is not None and not self.unknown:
                return self.output.build(hidden_states)
            with torch.no_grad():
                return forward(hidden_states, *args, **kwargs)

        return run

    def returning_kept(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return a forward that returns what is known of the batch, or computes and keeps it."""

        def run(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            rows, unknown = self.rows, self.unknown
            if rows is None or unknown:
                with torch.no_grad():
                    output = forward(hidden_states, *args, **kwargs)
                if rows is None:
                    return output
                found = self.output.hidden_states(output)
                self.keep({k: found[k, rows[k].begin : rows[k].end] for k in unknown})
            return self.output.build(self.read_states(hidden_states.shape[1], hidden_states.device))

        return run
