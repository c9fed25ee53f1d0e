"""The loss of a token: plain, smoothed, weighed by its probability."""

import pytest
import torch
from torch.nn import functional as F

from lorakit.training.losses.token_loss import TokenLoss

LOSSES = {
    "plain": TokenLoss(),
    "smoothed": TokenLoss(label_smoothing=0.2),
    "weighed": TokenLoss(weighs_by_probability=True),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_only_one_of_them_is_plain(loss):
    assert loss.is_plain == (loss is LOSSES["plain"])


def test_the_plain_loss_is_the_negative_log_likelihood():
    logits, targets = torch.randn(3, 5), torch.tensor([0, 4, 2])
    expected = F.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(TokenLoss()(logits, targets), expected)
