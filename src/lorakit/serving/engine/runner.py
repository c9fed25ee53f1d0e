"""The model, called for rows that each have an adapter or none, and short turns of its thread."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from lorakit.errors import ConfigError
from lorakit.injection.activation import adapter_names
from lorakit.injection.per_row import RowChoice, adapter_rows
from lorakit.serving.engine.batch_cache import KeysValues

_PLAIN_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)

_TURN_S = 0.0005
"""Python's default is 5 ms, a sixth of a step of a small model: so long its thread, and the
processors with it, wait between two operations for another that parses a request or an adapter."""

_lock = threading.Lock()
_before_s: list[float] = []
"""The interval that each open block has found: it belongs to the process, not to a thread."""


class ModelRunner:
    """Calls a model; the adapters of the rows stay chosen until others are."""

    def __init__(self, model: PreTrainedModel):
        """Check a model.

        Raises:
            ConfigError: It cannot be decoded row by row.
        """
        self._model = model
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._block = ExitStack()
        self._choice: RowChoice | None = None
        self._names: tuple[str | None, ...] = ()
        _require_plain_attention(model)
        self.device = model.device

    def forward(
        self,
        ids: Tensor,
        cache: Cache,
        names: Sequence[str | None],
        attention_mask: Tensor,
        position_ids: Tensor,
    ) -> Tensor:
        """Read one or more tokens of each row; return the logits of the last, in float32.

        Args:
            ids: (rows, tokens), padded on the left.
            cache: Keys and values of the tokens before, which these are added to.
            names: The adapter of each row.
            attention_mask: (rows, tokens before and these).
            position_ids: Shape of `ids`.
        """
        self._choose(tuple(names), ids.numel())
        arguments: dict[str, Any] = dict(self._last_only)
        if self._takes_positions:
            arguments["position_ids"] = position_ids
        output = self._model(
            input_ids=ids,
            attention_mask=attention_mask,
            cache=cache,
            use_cache=True,
            **arguments,
        )
        return output.logits[:, -1].float()

    def one_token(self) -> list[KeysValues | None]:
        """Return the keys and values of one token in each layer.

        Raises:
            ConfigError: The model keeps none.
        """
        cache = DynamicCache()
        one = torch.ones(1, 1, dtype=torch.long, device=self.device)
        with torch.no_grad():
            self.forward(one, cache, [None], one, one - 1)
        self.close()
        if not any(found := keys_values(cache)):
            raise ConfigError(
                f"Cannot decode {type(self._model).__name__} row by row: it keeps no keys and "
                "values, expected those of each token. Use another base."
            )
        return found

    def close(self) -> None:
        """Let the model be changed: no row has an adapter any more."""
        self._block.close()
        self._choice = None
        self._names = ()

    def _choose(self, names: tuple[str | None, ...], tokens: int) -> None:
        if names == self._names:
            return
        if self._choice is not None:
            self._choice.choose(names)
        elif adapter_names(self._model):
            self._choice = self._block.enter_context(adapter_rows(self._model, names))
        self._names = names
        if self._choice is not None:
            self._choice.prepare(tokens)


def keys_values(cache: Cache) -> list[KeysValues | None]:
    """Return the keys and values of each layer; None for one that uses another's."""
    pairs: list[KeysValues | None] = []
    for layer in cache.layers:
        keys, values = layer.keys, layer.values  # type: ignore[union-attr]  # layers that keep keys
        pairs.append(None if keys is None or values is None else (keys, values))
    return pairs


def cache_of(pairs: Sequence[KeysValues | None]) -> DynamicCache:
    """Return a cache that begins with keys and values, (1, heads, tokens, width) of each layer.

    It keeps those of all tokens in layers with a sliding window too.
    """
    cache = DynamicCache()
    for number, pair in enumerate(pairs):
        if pair is not None:
            cache.update(*pair, number)
    return cache


def _require_plain_attention(model: PreTrainedModel) -> None:
    if model.config.is_encoder_decoder:
        raise ConfigError(
            f"Cannot decode {type(model).__name__} row by row: got an encoder and a decoder, "
            "expected a model that continues its prompt. Use a CAUSAL_LM base."
        )
    for layer in DynamicCache(config=model.config).layers:
        if type(layer) not in _PLAIN_LAYERS:
            raise ConfigError(
                f"Cannot decode {type(model).__name__} row by row: got a layer that keeps a "
                f"{type(layer).__name__}, expected keys and values of each token in all layers. "
                "Use a base with attention only."
            )


@contextmanager
def short_turns() -> Iterator[None]:
    """Let threads take turns at Python ten times as often inside the block.

    Blocks of several threads may overlap; the last one to end restores the interval.
    """
    with _lock:
        _before_s.append(sys.getswitchinterval())
        sys.setswitchinterval(min(_TURN_S, _before_s[0]))
    try:
        yield
    finally:
        with _lock:
            before_s = _before_s.pop()
            if not _before_s:
                sys.setswitchinterval(before_s)
