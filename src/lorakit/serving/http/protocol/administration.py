"""The bodies of the other calls: tokenizing, and adapters at run time, as vLLM has them."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from lorakit.serving.http.protocol.body import Body
from lorakit.serving.http.protocol.chat import Message


class TokenizeBody(Body):
    """A text or a conversation to turn into token ids."""

    model: str = Field(min_length=1)
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            got = "neither" if self.prompt is None else "both"
            raise ValueError(f"The parameters 'prompt' and 'messages': got {got}, expected one.")
        return self


class DetokenizeBody(Body):
    """Token ids to turn into text."""

    model: str = Field(min_length=1)
    tokens: list[int]


class LoadBody(Body):
    """An adapter to serve."""

    unsupported: ClassVar = {
        "load_inplace": (None, False, True),
        "is_3d_lora_weight": (None, False),
    }

    lora_name: str = Field(min_length=1)
    lora_path: str = Field(min_length=1)


class UnloadBody(Body):
    """An adapter to stop serving."""

    unsupported: ClassVar = {"lora_int_id": (None,)}

    lora_name: str = Field(min_length=1)
