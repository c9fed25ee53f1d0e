"""Two answers behind one prompt, and batches of them in one row or two."""

import torch

from lorakit.config import NOT_COUNTED
from lorakit.data.answers import AnswerCollator, join_answers
from lorakit.data.text_formats import CountedIds

FIRST = CountedIds([1, 2, 3, 4, 5], [False, False, True, True, True])
SECOND = CountedIds([1, 2, 3, 9], [False, False, True, True])


def join(max_length=10, **options):
    return join_answers(FIRST, SECOND, max_length, **options)


def test_the_prompt_ends_where_an_answer_counts():
    made = join()
    assert made.ids == [1, 2, 3, 4, 5, 3, 9] and made.parts == [2, 3, 2]
    assert made.labels == [NOT_COUNTED] * 2 + [3, 4, 5, 3, 9] and not made.is_cut
    assert join(counts_prompt=True).labels == made.ids


def test_answers_are_cut_with_their_prompt():
    made = join(3, may_be_same=True)
    assert made.ids == [1, 2, 3, 3] and made.parts == [2, 1, 1] and made.is_cut
    assert join(2) is None
    assert join(3) is None  # both answers are the same by then


def test_a_row_for_each_answer_or_one_for_both():
    example = {**join(counts_prompt=True)._asdict(), "votes": 1, "reference": [-1.5, -2.0]}
    example = {**example, "input_ids": example["ids"]}
    apart = AnswerCollator(0)([example])
    assert apart["input_ids"].tolist() == [[[1, 2, 3, 4, 5], [1, 2, 3, 9, 0]]]
    assert apart["segments"].tolist() == [[[0, 0, 1, 1, 1], [0, 0, 2, 2, -1]]]
    assert apart["labels"][0, 1].tolist() == [NOT_COUNTED] * 2 + [3, 9, NOT_COUNTED]
    assert apart["votes"].tolist() == [1] and apart["reference"].tolist() == [[-1.5, -2.0]]
    shared = AnswerCollator(0, shares_prompts=True, pad_to_multiple_of=4)([example])
    assert shared["input_ids"].tolist() == [[1, 2, 3, 4, 5, 3, 9, 0]]
    assert shared["position_ids"].tolist() == [[0, 1, 2, 3, 4, 2, 3, 0]]
    assert torch.equal(shared["attention_mask"], (shared["segments"] >= 0).long())
