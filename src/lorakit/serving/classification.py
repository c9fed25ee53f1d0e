"""Labels of texts, and of words in texts, from a served model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lorakit.serving.pooled.forward_items import Columns, ForwardItem
from lorakit.serving.pooled.labels import LabelledWord, TextLabel, label_words, text_label
from lorakit.serving.served_model import ServedModel
from lorakit.serving.store import Lease
from lorakit.serving.text_side import TextSide

Count = Callable[[Sequence[Columns]], Any]
"""Is told the columns of all texts before they are run."""


async def text_labels(
    model: ServedModel,
    lease: Lease,
    text: TextSide,
    inputs: Sequence[str | tuple[str, str]],
    count: Count | None = None,
) -> list[TextLabel]:
    """Return the label of each text, or of each pair of texts.

    Args:
        model: A model for SEQ_CLS.
        lease: The adapter.
        text: Its tokenizer and labels.
        inputs: The texts or pairs.
        count: Is told the columns.

    Raises:
        RequestError: A text is given where a pair is expected, or the other way round.
    """
    columns = [await model.in_text_thread(text.class_columns, each) for each in inputs]
    if count is not None:
        count(columns)
    items = [ForwardItem(each, lease.carried_name, "logits") for each in columns]
    return [
        text_label(row, text.labels, text.settings) for row in await model.forward(items, lease)
    ]


async def word_labels(
    model: ServedModel,
    lease: Lease,
    text: TextSide,
    inputs: Sequence[str | Sequence[str]],
    count: Count | None = None,
) -> list[list[LabelledWord]]:
    """Return the words of each text with their labels.

    Args:
        model: A model for TOKEN_CLS.
        lease: The adapter.
        text: Its tokenizer and labels.
        inputs: Texts, or lists of words.
        count: Is told the columns.

    Raises:
        RequestError: A text has no word, or more than fit.
    """
    made = [await model.in_text_thread(text.word_columns, each) for each in inputs]
    if count is not None:
        count([each.columns for each in made])
    items = [ForwardItem(each.columns, lease.carried_name, "logits") for each in made]
    logits = await model.forward(items, lease)
    return [
        label_words(row, each.word_of, each.words, text.labels)
        for row, each in zip(logits, made, strict=True)
    ]
