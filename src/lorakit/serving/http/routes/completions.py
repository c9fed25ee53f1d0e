"""POST /v1/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from lorakit.config import TaskType
from lorakit.serving.http.call import Call
from lorakit.serving.http.protocol.completions import DEFAULT_TOKENS, CompletionBody
from lorakit.serving.http.routes.generation import (
    Asked,
    Events,
    Prompt,
    after_first,
    ask,
    stream,
)
from lorakit.serving.http.routes.sampling import check_counts, choice_samplings, most_new_tokens
from lorakit.serving.http.routes.sequence_to_sequence import write_completions
from lorakit.serving.http.routes.tokens import distinct_text, token_text
from lorakit.serving.requests import Finished, TokenLogprob
from lorakit.serving.text_side import TextSide

_TASKS = [TaskType.CAUSAL_LM, TaskType.SEQ_2_SEQ_LM]


async def completions(call: Call) -> dict[str, Any] | AsyncGenerator[str]:
    """Continue prompts, or answer the texts for a sequence-to-sequence model."""
    body = await call.body(CompletionBody)
    limits = call.context.limits
    check_counts(body, len(body.prompts), limits)
    found = await call.context.service.find(body.model, _TASKS, "complete a text")
    call.model, model = body.model, found.model
    call.note_prompt(body.prompt)
    head = {"id": f"cmpl-{call.id}", "created": int(time.time()), "model": body.model}
    head |= {"object": "text_completion"}
    if model.kind.task is TaskType.SEQ_2_SEQ_LM:
        return await write_completions(call, body, found, head)
    async with model.using(found.adapter, to_generate=True) as (lease, text):
        prompts = []
        model.check_ids([int(key) for key in body.logit_bias or {}], "logit_bias")
        for given in body.prompts:
            if isinstance(given, str):
                ids = await model.in_text_thread(text.prompt_ids, given)
            else:
                model.check_ids(given, "prompt", may_be_empty=False)
                ids = given
            most = most_new_tokens(body.max_tokens, DEFAULT_TOKENS, len(ids), model, limits)
            first = sum(len(prompt.samplings) for prompt in prompts)
            samplings = choice_samplings(body, text, most, body.logprobs, first)
            prompts.append(Prompt(ids, samplings))
        asked = ask(call, model, lease, text, prompts)
    if body.stream:
        events = await after_first(asked.events())
        pieces = _pieces(asked, events, with_logprobs=body.logprobs is not None)
        return stream(pieces, head, asked.usage, includes_usage=body.includes_usage)
    choices = await asked.collect()
    return {
        **head,
        "choices": [
            {
                "index": index,
                "text": choice.text,
                "logprobs": None if body.logprobs is None else _Logprobs(text).of(choice.logprobs),
                "finish_reason": choice.reason,
            }
            for index, choice in enumerate(choices)
        ],
        "usage": asked.usage.as_json(),
    }


async def _pieces(
    asked: Asked, events: Events, *, with_logprobs: bool
) -> AsyncIterator[dict[str, Any]]:
    logprobs = [_Logprobs(asked.text) for _ in range(asked.choices)]
    async for index, event in events:
        piece: dict[str, Any] = {"index": index, "text": "", "logprobs": None}
        if isinstance(event, Finished):
            yield {**piece, "finish_reason": event.reason}
        elif event.text or event.logprobs:
            piece["text"] = event.text
            piece["logprobs"] = logprobs[index].of(event.logprobs) if with_logprobs else None
            yield {**piece, "finish_reason": None}


class _Logprobs:
    """The log-probabilities of one answer, in the form of the older protocol."""

    def __init__(self, text: TextSide):
        self._tokenizer = text.tokenizer
        self._offset = 0

    def of(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Return those of the next tokens."""
        texts = [distinct_text(self._tokenizer, token.token_id) for token in tokens]
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token_text(self._tokenizer, token.token_id))
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                {
                    distinct_text(self._tokenizer, likely): value
                    for likely, value in (*token.likeliest, (token.token_id, token.logprob))
                }
                for token in tokens
            ],
            "text_offset": offsets,
        }
