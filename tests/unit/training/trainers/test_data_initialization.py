"""An adapter is initialized once, from the batches that the seed chooses."""

from dataclasses import replace

import pytest
import torch

from fixtures.preferences import PAIRS, preference_recipe
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
        lambda *args, **kwargs: calls.append(args),
    )
    trainer = prepare(
        recipe(lora=LORA | {"init_lora_weights": "eva"}), lambda name, payload: None
    ).build_trainer()
    trainer.train()
    trainer.train()
    assert len(calls) == 1


@pytest.mark.parametrize("shares_prompts", [True, False])
@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_eva_reads_each_answer_in_a_row_of_its_prompt(
    tiny_llama_dir, tmp_path, monkeypatch, kind, shares_prompts
):
    recipe = preference_recipe(tmp_path, tiny_llama_dir, PAIRS, {"type": kind})
    recipe = recipe.with_changes({"lora.init_lora_weights": "eva"}, "the test")
    trainer = prepare(recipe, lambda name, payload: None).build_trainer()
    trainer.data_collator = replace(trainer.data_collator, shares_prompts=shares_prompts)
    seen = []
    monkeypatch.setattr(
        "lorakit.training.trainers.data_initialization.initialize_from_data",
        lambda model, batches, name, loss: seen.extend(batches),
    )
    initialize_adapter_from_data(trainer, trainer.model, "default")
    one = seen[0]
    assert {value.shape for value in one.values()} == {one["input_ids"].shape}
    assert one["input_ids"].ndim == 2 and len(one["input_ids"]) % 2 == 0
    assert ("labels" in one) == (kind == "dpo")
