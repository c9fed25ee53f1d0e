"""Two answers to one prompt as token ids, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from datasets import List, Value
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lorakit.config import NOT_COUNTED
from lorakit.data.chat import ChatEncoder
from lorakit.data.preferences import (
    FIRST,
    PADDING,
    PARTS,
    PROMPT,
    REFERENCE_KEY,
    SECOND,
    SEGMENTS,
    VOTES_KEY,
    TwoAnswers,
)
from lorakit.data.text_formats import CountedIds, answers_ids, common_prefix_length
from lorakit.data.tokenize_examples import IDS
from lorakit.data.tokenizers import pad_length

FEATURES: dict[str, Any] = {"input_ids": IDS, "labels": IDS, PARTS: List(Value("int32"))}
"""Columns of encoded examples: prompt, first and second answer one after the other."""


class EncodedAnswers(NamedTuple):
    """One example: the ids of the prompt and of both answers, one after the other."""

    ids: list[int]
    labels: list[int]
    """The ids of the tokens that count, -100 elsewhere."""
    parts: list[int]
    """Number of tokens of the prompt, the first and the second answer."""
    is_cut: bool


def answer_encoder(
    tokenizer: PreTrainedTokenizerBase,
    is_conversation: bool,
    name: str,
    system_prompt: str | None = None,
    *,
    last_turn_only: bool = False,
) -> Callable[[Sequence[TwoAnswers]], list[tuple[CountedIds, CountedIds]]]:
    """Return the function that tokenizes prompts with each of their two answers.

    Args:
        tokenizer: The base model's tokenizer.
        is_conversation: Whether prompts and answers are messages.
        name: Name of the model, for errors.
        system_prompt: System message of every conversation; None keeps their own.
        last_turn_only: Whether only the last message of each answer counts, for messages.

    Raises:
        ConfigError: Messages cannot be rendered, because there is no chat template.
    """
    if not is_conversation:

        def encode_texts(many: Sequence[TwoAnswers]) -> list[tuple[CountedIds, CountedIds]]:
            prompts, firsts = [one.prompt for one in many], [one.first for one in many]
            made = answers_ids(tokenizer, prompts, firsts, [one.second for one in many])
            return list(zip(*made, strict=True))

        return encode_texts
    render = ChatEncoder(
        *(tokenizer, ("prompt", "answer"), True, name),
        last_turn_only=last_turn_only,
        compares_answers=True,
        system_prompt=system_prompt,
    )

    def encode(many: Sequence[TwoAnswers]) -> list[tuple[CountedIds, CountedIds]]:
        made = render(
            [
                {"prompt": one.prompt, "answer": answer, **one.options}
                for one in many
                for answer in (one.first, one.second)
            ]
        )
        return list(zip(made[::2], made[1::2], strict=True))

    return encode


def join_answers(
    first: CountedIds,
    second: CountedIds,
    max_length: int,
    *,
    counts_prompt: bool = False,
    may_be_same: bool = False,
) -> EncodedAnswers | None:
    """Put two answers behind their prompt, each with the prompt of at most `max_length` tokens.

    Args:
        first: Ids of the prompt and the first answer, whose tokens count.
        second: Likewise of the second answer.
        max_length: Maximum number of tokens.
        counts_prompt: Whether the tokens of the prompt count too.
        may_be_same: Whether both answers may have the same tokens.

    Returns: The example, or None if within `max_length` tokens no token of an answer counts, or
        both answers are the same.
    """
    alike = common_prefix_length(first.ids, second.ids)
    prompt = min(alike, *(_first_counted(one) for one in (first, second)))
    answers = [one.ids[prompt:max_length] for one in (first, second)]
    marks = [one.counted[prompt:max_length] for one in (first, second)]
    counted = [any(mark[0 if prompt else 1 :]) for mark in marks]
    if not all(counted) or (answers[0] == answers[1] and not may_be_same):
        return None
    ids = first.ids[:prompt] + answers[0] + answers[1]
    counts = [counts_prompt] * prompt + marks[0] + marks[1]
    return EncodedAnswers(
        ids,
        [token if c else NOT_COUNTED for token, c in zip(ids, counts, strict=True)],
        [prompt, *map(len, answers)],
        max(len(first.ids), len(second.ids)) > max_length,
    )


def _first_counted(one: CountedIds) -> int:
    return one.counted.index(True) if True in one.counted else len(one.counted)


@dataclass(frozen=True)
class AnswerCollator:
    """Pads examples of two answers into a batch.

    A batch has input_ids, attention_mask, labels and segments. If prompts are shared, each is
    (examples, tokens) with prompt, first and second answer in one batch row, and `position_ids`
    continue the prompt in both answers; otherwise each is (examples, 2, tokens), with a batch row
    for each answer. Votes are (examples,), and the reference's log-probabilities (examples, 2).
    """

    pad_token_id: int
    shares_prompts: bool = False
    pad_to_multiple_of: int | None = None

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Collate encoded examples."""
        rows = [row for example in examples for row in self._rows(example)]
        longest = max(len(row["input_ids"]) for row in rows)
        width = pad_length(longest, self.pad_to_multiple_of)
        padding = {
            "input_ids": self.pad_token_id,
            "attention_mask": 0,
            "labels": NOT_COUNTED,
            SEGMENTS: PADDING,
            "position_ids": 0,
        }
        shape = (len(examples), width) if self.shares_prompts else (len(examples), 2, width)
        batch = {
            key: torch.tensor(
                [[*row[key], *[filler] * (width - len(row[key]))] for row in rows]
            ).view(shape)
            for key, filler in padding.items()
            if key in rows[0]
        }
        for key in (VOTES_KEY, REFERENCE_KEY):
            if key in examples[0]:
                batch[key] = torch.tensor([example[key] for example in examples])
        return batch

    def _rows(self, example: Mapping[str, Any]) -> list[dict[str, list[int]]]:
        """Return the batch rows of an example, without padding."""
        ids, labels = list(example["input_ids"]), list(example["labels"])
        prompt, first, second = example[PARTS]
        segments = [PROMPT] * prompt + [FIRST] * first + [SECOND] * second
        if self.shares_prompts:
            positions = [*range(prompt + first), *range(prompt, prompt + second)]
            row = {"input_ids": ids, "labels": labels, SEGMENTS: segments}
            return [row | {"attention_mask": [1] * len(ids), "position_ids": positions}]
        head, middle = slice(prompt), prompt + first
        # The prompt's labels count once.
        unseen = [NOT_COUNTED] * prompt
        return [
            {
                "input_ids": ids[head] + ids[of_answer],
                "labels": before + labels[of_answer],
                SEGMENTS: segments[head] + segments[of_answer],
                "attention_mask": [1] * (prompt + length),
            }
            for of_answer, before, length in (
                (slice(prompt, middle), labels[head], first),
                (slice(middle, None), unseen, second),
            )
        ]
