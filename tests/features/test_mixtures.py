"""Training draws examples from weighted sources, and resumes to the same bits."""

import pytest

from fixtures.data import write_jsonl
from lorakit.errors import ConfigError, StoppedError
from lorakit.recipes.recipe import Recipe
from lorakit.training import dry_run, train
from lorakit.training.stop_request import StopRequest


def recipe_of(tmp_path, model, output="run", **training):
    short = [{"prompt": "good", "completion": f" film {n}"} for n in range(6)]
    long = [{"q": "tell me " * 8, "a": f" cat {n}"} for n in range(6)]
    sources = [
        {"path": write_jsonl(tmp_path / "short.jsonl", short), "weight": 1.5},
        {
            "path": write_jsonl(tmp_path / "long.jsonl", long),
            "weight": 0.5,
            "columns": {"prompt": "q", "completion": "a"},
        },
    ]
    return Recipe.check(
        {
            "model": model,
            "task": "CAUSAL_LM",
            "data": {"train": sources, "validation_fraction": 0},
            "lora": {"r": 2, "lora_alpha": 4},
            "training": {
                "use_cpu": True,
                "num_train_epochs": 3,
                "per_device_train_batch_size": 2,
                "save_strategy": "epoch",
                **training,
            },
            "output": str(tmp_path / output),
        },
        "the test",
    )


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_a_resumed_mixture_continues_with_the_same_bits(tmp_path, tiny_llama_dir, strategy):
    options = {"train_sampling_strategy": strategy}
    whole = train(recipe_of(tmp_path, tiny_llama_dir, "whole", **options))
    assert whole.steps == 3 * 6  # 9 and 3 examples in batches of 2
    stop = StopRequest()

    def stop_later(event, payload):
        if event == "step" and payload["step"] == 8:
            stop.set()

    recipe = recipe_of(tmp_path, tiny_llama_dir, "stopped", **options)
    with pytest.raises(StoppedError):
        train(recipe, stop=stop, on_event=stop_later)
    resumed = train(recipe, resume=True)

    name = "adapter_model.safetensors"
    one, other = ((result.adapter_path / name).read_bytes() for result in (whole, resumed))
    assert one == other


def test_the_steps_of_a_dry_run_are_those_of_the_mixture(tmp_path, tiny_llama_dir):
    assert dry_run(recipe_of(tmp_path, tiny_llama_dir)).steps == 18


def test_packed_examples_have_no_weights(tmp_path, tiny_llama_dir):
    with pytest.raises(ConfigError, match="Packed examples cannot be drawn by weights"):
        dry_run(recipe_of(tmp_path, tiny_llama_dir, packing=True))
