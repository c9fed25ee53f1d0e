"""The memory of one training step, by purpose."""

from types import SimpleNamespace

import pytest

from lorakit.adapters import adapter_state_dict
from lorakit.planning import plan
from lorakit.planning.step_memory import longest_batch, run_step
from lorakit.training.setup import prepare


def test_the_parts_of_the_peak_are_all_of_it(recipe):
    planned = plan(recipe())
    assert sum(planned.at_peak.values()) == planned.peak_bytes
    assert planned.peak_place


def test_a_plan_names_what_is_known_in_closed_form(recipe):
    """Adam keeps two numbers of float32 for each trained one, and nothing for a frozen one."""
    planned = plan(recipe())
    four = 4
    assert planned.adapter_bytes == planned.gradient_bytes == four * planned.trainable
    steps = planned.optimizer_bytes - 2 * four * planned.trainable
    assert 0 <= steps < 1000  # a step counter for each tensor
    assert planned.base_weights_bytes >= four * (planned.total - planned.trainable)


def test_checkpointing_saves_activations(recipe):
    plain, saving = (
        plan(recipe(**{"training.activation_checkpointing": on})) for on in (False, True)
    )
    assert saving.saved_activation_bytes < 0.6 * plain.saved_activation_bytes


@pytest.mark.parametrize(
    ("batch_size", "train_examples", "lengths"),
    [(2, 10, [9, 5]), (2, None, [9, 5]), (4, 10, [9, 5, 9, 5]), (4, 3, [9, 5, 9]), (4, 1, [9])],
)
def test_a_batch_of_the_longest_repeats_them_up_to_what_the_run_has(
    batch_size, train_examples, lengths
):
    arguments = SimpleNamespace(per_device_train_batch_size=batch_size)
    collate = lambda examples: {"lengths": [len(one["input_ids"]) for one in examples]}  # noqa: E731
    trainer = SimpleNamespace(args=arguments, data_collator=collate)
    examples = [{"input_ids": [1] * length} for length in (9, 5)]
    assert longest_batch(trainer, examples, train_examples) == {"lengths": lengths}


def test_a_real_step_leaves_the_trainer_as_it_was_and_the_learning_rate_in_force(recipe, tmp_path):
    setup = prepare(recipe(**{"training.activation_checkpointing": True}), lambda *event: None)
    setup.arguments.output_dir = str(tmp_path)
    trainer = setup.build_trainer()
    model, examples = trainer.model, [setup.encoded.train[0]]
    before = {name: tensor.clone() for name, tensor in adapter_state_dict(model).items()}
    batch = trainer._prepare_inputs(longest_batch(trainer, examples, 1))
    step = run_step(trainer, batch)
    assert step.peak_bytes == sum(step.at_peak.values())
    assert "backward" not in vars(trainer.accelerator) and "forward" not in vars(model)
    assert not model.is_activation_checkpointing
    assert all(p.grad is None for p in model.parameters())
    # One step was taken, with the rate of the recipe: the steps that make the state have rate 0.
    moved = adapter_state_dict(model)
    rate = setup.arguments.learning_rate
    for name, tensor in before.items():
        assert (moved[name] - tensor).abs().max() <= 1.01 * rate, name
    assert any((moved[name] - tensor).abs().max() > 0.5 * rate for name, tensor in before.items())
