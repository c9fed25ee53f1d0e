from types import SimpleNamespace

import pytest

from lorakit.training import dry_run, train
from lorakit.training.preview import optimizer_steps


def test_a_dry_run_tells_everything_and_writes_nothing(recipe, tmp_path):
    seen = dry_run(recipe(training={"bf16": True}))
    assert list(tmp_path.iterdir()) == []
    assert seen.dtypes == {
        "base": "float32",
        "adapter": "float32",
        "compute": "bfloat16 (autocast)",
    }
    assert (seen.train_examples, seen.validation_examples, seen.steps) == (18, 6, 4)
    assert seen.parameter_count.trainable == seen.injection.lora_parameters
    assert len(seen.preview_examples) == 2
    assert 0 < sum(seen.preview_examples[0].counted) < len(seen.preview_examples[0].tokens)


def test_small_parameters_are_distinguished(recipe):
    seen = dry_run(recipe(dtype="bfloat16", float32_small_parameters=True))
    assert seen.dtypes == {
        "base": "bfloat16",
        "adapter": "float32",
        "compute": "bfloat16",
        "small parameters": "float32",
    }


@pytest.mark.parametrize(
    "training", [{"max_steps": -1, "num_train_epochs": 1.5, "gradient_accumulation_steps": 2}, {}]
)
def test_steps_are_those_training_takes(recipe, training):
    assert dry_run(recipe(training=training)).steps == train(recipe(training=training)).steps


def test_steps_of_an_incomplete_batch():
    arguments = SimpleNamespace(
        max_steps=-1,
        train_batch_size=8,
        gradient_accumulation_steps=4,
        num_train_epochs=3,
        dataloader_drop_last=False,
    )
    assert optimizer_steps(arguments, 33) == 6  # five batches, two steps an epoch
    arguments.dataloader_drop_last = True
    assert optimizer_steps(arguments, 33) == 3
    assert optimizer_steps(arguments, 5) == 3  # as the Trainer has it
