"""A trainer on a model without values."""

from lorakit.planning import plan


def test_a_paged_optimizer_is_not_on_the_gpu(config_dir, recipe):
    model = config_dir(hidden_size=512, intermediate_size=1024, vocab_size=1000)
    changes = {"data.train": "your/data", "data.max_length": 16, "lora.r": 256}
    made = recipe(model=model, **changes, **{"training.use_cpu": False})
    options = {"training.optim": "paged_adamw_32bit"}
    paged = plan(made.with_changes(options, "the test"), device="cuda")
    plain = plan(made, device="cuda")
    assert paged.optimizer_bytes < 0.1 * plain.optimizer_bytes
    eight = plan(made.with_changes({"training.optim": "adamw_8bit"}, "the test"), device="cuda")
    assert 0.2 < eight.optimizer_bytes / plain.optimizer_bytes < 0.3
