import math

import pytest
import torch
from torch.nn import functional as F

from lorakit.training.losses.example_losses import SeveralLabels, SquaredError, WeightedClasses

LOGITS = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])


def test_classes_weigh_their_examples():
    labels = torch.tensor([0, 2])
    each = F.cross_entropy(LOGITS, labels, reduction="none")
    loss = WeightedClasses(torch.tensor([1.0, 1.0, 3.0]))

    assert loss.sum(LOGITS, labels).item() == pytest.approx((each[0] + 3 * each[1]).item())
    assert loss.sum_in_evaluation(LOGITS, labels).item() == pytest.approx(each.sum().item())
    masked = torch.tensor([0, -100])
    assert loss.sum(LOGITS, masked).item() == pytest.approx(each[0].item())
    smoothed = WeightedClasses(torch.ones(3), 0.1).sum(LOGITS, labels)
    assert smoothed.item() == pytest.approx(
        F.cross_entropy(LOGITS, labels, reduction="sum", label_smoothing=0.1).item()
    )


def test_labels_have_the_loss_of_torch_and_masked_rows_none():
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    expected = F.binary_cross_entropy_with_logits(LOGITS, labels, reduction="sum")
    assert SeveralLabels().sum(LOGITS, labels).item() == pytest.approx(expected.item())
    masked = torch.stack([labels[0], torch.full((3,), math.nan)])
    first = F.binary_cross_entropy_with_logits(LOGITS[:1], labels[:1], reduction="sum")
    assert SeveralLabels().sum(LOGITS, masked).item() == pytest.approx(first.item())


def test_numbers_of_any_shape_have_squared_errors():
    single = torch.tensor([[1.0], [2.0]], requires_grad=True)
    loss = SquaredError().sum(single, torch.tensor([0.0, math.nan]))
    loss.backward()
    assert loss.item() == 1.0 and single.grad.tolist() == [[2.0], [0.0]]
    targets = LOGITS + 2
    assert SquaredError().sum(LOGITS, targets).item() == pytest.approx(4 * 6)
    assert SquaredError().sum(LOGITS, torch.full_like(LOGITS, -100)).item() > 0  # a real number
