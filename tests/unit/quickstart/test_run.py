"""The quickstart's parts, on a tiny model and few rows."""

import json
from pathlib import Path

import pytest
import torch

from lorakit.errors import OutputExistsError
from lorakit.quickstart import compare, run
from lorakit.quickstart.compare import FULL, HEAD_ONLY
from lorakit.quickstart.docstrings import (
    Docstring,
    DocstringFiles,
    DocstringSplits,
    write_splits,
)
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.run_directory import RunDirectory

LABELS = tuple("abcdefghij")


def few_rows(folder: Path, *, seed: int) -> DocstringFiles:
    """Write rows of ten labels, in place of its docstrings."""
    rows = [Docstring(f"{label} number {i}", label) for i in range(6) for label in LABELS]
    return write_splits(DocstringSplits(tuple(rows[20:]), tuple(rows[:20]), LABELS), folder)


@pytest.fixture
def small(monkeypatch, tiny_llama_dir):
    """Make the quickstart small: a tiny base, 40 rows to train on, one short epoch."""
    monkeypatch.setattr(run, "base_model_path", lambda: Path(tiny_llama_dir))
    monkeypatch.setattr(run, "write_docstrings", few_rows)
    monkeypatch.setattr(run, "EPOCHS", 1)
    monkeypatch.setattr(run, "MAX_LENGTH_TOKENS", 24)


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


def test_head_only_trains_the_head_and_full_every_weight(small, tmp_path, monkeypatch):
    seen = {}

    def look(setup, on_event):
        seen[method] = {n for n, p in setup.model.named_parameters() if p.requires_grad}
        seen["all"] = {name for name, _ in setup.model.named_parameters()}
        return [0.1, 0.5, 0.25]

    monkeypatch.setattr(compare, "train_and_evaluate", look)
    files = few_rows(tmp_path, seed=0)
    recipe = run.quickstart_recipe(files, tmp_path / "run", seed=0)
    for method in (HEAD_ONLY, FULL):
        result = compare.train_without_adapter(recipe, method, 1e-3, lambda name, payload: None)
        assert (result.accuracy_before, result.accuracy) == (0.1, 0.5)
    assert seen[HEAD_ONLY] == {"score.weight"}
    assert seen[FULL] == seen["all"]
    assert not (tmp_path / "run").exists()


def test_the_rows_drawn_have_different_labels_and_depend_on_the_seed():
    rows = [{"text": str(i), "label": "abcd"[i % 4]} for i in range(40)]
    drawn = run.sample_examples(rows, seed=0)
    assert len({row["label"] for row in drawn}) == len(drawn) == run.EXAMPLES
    assert drawn == run.sample_examples(rows, seed=0) != run.sample_examples(rows, seed=1)


def test_the_recipe_trains_in_float32(small, tmp_path):
    files = few_rows(tmp_path, seed=0)
    recipe = run.quickstart_recipe(files, tmp_path / "run", seed=3)
    assert recipe.dtype == str(torch.float32).removeprefix("torch.")
    assert recipe.training["seed"] == 3
