from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from lorakit.training.losses.counted_labels import count_labels
from lorakit.training.losses.losses_by_text import losses_by_text, losses_from_logits


def test_rows_are_texts():
    batch = {"labels": torch.tensor([[-100, 1, 2, 3], [-100, -100, -100, 4]])}
    counted = count_labels(batch, shifts=True)
    found = losses_by_text(torch.tensor([1.0, 2.0, 4.0, 8.0]), counted, batch)
    assert found.tolist() == [[7, 3], [8, 1]]


def test_packed_texts_begin_with_position_zero():
    """Two texts and padding in the first row, one text in the second."""
    batch = {
        "labels": torch.tensor([[-100, 5, 6, -100, 7, -100], [-100, 1, 2, 3, 4, 5]]),
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]]),
    }
    counted = count_labels(batch, shifts=True)
    found = losses_by_text(torch.ones(counted.labels), counted, batch)
    assert found.tolist() == [[2, 2], [1, 1], [0, 0], [5, 5]]


@pytest.mark.parametrize("shifts", [True, False])
def test_losses_from_all_logits(shifts):
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    labels[0, :3] = -100
    batch = {"labels": labels}
    counted = count_labels(batch, shifts=shifts)
    found = losses_from_logits(SimpleNamespace(logits=logits), batch, counted)
    for row, (loss, count) in enumerate(found.tolist()):
        scores, targets = logits[row], labels[row]
        if shifts:
            scores, targets = scores[:-1], targets[1:]
        expected = F.cross_entropy(scores, targets, reduction="sum", ignore_index=-100)
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        assert count == (targets != -100).sum()


def test_a_classifier_of_whole_texts_has_none():
    batch = {"labels": torch.tensor([1, 0])}
    counted = count_labels(batch, shifts=False)
    assert losses_from_logits(SimpleNamespace(logits=torch.ones(2, 3)), batch, counted) is None
    assert losses_from_logits(object(), batch, counted) is None
