"""DPO and IPO by hand; `tests/interop/test_trl_preferences.py` compares them with TRL."""

import math

import pytest
import torch

from lorakit.errors import TrainingError
from lorakit.training.objectives import Answers
from lorakit.training.objectives.direct import DPO, IPO

SUMS, REFERENCE = torch.tensor([[-4.0, -6.0]]), torch.tensor([[-5.0, -5.0]])
POLICY = Answers(
    SUMS, torch.tensor([[2.0, 4.0]]), torch.zeros(1), torch.zeros(1), torch.tensor([True])
)


def test_dpo_and_ipo_by_hand():
    margin = 0.1 * 2
    assert DPO(0.1).compare(POLICY, REFERENCE).losses.item() == pytest.approx(
        -math.log(1 / (1 + math.exp(-margin)))
    )
    assert DPO(0.1, loss="hinge").compare(POLICY, REFERENCE).losses.item() == pytest.approx(0.8)
    with_sft = DPO(0.1, sft_weight=0.5, loss="hinge").compare(POLICY, REFERENCE)
    assert with_sft.losses.item() == pytest.approx(0.8 + 0.5 * 2)
    assert IPO(0.5).compare(POLICY, REFERENCE).losses.item() == pytest.approx((0.75 - 1) ** 2)


def test_what_is_measured():
    measures = DPO(0.1).compare(POLICY, REFERENCE).measures
    found = {name: (pair[0] / pair[1]).item() for name, pair in measures.items()}
    assert found == pytest.approx(
        {
            "accuracy": 1,
            "preference_accuracy": 1,
            "chosen_reward": 0.1,
            "rejected_reward": -0.1,
            "chosen_log_prob": -4,
            "rejected_log_prob": -6,
        }
    )


def test_a_missing_reference_is_an_error():
    with pytest.raises(TrainingError, match="no log-probabilities of the reference"):
        DPO(0.1).compare(POLICY, None)
