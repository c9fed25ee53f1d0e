"""The quickstart's parts, on a tiny model and few rows."""

import json

import pytest
import torch

from lorakit.errors import OutputExistsError
from lorakit.quickstart import run
from lorakit.quickstart.compare import FULL, HEAD_ONLY
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.run_directory import RunDirectory


def test_it_trains_compares_and_classifies(small, tmp_path):
    events = []
    result = run.quickstart(
        tmp_path / "out",
        seed=1,
        compare=True,
        on_event=lambda name, payload: events.append((name, payload)),
    )
    assert [payload["method"] for name, payload in events if name == "method"] == [
        "LoRA",
        HEAD_ONLY,
        FULL,
    ]
    lora, head, full = result.methods
    assert (lora.method, head.method, full.method) == ("LoRA", HEAD_ONLY, FULL)
    # Before training there is one and the same model: the base with the head of this seed.
    assert lora.accuracy_before == head.accuracy_before == full.accuracy_before
    assert head.trainable_parameters == 10 * 32
    assert head.trainable_parameters < lora.trainable_parameters < full.trainable_parameters
    assert full.saved_bytes == 4 * full.trainable_parameters
    weights = result.training.adapter_path / "adapter_model.safetensors"
    assert lora.saved_bytes == weights.stat().st_size
    assert all(0 <= method.accuracy <= 1 and method.duration_s > 0 for method in result.methods)
    [row] = [row for row in RunDirectory(result.training.run_dir).metrics() if "count" in row]
    assert result.guessing_accuracy == row["eval_accuracy"] > 0
    assert len({example.label for example in result.examples}) == run.EXAMPLES
    held_out = [
        json.loads(line)["text"]
        for line in (tmp_path / "out/data/validation.jsonl").read_text().splitlines()
    ]
    assert all(example.text in held_out for example in result.examples)
    # The run is an ordinary one: its recipe can be read and run again.
    again = Recipe.load(result.training.run_dir / "recipe.yaml")
    assert again.data.train == str(tmp_path / "out/data/train.jsonl")
    assert not list(tmp_path.glob("out/lora/*head*"))


def test_files_are_not_overwritten(small, tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(OutputExistsError, match="it holds other files"):
        run.quickstart(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_chosen_examples_have_different_labels_and_depend_on_the_seed():
    rows = [{"text": str(i), "label": "abcd"[i % 4]} for i in range(40)]
    chosen = run.sample_examples(rows, seed=0)
    assert len({row["label"] for row in chosen}) == len(chosen) == run.EXAMPLES
    assert chosen == run.sample_examples(rows, seed=0) != run.sample_examples(rows, seed=1)


def test_the_recipe_trains_in_float32(small, tmp_path):
    files = run.write_docstrings(tmp_path, seed=0)
    recipe = run.quickstart_recipe(files, tmp_path / "run", seed=3)
    assert recipe.dtype == str(torch.float32).removeprefix("torch.")
    assert recipe.training["seed"] == 3
