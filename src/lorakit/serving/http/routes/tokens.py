"""POST /tokenize and /detokenize."""

from __future__ import annotations

from typing import Any

from lorakit.config import TaskType
from lorakit.data.tokenizers import decode, token_pieces
from lorakit.serving.http.call import Call
from lorakit.serving.http.protocol.administration import DetokenizeBody, TokenizeBody


async def tokenize(call: Call) -> dict[str, Any]:
    """Return the token ids of a text or a conversation."""
    body = await call.body(TokenizeBody)
    found = await call.context.service.find(body.model, list(TaskType), "tokenize")
    call.model, model = body.model, found.model
    call.note_prompt(body.prompt)
    async with model.using(found.adapter) as (_, text):
        if body.messages is not None:
            ids = await model.in_text_thread(
                text.chat_ids,
                [message.render() for message in body.messages],
                body.chat_template_kwargs,
                opens_answer=body.add_generation_prompt,
            )
        else:
            ids = await model.in_text_thread(
                text.plain_ids, body.prompt or "", with_special_tokens=body.add_special_tokens
            )
    pieces = token_pieces(text.tokenizer, ids) if body.return_token_strs else None
    return {
        "count": len(ids),
        "max_model_len": model.most_tokens,
        "tokens": ids,
        "token_strs": pieces,
    }


async def detokenize(call: Call) -> dict[str, Any]:
    """Return the text of token ids."""
    body = await call.body(DetokenizeBody)
    found = await call.context.service.find(body.model, list(TaskType), "detokenize")
    call.model, model = body.model, found.model
    model.check_ids(body.tokens, "tokens")
    async with model.using(found.adapter) as (_, text):
        prompt = await model.in_text_thread(decode, text.tokenizer, body.tokens)
    return {"prompt": prompt}
