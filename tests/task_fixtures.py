"""A recipe brought to life as far as a task takes it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Prepared:
    recipe: Any
    task: Any
    splits: Any
    labels: Any
    tokenizer: Any
    model: Any
    encoded: Any

    def preview_examples(self, n: int = 2):
        return self.task.preview_examples(self.encoded, self.tokenizer, self.labels, n)

    def trainer(self, output: Path, **arguments):
        """Add an adapter and build the trainer without support for adapters; nothing is saved."""
        from lorakit.injection import add_adapter
        from lorakit.injection.state import state_of

        if state_of(self.model) is None:
            add_adapter(self.model, self.task.lora_config(self.recipe, self.model, self.tokenizer))
        values = {
            "output_dir": str(output),
            "use_cpu": True,
            "report_to": [],
            "save_strategy": "no",
            "disable_tqdm": True,
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 8,
            "logging_steps": 1,
            **self.task.default_arguments(self.recipe),
            **arguments,
        }
        return self.task.build_trainer(
            self.model,
            self.tokenizer,
            self.encoded,
            self.task.arguments_class()(**values),
            self.labels,
            trainer_class=self.task.base_trainer_class,
        )


def make_recipe(task: str, model: str, train: str, *, lora=None, training=None, top=None, **data):
    from lorakit.recipes.recipe import Recipe

    values = {"validation_fraction": 0.25, **data}
    return Recipe.check(
        {
            "model": model,
            "task": task,
            "data": {"train": train, **values},
            "lora": lora or {"r": 4, "lora_alpha": 8},
            "training": training or {},
            "output": "never-written",
            **(top or {}),
        },
        "the test",
    )


@pytest.fixture
def recipe_of():
    """Make a recipe: recipe_of(task, model_dir, data_path, **data_keys)."""
    return make_recipe


@pytest.fixture
def prepare():
    """Run a recipe up to its encoded rows: prepare(task, model_dir, data_path, **data_keys)."""

    def run(task: str, model: str, train: str, **options) -> Prepared:
        from lorakit.data import load_splits
        from lorakit.training.tasks import task_for

        recipe = make_recipe(task, model, train, **options)
        chosen = task_for(recipe.task)
        splits = load_splits(recipe.data, 42, chosen.label_column(recipe), chosen.columns(recipe))
        labels = chosen.labels(splits, recipe)
        tokenizer = chosen.load_tokenizer(recipe)
        base = chosen.load_base(recipe, tokenizer, labels)
        encoded = chosen.encode(splits, recipe, tokenizer, base, labels)
        return Prepared(recipe, chosen, splits, labels, tokenizer, base, encoded)

    return run


@pytest.fixture
def jsonl(tmp_path):
    """Write rows to a JSON lines file and return its path."""
    import json

    def write(rows: list[dict], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write
