"""A step's shares of several batches add up to the mean over all their labels."""

import pytest
import torch
from torch.nn import functional as F
from transformers.trainer_pt_utils import LabelSmoother

from lorakit.config import NOT_COUNTED
from lorakit.training.losses.output_loss import OutputLoss
from lorakit.training.losses.token_loss import TokenLoss
from lorakit.training.step import MeanStep, OutputStep
from tiny_models import llama

ROUNDING = 1e-5


@pytest.fixture
def model():
    torch.manual_seed(0)
    return llama().eval()


@pytest.fixture
def batches(model):
    """Two batches in which another number of labels counts."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for masked in (1, 4):
        size = model.config.vocab_size
        ids = torch.randint(3, size, (2, 6), generator=generator)
        labels = ids.clone()
        labels[:, :masked] = NOT_COUNTED
        made.append({"input_ids": ids, "labels": labels})
    return made


def steps(model, **options):
    output = OutputLoss(model.lm_head, shifts=True)
    smoothing = options.get("label_smoothing", 0.0)
    smoother = LabelSmoother(smoothing) if smoothing else None
    return [
        OutputStep(
            shifts=True, output=output, token_loss=TokenLoss(**options), smooths_evaluation=False
        ),
        OutputStep(shifts=True, output=output, token_loss=TokenLoss(**options)),
        MeanStep(shifts=True, smoother=smoother, smooths_evaluation=False),
    ]


def mean_over_all(model, batches, smoothing=0.0):
    losses = []
    for batch in batches:
        logits = model(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1)
        targets = batch["labels"][:, 1:].flatten()
        counts = targets != NOT_COUNTED
        losses.append(
            F.cross_entropy(
                logits[counts], targets[counts], reduction="none", label_smoothing=smoothing
            )
        )
    return torch.cat(losses).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("kind", range(3))
@pytest.mark.parametrize("how", [int, float, torch.tensor])
def test_shares_add_up_to_the_mean_of_all_labels(model, batches, kind, smoothing, how):
    step = steps(model, label_smoothing=smoothing)[kind]
    counted = sum(step.split(batch)[1].labels for batch in batches)
    shares = [step.share(model, batch, how(counted), 2) for batch in batches]
    assert [share.counted.labels for share in shares] == [10, 4]
    total = sum(share.loss for share in shares)
    expected = mean_over_all(model, batches, smoothing)
    assert total.item() == pytest.approx(expected.item(), rel=ROUNDING)
    total.backward()
    gradient = model.lm_head.weight.grad.clone()
    model.zero_grad()
    expected.backward()
    assert torch.allclose(gradient, model.lm_head.weight.grad, atol=ROUNDING)


def test_the_share_of_one_batch_is_its_mean(model, batches):
    for step in steps(model):
        loss = step.share(model, batches[1]).loss
        assert loss.item() == pytest.approx(mean_over_all(model, batches[1:]).item(), rel=ROUNDING)


def test_a_batch_in_which_nothing_counts_has_a_loss_of_zero(model, batches):
    nothing = {**batches[0], "labels": torch.full_like(batches[0]["labels"], NOT_COUNTED)}
    for step in steps(model):
        for counted in (None, 1):
            loss, found, *_ = step.share(model, nothing, counted)
            assert loss.item() == 0.0 and found.labels == 0
            loss.backward()


def test_evaluation_sums_are_never_smoothed_and_have_no_graph(model, batches):
    following, _, ours = steps(model, label_smoothing=0.3)
    expected = mean_over_all(model, batches)
    for step in (following, ours):
        found = [step.evaluate(model, batch) for batch in batches]
        loss, labels, hits = sum(one.sums() for one in found).tolist()
        assert labels == 14
        assert loss / labels == pytest.approx(expected.item(), rel=ROUNDING)
        assert hits != hits if step is ours else 0 <= hits <= 14
        assert not found[0].loss.requires_grad


def test_hits_are_the_correct_top_predictions(model, batches):
    batch = batches[0]
    with torch.no_grad():
        best = model(input_ids=batch["input_ids"]).logits.argmax(-1)
    labels = torch.cat([torch.full_like(best[:, :1], NOT_COUNTED), best[:, :-1]], 1)
    labels[0, 2] = (labels[0, 2] + 1) % model.config.vocab_size
    found = steps(model)[0].evaluate(model, {**batch, "labels": labels})
    assert found.labels == 10 and int(found.hits) == 9
