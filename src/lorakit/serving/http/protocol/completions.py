"""The body of POST /v1/completions, and the fields that it shares with chat completions."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from lorakit.serving.http.protocol.body import Body, StrictModel, short_value

DEFAULT_TOKENS = 16
"""New tokens of an answer where the request does not say, as OpenAI has it."""

_TOKEN_ID = re.compile("[0-9]{1,18}")


class StreamOptions(StrictModel):
    """What a stream contains besides the answer."""

    include_usage: bool = False
    """Whether the last chunk counts tokens."""


class SamplingFields(Body):
    """How an answer is sampled, and whether it is streamed.

    `top_k`, `min_p` and `ignore_eos` are not OpenAI's; its client sends them in `extra_body`.
    """

    model: str = Field(min_length=1)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    max_tokens: int | None = Field(None, ge=1)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    """By token id, written as a string."""

    n: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    """0 or -1 for all tokens."""

    min_p: float | None = Field(None, ge=0, le=1)
    ignore_eos: bool | None = None
    """Whether the answer goes on to its full length after an end-of-text token."""

    user: str | None = None
    """Written to the access log."""

    @field_validator("logit_bias")
    @classmethod
    def _keys_are_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        wrong = [key for key in value or {} if not _TOKEN_ID.fullmatch(key)]
        if wrong:
            raise ValueError(
                f"got {short_value(wrong[0])} as a key, expected a token id such as '42'."
            )
        return value

    @field_validator("stop")
    @classmethod
    def _stops_have_text(cls, value: str | list[str] | None) -> str | list[str] | None:
        texts = [value] if isinstance(value, str) else value or []
        if any(not text for text in texts):
            raise ValueError("got an empty text, expected at least one character.")
        return value

    @model_validator(mode="after")
    def _options_are_of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("The parameter 'stream_options' requires 'stream': true.")
        return self

    @property
    def stops(self) -> list[str]:
        """The stop texts."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionBody(SamplingFields):
    """Prompts to continue: a text or token ids, or a list of either."""

    unsupported: ClassVar = {"suffix": (None, ""), "echo": (None, False)}
    reasons: ClassVar = {
        "echo": "Answers never repeat the prompt; put it before the answer yourself.",
        "suffix": "Models here continue a text; they do not fill gaps. Leave it out.",
    }

    prompt: str | list[str] | list[int] | list[list[int]]
    best_of: int | None = Field(None, ge=1)
    logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError(
                f"The parameter 'best_of' is not supported: got {self.best_of}, expected the value "
                f"of 'n', {self.n or 1}. Leave it out."
            )
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts as a list of texts, or of lists of token ids."""
        return as_list(self.prompt)


def as_list(given: str | list[str] | list[int] | list[list[int]]) -> list[str] | list[list[int]]:
    """Return texts or token ids as a list of them.

    >>> as_list("a"), as_list(["a", "b"]), as_list([1, 2]), as_list([[1, 2], [3]])
    (['a'], ['a', 'b'], [[1, 2]], [[1, 2], [3]])
    """
    if isinstance(given, str):
        return [given]
    if given and isinstance(given[0], int):
        return [given]  # type: ignore[list-item]  # narrowed by its first item
    return given  # type: ignore[return-value]  # narrowed by its first item
