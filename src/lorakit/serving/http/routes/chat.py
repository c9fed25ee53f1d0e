"""POST /v1/chat/completions."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from lorakit.config import TaskType
from lorakit.serving.http.call import Call
from lorakit.serving.http.protocol.chat import ChatBody
from lorakit.serving.http.routes.generation import Asked, Events, Prompt, after_first, ask
from lorakit.serving.http.routes.grammars import json_grammars
from lorakit.serving.http.routes.sampling import check_counts, choice_samplings, most_new_tokens
from lorakit.serving.http.routes.token_texts import token_bytes, token_text
from lorakit.serving.requests import Finished, TokenLogprob


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
        return _stream(asked, await after_first(asked.events()), body, head)
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


async def _stream(
    asked: Asked, events: Events, body: ChatBody, head: dict[str, Any]
) -> AsyncGenerator[str]:
    head = {**head, "object": "chat.completion.chunk"}
    usage: dict[str, Any] = {"usage": None} if body.includes_usage else {}

    def chunk(
        index: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None
    ) -> str:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return json.dumps({**head, "choices": [choice], **usage})

    for index in range(asked.choices):
        yield chunk(index, {"role": "assistant", "content": ""})
    async for index, event in events:
        if isinstance(event, Finished):
            yield chunk(index, {}, reason=event.reason)
        elif event.text or event.logprobs:
            logprobs = _logprobs(asked, event.logprobs) if body.logprobs else None
            yield chunk(index, {"content": event.text}, logprobs)
    if body.includes_usage:
        yield json.dumps({**head, "choices": [], "usage": asked.usage.as_json()})


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
