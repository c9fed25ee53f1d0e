"""POST /v1/embeddings, /v1/classify and /v1/score: one forward pass over whole texts."""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Sequence
from functools import partial
from typing import Any

from lorakit.config import TaskType
from lorakit.serving.classification import text_labels, word_labels
from lorakit.serving.http.call import Call
from lorakit.serving.http.protocol.completions import as_list
from lorakit.serving.http.protocol.other_calls import ClassifyBody, EmbeddingsBody, ScoreBody
from lorakit.serving.pooled.forward_items import Columns, ForwardItem
from lorakit.serving.pooled.labels import LabelledWord, TextLabel, spans
from lorakit.serving.refusals import RequestError


async def embeddings(call: Call) -> dict[str, Any]:
    """Return the vector of each text: the mean of its last hidden states, of length 1."""
    body = await call.body(EmbeddingsBody)
    inputs = as_list(body.input)
    _check_number(call, len(inputs), "input")
    found = await call.context.service.find(body.model, list(TaskType), "embed")
    call.model, model = body.model, found.model
    call.note_prompt(body.input)
    async with model.using(found.adapter) as (lease, text):
        columns: list[Columns] = []
        for given in inputs:
            if not isinstance(given, str):
                model.check_ids(given, "input")
            made = await model.in_text_thread(text.columns_to_embed, given, model.limit)
            columns.append(made)
        tokens = _count(call, columns)
        items = [ForwardItem(each, lease.carried_name, "vector") for each in columns]
        vectors = await model.forward(items, lease)
    as_text = body.encoding_format == "base64"
    return {
        "object": "list",
        "model": body.model,
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": b64encode(vector.numpy().astype("<f4")).decode()
                if as_text
                else vector.tolist(),
            }
            for index, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


async def classify(call: Call) -> dict[str, Any]:
    """Return the label of each text, or the labelled words and spans of each text."""
    body = await call.body(ClassifyBody)
    inputs: list[Any] = [body.input] if isinstance(body.input, str) else list(body.input)
    _check_number(call, len(inputs), "input")
    tasks = [TaskType.SEQ_CLS, TaskType.TOKEN_CLS]
    found = await call.context.service.find(body.model, tasks, "classify")
    call.model, model = body.model, found.model
    call.note_prompt(body.input)
    count = partial(_count, call)
    async with model.using(found.adapter) as (lease, text):
        if model.kind.task is TaskType.TOKEN_CLS:
            words = await word_labels(model, lease, text, inputs, count)
            data = [_label_words(each) for each in words]
        else:
            pairs = [_text_or_pair(given) for given in inputs]
            data = [format_classes(e) for e in await text_labels(model, lease, text, pairs, count)]
    return {
        "id": f"classify-{call.id}",
        "object": "list",
        "created": int(time.time()),
        "model": body.model,
        "data": [{"index": index, **each} for index, each in enumerate(data)],
        "usage": {"prompt_tokens": call.input_tokens, "total_tokens": call.input_tokens},
    }


def _text_or_pair(given: str | list[str]) -> str | tuple[str, str]:
    if isinstance(given, str):
        return given
    if len(given) != 2:
        raise RequestError(
            f"The parameter 'input' is wrong: got a list of {len(given)} texts as one input, "
            "expected a text or a pair of texts.",
            param="input",
        )
    return given[0], given[1]


def format_classes(found: TextLabel) -> dict[str, Any]:
    """Return the answer for one text: its label, its labels, or its numbers under "values"."""
    if found.values is not None:
        return {"values": found.values, "num_classes": len(found.values)}
    several = {} if found.chosen is None else {"labels": list(found.chosen)}
    return several | {
        "label": found.label,
        "probability": found.probabilities[found.label],
        "probabilities": found.probabilities,
        "probs": list(found.probabilities.values()),
        "num_classes": len(found.probabilities),
    }


def _label_words(words: Sequence[LabelledWord]) -> dict[str, Any]:
    """Return spans and words; `start` and `end` count characters, `first` and `last` words."""
    return {
        "spans": [
            {
                "label": span.label,
                "text": _span_text(words[span.first : span.last + 1]),
                "start": words[span.first].word.start,
                "end": words[span.last].word.end,
                "first_word": span.first,
                "last_word": span.last,
                "probability": span.probability,
            }
            for span in spans(words)
        ],
        "words": [
            {
                "text": each.word.text,
                "start": each.word.start,
                "end": each.word.end,
                "label": each.label,
                "probability": each.probability,
            }
            for each in words
        ],
    }


def _span_text(words: Sequence[LabelledWord]) -> str:
    """Return the words of a span, with the spaces of the text as far as offsets tell."""
    text, end = "", words[0].word.start
    for each in words:
        gap = 1 if each.word.start is None or end is None else each.word.start - end
        text += (" " * gap if text else "") + each.word.text
        end = each.word.end
    return text


async def score(call: Call) -> dict[str, Any]:
    """Return how well the second text of each pair fits the first, from 0 to 1."""
    body = await call.body(ScoreBody)
    pairs = body.pairs
    _check_number(call, len(pairs), "text_2")
    found = await call.context.service.find(body.model, [TaskType.SEQ_CLS], "score pairs")
    call.model, model = body.model, found.model
    call.note_prompt([body.text_1, body.text_2])
    async with model.using(found.adapter) as (lease, text):
        labels = len(text.labels)
        is_class = text.settings.problem_type is None
        if not text.settings.text_pair or labels > (2 if is_class else 1):
            got = f"{labels} labels" if text.settings.text_pair else "single texts"
            raise RequestError(
                f"The model '{body.model}' cannot score pairs: it was trained on {got}, expected "
                "pairs of texts with one label, or one of two. Use POST /v1/classify.",
                param="model",
                code="wrong_task",
            )
        columns = [await model.in_text_thread(text.class_columns, pair) for pair in pairs]
        tokens = _count(call, columns)
        items = [ForwardItem(each, lease.carried_name, "logits") for each in columns]
        logits = await model.forward(items, lease)
    scores = [
        float(row[0].sigmoid()) if labels == 1 else float(row.softmax(-1)[1]) for row in logits
    ]
    return {
        "id": f"score-{call.id}",
        "object": "list",
        "created": int(time.time()),
        "model": body.model,
        "data": [
            {"index": index, "object": "score", "score": each} for index, each in enumerate(scores)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _check_number(call: Call, inputs: int, param: str) -> None:
    most = call.context.limits.inputs
    if not 1 <= inputs <= most:
        raise RequestError(
            f"The parameter '{param}' is wrong: got {inputs} inputs, expected 1 to {most}. Send "
            "them in several requests.",
            param=param,
        )


def _count(call: Call, columns: Sequence[Columns]) -> int:
    call.input_tokens = sum(len(each["input_ids"]) for each in columns)
    return call.input_tokens
