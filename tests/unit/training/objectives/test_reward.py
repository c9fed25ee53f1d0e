"""A reward model's step by hand; TRL is compared in `tests/interop`."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from lorakit.config import NOT_COUNTED
from lorakit.data.answers import AnswerCollator
from lorakit.training.objectives.reward import RewardStep

EXAMPLES = [
    {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "parts": [1, 1, 1]},
    {"input_ids": [4, 5, 6], "labels": [-100, 5, 6], "parts": [1, 1, 1]},
]


def model(input_ids, attention_mask):
    return SimpleNamespace(logits=input_ids[:, -1:].float())  # the score is the last token


def test_a_reward_step_by_hand():
    found = RewardStep(center_rewards=0.5).share(model, AnswerCollator(0)(EXAMPLES))
    expected = -F.logsigmoid(torch.tensor(-1.0)) + 0.5 * torch.tensor([25.0, 121.0]).mean()
    assert found.loss.item() == pytest.approx(expected.item())
    assert found.measures["accuracy"].tolist() == [0, 2]
    assert found.measures["rejected_reward"].tolist() == [9, 2]


def test_a_masked_pair_does_not_count():
    batch = AnswerCollator(0)(EXAMPLES)
    batch["labels"][1] = NOT_COUNTED
    found = RewardStep().evaluate(model, batch)
    assert found.labels == 1 and found.measures["chosen_reward"].tolist() == [2, 1]
