"""Gradients of single examples, which add up to that of the batch."""

import pytest
import torch

from lorakit.training.influence import example_gradients
from lorakit.training.influence.example_gradients import (
    ExampleGradients,
    ExampleLosses,
    mean_gradients,
)
from lorakit.training.setup import prepare


@pytest.fixture
def made(recipe, tmp_path):
    setup = prepare(recipe(), lambda name, payload: None)
    with torch.no_grad():
        for name, parameter in setup.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    setup.arguments.output_dir = str(tmp_path)
    trainer = setup.build_trainer()
    return setup, trainer, ExampleLosses(trainer)


def test_they_add_up_to_the_gradient_of_the_batch(made):
    setup, trainer, losses = made
    few = setup.encoded.train.select(range(3))
    single = list(ExampleGradients(losses, few))
    batch = trainer._prepare_inputs(trainer.data_collator(list(losses.usable(few))))
    share = trainer.step.share(trainer.model, batch)
    share.loss.backward()
    counted = [
        trainer.step.split(trainer.data_collator([one]))[1].labels for one in losses.usable(few)
    ]
    for path, gradient in single[0].items():
        module, _, kind = path.rpartition(".")
        update = trainer.model.get_submodule(module).updates["default"]
        parts = zip(single, counted, strict=True)
        total = sum(one[path] * n / sum(counted) for one, n in parts)
        assert torch.allclose(getattr(update, kind).grad, total, atol=1e-6), path
        assert gradient.shape == getattr(update, kind).shape


@pytest.mark.parametrize("free_bytes", [0, 2**32])
def test_they_are_the_same_in_every_pass(made, free_bytes, monkeypatch):
    monkeypatch.setattr(example_gradients, "free_memory", lambda: free_bytes)
    setup, _, losses = made
    few = ExampleGradients(losses, setup.encoded.train.select(range(3)))
    first, second = list(few), list(few)
    assert all(
        torch.equal(one[name], other[name])
        for one, other in zip(first, second, strict=True)
        for name in one
    )
    assert (first[0] is second[0]) == (free_bytes > 0)


def test_the_mean_is_that_of_the_examples(made):
    setup, _, losses = made
    few = setup.encoded.train.select(range(3))
    single = list(ExampleGradients(losses, few))
    for name, mean in mean_gradients(losses, few).items():
        assert torch.allclose(mean, sum(one[name] for one in single) / 3)
