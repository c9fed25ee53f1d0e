"""The bodies of the other calls: whole texts, tokens, and adapters at run time as vLLM has them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from lorakit.serving.http.protocol.body import Body
from lorakit.serving.http.protocol.chat import Message

Texts = Annotated[list[str], Field(min_length=1)]


class EmbeddingsBody(Body):
    """Texts whose vectors are wanted."""

    unsupported: ClassVar = {"dimensions": (None,)}
    reasons: ClassVar = {"dimensions": "A vector has as many numbers as the model's hidden state."}

    model: str = Field(min_length=1)
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None


class ClassifyBody(Body):
    """Texts, pairs of texts, or lists of words, whose labels are wanted."""

    model: str = Field(min_length=1)
    input: str | Texts | Annotated[list[Texts], Field(min_length=1)]
    """For an adapter trained on pairs, a list of pairs; for one that tags words, each text may
    also be a list of words."""

    user: str | None = None


class ScoreBody(Body):
    """Pairs of texts to score: one against one, one against many, or many against as many."""

    model: str = Field(min_length=1)
    text_1: str | Texts
    text_2: str | Texts
    user: str | None = None

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        first, second = len(self.firsts), len(self.seconds)
        if first not in (1, second):
            raise ValueError(
                f"The parameters 'text_1' and 'text_2' do not fit together: got {first} and "
                f"{second} texts, expected one against any number, or as many as the other."
            )
        return self

    @property
    def firsts(self) -> list[str]:
        """The first texts."""
        return [self.text_1] if isinstance(self.text_1, str) else self.text_1

    @property
    def seconds(self) -> list[str]:
        """The second texts."""
        return [self.text_2] if isinstance(self.text_2, str) else self.text_2

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs."""
        firsts = self.firsts * len(self.seconds) if len(self.firsts) == 1 else self.firsts
        return list(zip(firsts, self.seconds, strict=True))


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
