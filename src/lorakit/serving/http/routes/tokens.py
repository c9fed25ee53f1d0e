"""POST /tokenize and /detokenize; texts and bytes of single tokens, for log-probabilities too."""

from __future__ import annotations

from functools import cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorakit.config import TaskType
from lorakit.data.tokenizers import decode, token_pieces
from lorakit.serving.http.call import Call
from lorakit.serving.http.protocol.other_calls import DetokenizeBody, TokenizeBody

_SPACE = "▁"
_UNKNOWN = "\ufffd"


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


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Return the text of one token, with the space before it."""
    text = decode(tokenizer, [token], skip_special_tokens=False)
    piece = token_pieces(tokenizer, [token])[0] or ""
    return " " + text.lstrip(" ") if piece.startswith(_SPACE) else text


def token_bytes(tokenizer: PreTrainedTokenizerBase, token: int) -> list[int] | None:
    """Return the bytes of one token, of which several may form a character; None if unknown."""
    text = token_text(tokenizer, token)
    if _UNKNOWN not in text:
        return list(text.encode())
    piece = token_pieces(tokenizer, [token])[0] or ""
    if len(piece) == 6 and piece.startswith("<0x"):
        return [int(piece[3:5], 16)]
    table = _bytes_of_characters()
    known = [table.get(character) for character in piece]
    return None if None in known else known  # type: ignore[return-value]  # None has been excluded


def distinct_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Return the text of one token, as "bytes:..." if it is part of a character."""
    text = token_text(tokenizer, token)
    numbers = token_bytes(tokenizer, token) if _UNKNOWN in text else None
    return text if numbers is None else "bytes:" + "".join(f"\\x{number:02x}" for number in numbers)


@cache
def _bytes_of_characters() -> dict[str, int]:
    """Return the byte that each character of GPT-2's byte-level vocabulary stands for."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    made: Any = bytes_to_unicode()
    return {character: byte for byte, character in made.items()}
