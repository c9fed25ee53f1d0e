"""Keys and values of tokens that prompts have begun with, for prompts that begin so again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from lorakit.serving.engine.batch_cache import KeysValues

BLOCK_TOKENS = 16


class PrefixCache:
    """Blocks of 16 tokens; those used least recently leave.

    The key of a block is a hash of the content of the adapter and of all tokens to its end, so
    that answers of two adapters, or of two versions of one, never mix.

    Attributes:
        used_bytes: Memory of the blocks.
    """

    def __init__(self, like: Sequence[KeysValues | None], budget_bytes: int):
        """Create an empty cache.

        Args:
            like: Keys and values of each layer for one token.
            budget_bytes: Memory of the blocks at most; 0 turns the cache off.
        """
        shapes = {part.shape for pair in like if pair is not None for part in pair}
        self.is_possible = len(shapes) == 1
        """Whether all layers have one shape, as a block is one tensor."""
        self._has_layer = [pair is not None for pair in like]
        self._budget_bytes = budget_bytes if self.is_possible else 0
        self._blocks: OrderedDict[bytes, Tensor] = OrderedDict()  # the least recently used first
        self.used_bytes = 0

    def known_tokens(self, cache_key: str, tokens: Sequence[int]) -> int:
        """Return how many of the first tokens are known; at least one is always left to read."""
        return BLOCK_TOKENS * len(self._known_keys(cache_key, tokens))

    def find(self, cache_key: str, tokens: Sequence[int]) -> list[KeysValues | None]:
        """Return keys and values of the known first tokens, (1, heads, tokens, width) by layer."""
        keys = self._known_keys(cache_key, tokens)
        if not keys:
            return []
        for key in reversed(keys):  # the end of a chain is of no use without its beginning
            self._blocks.move_to_end(key)
        joined = torch.cat([self._blocks[key] for key in keys], dim=2)[:, None]
        parts = iter(joined.unbind(0))
        return [(next(parts), next(parts)) if has else None for has in self._has_layer]

    def store(
        self, cache_key: str, tokens: Sequence[int], layers: Sequence[KeysValues | None]
    ) -> None:
        """Keep copies of full blocks that are not known yet.

        Args:
            cache_key: Content hash of the adapter.
            tokens: The tokens from the beginning of the prompt.
            layers: Keys and values of these tokens, (1, heads, tokens, width) of each layer.
        """
        if not self._budget_bytes:
            return
        keys = list(_block_keys(cache_key, tokens))
        for number in reversed(range(len(keys))):
            key = keys[number]
            if key in self._blocks:
                self._blocks.move_to_end(key)
                continue
            span = slice(number * BLOCK_TOKENS, (number + 1) * BLOCK_TOKENS)
            block = torch.stack([part[0, :, span] for pair in layers if pair for part in pair])
            self._blocks[key] = block
            self.used_bytes += block.nbytes
        while self.used_bytes > self._budget_bytes:
            _, block = self._blocks.popitem(last=False)
            self.used_bytes -= block.nbytes

    def _known_keys(self, cache_key: str, tokens: Sequence[int]) -> list[bytes]:
        known: list[bytes] = []
        if self._blocks:
            for key in _block_keys(cache_key, tokens[:-1]):
                if key not in self._blocks:
                    break
                known.append(key)
        return known


def _block_keys(cache_key: str, tokens: Sequence[int]) -> Iterator[bytes]:
    """Yield the key of each full block."""
    key = blake2b(cache_key.encode(), digest_size=16).digest()
    for end in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS):
        block = repr(tokens[end - BLOCK_TOKENS : end]).encode()
        key = blake2b(key + block, digest_size=16).digest()
        yield key
