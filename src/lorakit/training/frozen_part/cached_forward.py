"""Run a model whose lower blocks take their result from a cache, where it is known.

Embeddings, masks and all blocks from the first adapted one on run unchanged. For a batch of known
examples the frozen blocks return their input, and the last of them returns the kept hidden states.
Otherwise the frozen blocks run without gradients, and their result is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lorakit.ops.compute_dtype import autocast_dtype
from lorakit.training.frozen_part.blocks import BlockOutput, FrozenBlocks

_NOT_INPUTS = ("labels", "num_items_in_batch")


class Store(Protocol):
    """Keeps hidden states, (tokens, hidden), by key."""

    def get(self, keys: Sequence[bytes]) -> Mapping[bytes, Tensor]:
        """Return what is known for some keys."""
        ...

    def put(self, states: Mapping[bytes, Tensor]) -> None:
        """Keep hidden states under their keys."""
        ...


@dataclass(frozen=True)
class _Row:
    """An example in a batch."""

    key: bytes
    begin: int
    end: int
    """Its tokens, without padding."""


@contextmanager
def caching_frozen_part(
    model: nn.Module,
    blocks: FrozenBlocks,
    store: Store,
    output: BlockOutput | None = None,
) -> Iterator[CachedForward]:
    """Let a model take the output of its frozen blocks from a store, and put it there.

    Args:
        model: The model, whose frozen blocks have no active dropout.
        blocks: Its frozen blocks.
        store: The store of this base and depth.
        output: The form of what the blocks return; None for hidden states alone.

    Yields: The state of the model's calls.
    """
    forward = CachedForward(store, output or BlockOutput())
    handles = [
        model.register_forward_pre_hook(forward.begin, with_kwargs=True),
        model.register_forward_hook(forward.end, always_call=True),
    ]
    *lower, last = blocks.frozen
    before = [vars(block).get("forward") for block in blocks.frozen]
    for block in lower:
        block.forward = forward.passing_on(block.forward)
    last.forward = forward.returning_kept(last.forward)
    try:
        yield forward
    finally:
        for handle in handles:
            handle.remove()
        for block, was_set in zip(blocks.frozen, before, strict=True):
            del block.forward
            if was_set is not None:  # as by accelerate, which moves weights between devices
                block.forward = was_set


class CachedForward:
    """The state of one call of the model."""

    def __init__(self, store: Store, output: BlockOutput):
        self.examples = 0
        """Number of examples, in all calls so far, that were read or kept."""
        self._store = store
        self._output = output
        self._rows: list[_Row] | None = None
        """The examples of the batch; None where its blocks run as without a cache."""
        self._known: Mapping[bytes, Tensor] = {}

    # ---- around the model ----

    def begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look up the examples of a batch."""
        self._rows = None if args else _rows_of(kwargs)
        if self._rows is not None:
            self._known = self._store.get([row.key for row in self._rows])
            self.examples += len(self._rows)

    def end(self, model: nn.Module, args: Any, output: Any) -> None:
        """Forget the batch."""
        self._rows, self._known = None, {}

    @property
    def _is_known(self) -> bool:
        return self._rows is not None and all(row.key in self._known for row in self._rows)

    # ---- instead of the blocks' forward ----

    def passing_on(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return a forward that returns its input if the batch is known."""

        def run(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._is_known:
                return self._output.made_of(hidden_states)
            with torch.no_grad():
                return forward(hidden_states, *args, **kwargs)

        return run

    def returning_kept(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return a forward that returns what is known of the batch, or computes and keeps it.

        Known examples of a batch that is computed keep their hidden states, so that an example has
        the same ones in every step, whatever else is in its batch and wherever a run is resumed.
        """

        def run(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            rows = self._rows
            if rows is None or not self._is_known:
                with torch.no_grad():
                    output = forward(hidden_states, *args, **kwargs)
                if rows is None:
                    return output
                self._keep(self._output.hidden_states(output), rows)
            return self._output.made_of(self._kept(hidden_states, rows))

        return run

    def _keep(self, hidden_states: Tensor, rows: list[_Row]) -> None:
        """Keep the hidden states of the examples of a batch that are not known."""
        new: dict[bytes, Tensor] = {}
        for k, row in enumerate(rows):
            if row.key not in self._known:
                new.setdefault(row.key, hidden_states[k, row.begin : row.end])
        self._store.put(new)
        self._known = {**self._known, **new}

    def _kept(self, like: Tensor, rows: list[_Row]) -> Tensor:
        """Return the kept hidden states of a batch, (batch, tokens, hidden); zero where padded."""
        first = self._known[rows[0].key]
        kept = first.new_zeros(*like.shape[:2], first.shape[-1], device=like.device)
        for k, row in enumerate(rows):
            kept[k, row.begin : row.end] = self._known[row.key]
        return kept


def _rows_of(inputs: Mapping[str, Any]) -> list[_Row] | None:
    """Return the examples of a batch, or None if it is not one of token ids alone.

    A key covers all inputs of an example's tokens, and where in the sequence they lie: positions
    count from its beginning, padding included.
    """
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2 or inputs.get("past_key_values") is not None:
        return None
    tensors: dict[str, Tensor] = {}
    for name, value in sorted(inputs.items()):
        if isinstance(value, Tensor) and name not in _NOT_INPUTS:
            if value.shape != ids.shape:
                return None
            tensors[name] = value.cpu()
    mask = tensors.get("attention_mask", torch.ones_like(ids, device="cpu"))
    common = repr((sorted(tensors), autocast_dtype(ids.device.type))).encode()
    rows: list[_Row] = []
    for k in range(len(ids)):
        (real,) = mask[k].nonzero(as_tuple=True)
        if not len(real):
            return None
        begin, end = int(real[0]), int(real[-1]) + 1
        digest = hashlib.blake2b(common + begin.to_bytes(4, "big"), digest_size=16)
        for tensor in tensors.values():
            digest.update(tensor[k, begin:end].to(torch.int64).numpy().tobytes())
        rows.append(_Row(digest.digest(), begin, end))
    return rows
