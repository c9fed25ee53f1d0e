"""An adapter is initialized once, from the batches that the seed chooses."""

import pytest
import torch

from lorakit.training.setup import prepare
from lorakit.training.trainers.data_initialization import initialize_adapter_from_data

LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize("init", ["eva", "lora_ga"])
def test_the_batches_are_those_of_the_seed_and_their_number_counts(recipe, init):
    def start(**changes):
        more = {"init_batches": changes.pop("init_batches", 1)}
        made = recipe(
            lora=LORA | {"init_lora_weights": init, **more}, training={"seed": 3, **changes}
        )
        trainer = prepare(made, lambda name, payload: None).build_trainer()
        initialize_adapter_from_data(trainer, trainer.model, "default")
        update = trainer.model.model.layers[0].self_attn.q_proj.updates["default"]
        return update.lora_A.detach()

    first = start()
    assert torch.equal(first, start())
    assert not torch.equal(first, start(init_batches=3))


def test_continued_training_does_not_initialize_again(recipe, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "lorakit.training.trainers.data_initialization.initialize_from_data",
        lambda *args: calls.append(args),
    )
    trainer = prepare(
        recipe(lora=LORA | {"init_lora_weights": "eva"}), lambda name, payload: None
    ).build_trainer()
    trainer.train()
    trainer.train()
    assert len(calls) == 1
