"""The body of POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from lorakit.serving.http.protocol.body import StrictModel
from lorakit.serving.http.protocol.completions import SamplingFields

_NO_TOOLS = (
    "Each model writes calls of tools in its own way, which this server does not parse; ask for "
    "JSON with response_format and a schema."
)


class TextPart(StrictModel):
    """A part of a message; only texts are supported."""

    type: Literal["text"]
    text: str


class Message(StrictModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    """`developer` is rendered as `system`, which chat templates know."""

    content: str | list[TextPart]
    name: None = None
    tool_calls: None = None
    refusal: None = None
    audio: None = None
    function_call: None = None

    def render(self) -> dict[str, str]:
        """Return the message as chat templates expect it; parts are joined by newlines."""
        text = self.content
        if not isinstance(text, str):
            text = "\n".join(part.text for part in text)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class JsonSchema(StrictModel):
    """The schema of an answer."""

    model_config = ConfigDict(populate_by_name=True)

    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None
    """Answers always keep to the schema."""


class ResponseFormat(StrictModel):
    """Text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_needed(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError(
                f"json_schema belongs to type 'json_schema' alone, got type {self.type!r} "
                f"{'without' if self.json_schema is None else 'with'} it."
            )
        return self

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        """The JSON schema that the answer keeps to, None for free text."""
        if self.type == "text":
            return None
        return {"type": "object"} if self.json_schema is None else self.json_schema.schema_


class ChatBody(SamplingFields):
    """A conversation to answer."""

    unsupported: ClassVar = {
        "audio": (None,),
        "function_call": (None, "none"),
        "functions": (None, []),
        "modalities": (None, ["text"]),
        "moderation": (None,),
        "parallel_tool_calls": (None, True, False),
        "prediction": (None,),
        "prompt_cache_key": (None,),
        "prompt_cache_options": (None,),
        "prompt_cache_retention": (None,),
        "reasoning_effort": (None, "none"),
        "safety_identifier": (None,),
        "service_tier": (None, "auto", "default"),
        "store": (None, False),
        "tool_choice": (None, "none", "auto"),
        "tools": (None, []),
        "verbosity": (None,),
        "web_search_options": (None,),
    }
    reasons: ClassVar = {
        "tools": _NO_TOOLS,
        "tool_choice": _NO_TOOLS,
        "functions": _NO_TOOLS,
        "function_call": _NO_TOOLS,
        "prompt_cache_key": "Prompts share cached prefixes without it. Leave it out.",
        "safety_identifier": "Use 'user', which the access log records.",
        "store": "The server keeps no answers. Leave it out.",
    }

    messages: list[Message] = Field(min_length=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    max_completion_tokens: int | None = Field(None, ge=1)
    metadata: dict[str, str] | None = None
    """Written to the access log."""

    response_format: ResponseFormat | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables for the chat template, such as `enable_thinking`; not OpenAI's, as in vLLM."""

    @field_validator("metadata")
    @classmethod
    def _metadata_is_small(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        if value is not None and (len(value) > 16 or any(len(v) > 512 for v in value.values())):
            raise ValueError("expected at most 16 values of at most 512 characters.")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("The parameter 'top_logprobs' requires 'logprobs': true.")
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise ValueError(
                f"The parameters 'max_tokens' and 'max_completion_tokens' disagree: got {both[0]} "
                f"and {both[1]}. Give one of them."
            )
        return self

    @property
    def most_tokens(self) -> int | None:
        """Number of new tokens at most, None for the server's limit."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def likeliest(self) -> int | None:
        """Number of likeliest tokens reported with each, None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None
