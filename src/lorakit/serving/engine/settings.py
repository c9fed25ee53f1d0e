"""What an engine may use, and what it reports about itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class EngineSettings:
    """Limits of an engine.

    Attributes:
        max_batch_rows: Answers that decode together, at most.
        kv_bytes: Memory for keys and values of the rows that decode. A prompt being read has its
            keys and values beside it.
        prefill_chunk_tokens: Tokens of prompts that are read between two steps of decoding.
        prefix_cache_bytes: Memory for keys and values of prompts and answers that later prompts
            may begin with; 0 for none.
        max_waiting: Requests that may wait; more are refused.
    """

    max_batch_rows: int = 32
    kv_bytes: int = 1 << 30
    prefill_chunk_tokens: int = 256
    prefix_cache_bytes: int = 256 << 20
    max_waiting: int = 1024


@dataclass(frozen=True)
class EngineStats:
    """State of an engine at one moment, and what it has counted since it was made."""

    waiting: int = 0
    running: int = 0
    """Requests that are read or decoded."""
    kv_bytes: int = 0
    """Memory that the buffers of keys and values take."""
    prefix_cache_bytes: int = 0
    steps: int = 0
    """Steps of decoding."""
    decoded_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Tokens of prompts that the prefix cache had."""
    preemptions: int = 0
    """Times that an answer had to give its place to older ones."""


def _ignore(*_: object) -> None:
    """Take no notice."""


@dataclass(frozen=True)
class EngineHooks:
    """Functions for metrics, called in the engine's thread; they must return at once.

    Attributes:
        first_token: Called with the seconds from `submit` to the first token.
        next_token: Called with the seconds since the answer's last token.
        step: Called with the rows of a step of decoding and its seconds.
    """

    first_token: Callable[[float], None] = _ignore
    next_token: Callable[[float], None] = _ignore
    step: Callable[[int, float], None] = _ignore
