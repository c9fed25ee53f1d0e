"""The fields that chat and text completions share."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lorakit.serving.http.protocol.body import Body, short_value

_TOKEN_ID = re.compile("[0-9]{1,18}")


class StreamOptions(BaseModel):
    """What a stream contains besides the answer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    """Whether the last chunk counts tokens."""


class SamplingFields(Body):
    """How an answer is sampled, and whether it is streamed.

    `top_k`, `min_p` and `ignore_eos` are not OpenAI's; its client sends them in `extra_body`.
    """

    model: str = Field(min_length=1)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
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

    @property
    def stops(self) -> list[str]:
        """The stop texts."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage
