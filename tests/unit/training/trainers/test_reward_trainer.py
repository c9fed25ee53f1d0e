"""The trainer of reward models."""

from torch import nn


def test_dropout_is_off_and_batches_can_be_timed(
    prepare_preferences, tiny_distilbert_dir, tmp_path
):
    prepared = prepare_preferences(tiny_distilbert_dir, objective={"type": "reward"})
    trainer = prepared.trainer(tmp_path)
    dropouts = [m for m in trainer.model.modules() if isinstance(m, nn.Dropout)]
    assert dropouts and all(module.p == 0 for module in dropouts)
    batch = trainer.timed_batch([trainer.train_dataset[0]])
    assert batch["input_ids"].shape[0] == 2 and trainer.model(**batch).loss >= 0
