"""What each adapter costs: tokens per second with it against the base alone."""

from __future__ import annotations

import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass

from lorakit.serving.pooled.forward_items import ForwardItem
from lorakit.serving.requests import Event, Failed, Finished, GenerationRequest, NewText, Sampling
from lorakit.serving.served_model import ServedModel

_PROMPT_TOKENS = 16
_NEW_TOKENS = 24
_ROUNDS = 3


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one answer, or of one text that is classified, on an idle server."""

    tokens_per_s: float
    base_tokens_per_s: float

    @property
    def share(self) -> float:
        """The speed as a share of the base's."""
        return self.tokens_per_s / self.base_tokens_per_s


def measure_speeds(model: ServedModel, adapters: Sequence[str]) -> dict[str, Speed]:
    """Return the speed with each adapter; the base is measured in turn with them.

    Args:
        model: A started model.
        adapters: Names of adapters; each is loaded.

    Raises:
        LorakitError: An adapter cannot be loaded, or the model fails.
    """
    leases = {name: model.store.lease(name).result() for name in adapters}
    try:
        carried = {None: None, **{name: lease.carried_name for name, lease in leases.items()}}
        best: dict[str | None, float] = {}
        for round_number in range(_ROUNDS + 1):
            for name, carried_name in carried.items():
                speed = _tokens_per_s(model, carried_name)
                if round_number:  # the first round warms up
                    best[name] = max(best.get(name, 0.0), speed)
    finally:
        for lease in leases.values():
            lease.release()
    return {name: Speed(best[name], best[None]) for name in adapters}


def _tokens_per_s(model: ServedModel, adapter: str | None) -> float:
    prompt = tuple(range(1, _PROMPT_TOKENS + 1))
    if model.engine is None:
        columns = {"input_ids": prompt, "attention_mask": (1,) * _PROMPT_TOKENS}
        began = time.perf_counter()
        for future in model.batches.submit([ForwardItem(columns, adapter, "vector")]):
            future.result()
        return _PROMPT_TOKENS / (time.perf_counter() - began)
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    room = _NEW_TOKENS if model.limit is None else model.limit - _PROMPT_TOKENS
    sampling = Sampling(max_tokens=max(min(_NEW_TOKENS, room), 2), temperature=0.0)
    # Another cache key for each request: every prompt is read, none comes from the prefix cache.
    key = f"speed-{adapter}"
    model.engine.submit(GenerationRequest(prompt, adapter, key, sampling), events.put)
    first_s = 0.0
    while not isinstance(event := events.get(), Finished):
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, NewText) and not first_s:
            first_s = time.perf_counter()
    return (event.completion_tokens - 1) / (time.perf_counter() - first_s)
