"""Classify texts and tag words with a trained adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.config import MULTI_LABEL, REGRESSION, TaskType
from lorakit.data.chat import wants_content_parts, with_content_parts
from lorakit.data.conversations import is_conversation, parse_messages
from lorakit.data.tokenize_examples import tokenize_texts
from lorakit.data.tokenizers import (
    answer_ids,
    batch_columns,
    chat_columns,
    word_columns,
)
from lorakit.errors import DataError
from lorakit.inference.loaded import LoadedModel
from lorakit.inference.token_batches import POOL_TEXTS, logits_in_batches, require_tokens

_HALF = 0.5
"""Threshold of an adapter that has none."""

_WORD = re.compile(r"\w+(?:[-'’]\w+)*|[^\w\s]")


@dataclass(frozen=True)
class Classification:
    """The class of one text."""

    label: str
    probability: float
    """Probability of this label, from 0 to 1."""
    probabilities: dict[str, float]
    """Probability of every label."""


@dataclass(frozen=True)
class LabelSet:
    """The labels of one text, of which there may be none."""

    labels: tuple[str, ...]
    """Labels whose probability is above their threshold."""
    probabilities: dict[str, float]
    """Probability of every label, each from 0 to 1."""


@dataclass(frozen=True)
class Numbers:
    """The numbers predicted for one text."""

    values: dict[str, float]
    """Each number by its name."""


TextOutput = Classification | LabelSet | Numbers
"""What the head of a text classifier says about one text."""


@dataclass(frozen=True)
class TaggedWord:
    """One word and its tag."""

    word: str
    tag: str
    probability: float
    """Probability of this tag, from 0 to 1."""


def classify(
    loaded: LoadedModel,
    texts: Sequence[str | tuple[str, str] | Sequence[Mapping[str, Any]]],
    use_base: bool = False,
    *,
    batch_rows: int = 16,
) -> list[Any]:
    """Classify each text, or predict its labels or numbers.

    Args:
        loaded: An adapter for SEQ_CLS on its base.
        texts: Texts, or pairs of texts for an adapter trained on pairs; truncated as in training.
            A reward model takes a prompt with its answer as one text, or a conversation that ends
            with the answer if it was trained on such.
        use_base: Whether the base model answers without the adapter. A head that the base lacks is
            then the untrained one that the training started from.
        batch_rows: Largest number of texts in a batch; long ones are in smaller batches on a CPU.

    Returns: For each text a `Classification`, or, as the adapter was trained, a `LabelSet` or
        `Numbers`.

    Raises:
        ConfigError: The adapter is for another task.
        DataError: A text is given where a pair is expected, or a pair where a text is expected.
    """
    loaded.require_task("classify", TaskType.SEQ_CLS)
    _require_kind(loaded, texts)
    made: list[Any] = [None] * len(texts)
    with loaded.inference_context(use_base):
        for start in range(0, len(texts), POOL_TEXTS):
            pool = texts[start : start + POOL_TEXTS]
            tokens = _class_columns(loaded, pool)
            require_tokens(tokens, pool)
            for numbers, logits in logits_in_batches(loaded, tokens, batch_rows):
                outputs = text_outputs(logits, loaded.labels or (), loaded.settings)
                for number, output in zip(numbers, outputs, strict=True):
                    made[start + number] = output
    return made


def _class_columns(loaded: LoadedModel, pool: Sequence[Any]) -> dict[str, list[list[int]]]:
    """Return the tokenizer's columns of texts, pairs or conversations, as in training."""
    if loaded.settings.format is not None:
        ids = [_answer_ids(loaded, given)[: loaded.max_length] for given in pool]
        return {"input_ids": ids, "attention_mask": [[1] * len(one) for one in ids]}
    columns = [list(pool)]
    if loaded.settings.text_pair:
        columns = [[pair[0] for pair in pool], [pair[1] for pair in pool]]
    return batch_columns(loaded.tokenizer, *columns, truncation=True, max_length=loaded.max_length)


def _answer_ids(loaded: LoadedModel, given: Any) -> list[int]:
    """Return the ids of a prompt with its answer, which a reward model scores, not truncated.

    For a model trained on conversations, a text is one that is rendered already.
    """
    tokenizer = loaded.tokenizer
    if isinstance(given, str):
        return answer_ids(tokenizer, given, has_end=loaded.settings.format == "messages")
    messages = parse_messages(given)
    if wants_content_parts(tokenizer):
        messages = with_content_parts(messages)
    return list(chat_columns(tokenizer, messages)["input_ids"])


def count_truncated(loaded: LoadedModel, inputs: Sequence[Any]) -> int:
    """Return how many inputs `predict` cuts to the length of the training.

    Args:
        loaded: An adapter on its base.
        inputs: As for `predict`.

    Returns: 0 for continued prompts and for tagged words, which are refused if they are too long.
    """
    if loaded.task_type not in (TaskType.SEQ_CLS, TaskType.SEQ_2_SEQ_LM) or not inputs:
        return 0
    if loaded.task_type is TaskType.SEQ_CLS and loaded.settings.format is not None:
        return sum(len(_answer_ids(loaded, one)) > loaded.max_length for one in inputs)
    if loaded.task_type is TaskType.SEQ_CLS and loaded.settings.text_pair:
        texts, pairs = [one[0] for one in inputs], [one[1] for one in inputs]
    else:
        texts, pairs = [loaded.settings.source_prefix + text for text in inputs], None
    return tokenize_texts(loaded.tokenizer, texts, pairs, loaded.max_length)[1]


