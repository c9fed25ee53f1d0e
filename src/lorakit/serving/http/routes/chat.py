"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any

from lorakit.config import TaskType
from lorakit.errors import first_line
from lorakit.serving.http.call import Call
from lorakit.serving.http.protocol.chat import ChatBody
from lorakit.serving.http.routes.generation import (
    Asked,
    Events,
    Prompt,
    after_first,
    ask,
    stream,
)
from lorakit.serving.http.routes.sampling import check_counts, choice_samplings, most_new_tokens
from lorakit.serving.http.routes.tokens import token_bytes, token_text
from lorakit.serving.refusals import RequestError
from lorakit.serving.requests import Finished, TokenLogprob
from lorakit.serving.text_side import TextSide

_COMPACT: Any = {"whitespace_flexible": False}
"""A small model may otherwise write spaces until its tokens are used up."""


async def chat(call: Call) -> dict[str, Any] | AsyncGenerator[str]:
    """Answer a conversation."""
    body = await call.body(ChatBody)
    limits = call.context.limits
    check_counts(body, 1, limits)
    found = await call.context.service.find(body.model, [TaskType.CAUSAL_LM], "chat")
    call.model = body.model
    if body.metadata:
        call.noted["metadata"] = body.metadata
    model = found.model
    async with model.using(found.adapter, to_generate=True) as (lease, text):
        messages = [message.render() for message in body.messages]
        ids = await model.in_text_thread(text.chat_ids, messages, body.chat_template_kwargs)
        call.note_prompt(messages)
        model.check_ids([int(key) for key in body.logit_bias or {}], "logit_bias")
        most = most_new_tokens(body.most_tokens, None, len(ids), model, limits, "messages")
        samplings = choice_samplings(body, text, most, body.likeliest)
        schema = None if body.response_format is None else body.response_format.schema_of_answer
        grammars = None
        if schema is not None:
            grammars = await model.in_text_thread(json_grammars, text, schema, len(samplings))
        asked = ask(call, model, lease, text, [Prompt(ids, samplings)], grammars)
    head = {
        "id": f"chatcmpl-{call.id}",
        "created": int(time.time()),
        "model": body.model,
        "system_fingerprint": None,
    }
    if body.stream:
        events = await after_first(asked.events())
        pieces = _pieces(asked, events, with_logprobs=bool(body.logprobs))
        head["object"] = "chat.completion.chunk"
        return stream(pieces, head, asked.usage, includes_usage=body.includes_usage)
    choices = await asked.collect()
    return {
        **head,
        "object": "chat.completion",
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": _logprobs(asked, choice.logprobs) if body.logprobs else None,
                "finish_reason": choice.reason,
            }
            for index, choice in enumerate(choices)
        ],
        "usage": asked.usage.as_json(),
    }


async def _pieces(
    asked: Asked, events: Events, *, with_logprobs: bool
) -> AsyncIterator[dict[str, Any]]:
    def piece(
        index: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    for index in range(asked.choices):
        yield piece(index, {"role": "assistant", "content": ""})
    async for index, event in events:
        if isinstance(event, Finished):
            yield piece(index, {}, reason=event.reason)
        elif event.text or event.logprobs:
            logprobs = _logprobs(asked, event.logprobs) if with_logprobs else None
            yield piece(index, {"content": event.text}, logprobs)


def _logprobs(asked: Asked, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    tokenizer = asked.text.tokenizer

    def entry(token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": token_text(tokenizer, token),
            "logprob": logprob,
            "bytes": token_bytes(tokenizer, token),
        }

    return {
        "content": [
            entry(token.token_id, token.logprob)
            | {"top_logprobs": [entry(*likely) for likely in token.likeliest]}
            for token in tokens
        ],
        "refusal": None,
    }


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
