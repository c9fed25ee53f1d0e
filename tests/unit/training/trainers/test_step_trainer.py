"""Trainers whose losses are those of a step."""

import pytest
import torch
from torch.nn import functional as F

from lorakit.config import NOT_COUNTED
from lorakit.training.losses.counted_labels import COUNTED
from lorakit.training.step import MeanStep
from lorakit.training.trainers import step_trainer


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


@pytest.mark.parametrize(
    ("in_all", "others", "expected"),
    [(True, 3, 3.0), (True, 0, 1.5), (False, 3, 3.0), (False, 0, 1.5)],
)
def test_a_process_without_labels_has_no_part_in_a_mean(
    trainer, monkeypatch, in_all, others, expected
):
    monkeypatch.setattr(type(trainer.args), "world_size", 2)
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    monkeypatch.setattr(
        trainer.accelerator, "gather", lambda here: torch.stack([here, torch.tensor(others)])
    )
    trainer.args.average_tokens_across_devices = in_all
    (batch, *_), _ = trainer.get_batch_samples(
        iter(trainer.get_train_dataloader()), 1, torch.device("cpu")
    )
    assert trainer._get_num_items_in_batch([batch], torch.device("cpu")) == expected


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


EXAMPLES = [
    {"tokens": ["Anna", "saw"][: 1 + i % 2], "tags": ["B", "O"][: 1 + i % 2]} for i in range(8)
]


@pytest.fixture
def word_trainer(prepare, tiny_bert_dir, jsonl, tmp_path):
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
def test_the_loss_of_an_evaluation_is_the_mean_over_its_labels(word_trainer, size):
    built = word_trainer(per_device_eval_batch_size=size)
    expected = losses_of(built, batch_of(built)).mean().item()
    assert built.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_batch_has_its_share_of_the_mean_over_a_step(word_trainer):
    built = word_trainer()
    batch = batch_of(built)
    losses = losses_of(built, batch)
    assert built.compute_loss(built.model, batch).item() == pytest.approx(losses.mean().item())
    share = built.compute_loss(built.model, batch, num_items_in_batch=4 * len(losses))
    assert share.item() == pytest.approx(losses.mean().item() / 4)


def test_a_batch_without_labels_has_loss_zero_and_gradients_of_zero(word_trainer):
    built = word_trainer()
    batch = batch_of(built)
    batch["labels"].fill_(NOT_COUNTED)
    loss = built.compute_loss(built.model, batch, num_items_in_batch=torch.tensor(0))
    loss.backward()
    assert loss.item() == 0
    trained = [p.grad for p in built.model.parameters() if p.requires_grad]
    assert trained and not any(grad.any() for grad in trained if grad is not None)


def test_texts_of_several_processes_are_in_the_order_of_the_loader(monkeypatch):
    """Two processes take turns at batches of two; the last text is repeated and does not count."""
    here = [torch.tensor([[1.0, 1], [2, 1]]), torch.tensor([[5.0, 1], [0, 0]])]
    other = [torch.tensor([[3.0, 1], [4, 1]])]

    def gathered(found):
        return [found, [one.double().numpy() for one in other]]

    monkeypatch.setattr(step_trainer, "all_gather_object", gathered)
    scores = step_trainer._in_loader_order(here, "perplexity")
    assert scores.points.tolist() == [1, 2, 3, 4, 5] and scores.weights.tolist() == [1] * 5
    monkeypatch.setattr(step_trainer, "all_gather_object", lambda found: [found])
    assert step_trainer._in_loader_order([None, None], "perplexity") is None


def test_a_classifiers_texts_have_no_loss_of_tokens(trainer):
    trainer.evaluate()
    assert trainer.example_scores is None
