"""A step of an objective: known and computed references agree, and evaluation measures KL."""

from dataclasses import replace

import pytest
import torch

from lorakit.config import NOT_COUNTED
from lorakit.layers import LowRankUpdate


@pytest.fixture
def trainer(prepare_preferences, tiny_llama_dir, tmp_path):
    made = prepare_preferences(tiny_llama_dir).trainer(tmp_path / "run")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in made.model.modules():
            if isinstance(module, LowRankUpdate):
                module.lora_B += torch.randn(module.lora_B.shape, generator=generator) * 0.1
    return made


def batch_of(trainer, numbers=(0, 1, 2), **options):
    collate = replace(trainer.data_collator, **options)
    return collate([trainer.train_dataset[number] for number in numbers])


def test_a_known_reference_gives_the_same_loss(trainer):
    batch = batch_of(trainer)
    reference = trainer.step.reference(trainer.model, batch)
    known = trainer.step.share(trainer.model, {**batch, "reference": reference}).loss
    torch.testing.assert_close(trainer.step.share(trainer.model, batch).loss, known)


def test_shares_of_batches_add_up_to_the_mean(trainer):
    whole = trainer.step.share(trainer.model, batch_of(trainer)).loss
    parts = [
        trainer.step.share(trainer.model, batch_of(trainer, numbers), 3, 2).loss
        for numbers in ((0, 1), (2,))
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=1e-6)


def test_a_masked_example_adds_nothing(trainer):
    batch = batch_of(trainer)
    batch["labels"][2] = NOT_COUNTED
    expected = trainer.step.share(trainer.model, batch_of(trainer, (0, 1)))
    found = trainer.step.share(trainer.model, batch)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-6)
    assert found.measures["accuracy"][1] == 2


def test_an_evaluation_measures_the_divergence_of_each_token(trainer):
    model, batch = trainer.model.eval(), batch_of(trainer, (0,), shares_prompts=False)
    found = trainer.step.evaluate(model, batch)
    from lorakit import disable_adapters

    inputs = {key: batch[key].flatten(0, 1) for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        log_probs = model(**inputs).logits.log_softmax(-1)
        with disable_adapters(model):
            expected = model(**inputs).logits.log_softmax(-1)
    kl = (log_probs.exp() * (log_probs - expected)).sum(-1)[:, :-1]
    counts = batch["labels"].flatten(0, 1)[:, 1:] != NOT_COUNTED
    torch.testing.assert_close(found.measures["kl"][0], kl[counts].sum(), rtol=1e-4, atol=1e-5)
    assert found.measures["kl"][1] == counts.sum() and found.labels == 1
