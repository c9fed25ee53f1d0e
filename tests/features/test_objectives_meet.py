"""Objectives meet what other tasks are trained with: 4 bits, checkpoints, one model."""

import gc
import json

import pytest
import torch
from safetensors.torch import load_file

from fixtures.preferences import PAIRS, VOTES, preference_recipe
from lorakit import train
from lorakit.training.evaluation import evaluate
from tolerances import largest_error

TRAINING = {
    "use_cpu": True,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "num_train_epochs": 2,
}
OBJECTIVES = {
    "dpo": (PAIRS, {"type": "dpo"}),
    "orpo": (PAIRS, {"type": "orpo"}),
    "kto": (VOTES, {"type": "kto"}),
    "reward": (PAIRS, {"type": "reward"}),
}


def recipe_in(folder, model, name, *, training=None, **changes):
    rows, objective = OBJECTIVES[name]
    folder.mkdir(exist_ok=True)
    recipe = preference_recipe(
        folder, model, rows, objective, training={**TRAINING, **(training or {})}
    )
    return recipe.with_changes({"output": str(folder / "run"), **changes}, "the test")


def steps_of(result):
    lines = (result.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["event"] == "step"]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_base_in_4_bits(tmp_path, tiny_llama_dir, name):
    quantization = {"bits": 4, "compute_dtype": "float32"}
    recipe = recipe_in(tmp_path, tiny_llama_dir, name, quantization=quantization)
    result = train(recipe)
    assert result.injection.base_dtype == "nf4 (float32)"
    assert steps_of(result)[-1]["loss"] < steps_of(result)[0]["loss"]
    assert evaluate(result.run_dir) == pytest.approx(result.metrics, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("init", ["eva", "lora_ga"])
def test_initializations_from_data(tmp_path, tiny_llama_dir, name, init):
    changes = {"lora.init_lora_weights": init, "training.max_steps": 4}
    changes["evaluation.compare_with_base"] = False
    steps = steps_of(train(recipe_in(tmp_path, tiny_llama_dir, name, **changes)))
    assert steps[-1]["loss"] < steps[0]["loss"]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_activation_checkpoints_give_the_same_adapter(tmp_path, tiny_llama_dir, name):
    plain, saved = (
        train(
            recipe_in(
                *(tmp_path / folder, tiny_llama_dir, name),
                training={"num_train_epochs": 1, "activation_checkpointing": checkpointing},
                **{"evaluation.compare_with_base": False},
            )
        )
        for folder, checkpointing in (("plain", False), ("saving", True))
    )
    expected, found = (
        load_file(run.adapter_path / "adapter_model.safetensors") for run in (plain, saved)
    )
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert largest_error(found[key], tensor) == 0.0, key


def parameters_alive():
    gc.collect()
    return [one for one in gc.get_objects() if isinstance(one, torch.nn.Parameter)]


def storages(parameters):
    return {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in parameters}


def test_policy_and_reference_are_one_model_in_memory(
    prepare_preferences, tiny_llama_dir, tmp_path
):
    before = parameters_alive()  # kept, so that their ids are not given to others
    others = {id(one) for one in before}
    trainer = prepare_preferences(tiny_llama_dir).trainer(tmp_path / "run")
    trainer.create_optimizer()
    model, seen = trainer.model, []

    def look(*_):
        seen.append(storages(one for one in parameters_alive() if id(one) not in others))

    model.model.register_forward_pre_hook(look)
    batch = trainer.counting_collator()([trainer.train_dataset[number] for number in range(4)])
    trainer.step.share(model, batch).loss.backward()
    look()
    assert seen == [storages(model.parameters())] * 3, "reference, policy and after backward"
