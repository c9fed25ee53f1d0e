"""How kept hidden states are found: by the content of an example, from its first token on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorakit.models.position_limits import beyond_limits
from lorakit.ops.compute_dtype import autocast_dtype

_NOT_INPUTS = ("labels", "num_items_in_batch")


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens of an example, whose hidden states are kept under one key."""

    key: bytes
    """Determined by these tokens and all before them."""
    begin: int
    end: int


@dataclass(frozen=True)
class Row:
    """An example in a batch."""

    pieces: tuple[Piece, ...]
    """Its tokens in order, without padding."""

    @property
    def key(self) -> bytes:
        """The key of its last piece, which its whole content determines."""
        return self.pieces[-1].key

    @property
    def begin(self) -> int:
        """Place of its first token in the batch."""
        return self.pieces[0].begin

    @property
    def end(self) -> int:
        """Place after its last token."""
        return self.pieces[-1].end


def rows_of(
    inputs: Mapping[str, Any], piece_tokens: int | None = None, limits: Sequence[int] = ()
) -> list[Row] | None:
    """Return the examples of a batch, or None if it is not one of token ids alone.

    A key covers all inputs of an example's tokens, and where in the sequence they lie: positions
    count from its beginning, padding included.

    Args:
        inputs: The arguments of the model by name.
        piece_tokens: Tokens of a piece; None makes each example one piece.
        limits: See `position_limits`: a batch beyond one has other keys.
    """
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2 or inputs.get("cache") is not None:
        return None
    tensors: dict[str, Tensor] = {}
    for name, value in sorted(inputs.items()):
        if isinstance(value, Tensor) and name not in _NOT_INPUTS:
            if value.shape != ids.shape:
                return None
            tensors[name] = value.cpu()
    mask = tensors.get("attention_mask", torch.ones_like(ids, device="cpu"))
    beyond = beyond_limits(inputs, limits)
    common = repr((sorted(tensors), autocast_dtype(ids.device.type), beyond)).encode()
    rows: list[Row] = []
    for k in range(len(ids)):
        (real,) = mask[k].nonzero(as_tuple=True)
        if not len(real):
            return None
        begin, end = int(real[0]), int(real[-1]) + 1
        ours = torch.stack([tensor[k, begin:end].to(torch.int64) for tensor in tensors.values()], 1)
        digest = hashlib.blake2b(common + begin.to_bytes(4, "big"), digest_size=16)
        pieces: list[Piece] = []
        for first in range(begin, end, piece_tokens or end - begin):
            last = min(first + (piece_tokens or end - begin), end)
            digest.update(ours[first - begin : last - begin].numpy().tobytes())
            pieces.append(Piece(digest.copy().digest(), first, last))
        rows.append(Row(tuple(pieces)))
    return rows
