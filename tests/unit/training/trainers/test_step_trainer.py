"""Trainers whose losses are those of a step."""

import pytest
import torch

from lorakit.training.losses.counted_labels import COUNTED
from lorakit.training.step import MeanStep


@pytest.fixture
def trainer(prepare, tiny_distilbert_dir, cls_csv, tmp_path):
    made = prepare("SEQ_CLS", tiny_distilbert_dir, cls_csv)
    return made.trainer(tmp_path, per_device_train_batch_size=3, per_device_eval_batch_size=2)


def test_batches_of_a_loader_have_their_labels_counted(trainer):
    collator = trainer.data_collator
    for loader in (trainer.get_train_dataloader(), trainer.get_eval_dataloader()):
        batch = next(iter(loader))
        assert batch[COUNTED].labels == len(batch["labels"])
    assert trainer.data_collator is collator
    assert COUNTED not in collator([trainer.train_dataset[0]])


def test_the_labels_of_a_step_are_those_of_its_batches(trainer):
    batches, counted = trainer.get_batch_samples(
        iter(trainer.get_train_dataloader()), 2, torch.device("cpu")
    )
    assert len(batches) == 2 and counted == 6 and isinstance(counted, int)
    assert trainer._get_num_items_in_batch([], torch.device("cpu")) is None


def test_predictions_are_the_models_logits_and_need_no_counts(trainer):
    trainer.model.eval()
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(3)])
    trainer._sums = torch.zeros(3)
    loss, logits, labels = trainer.prediction_step(trainer.model, batch, False)
    with torch.no_grad():
        expected = trainer.model(**batch)
    assert torch.equal(logits, expected.logits) and torch.equal(labels, batch["labels"])
    assert loss == pytest.approx(expected.loss.item())
    assert trainer._sums[:2].tolist() == pytest.approx([3 * expected.loss.item(), 3])
    assert trainer.prediction_step(trainer.model, batch, True)[1:] == (None, None)


def test_the_step_computes_the_loss(trainer, monkeypatch):
    calls = []
    share = MeanStep.share

    def counted(self, *args, **options):
        calls.append(args)
        return share(self, *args, **options)

    monkeypatch.setattr(MeanStep, "share", counted)
    trainer.args.max_steps = 2
    trainer.train()
    assert len(calls) == 2
