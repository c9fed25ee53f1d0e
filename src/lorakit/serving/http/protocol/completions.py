"""The body of POST /v1/completions."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator

from lorakit.serving.http.protocol.sampling_fields import SamplingFields

DEFAULT_TOKENS = 16
"""New tokens of an answer where the request does not say, as OpenAI has it."""


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
    max_tokens: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError(
                f"The parameter 'best_of' is not supported: got {self.best_of}, expected the value "
                f"of 'n', {self.n or 1}. Leave it out."
            )
        if self.stream_options is not None and not self.stream:
            raise ValueError("The parameter 'stream_options' requires 'stream': true.")
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
