"""KTO by hand."""

import math

import pytest
import torch

from lorakit.training.objectives import Answers
from lorakit.training.objectives.votes import KTO


def test_kto_by_hand():
    policy = Answers(
        torch.tensor([[-3.0, -4.0], [-6.0, -5.0]]),
        torch.ones(2, 2),
        *[torch.zeros(2)] * 2,
        torch.tensor([True, True]),
        torch.tensor([1, 0]),
    )
    found = KTO(0.5, 2.0, 1.0).compare(policy, torch.full((2, 2), -5.0))

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    z = (1 + 0) / 2
    good, bad = 2 * (1 - sigmoid(0.5 * (2 - z))), 1 - sigmoid(0.5 * (z + 1))
    assert found.losses.tolist() == pytest.approx([good, bad])
    assert found.measures["accuracy"].tolist() == [2, 2]
    assert found.measures["rejected_reward"].tolist() == [-0.5, 1]
