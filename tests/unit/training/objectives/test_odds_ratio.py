"""ORPO by hand."""

import math

import pytest
import torch

from lorakit.training.objectives import Answers
from lorakit.training.objectives.odds_ratio import ORPO


def test_orpo_by_hand():
    sums = torch.tensor([[2 * math.log(0.5), math.log(0.2)]], dtype=torch.float64)
    answers = Answers(
        *(sums, torch.tensor([[2.0, 1.0]]), torch.tensor([-3.0]), torch.tensor([1.0])),
        torch.tensor([True]),
    )
    found = ORPO(0.5).compare(answers, None).losses.item()
    log_odds = math.log(0.5 / 0.5) - math.log(0.2 / 0.8)
    nll = (3 + 2 * math.log(2)) / 3
    assert found == pytest.approx(nll + 0.5 * math.log(1 + math.exp(-log_odds)))


def test_an_example_without_tokens_has_no_nan():
    zeros = torch.zeros(1, 2, requires_grad=True)
    answers = Answers(zeros, zeros.detach(), *[torch.zeros(1)] * 2, torch.tensor([False]))
    ORPO(0.5).compare(answers, None).losses.sum().backward()
    assert torch.isfinite(zeros.grad).all()
