"""What is asked of the engine and what it answers: values that HTTP and engine exchange."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lorakit.inference.generation import is_sampled

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one answer are chosen.

    Attributes:
        max_tokens: Number of new tokens at most.
        temperature: 0 takes the likeliest token each time.
        top_p: Sample from the likeliest tokens that have this probability together, in (0, 1].
        top_k: Sample from this many of the likeliest tokens; 0 from all.
        min_p: Sample from tokens with at least this share of the likeliest one's probability.
        seed: Seed of the random numbers; the same request gives the same answer whatever runs
            beside it.
        presence_penalty: Subtracted from the logit of each token that the answer holds already.
        frequency_penalty: Subtracted once for each time that the answer holds the token.
        logit_bias: Added to the logits of some tokens.
        stop: Texts at which the answer ends; they are not part of it.
        stop_token_ids: Tokens at which the answer ends, such as the end of a turn.
        logprobs: None for none; else how many of the likeliest tokens are reported with each
            token and its log-probability (0 for the token alone), before penalties and bias.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    logprobs: int | None = None

    @property
    def is_drawn(self) -> bool:
        """Whether tokens are drawn; else the likeliest is taken each time."""
        return is_sampled(self.temperature)


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to continue.

    Attributes:
        prompt: Token ids, at least one.
        adapter: Name under which the model carries the adapter; None for the base alone.
        cache_key: Content hash of the adapter ("" for the base alone); prompts share cached
            prefixes only under the same key.
        sampling: How tokens are chosen.
        grammar: Constraint on the answer such as a JSON schema, a matcher of llguidance; None for
            free text.
        tokenizer: Decodes the answer, the adapter's where it has its own; None takes the engine's.
    """

    prompt: tuple[int, ...]
    adapter: str | None
    cache_key: str
    sampling: Sampling
    grammar: Any = None
    tokenizer: Any = None


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability of a token and of the likeliest ones beside it."""

    token_id: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...] = ()
    """(token id, log-probability), the likeliest first."""


@dataclass(frozen=True)
class NewText:
    """Tokens that were added to an answer, and the text that is certain with them.

    A text may be empty while a character or a stop text is incomplete; it then comes later.
    """

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each token, if the request asked for them."""


@dataclass(frozen=True)
class Finished:
    """The end of an answer."""

    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    """Tokens of the prompt whose keys and values came from the prefix cache."""
    completion_tokens: int


@dataclass(frozen=True)
class Failed:
    """The engine could not answer."""

    error: Exception


Event = NewText | Finished | Failed
Deliver = Callable[[Event], None]
"""Takes the events of one request, in order, in the engine's thread; must return at once."""
