"""Completions of sequence-to-sequence models, which are written in batches of whole texts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from lorakit.data.tokenizers import decode
from lorakit.serving.http.call import Call
from lorakit.serving.http.protocol.completions import CompletionBody
from lorakit.serving.http.routes.generation import Usage, stream
from lorakit.serving.http.routes.sampling import choice_samplings, most_new_tokens
from lorakit.serving.pooled.written_texts import Written, WrittenItem
from lorakit.serving.refusals import RequestError
from lorakit.serving.service import Found
from lorakit.serving.text_side import TextSide

_DEFAULT_TOKENS = 64

_UNSUPPORTED = ("logprobs", "logit_bias", "presence_penalty", "frequency_penalty", "ignore_eos")


async def write_completions(
    call: Call, body: CompletionBody, found: Found, head: dict[str, Any]
) -> dict[str, Any] | AsyncGenerator[str]:
    """Answer texts; a stream has each answer as one piece.

    Args:
        call: The call.
        body: Its body.
        found: The model.
        head: The fields that all parts of the response have.

    Raises:
        RequestError: A field is not supported by this kind of model, or a text does not fit.
    """
    _refuse_unsupported(body)
    model = found.model
    items: list[WrittenItem] = []
    async with model.using(found.adapter) as (lease, text):
        default = text.settings.max_target_length or _DEFAULT_TOKENS
        for given in body.prompts:
            if not isinstance(given, str):
                raise RequestError(
                    "The parameter 'prompt' is wrong: got token ids, expected texts, because the "
                    "model was trained on texts with a prefix.",
                    param="prompt",
                )
            columns = await model.in_text_thread(text.source_columns, given)
            call.input_tokens += len(columns["input_ids"])
            most = most_new_tokens(body.max_tokens, default, 0, model, call.context.limits)
            samplings = choice_samplings(body, text, most, None, len(items))
            beams = text.settings.num_beams
            items += [WrittenItem(columns, lease.carried_name, each, beams) for each in samplings]
        for item in items:
            call.at_end.callback(item.is_cancelled.set)
        written: list[Written] = await model.forward(items, lease)
    call.output_tokens = sum(len(each.token_ids) for each in written)
    call.note_first_token()
    choices = [_choice(index, each, body, text) for index, each in enumerate(written)]
    for choice in choices:
        call.note_answer(choice["text"])
    usage = Usage(call.input_tokens, 0, call.output_tokens)
    if body.stream:
        return stream(_each(choices), head, usage, includes_usage=body.includes_usage)
    return {**head, "choices": choices, "usage": usage.as_json()}


def _refuse_unsupported(body: CompletionBody) -> None:
    for param in _UNSUPPORTED:
        value = getattr(body, param)
        if value or (param == "logprobs" and value is not None):
            raise RequestError(
                f"The parameter '{param}' is not supported by sequence-to-sequence models: got "
                f"{value}. Leave it out.",
                param=param,
                code="unsupported_parameter",
            )


def _choice(index: int, written: Written, body: CompletionBody, text: TextSide) -> dict[str, Any]:
    answer = decode(text.tokenizer, written.token_ids, skip_special_tokens=True)
    places = [place for stop in body.stops if (place := answer.find(stop)) >= 0]
    reason = "stop" if places else written.reason
    return {
        "index": index,
        "text": answer[: min(places, default=None)],
        "logprobs": None,
        "finish_reason": reason,
    }


async def _each(choices: Sequence[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    for choice in choices:
        yield choice
