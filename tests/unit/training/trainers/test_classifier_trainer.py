"""The mean over all labels of a step and of an evaluation, however examples are batched."""

import pytest
import torch
from torch.nn import functional as F

from lorakit.config import NOT_COUNTED

EXAMPLES = [
    {"tokens": ["Anna", "saw"][: 1 + i % 2], "tags": ["B", "O"][: 1 + i % 2]} for i in range(8)
]


@pytest.fixture
def trainer(prepare, tiny_bert_dir, jsonl, tmp_path):
    """Build a trainer of a model for words whose examples have one or two labels."""
    made = prepare("TOKEN_CLS", tiny_bert_dir, jsonl(EXAMPLES), validation_fraction=0.5)

    def build(**arguments):
        built = made.trainer(tmp_path, **arguments)
        built.model.eval()  # the same dropout, none, in every pass
        return built

    return build


def batch_of(trainer):
    return trainer.data_collator([*trainer.eval_dataset])


def losses_of(trainer, batch):
    """Return the loss of each label that counts, from the model's logits."""
    labels = batch["labels"].flatten()
    with torch.no_grad():
        logits = trainer.model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    return F.cross_entropy(logits.flatten(0, 1), labels, reduction="none")[labels != NOT_COUNTED]


@pytest.mark.parametrize("size", [1, 3])
def test_the_loss_of_an_evaluation_is_the_mean_over_its_labels(trainer, size):
    built = trainer(per_device_eval_batch_size=size)
    expected = losses_of(built, batch_of(built)).mean().item()
    assert built.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_batch_has_its_share_of_the_mean_over_a_step(trainer):
    built = trainer()
    batch = batch_of(built)
    losses = losses_of(built, batch)
    assert built.compute_loss(built.model, batch).item() == pytest.approx(losses.mean().item())
    share = built.compute_loss(built.model, batch, num_items_in_batch=4 * len(losses))
    assert share.item() == pytest.approx(losses.mean().item() / 4)


def test_a_batch_without_labels_has_loss_zero_and_gradients_of_zero(trainer):
    built = trainer()
    batch = batch_of(built)
    batch["labels"].fill_(NOT_COUNTED)
    loss = built.compute_loss(built.model, batch, num_items_in_batch=torch.tensor(0))
    loss.backward()
    assert loss.item() == 0
    trained = [p.grad for p in built.model.parameters() if p.requires_grad]
    assert trained and not any(grad.any() for grad in trained if grad is not None)
