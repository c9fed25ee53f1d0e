"""Grammars that keep an answer to a JSON schema, by llguidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorakit.errors import first_line
from lorakit.serving.refusals import RequestError
from lorakit.serving.text_side import TextSide

_COMPACT: Any = {"whitespace_flexible": False}
"""A small model may otherwise write spaces until its tokens are used up."""


def json_grammars(text: TextSide, schema: Mapping[str, Any], answers: int) -> list[Any]:
    """Return the grammar of a JSON schema for each of several answers.

    Args:
        text: The tokenizer of the model.
        schema: The schema.
        answers: Number of answers; each moves through its grammar alone.

    Raises:
        RequestError: The schema is wrong, or uses what llguidance does not know.
    """
    from llguidance import LLMatcher

    tokenizer = text.grammar_tokenizer
    try:
        grammar = LLMatcher.grammar_from_json_schema(dict(schema), _COMPACT)
    except ValueError as error:
        raise _unusable(str(error)) from None
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    if matcher.is_error():
        raise _unusable(matcher.get_error())
    return [matcher, *(matcher.deep_copy() for _ in range(answers - 1))]


def _unusable(problem: str) -> RequestError:
    return RequestError(
        f"The schema of response_format cannot be used: {first_line(ValueError(problem))}. "
        "Change it.",
        param="response_format",
        code="invalid_schema",
    )
