from lorakit.planning import plan
from lorakit.planning.alternatives import changes, side_by_side


def test_three_ways_side_by_side_and_the_recipes_is_not_planned_twice(recipe):
    made = recipe(quantization={"bits": 8})
    planned = plan(made)
    ways = side_by_side(made, planned)
    assert list(ways) == ["full fine-tuning", "LoRA", "QLoRA"]
    full, lora, qlora = ways.values()
    assert full.optimizer_bytes > lora.optimizer_bytes == qlora.optimizer_bytes
    assert lora.base_weights_bytes > qlora.base_weights_bytes
    assert qlora is planned


def test_a_way_a_model_cannot_go_is_left_out(recipe, config_dir):
    odd = {"hidden_size": 30, "num_attention_heads": 3, "intermediate_size": 33}
    model = config_dir(vocab_size=33, num_hidden_layers=1, **odd)
    made = recipe(model=model, **{"data.train": "your/data", "data.max_length": 8})
    assert list(side_by_side(made, plan(made))) == ["full fine-tuning", "LoRA"]


def test_changes_say_what_they_save_and_are_true(recipe):
    made = recipe(**{"training.gradient_accumulation_steps": 3})
    planned = plan(made)
    found = changes(made, planned)
    names = [change.name for change in found]
    assert {"activation checkpointing", "one example at a time, accumulated"} <= set(names)
    assert names[-1] == "all of these"
    savings = [change.saves_bytes for change in found[:-1]]
    assert savings == sorted(savings, reverse=True)
    assert min(savings) > 0
    for change in (found[0], found[-1]):
        again = plan(made.with_changes(change.values, "the test"))
        assert planned.peak_bytes - again.peak_bytes == change.saves_bytes > 0
    # The product of batch and accumulation stays.
    one = next(change for change in found if change.name.startswith("one example"))
    assert "training.gradient_accumulation_steps=12" in one.overrides


def test_what_is_done_already_is_not_proposed(recipe):
    made = recipe(
        **{
            "training.activation_checkpointing": True,
            "training.per_device_train_batch_size": 1,
            "training.optim": "memory_mapped_adamw",
            "quantization": {"bits": 4},
            "data.max_length": 40,
        }
    )
    assert changes(made, plan(made)) == []
