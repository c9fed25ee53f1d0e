"""The tokens of answers that count, and where each is predicted."""

import torch

from lorakit.config import NOT_COUNTED
from lorakit.data.answers import AnswerCollator
from lorakit.training.losses.counted_answers import count_answers

EXAMPLES = [
    {"input_ids": [1, 2, 3, 4, 5, 6], "labels": [-100, 2, 3, 4, 5, 6], "parts": [2, 3, 1]},
    {"input_ids": [7, 8, 9], "labels": [-100, 8, 9], "parts": [1, 1, 1]},
]


def test_both_answers_are_predicted_from_the_prompts_last_token():
    counted = count_answers(AnswerCollator(0, shares_prompts=True)(EXAMPLES))
    assert counted.targets.tolist() == [2, 3, 4, 5, 6, 8, 9]
    assert counted.positions.tolist() == [0, 1, 2, 3, 1, 6, 6]
    assert counted.group.tolist() == [4, 0, 0, 0, 1, 2, 3]
    assert (counted.labels, counted.tokens) == (2, 9)
    assert counted.of_answers().tolist() == [False, *[True] * 6]


def test_a_row_for_each_answer_counts_the_same():
    counted = count_answers(AnswerCollator(0)(EXAMPLES))
    assert counted.targets.tolist() == [2, 3, 4, 5, 6, 8, 9]
    assert counted.positions.tolist() == [0, 1, 2, 3, 6, 10, 15]
    assert counted.group.tolist() == [4, 0, 0, 0, 1, 2, 3]


def test_sums_are_those_of_each_answer_and_prompt():
    counted = count_answers(AnswerCollator(0, shares_prompts=True)(EXAMPLES))
    answers, prompts = counted.sums(torch.tensor([1.0, 2, 3, 4, 5, 6, 7]))
    assert answers.tolist() == [[9, 5], [6, 7]] and prompts.tolist() == [1, 0]
    moved = counted.to("cpu")
    assert torch.equal(moved.group, counted.group) and moved.labels == 2


def test_a_masked_example_does_not_count():
    batch = AnswerCollator(0)(EXAMPLES)
    batch["labels"][1] = NOT_COUNTED
    counted = count_answers(batch)
    assert counted.examples.tolist() == [True, False] and counted.labels == 1