def _require_kind(loaded: LoadedModel, texts: Sequence[Any]) -> None:
    pairs = loaded.settings.text_pair
    if loaded.settings.format == "messages":
        texts = [one for one in texts if not is_conversation(one)]
    if any(isinstance(text, str) == pairs for text in texts):
        wanted, got = ("pairs of texts", "a single text") if pairs else ("texts", "a pair")
        raise DataError(
            f"The adapter was trained on {wanted}: got {got}, expected {wanted} only. "
            "Give the input as the training examples had it."
        )


def text_outputs(
    logits: Tensor, labels: Sequence[str], settings: InferenceSettings
) -> list[TextOutput]:
    """Return what the logits of texts say.

    Args:
        logits: (texts, labels), float32.
        labels: Names of the head's outputs.
        settings: Settings of the adapter, with its problem type and thresholds.
    """
    if predicts_numbers(labels, settings):
        return [Numbers(dict(zip(labels, row, strict=True))) for row in logits.tolist()]
    if settings.problem_type == MULTI_LABEL:
        # In float64, as when the thresholds were chosen.
        rows = logits.double().sigmoid().tolist()
        thresholds = settings.thresholds or (_HALF,) * len(labels)
        return [_label_set(dict(zip(labels, row, strict=True)), thresholds) for row in rows]
    return [_class_of(dict(zip(labels, row, strict=True))) for row in logits.softmax(-1).tolist()]


def predicts_numbers(labels: Sequence[str], settings: InferenceSettings) -> bool:
    """Return whether the outputs of a head are numbers.

    A single output is one, as in transformers: as a class it would have the probability 1.
    """
    return settings.problem_type == REGRESSION or (
        settings.problem_type is None and len(labels) == 1
    )


def _label_set(by_label: dict[str, float], thresholds: Sequence[float]) -> LabelSet:
    found = zip(by_label.items(), thresholds, strict=True)
    return LabelSet(tuple(name for (name, p), least in found if p > least), by_label)


def _class_of(by_label: dict[str, float]) -> Classification:
    best = max(by_label, key=lambda label: by_label[label])
    return Classification(best, by_label[best], by_label)


def tag(
    loaded: LoadedModel,
    texts: Sequence[str | Sequence[str]],
    use_base: bool = False,
    *,
    batch_rows: int = 16,
) -> list[list[TaggedWord]]:
    """Tag each word of each text.

    Args:
        loaded: An adapter for TOKEN_CLS on its base.
        texts: Texts, which are split into words and punctuation marks, or lists of words.
        use_base: Whether the base model answers without the adapter.
        batch_rows: Largest number of texts in a batch; long ones are in smaller batches on a CPU.

    Raises:
        ConfigError: The adapter is for another task.
        DataError: A text has more words than fit into the model's maximum length.
    """
    loaded.require_task("tag words", TaskType.TOKEN_CLS)
    words = [_words_of(text) if isinstance(text, str) else list(text) for text in texts]
    with loaded.inference_context(use_base):
        return [
            tagged
            for start in range(0, len(words), POOL_TEXTS)
            for tagged in _tag_words(loaded, words[start : start + POOL_TEXTS], batch_rows)
        ]


def find_words(text: str) -> list[tuple[int, int]]:
    """Return where the words and punctuation marks of a text begin and end.

    >>> find_words("It's late!")
    [(0, 4), (5, 9), (9, 10)]
    """
    return [found.span() for found in _WORD.finditer(text)]


def _words_of(text: str) -> list[str]:
    return [text[start:end] for start, end in find_words(text)]


def _tag_words(
    loaded: LoadedModel, texts: Sequence[list[str]], batch_rows: int
) -> list[list[TaggedWord]]:
    """Tag the words of some texts; texts without words stay out of the batches."""
    with_words = [words for words in texts if words]
    if not with_words:
        return [[] for _ in texts]
    columns, word_of = word_columns(loaded.tokenizer, with_words, loaded.max_length)
    require_tokens(columns, with_words)
    firsts = [
        _first_tokens(found, len(words), loaded.max_length)
        for found, words in zip(word_of, with_words, strict=True)
    ]
    on_left = loaded.tokenizer.padding_side == "left"
    labels = list(loaded.labels or ())
    tagged: list[list[TaggedWord]] = [[] for _ in with_words]
    for numbers, logits in logits_in_batches(loaded, columns, batch_rows):
        best = logits.softmax(-1).max(-1)
        probabilities, tags = best.values.tolist(), best.indices.tolist()
        for row, number in enumerate(numbers):
            padding = logits.shape[1] - len(word_of[number]) if on_left else 0
            tagged[number] = [
                TaggedWord(
                    with_words[number][word],
                    labels[tags[row][at + padding]],
                    probabilities[row][at + padding],
                )
                for word, at in firsts[number].items()
            ]
    found = iter(tagged)
    return [next(found) if words else [] for words in texts]


def count_fitting(word_of: Sequence[int | None], words: int, max_length: int) -> int:
    """Return how many words were tokenized; words such as a zero-width space have no token.

    Args:
        word_of: Index of the word of each token, None for special tokens.
        words: Number of words.
        max_length: Number of tokens to which they were truncated.

    >>> count_fitting([0, 0, 2], 4, 3), count_fitting([0, 0, 2], 4, 9)
    (3, 4)
    """
    if len(word_of) < max_length - 2:  # a doubled special token has been removed at either end
        return words
    return max((word for word in word_of if word is not None), default=-1) + 1


def _first_tokens(word_of: Sequence[int | None], words: int, max_length: int) -> dict[int, int]:
    """Return the position of the first token of each word that has any."""
    first: dict[int, int] = {}
    for position, word in enumerate(word_of):
        if word is not None:
            first.setdefault(word, position)
    fitting = count_fitting(word_of, words, max_length)
    if fitting < words:
        raise DataError(
            f"A text is too long to be tagged: got {words} words, expected at most the "
            f"{fitting} that fit into {max_length} tokens. Split the text."
        )
    return first
